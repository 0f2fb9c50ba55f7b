"""What a task runs, and the outcomes that it writes for the process that started it.

submitit calls this on a node that shares only the disk with that process.
"""

import json
import os
import pathlib
import signal
import typing as tp

from ..cli import SetupError, UserError
from ..files import write_aside

Function = tp.Callable[..., tp.Any]
"""A function that a task can import, with JSON arguments and results."""


class Part(tp.NamedTuple):
    """The unit of work whose result is cached: one call of the function."""

    args: tuple[tp.Any, ...]
    """The function's arguments; JSON."""
    fpaths: list[pathlib.Path]
    """The files that it reads. The result is reused as long as none of them changes."""
    n_lines: int = 1
    """How many of the stage's lines it covers, for the progress display."""


class Outcome(tp.NamedTuple):
    """The outcome of a part: a result, a reason, or neither."""

    result: tp.Any = None
    reason: str = ""
    """The message of the function's UserError."""
    lost: str = ""
    """How the task that should have done it ended."""


def work(function: Function, todo: list[tuple[str, tuple[tp.Any, ...]]]) -> None:
    """Do some parts, one after the other.

    Args:
        function: What to call for each.
        todo: For each part, the file for its outcome, and its arguments.

    Raises:
        SetupError: This node can't do any of them.
    """
    # submitit would raise an exception inside the running function, which would look like an
    # error of that part. Finished work is kept, so the task may end at once.
    for name in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
        signal.signal(name, signal.SIG_DFL)
    for fpath, args in todo:
        # Slurm may have requeued this task, so that it restarts on another node.
        if os.path.exists(fpath):
            continue
        outcome = outcome_of(function, args)
        with write_aside(fpath) as fd:
            json.dump(outcome, fd, allow_nan=False)


def outcome_of(function: Function, args: tuple[tp.Any, ...]) -> Outcome:
    """Run one part.

    Raises:
        SetupError: This machine can't run any part.
    """
    try:
        return Outcome(function(*args))
    except SetupError:
        raise
    except UserError as err:
        return Outcome(reason=str(err))
    except MemoryError:
        return Outcome(reason=f"not enough memory on {os.uname().nodename}")


def read(fpath: pathlib.Path) -> Outcome | None:
    """The outcome that `work` wrote; None if there is none, or it is incomplete."""
    try:
        return Outcome(*json.loads(fpath.read_bytes()))
    except (FileNotFoundError, ValueError):  # incomplete: the node lost power
        return None
