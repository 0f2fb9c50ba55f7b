"""The server, its one project, and what can go wrong with it."""

import base64
import collections
import http.server
import json
import threading
import time
import typing as tp

from .query import Json, Query, QueryError

KEY = "0123456789abcdef0123456789abcdef01234567"

DROP = "drop"
"""A fault: the connection is closed without an answer."""

HANG = "hang"
"""A fault: no answer until `LoopbackWandb.let_go` is set, or the server is closed."""

RUN_FIELDS = """id projectId name displayName state createdAt heartbeatAt config summaryMetrics
systemMetrics tags sweepName group jobType commit readOnly description notes historyLineCount
historyKeys user"""
TYPES = {
    "Query": ("viewer", "serverInfo", "project"),
    "Mutation": (),
    "ServerInfo": ("cliVersionInfo", "latestLocalVersionInfo", "features"),
    "Project": ("internalId", "readOnly", "runCount", "runs", "run"),
    "Run": tuple(RUN_FIELDS.split()),
}
"""The fields of each type, for clients that ask which ones there are."""


class Status(tp.NamedTuple):
    """A fault: an HTTP status instead of an answer."""

    code: int
    retry_after: int | None = None


class LoopbackWandb:
    """A W&B server on a free port of 127.0.0.1, with one project.

    Args:
        runs: The project's runs: objects with name, state, createdAt, config, summary.
            A config or summary that is a string is sent as it is; an object is sent as
            W&B would (JSON in a string, each config value wrapped).
        key: The API key that is accepted.
        latency: Seconds by which each answer is delayed.
    """

    def __init__(
        self,
        runs: tp.Iterable[Json] = (),
        *,
        key: str = KEY,
        entity: str = "samuelstevens",
        project: str = "saev",
        latency: float = 0.0,
    ):
        self.runs = {run["name"]: run for run in runs}
        self.key, self.entity, self.project = key, entity, project
        self.latency = latency
        self.n_requests: collections.Counter[str] = collections.Counter()
        """How often each operation was requested, by its name in the query."""
        self.pages: list[tuple[int, int]] = []
        """For each page of runs: how many runs passed its filter, and how many a page may hold."""
        self.faults: dict[str, list[Status | str | None]] = collections.defaultdict(
            list
        )
        """By operation, what happens to each of its next requests; None: it is answered."""
        self.let_go = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> tp.Self:
        handler = type("Handler", (_Handler,), {"wandb": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def n_total(self) -> int:
        return sum(self.n_requests.values())

    def fault_for(self, operation: str) -> Status | str | None:
        with self._lock:
            self.n_requests[operation] += 1
            return self.faults[operation].pop(0) if self.faults[operation] else None

    # ---- what a query sees -------------------------------------------------------------------

    def root(self) -> Json:
        viewer = {
            "id": "VXNlcjox",
            "entity": self.entity,
            "username": self.entity,
            "name": "Someone",
            "email": "someone@example.org",
            "flags": "{}",
            "admin": False,
            "teams": {"edges": []},
            "apiKeys": {"edges": []},
        }
        server_info: Json = {
            "cliVersionInfo": {"max_cli_version": "99.0.0"},
            "latestLocalVersionInfo": None,
            "features": [],
        }
        return {
            "viewer": viewer,
            "serverInfo": server_info,
            "project": self._project,
            "__type": _type,
        }

    def _project(self, name: str, entityName: str) -> Json | None:
        if (entityName, name) != (self.entity, self.project):
            return None
        return {
            "internalId": "UHJvamVjdDox",
            "readOnly": True,
            "runCount": lambda filters="{}": len(self._filtered(filters)),
            "runs": self._page,
            "run": self._run,
        }

    def _run(self, name: str) -> Json | None:
        run = self.runs.get(name)
        return _run_fields(run) if run else None

    def _filtered(self, filters: str) -> list[Json]:
        """The runs that pass a filter, which is {}, {"name": {"$in": […]}}, {"sweep": …} or
        {"state": …}."""
        runs = list(self.runs.values())
        match list(json.loads(filters).items()):
            case []:
                return runs
            case [("name", {"$in": [*names], **more})] if not more:
                return [run for run in runs if run["name"] in names]
            case [("sweep" | "state" as key, value)]:
                return [run for run in runs if run.get(key) == value]
        raise QueryError(f"unknown filter: {filters}")

    def _page(
        self,
        filters: str = "{}",
        after: str | None = None,
        first: int = 50,
        order: str = "+created_at",
    ) -> Json:
        if order not in ("+created_at", "-created_at") or not 0 < first <= 1000:
            raise QueryError(f"order {order!r}, first {first!r}")
        found = self._filtered(filters)
        found.sort(key=lambda run: run["createdAt"], reverse=order.startswith("-"))
        self.pages.append((len(found), first))
        start = _position(after) if after else 0
        page = found[start : start + first]
        edges = [
            {"node": _run_fields(run), "cursor": _cursor(start + i)}
            for i, run in enumerate(page, start=1)
        ]
        page_info = {
            "endCursor": edges[-1]["cursor"] if edges else None,
            "hasNextPage": start + first < len(found),
        }
        return {"edges": edges, "pageInfo": page_info}


def _run_fields(run: Json) -> Json:
    config, summary = run.get("config", {}), run.get("summary", {})
    if isinstance(config, dict):
        config = json.dumps({k: {"value": v, "desc": None} for k, v in config.items()})
    if isinstance(summary, dict):
        summary = json.dumps(summary)
    return dict.fromkeys(TYPES["Run"]) | {
        "id": f"run-{run['name']}",
        "projectId": "1",
        "name": run["name"],
        "displayName": f"run {run['name']}",
        "state": run["state"],
        "createdAt": run["createdAt"],
        "heartbeatAt": run["createdAt"],
        "config": config,
        "summaryMetrics": summary,
        "systemMetrics": "{}",
        "tags": [],
        "readOnly": True,
        "historyLineCount": 1,
        "historyKeys": {"keys": {}},
        "user": run.get("user", {"name": "Someone", "username": "someone"}),
    }


def _type(name: str) -> Json | None:
    if name not in TYPES:
        return None
    return {"name": name, "fields": [{"name": field} for field in TYPES[name]]}


def _cursor(position: int) -> str:
    return base64.b64encode(f"after:{position}".encode()).decode()


def _position(cursor: str) -> int:
    return int(base64.b64decode(cursor).decode().removeprefix("after:"))


# ---- HTTP ------------------------------------------------------------------------------------


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that hung up is no reason for a traceback."""


class _Handler(http.server.BaseHTTPRequestHandler):
    wandb: LoopbackWandb
    wbufsize = -1
    """Headers and body are sent together: apart, the body waits 40 ms for the client's ACK."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            return self._answer(404, {"errors": [{"message": f"no {self.path}"}]})
        request = json.loads(body)
        try:
            query = Query(request["query"])
        except QueryError as err:
            return self._answer(400, {"errors": [{"message": str(err)}]})
        fault = self.wandb.fault_for(query.name)
        time.sleep(self.wandb.latency)
        if fault == HANG:
            self.wandb.let_go.wait()
        if fault in (DROP, HANG):
            self.close_connection = True
            return
        if isinstance(fault, Status):
            return self._answer(
                fault.code, {"errors": [{"message": "a fault"}]}, fault.retry_after
            )
        login = base64.b64encode(f"api:{self.wandb.key}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            return self._answer(401, {"errors": [{"message": "user is not logged in"}]})
        try:
            data = query.answer(self.wandb.root(), request.get("variables") or {})
        except QueryError as err:
            return self._answer(400, {"errors": [{"message": str(err)}]})
        self._answer(200, {"data": data})

    def _answer(
        self, status: int, content: Json, retry_after: int | None = None
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(body)
