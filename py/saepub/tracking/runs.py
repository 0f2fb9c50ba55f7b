"""Runs from W&B, asked for with its own client, many in one request.

A run's record is what an export has too; see `snapshot`.
"""

import contextlib
import functools
import inspect
import io
import os
import signal
import sys
import typing as tp
import urllib.parse
import warnings

from .. import retry, settings
from ..cli import UserError
from ..text import progress
from . import snapshot
from .snapshot import Record

PAGE = 250
"""Runs a request. Halved when a request fails, since a long page may be what failed."""

BATCH = 1000
"""Ids a query. Each of its pages repeats them, so a query has only so many."""

CLIENT_SETTINGS = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    # Left alone, the newest client tries for many minutes; after its own tries come ours.
    "WANDB_HTTP_TIMEOUT": "20",
    "WANDB_X_GRAPHQL_RETRY_MAX": "2",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "20",
}

OF_A_RUN = (
    "MODE",
    "DISABLED",
    "CONSOLE",
    "RESUME",
    "RUN_ID",
    "SWEEP_ID",
    "START_METHOD",
)
"""Settings of the client, after WANDB_, for runs that are being logged. A job may leave them in
the environment, and the client stops at one that it can't read, though it reads runs only."""

PAUSES = (0.5, 1, 2, 4)
"""Seconds between our tries, of which there is one more than pauses."""

LOGIN_PATIENCE, PAGE_PATIENCE = 25, 120
"""Seconds after which a step is given up, tries and pauses included."""

REFUSED = (400, 401, 403, 404, 409)
"""HTTP statuses that another try won't change."""

OFFLINE = "or read an export instead (METRICS_SNAPSHOT=<file>)"


class _TimeIsUp(BaseException):
    """Not an Exception: the client would swallow it."""


def fetch(entity: str, project: str, run_ids: list[str]) -> dict[str, Record]:
    """The record of each run that W&B has, by id.

    Args:
        entity: Whose runs.
        project: Of which project.
        run_ids: Different ids.

    Raises:
        UserError: No key or a wrong one, no such project, or no answer after several tries.
    """
    batches = [run_ids[i : i + BATCH] for i in range(0, len(run_ids), BATCH)]
    filters = [{"name": {"$in": batch}} for batch in batches]
    found = _ask(entity, project, filters, len(run_ids))
    return {record["name"]: record for record in found}


def listed(entity: str, project: str, filters: dict[str, tp.Any]) -> list[Record]:
    """The record of each run that filters let through, in order of time.

    Args:
        filters: As `wandb.Api().runs` takes them; {"sweep": <id>} for a sweep's.

    Raises:
        UserError: As `fetch`.
    """
    found = _ask(entity, project, [filters], None)
    return sorted(found, key=lambda record: (str(record["createdAt"]), record["name"]))


def _ask(
    entity: str, project: str, filters: list[dict[str, tp.Any]], n_most: int | None
) -> list[Record]:
    """The record of each of a project's runs that one of the filters lets through."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in OF_A_RUN:
        os.environ.pop(f"WANDB_{name}", None)
    # The client makes a directory for each run that it sees, and goes on where it can't.
    os.environ["WANDB_DIR"] = os.devnull
    if not settings.get("WANDB_BASE_URL"):
        # The client takes an empty one, as an .env may have it, for an address.
        os.environ.pop("WANDB_BASE_URL", None)
    with _quiet():
        import wandb  # may take long from a shared disk, and no patience is lost on that

        try:
            login = functools.partial(wandb.Api, {"entity": entity, "project": project})
            with _stderr_closed():
                api = _patiently(login, LOGIN_PATIENCE)
            found = _records(api, entity, project, filters)
            if n_most is not None:
                found = progress(found, n_most, "runs from W&B")
            return list(found)
        except Exception as err:
            raise _told(err, wandb, entity, project) from err


@contextlib.contextmanager
def _quiet() -> tp.Iterator[None]:
    """Keep the client from asking and warning: our one line stands alone."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdin = stdin


@contextlib.contextmanager
def _stderr_closed() -> tp.Iterator[None]:
    """Keep to itself what the client, and the process that it starts, say of its own files."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _records(
    api: tp.Any, entity: str, project: str, filters: list[dict[str, tp.Any]]
) -> tp.Iterator[Record]:
    """The records of the runs that W&B has, in no particular order."""
    # The client knows the host, which may stand in its own settings file.
    pages = api.project(project, entity).url.removesuffix("workspace") + "runs/"
    options: dict[str, tp.Any] = {"per_page": PAGE, "include_sweeps": False}
    if "lazy" in inspect.signature(api.runs).parameters:
        # A lazy run costs a request of its own as soon as its config is read.
        options["lazy"] = False
    for wanted in filters:
        query = functools.partial(api.runs, f"{entity}/{project}", wanted, **options)
        runs, answer = _patiently(query), None
        while answer := _patiently(functools.partial(_next_answer, runs, answer)):
            for edge in answer["project"]["runs"]["edges"]:
                run = edge["node"]
                yield snapshot.record(
                    {
                        "name": run["name"],
                        "state": run["state"],
                        "createdAt": run["createdAt"],
                        "url": urllib.parse.quote(pages + run["name"], safe=":/"),
                        "config": run["config"],
                        "summary": run["summaryMetrics"],
                    }
                )


def _next_answer(runs: tp.Any, answer: tp.Any) -> tp.Any:
    """W&B's answer with the page of runs that follows `answer`'s; None after the last.

    This is the raw answer, because the client drops a whole page if it can't read one run.
    """
    if runs.last_response is answer:
        try:
            runs[len(runs.objects)]  # the client asks for another page
        except Exception as err:
            if runs.last_response is answer:
                if isinstance(err, IndexError):
                    return None
                runs.per_page = max(runs.per_page // 2, 25)
                raise
            if not runs.last_response.get("project"):
                raise
    return runs.last_response


def _patiently(call: tp.Callable[[], tp.Any], seconds: float = PAGE_PATIENCE) -> tp.Any:
    """What `call` returns, which may take several tries.

    Raises:
        Exception: What the last try raised, or the first that no other try would mend.
        TimeoutError: There was no answer, not even an error, for `seconds`.
    """
    last: Exception = TimeoutError("timed out")

    def keep(err: Exception, _: float) -> None:
        nonlocal last
        last = err

    try:
        with _time_limit(seconds):
            return retry.call(call, PAUSES, _may_pass, _retry_after, keep)
    except _TimeIsUp:
        pass
    raise last


@contextlib.contextmanager
def _time_limit(seconds: float) -> tp.Iterator[None]:
    """Raises _TimeIsUp in the body when `seconds` are over."""

    def ring(*_: object) -> tp.NoReturn:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- errors ----------------------------------------------------------------------------------


def _chain(err: BaseException | None) -> list[BaseException]:
    """The error and what caused it, the root cause last."""
    found: list[BaseException] = []
    while err is not None:
        found.append(err)
        err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
    return found


def _is_transport(err: BaseException) -> bool:
    """Whether the request failed, rather than the reading of its answer.

    Only then may a page be asked for again: the client has moved on to the next otherwise.
    """
    return any(isinstance(e, OSError) or hasattr(e, "response") for e in _chain(err))


def _status(err: BaseException) -> int | None:
    """The HTTP status of the answer behind an error, as either client keeps it."""
    for e in _chain(err):
        response = getattr(e, "response", None)
        for name in ("http_status", "status_code"):
            status = getattr(response, name, None)
            if isinstance(status, int) and status:
                return status
    return None


def _may_pass(err: BaseException) -> bool:
    return _is_transport(err) and _status(err) not in REFUSED


def _retry_after(err: BaseException) -> float | None:
    """The seconds that the server wants us to wait, where the client tells."""
    for e in _chain(err):
        headers = getattr(getattr(e, "response", None), "headers", {})
        if (seconds := retry.requested_wait(headers)) is not None:
            return seconds
    return None


def _told(err: Exception, wandb: tp.Any, entity: str, project: str) -> UserError:
    """The one line for whatever the client raised."""
    root = _chain(err)[-1]
    status = _status(err)
    base = settings.get("WANDB_BASE_URL")
    where = f"W&B at {base}" if base else "W&B"
    text = str(root) or type(root).__name__
    # "POST …: Post …: dial tcp …: connection refused" says it all at its end.
    reason = f"HTTP {status}" if status else text.rsplit(": ", 1)[-1].rstrip(".")
    detail = f"HTTP {status}: {text}" if status else text
    if isinstance(err, ValueError) and (names := _named_in(err)):
        return UserError(f"{names}: W&B's client can't read it: {detail[:200]}")
    if isinstance(err, wandb.errors.UsageError) and "api" in str(err).lower():
        return UserError(f"no API key for {where}; export WANDB_API_KEY {OFFLINE}")
    if status in (401, 403) or isinstance(root, wandb.errors.AuthenticationError):
        return UserError(
            f"{where} refuses the API key ({reason}); export a right WANDB_API_KEY"
        )
    if isinstance(root, ValueError) and "find project" in str(root):
        return UserError(
            f'{where} has no project "{project}" of "{entity}" that this key may see;'
            f" set WANDB_ENTITY and WANDB_PROJECT"
        )
    if _may_pass(err):
        return UserError(
            f"no answer from {where} ({reason}); try again later, check the network and"
            f" WANDB_BASE_URL, {OFFLINE}"
        )
    return UserError(f"{where}: wandb {wandb.__version__} gives up: {detail[:200]}")


def _named_in(err: Exception) -> str:
    """The client's settings whose value an error cites."""
    text = str(err)
    given = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
    return " and ".join(k for k, v in given.items() if v and repr(v) in text)
