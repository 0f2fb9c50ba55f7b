"""What a task does, and what it leaves for the process that sent it.

submitit calls this on a node, which shares the disk with the sender, and nothing else.
"""

import json
import os
import pathlib
import signal
import typing as tp

from ..cli import SetupError, UserError
from ..files import write_aside

Function = tp.Callable[..., tp.Any]
"""Of a module that a task can import. Takes and returns what JSON can hold."""


class Part(tp.NamedTuple):
    """The unit of work whose result is kept: one call of the function."""

    args: tuple[tp.Any, ...]
    """What the function is called with; JSON."""
    fpaths: list[pathlib.Path]
    """The files that it reads. A result is kept for as long as none of them changes."""
    n_lines: int = 1
    """How many of the stage's lines it settles, for those who watch the progress."""


class Outcome(tp.NamedTuple):
    """What became of a part: a result, a reason, or neither."""

    result: tp.Any = None
    reason: str = ""
    """Why the function refused it: its UserError."""
    lost: str = ""
    """How the task ended that should have done it."""


def work(function: Function, todo: list[tuple[str, tuple[tp.Any, ...]]]) -> None:
    """Do some parts, one after the other.

    Args:
        function: What to call for each.
        todo: Where to write each part's outcome, and its arguments.

    Raises:
        SetupError: This node can't do any of them.
    """
    # submitit would raise an exception in the midst of whatever runs, where it could be
    # taken for the fault of that part. What is done is kept, so the task may end at once.
    for name in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
        signal.signal(name, signal.SIG_DFL)
    for fpath, args in todo:
        # Slurm may have taken the node away, and have given the task another to begin anew.
        if os.path.exists(fpath):
            continue
        outcome = outcome_of(function, args)
        with write_aside(fpath) as fd:
            json.dump(outcome, fd, allow_nan=False)


def outcome_of(function: Function, args: tuple[tp.Any, ...]) -> Outcome:
    """What becomes of one part.

    Raises:
        SetupError: This machine can't do any part.
    """
    try:
        return Outcome(function(*args))
    except SetupError:
        raise
    except UserError as err:
        return Outcome(reason=str(err))
    except MemoryError:
        return Outcome(reason=f"not enough memory for it on {os.uname().nodename}")


def read(fpath: pathlib.Path) -> Outcome | None:
    """What `work` wrote; None where there is nothing, or nothing whole."""
    try:
        return Outcome(*json.loads(fpath.read_bytes()))
    except (FileNotFoundError, ValueError):  # not whole: the node lost power
        return None
