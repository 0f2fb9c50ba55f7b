"""The loopback Hub: its routes, its start and stop, and a look inside."""

import os
import pathlib
import re
import secrets
import threading
import typing as tp
import urllib.parse

from . import access, collection_api, repos, uploads
from .access import User
from .store import Store
from .wire import Handler, HubError, Json, Response, Server

REPO = r"([^/]+/[^/]+?)"
MODEL, COLLECTION = f"/api/models/{REPO}", f"/api/collections/{REPO}"
LFS = rf"/{REPO}\.git/info/lfs/objects"
ROUTES: list[tuple[str, str, str, tp.Callable[..., Response]]] = [
    # method, path, kind (for counts and faults), handler
    ("GET", "/api/whoami-v2", "whoami", access.whoami),
    ("POST", "/api/repos/create", "create_repo", access.create_repo),
    ("POST", "/api/validate-yaml", "validate_yaml", uploads.validate_yaml),
    ("GET", MODEL, "info", repos.info),
    ("GET", f"{MODEL}/revision/([^/]+)", "info", repos.info),
    ("GET", f"{MODEL}/auth-check", "auth_check", access.auth_check),
    ("GET", f"{MODEL}/auth-check/write", "auth_check", access.auth_check_write),
    ("GET", f"{MODEL}/commits/([^/]+)", "commits", repos.commits),
    ("GET", f"{MODEL}/tree/([^/]+)", "tree", repos.tree),
    ("GET", f"{MODEL}/tree/([^/]+)/(.+)", "tree", repos.tree),
    ("POST", f"{MODEL}/preupload/([^/]+)", "preupload", uploads.preupload),
    ("POST", f"{MODEL}/commit/([^/]+)", "commit", uploads.commit),
    ("GET", f"{MODEL}/xet-(read|write)-token/([^/]+)", "xet_token", repos.xet_token),
    ("POST", f"{LFS}/batch", "lfs_batch", uploads.lfs_batch),
    ("POST", f"{LFS}/verify", "lfs_verify", uploads.lfs_verify),
    ("PUT", f"/lfs/{REPO}/([0-9a-f]{{64}})/(\\d+)/(\\d+)", "lfs_put", uploads.lfs_put),
    ("GET", f"/{REPO}/resolve/([^/]+)/(.+)", "resolve", repos.resolve),
    ("GET", "/api/collections", "collection_list", collection_api.list_all),
    ("POST", "/api/collections", "collection_create", collection_api.create),
    ("GET", COLLECTION, "collection_get", collection_api.get),
    ("POST", f"{COLLECTION}/items", "collection_add", collection_api.add_item),
]


class Fault:
    """Something that a test makes go wrong. Both methods may raise `HubError` or `Drop`."""

    def before(self, kind: str, request: Handler) -> None:
        """Called before anything is done; `request.body` can be read."""

    def after(self, kind: str, request: Handler) -> None:
        """Called when the work is done, before it is answered."""


class LoopbackHub:
    """A Hub on a free port of 127.0.0.1, with its state in a directory.

        with LoopbackHub("build/hub", tokens={token: {"name": "me", "role": "write"}}) as hub:
            HfApi(endpoint=hub.endpoint, token=token).create_repo("me/model")

    Args:
        dpath: Where the state is kept. What an earlier Hub left there is served again.
        tokens: The user that each token belongs to: {"name", "orgs": [...], "role"}, the role
            "read", "write", or "fineGrained" with "scoped": {namespace: [permissions]},
            where permissions are "repo.write" and "collection.write".
        faults: See `Fault`; the list may change while the Hub runs.

    Attributes:
        endpoint: Its URL, for `HfApi(endpoint=…)` or HF_ENDPOINT.
        requests: (method, kind) of every request since the start; `ROUTES` has the kinds.
        errors: Tracebacks of the Hub's own mistakes. A test ends by checking that there are none.

    Raises:
        InUse: Another process runs a Hub on `dpath`.
    """

    def __init__(
        self,
        dpath: str | os.PathLike[str],
        *,
        tokens: dict[str, Json],
        faults: list[Fault] | None = None,
    ):
        self.tokens = dict(tokens)
        self.faults = [] if faults is None else faults
        self.requests: list[tuple[str, str]] = []
        self.errors: list[str] = []
        self.secret = secrets.token_bytes(32)
        self.store = Store(pathlib.Path(dpath).resolve())
        self.shelf = collection_api.Collections(self.store)
        self._n_body_bytes = 0
        self._n_xet_bytes_at_start = self._n_xet_bytes()
        self._n_busy, self._idle = 0, threading.Condition()
        self._server = Server(self)
        self.endpoint = "http://{}:{}".format(*self._server.server_address)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            daemon=True,
        )

    def __enter__(self) -> tp.Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop: after this no request is answered, and none is half done."""
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        with self._idle:
            self._idle.wait_for(lambda: self._n_busy == 0)
        self._server.server_close()
        self.store.close()

    def serve(self, request: Handler) -> Response:
        """Answer one request. Raises `HubError` for an answer that refuses."""
        with self._idle:
            self._n_busy += 1
        try:
            return self._serve(request)
        finally:
            with self._idle:
                self._n_busy -= 1
                self._idle.notify_all()

    def _serve(self, request: Handler) -> Response:
        kind, answer, args = _route(request)
        self.requests.append((request.command, kind))
        for fault in list(self.faults):
            fault.before(kind, request)
        # Keep out a web page whose host name has been made to point to this address.
        if request.headers.get("Host") != self.endpoint.removeprefix("http://"):
            raise HubError(421, "The loopback Hub is for this machine alone")
        request.user = self._user(request)
        if kind in ("lfs_put", "commit"):
            request.body.count = self._count
        response = answer(request, *args)
        for fault in list(self.faults):
            fault.after(kind, request)
        return response

    def _count(self, n_bytes: int) -> None:
        with self._idle:
            self._n_body_bytes += n_bytes

    def _user(self, request: Handler) -> User | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if scheme != "Bearer" or token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return User(**self.tokens[token])

    # A look inside, for people and tests.

    @property
    def bytes_received(self) -> int:
        """Bytes of content received since the start: LFS objects, commits, Xet chunks."""
        return self._n_body_bytes + self._n_xet_bytes() - self._n_xet_bytes_at_start

    def _n_xet_bytes(self) -> int:
        return sum(repo.xet.n_bytes() for repo in list(self.store.repos.values()))

    def commits(self, repo_id: str) -> list[Json]:
        """A repo's commits, newest first: "id", "title", "author", "files" and more."""
        return list(reversed(self.store.repos[repo_id].commits))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, tuple[int, str]]:
        """Size in bytes and sha256 of each file by its path."""
        files = self.store.repos[repo_id].at(revision)["files"]
        return {path: (f["size"], f["sha256"]) for path, f in files.items()}

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        repo = self.store.repos[repo_id]
        return repo.object_fpath(
            repo.at(revision)["files"][path]["sha256"]
        ).read_bytes()

    def collections(self) -> list[Json]:
        """All collections whole: "slug", "title", "description", "items" and more."""
        return [
            c | {"slug": collection_api.slug_of(c), "items": list(c["items"])}
            for c in self.shelf.all
        ]

    # What there is before a rehearsal.

    def add_repo(self, repo_id: str, *, private: bool = False) -> None:
        self.store.create(repo_id, repo_id.partition("/")[0], private=private)

    def rename_repo(self, repo_id: str, new_id: str) -> None:
        """Rename a repo; from then on the old name redirects to the new one."""
        self.store.rename(repo_id, new_id)

    def add_collection(
        self,
        namespace: str,
        title: str,
        *,
        collection_id: str | None = None,
        description: str | None = None,
        private: bool = False,
        items: tp.Iterable[tuple[str, str]] = (),
    ) -> str:
        """Create a collection as it is on the real Hub, and return its slug.

        Args:
            collection_id: The 24 hex digits at the end of its slug.
            items: (id, type) of each; they need not exist on this Hub.
        """
        collection = self.shelf.add(
            namespace, title, description, private, collection_id
        )
        for item_id, item_type in items:
            self.shelf.add_item(collection, item_id, item_type, None)
        return collection_api.slug_of(collection)


def _route(request: Handler) -> tuple[str, tp.Callable[..., Response], list[str]]:
    method = "GET" if request.command == "HEAD" else request.command
    for wanted, pattern, kind, answer in ROUTES:
        if wanted == method and (match := re.fullmatch(pattern, request.url_path)):
            args = [urllib.parse.unquote(arg) for arg in match.groups()]
            return kind, answer, args
    return "unknown", _unknown, []


def _unknown(request: Handler) -> Response:
    what = f"{request.command} {request.url_path}"
    raise HubError(404, f"The loopback Hub does not know {what}")
