"""What every stage shares: arguments, one-line errors and exit codes."""

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
import typing as tp

from . import __version__
from .text import printable

SECRETS = ("HF_TOKEN", "WANDB_API_KEY")


class UserError(Exception):
    """An error that the user can fix. Shown as one line; exit 1.

    The message says what was wrong, where, and what to do.
    """


class SetupError(UserError):
    """This machine or its setup is at fault, so no line can be processed."""


class UsageError(UserError):
    """A wrong option or argument that argparse can't detect. Exit 2."""


def parser(purpose: str, example: str) -> argparse.ArgumentParser:
    """Every program's argument parser.

    Args:
        purpose: What the program does, in one line.
        example: Shell lines that work when pasted into a shell in the checkout.
    """
    p = argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description=purpose,
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "--version", action="version", version=f"{p.prog} (saepub) {__version__}"
    )
    p.add_argument("--debug", action="store_true", help="print errors with a traceback")
    return p


def program(name: str) -> tp.NoReturn:
    """Run the stage `name` (as in bin/) in this process, with standard streams of its own."""
    for fd, stream in enumerate(("stdin", "stdout", "stderr")):
        if (
            getattr(sys, stream) is None
        ):  # closed; the next file opened would get its number
            flags = os.O_WRONLY if fd == 0 else os.O_RDONLY if fd == 1 else os.O_RDWR
            os.dup2(os.open(os.devnull, flags), fd)
            setattr(sys, stream, os.fdopen(fd, "rww"[fd]))
    # Only our data goes to stdout. Libraries may log to file descriptor 1, as Xet's does if it
    # can't create its log file.
    sys.stdout = os.fdopen(os.dup(1), "w", errors=sys.stdout.errors)
    os.dup2(2, 1)
    main(name)


def main(name: str) -> tp.NoReturn:
    """Run the stage `name` (as in bin/) on `sys.argv` and exit with its code."""
    sys.argv[0] = name
    debug = "--debug" in sys.argv
    # Ctrl-C during imports or at exit ends the process silently.
    is_quiet = signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    try:
        module = importlib.import_module("saepub.stages." + name.replace("-", "_"))
        if is_quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = module.main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the pipe stopped early, as head does.
        code = 0
    except KeyboardInterrupt:
        # Silence worker threads' tracebacks.
        threading.excepthook = lambda _: None
        print(f"{name}: interrupted", file=sys.stderr)
        code = 130
    except Exception as err:
        if debug:
            raise
        print(f"{name}: {message_of(err)}", file=sys.stderr)
        code = 2 if isinstance(err, UsageError) else 1
    if is_quiet:
        with contextlib.suppress(KeyboardInterrupt):  # it may arrive right now
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    _exit(code)


@contextlib.contextmanager
def interrupts_held() -> tp.Iterator[None]:
    """Block Ctrl-C while it would leave things half-done.

    A process started meanwhile never gets it; a forked one only after it has called
    `end_on_interrupt`.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process at once and silently, since its parent reports it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _exit(code: int) -> tp.NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        # Already reported. Python would flush again at exit, and report it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def message_of(err: Exception) -> str:
    """What to print about an error, in one line."""
    if isinstance(err, UserError):
        text = str(err)
    elif isinstance(err, ModuleNotFoundError):
        text = f'Python package "{err.name}" is not installed; run: make setup'
    elif isinstance(err, OSError) and err.errno == errno.EBADF:
        text = "stdin or stdout is closed"
    elif isinstance(err, OSError) and err.strerror:
        text = f"{err.filename}: {err.strerror}" if err.filename else err.strerror
    elif isinstance(err, MemoryError):
        text = "out of memory"
    else:
        text = f"internal error: {type(err).__name__}: {err} (--debug prints where)"
    return scrub(printable(" ".join(text.split())))


def fail_on(problems: list[str], advice: str) -> None:
    """Print every problem, one per line, and raise an error if there is any.

    Raises:
        UserError: The only problem with `advice`, or after several their count with it.
    """
    if len(problems) == 1:
        raise UserError(f"{problems[0]} ({advice})")
    for text in problems:
        print(f"{sys.argv[0]}: {scrub(printable(text))}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} problems; {advice}")


def scrub(text: str) -> str:
    """`text` with every secret from the environment masked."""
    for name in SECRETS:
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, f"<{name}>")
    return text
