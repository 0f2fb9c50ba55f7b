"""Runs from W&B, through its own client, many per request.

A run's record is the same as in an export; see `snapshot`.
"""

import atexit
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
"""Runs per request. Halved when a request fails, since a long page may be the cause."""

BATCH = 1000
"""Ids per query. Every page of a query repeats them all, so more would make requests too long."""

CLIENT_SETTINGS = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    # By default the newest client retries for many minutes. Our own retries come on top.
    "WANDB_HTTP_TIMEOUT": "20",
    "WANDB_X_GRAPHQL_RETRY_MAX": "2",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "20",
}

OF_A_RUN = (
    *("MODE", "DISABLED", "CONSOLE", "RESUME", "RUN_ID", "SWEEP_ID"),
    "START_METHOD",
)
"""The client's settings for logging a run, without WANDB_. A job may leave them in the
environment, and the client fails on an invalid one even though we only read runs."""

PAUSES = (0.5, 1, 2, 4)
"""Seconds between our attempts."""

LOGIN_TIMEOUT, PAGE_TIMEOUT = 25, 120
"""Seconds after which we give up on a step, including retries and pauses."""

TEARDOWN_TIMEOUT = 5
"""Seconds that the client's service gets to end. After a request that was given up it may miss
that it should, and would stay for ten minutes."""

REFUSED = (400, 401, 403, 404, 409)
"""HTTP statuses that a retry won't change."""

OFFLINE = "or read an export instead (METRICS_SNAPSHOT=<file>)"


class _TimeIsUp(BaseException):
    """Not an Exception, because the client would swallow that."""


def fetch(entity: str, project: str, run_ids: list[str]) -> dict[str, Record]:
    """The record of each run that W&B has, by id.

    Args:
        entity: The runs' entity.
        project: The runs' project.
        run_ids: Ids, without duplicates.

    Raises:
        UserError: No key or a wrong one, no such project, or no answer after several attempts.
    """
    batches = [run_ids[i : i + BATCH] for i in range(0, len(run_ids), BATCH)]
    filters = [{"name": {"$in": batch}} for batch in batches]
    found = _ask(entity, project, filters, len(run_ids))
    return {record["name"]: record for record in found}


def listed(entity: str, project: str, filters: dict[str, tp.Any]) -> list[Record]:
    """The record of each run that the filters match, oldest first.

    Args:
        filters: As for `wandb.Api().runs`; {"sweep": <id>} for a sweep's runs.

    Raises:
        UserError: As `fetch`.
    """
    found = _ask(entity, project, [filters], None)
    return sorted(found, key=lambda record: (str(record["createdAt"]), record["name"]))


def _ask(
    entity: str, project: str, filters: list[dict[str, tp.Any]], n_most: int | None
) -> list[Record]:
    """The record of each of a project's runs that one of the filters matches."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in OF_A_RUN:
        os.environ.pop(f"WANDB_{name}", None)
    # The client creates a directory for each run, unless it can't.
    os.environ["WANDB_DIR"] = os.devnull
    if not settings.get("WANDB_BASE_URL"):
        # The client would use an empty one, which .env may set, as an address.
        os.environ.pop("WANDB_BASE_URL", None)
    with _quiet():
        import wandb  # outside the time limit: it may take long from a shared disk

        try:
            login = functools.partial(wandb.Api, {"entity": entity, "project": project})
            with _stderr_closed():
                api = _retrying(login, LOGIN_TIMEOUT)
            found = _records(api, entity, project, filters)
            if n_most is not None:
                found = progress(found, n_most, "runs from W&B")
            return list(found)
        except Exception as err:
            raise _explained(err, wandb, entity, project) from err
        finally:
            # Later than the client's own, and therefore called first.
            atexit.register(_end_service)


def _end_service() -> None:
    """End the client's service, or leave it: it ends itself some time after this process."""
    import wandb

    with contextlib.suppress(Exception, _TimeIsUp), _time_limit(TEARDOWN_TIMEOUT):
        wandb.teardown()


@contextlib.contextmanager
def _quiet() -> tp.Iterator[None]:
    """Keep the client from prompting and warning, so that only our one line is printed."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdin = stdin


@contextlib.contextmanager
def _stderr_closed() -> tp.Iterator[None]:
    """Silence what the client, and the process that it starts, print about their own files."""
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
    # The client knows the host, which may come from its own settings file.
    pages = api.project(project, entity).url.removesuffix("workspace") + "runs/"
    options: dict[str, tp.Any] = {"per_page": PAGE, "include_sweeps": False}
    if "lazy" in inspect.signature(api.runs).parameters:
        # A lazy run costs another request as soon as its config is read.
        options["lazy"] = False
    for wanted in filters:
        query = functools.partial(api.runs, f"{entity}/{project}", wanted, **options)
        runs, answer = _retrying(query), None
        while answer := _retrying(functools.partial(_next_answer, runs, answer)):
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
    """W&B's answer with the page of runs after `answer`'s; None after the last.

    We use the raw answer, because the client drops a whole page if it can't parse one run.
    """
    if runs.last_response is answer:
        try:
            runs[len(runs.objects)]  # makes the client request another page
        except Exception as err:
            if runs.last_response is answer:
                if isinstance(err, IndexError):
                    return None
                runs.per_page = max(runs.per_page // 2, 25)
                raise
            if not runs.last_response.get("project"):
                raise
    return runs.last_response


def _retrying(call: tp.Callable[[], tp.Any], seconds: float = PAGE_TIMEOUT) -> tp.Any:
    """The result of `call`, after retries if necessary.

    Raises:
        Exception: The last attempt's error, or the first that is not transient.
        TimeoutError: There was no answer, not even an error, for `seconds`.
    """
    last: Exception = TimeoutError("timed out")

    def remember(err: Exception, _: float) -> None:
        nonlocal last
        last = err

    try:
        with _time_limit(seconds):
            return retry.call(call, PAUSES, _is_transient, _retry_after, remember)
    except _TimeIsUp:
        pass
    raise last


@contextlib.contextmanager
def _time_limit(seconds: float) -> tp.Iterator[None]:
    """Raise _TimeIsUp in the body after `seconds`."""

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
    """Whether the request failed, rather than the parsing of its answer.

    Only then can a page be requested again; otherwise the client has moved on to the next.
    """
    return any(isinstance(e, OSError) or hasattr(e, "response") for e in _chain(err))


def _status(err: BaseException) -> int | None:
    """The HTTP status behind an error, as either version of the client stores it."""
    for e in _chain(err):
        response = getattr(e, "response", None)
        for name in ("http_status", "status_code"):
            status = getattr(response, name, None)
            if isinstance(status, int) and status:
                return status
    return None


def _is_transient(err: BaseException) -> bool:
    return _is_transport(err) and _status(err) not in REFUSED


def _retry_after(err: BaseException) -> float | None:
    """The seconds that the server asks us to wait, if the client passes that on."""
    for e in _chain(err):
        headers = getattr(getattr(e, "response", None), "headers", {})
        if (seconds := retry.requested_wait(headers)) is not None:
            return seconds
    return None


def _explained(err: Exception, wandb: tp.Any, entity: str, project: str) -> UserError:
    """The client's error as one line."""
    root = _chain(err)[-1]
    status = _status(err)
    base = settings.get("WANDB_BASE_URL")
    where = f"W&B at {base}" if base else "W&B"
    text = str(root) or type(root).__name__
    # "POST …: Post …: dial tcp …: connection refused": the end has the reason.
    reason = f"HTTP {status}" if status else text.rsplit(": ", 1)[-1].rstrip(".")
    detail = f"HTTP {status}: {text}" if status else text
    if isinstance(err, ValueError) and (names := _named_in(err)):
        return UserError(f"{names}: W&B's client can't read it: {detail[:200]}")
    if isinstance(err, wandb.errors.UsageError) and "api" in str(err).lower():
        return UserError(f"no API key for {where}; export WANDB_API_KEY {OFFLINE}")
    if status in (401, 403) or isinstance(root, wandb.errors.AuthenticationError):
        return UserError(
            f"{where} rejects the API key ({reason}); export a valid WANDB_API_KEY"
        )
    if isinstance(root, ValueError) and "find project" in str(root):
        return UserError(
            f'{where} has no project "{project}" of "{entity}" that this key can access;'
            " set WANDB_ENTITY and WANDB_PROJECT"
        )
    if _is_transient(err):
        return UserError(
            f"no answer from {where} ({reason}); try again later, check the network and"
            f" WANDB_BASE_URL, {OFFLINE}"
        )
    return UserError(f"{where}: wandb {wandb.__version__} failed: {detail[:200]}")


def _named_in(err: Exception) -> str:
    """The client's settings whose value an error cites."""
    text = str(err)
    given = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
    return " and ".join(k for k, v in given.items() if v and repr(v) in text)
