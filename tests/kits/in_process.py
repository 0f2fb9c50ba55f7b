"""Run a stage in this process, thousands of times a minute, and check what every stage promises
whatever its input."""

import contextlib
import io
import json
import os
import pathlib
import signal
import sys
import tempfile
import typing as tp
import unittest.mock

import matplotlib.font_manager  # noqa: F401  It creates directories of its own, once.

from saepub import cli

from .programs import Done, in_environment

PASS_ON_LINES = ("extract-ids", "fetch-metrics", "settle", "select", "preflight")
PASS_ON_LINES += ("stage", "render", "measure", "plan", "push", "verify", "collect")

N_TOLD = {"extract-ids": 40}
"""How many lines a stage may print besides one per input line; others 10. Of a broken catalog,
extract-ids prints a line for each wrong key."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir"), (0,)),
    **dict.fromkeys(("os.chmod", "os.chown", "os.utime", "shutil.rmtree"), (0,)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
    "os.rename": (0, 1),
}
"""Events for an audit hook, and which of their arguments are paths that change."""

RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
MAY_RUN = ("git", "ldconfig")
"""Python's own ctypes runs ldconfig, for the Hub's client."""


class Finding(AssertionError):
    """A stage broke a promise."""


class Hung(BaseException):
    """Not an Exception: no stage may swallow it."""


class Watch:
    """What may change while a stage runs. An audit hook, once added, can't be removed."""

    dpaths: tuple[pathlib.Path, ...] = ()
    """Where; () while no stage runs."""
    hub_dpath: pathlib.Path | None = None
    """Where a Hub that runs in this process writes."""
    broken: list[str] = []


def run(
    name: str,
    *argv: str,
    stdin: str | bytes = b"",
    env: dict[str, object],
    seconds: int = 100,
    writes: tp.Sequence[pathlib.Path] = (),
) -> Done:
    """Run a stage as its program in bin/ does.

    Args:
        env: All of its settings; it may write to BUILD and RECORDS.
        seconds: How long it may take.
        writes: What else it may write to.

    Raises:
        Finding: It took too long, wrote elsewhere, ran a program, or broke a promise that
            `judge` checks.
    """
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = io.BytesIO(), io.BytesIO()
    streams = {
        "stdin": io.TextIOWrapper(io.BytesIO(stdin)),
        "stdout": io.TextIOWrapper(out, "utf-8", write_through=True),
        "stderr": io.TextIOWrapper(
            err, "utf-8", "backslashreplace", write_through=True
        ),
        "argv": [name, *argv],
    }
    env = {"PATH": os.environ["PATH"]} | in_environment(env)
    code = None
    if "RECORDS" in env:
        writes = (*writes, pathlib.Path(env["RECORDS"]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(unittest.mock.patch.dict(os.environ, env, clear=True))
        for key, value in streams.items():
            stack.enter_context(unittest.mock.patch.object(sys, key, value))
        stack.enter_context(_time_limit(seconds))
        stack.enter_context(_watched(pathlib.Path(env["SAEPUB_BUILD"]), *writes))
        try:
            cli.main(name)
        except SystemExit as end:
            code = end.code
        except Hung:
            raise Finding(f"{name}: hangs") from None
    told = err.getvalue().decode()
    judge(name, code, out.getvalue(), told, stdin.count(b"\n"))
    return Done(code, out.getvalue().decode(), told)


def judge(name: str, code: int | None, out: bytes, told: str, n_lines: int) -> None:
    """Raises Finding if a stage ended as no stage may.

    Args:
        n_lines: How many lines it was given: preflight may print one for each, push one for
            each problem.
    """
    if code not in (0, 1, 2):
        raise Finding(f"{name}: exit {code}: {told[-300:]}")
    for mark in ("Traceback", "internal error", "Exception ignored", "jq: error"):
        if mark in told:
            raise Finding(f"{name}: {told[-600:]}")
    if not told.replace("\n", "").isprintable():
        raise Finding(f"{name}: not printable: {told[:300]!r}")
    if code != 0 and not told:
        raise Finding(f"{name}: exit {code} without a word")
    if code != 0 and told.count("\n") > n_lines + N_TOLD.get(name, 10):
        raise Finding(f"{name}: {told.count(chr(10))} lines: {told[:600]}")
    for text in out.splitlines() if name in PASS_ON_LINES else ():
        if type(json.loads(text)) is not dict:
            raise Finding(f"{name}: passed on {text[:100]!r}")


@contextlib.contextmanager
def _time_limit(seconds: int):
    def ring(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _watched(build_dpath: pathlib.Path, *dpaths: pathlib.Path):
    """Raises Finding if a program is run, or anything outside these directories changed."""
    with tempfile.TemporaryDirectory() as scratch:
        dpaths = (build_dpath, *dpaths, pathlib.Path(scratch))
        dpaths += (Watch.hub_dpath,) if Watch.hub_dpath else ()
        Watch.broken, Watch.dpaths = [], tuple(dpath.resolve() for dpath in dpaths)
        try:
            with unittest.mock.patch.object(tempfile, "tempdir", scratch):
                yield
        finally:
            Watch.dpaths = ()
    if Watch.broken:
        raise Finding("; ".join(Watch.broken))


def _hook(event: str, args: tuple) -> None:
    if not Watch.dpaths:
        return
    if event == "open" and (args[2] or 0) & WRITES:
        _hold(event, args[0])
    elif event in CHANGES and args[-1] in (
        -1,
        None,
    ):  # else within a directory held before
        for i in CHANGES[event]:
            _hold(event, args[i])
    elif event in RUNS:
        program = os.fsdecode(args[0] or "")
        if os.path.basename(program) not in MAY_RUN:
            Watch.broken.append(f"ran {args[:2]!r}")


def _hold(event: str, path: object) -> None:
    if isinstance(path, int):
        return
    parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    fpath = pathlib.Path(os.path.realpath(parent), name)
    if "__pycache__" in fpath.parts or fpath.is_relative_to("/dev"):
        return
    if not any(fpath.is_relative_to(dpath) for dpath in Watch.dpaths):
        Watch.broken.append(f"{event} {path!r}")


sys.addaudithook(_hook)
