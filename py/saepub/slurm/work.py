"""What a task of an executor does, and what it leaves for those who wait for it.

This is the code that submitit calls on a node. It shares the disk with the process that
sent it, and nothing else.
"""

import json
import os
import pathlib
import signal
import typing as tp

from ..checkpoint import saev as saev_loader
from ..cli import UserError
from ..files import write_aside
from ..jsonl import Line

Function = tp.Callable[..., list[Line]]


class Part(tp.NamedTuple):
    """What a task does at once and keeps the outcome of: a line, or a few that go together."""

    rows: list[Line]
    args: tuple[str | int | None, ...]
    """What else the function takes. JSON, as the rows are."""
    fpaths: list[pathlib.Path]
    """The files that it reads. An outcome is kept for as long as none of them changes."""


class Outcome(tp.NamedTuple):
    """What became of a part: one of the three."""

    rows: list[Line]
    reason: str = ""
    """Why the function refused it: its UserError."""
    lost: str = ""
    """How the task ended that should have done it."""


def work(function: Function, todo: list[tuple[str, list[Line], tuple]]) -> None:
    """Do some parts, one after the other.

    Args:
        function: Called as function(rows, *args).
        todo: Where to write each part's outcome, its rows and its other arguments.

    Raises:
        saev_loader.NotUsable: saev can't be imported on this node.
    """
    # submitit would raise an exception in the midst of whatever runs, where it could be
    # taken for the checkpoint's fault. What is done is kept, so the task may end at once.
    for name in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
        signal.signal(name, signal.SIG_DFL)
    for fpath, rows, args in todo:
        # Slurm may have taken the node away, and have given it another to begin anew.
        if os.path.exists(fpath):
            continue
        try:
            outcome = Outcome(function(rows, *args))
        except saev_loader.NotUsable:
            raise
        except UserError as err:
            outcome = Outcome([], str(err))
        except MemoryError:
            outcome = Outcome([], f"not enough memory for it on {os.uname().nodename}")
        with write_aside(fpath) as fd:
            json.dump(outcome, fd, allow_nan=False)


def read(fpath: pathlib.Path) -> Outcome | None:
    """What `work` wrote; None where there is nothing, or nothing whole."""
    try:
        return Outcome(*json.loads(fpath.read_bytes()))
    except (FileNotFoundError, ValueError):  # not whole: the node lost power
        return None
