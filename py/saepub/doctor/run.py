"""Runs doctor's checks in parallel, each in a separate process.

So none can block or break another, and clients' output and child processes are contained.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import time
import typing as tp

from ..cli import UserError, end_on_interrupt, interrupts_held, message_of

OK, TODO, BAD = "ok", "todo", "bad"
"""Nothing to do; something to do before a release; something to do before a dry run."""

NETWORK_SECONDS = 10
"""How long a check may wait for a server."""

SECONDS = 60
"""How long a check may take. On a cluster, importing torch may take half of that."""


class Finding(tp.NamedTuple):
    level: str
    what: str
    text: str


class Check(tp.NamedTuple):
    what: str
    run: tp.Callable[[], tp.Iterable[tuple[str, str]]]
    """Yields levels and texts. May raise."""
    level: str = BAD
    """The level of the finding if the check dies or times out."""
    silent: str = "no answer; the check died or took too long"


def examine(checks: tp.Sequence[Check]) -> tp.Iterator[Finding]:
    """Run all checks in parallel; yield their findings in the checks' order."""
    context = multiprocessing.get_context("fork")
    deadline = time.monotonic() + SECONDS
    children = []
    try:
        for check in checks:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_in_child, args=(check, sender))
            with interrupts_held():
                child.start()
            sender.close()
            children.append((check, receiver, child))
        for check, receiver, _ in children:
            found = [(check.level, check.silent)]
            with contextlib.suppress(EOFError):  # it died, or its watchdog ended it
                if receiver.poll(max(0, deadline - time.monotonic())):
                    found = receiver.recv()
            for level, text in found:
                yield Finding(level, check.what, text)
    finally:
        for _, _, child in children:
            _kill(child)


def _in_child(check: Check, sender: tp.Any) -> None:
    end_on_interrupt()
    os.setsid()  # so that `_kill` reaches whatever a client starts
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        found = list(check.run())
    except Exception as err:  # noqa: BLE001, a check that fails is a finding
        is_users = isinstance(err, (UserError, OSError))
        text = message_of(err) if is_users else f"{type(err).__name__}: {err}"
        found = [(check.level, text)]
    sender.send(found)


def _kill(child: tp.Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


@contextlib.contextmanager
def asking_a_server() -> tp.Iterator[None]:
    """End this process, which runs a check, if the body takes more than NETWORK_SECONDS.

    Nothing less stops a client's own retries and waits.
    """
    faulthandler.dump_traceback_later(NETWORK_SECONDS, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
