"""EXECUTOR: a stage's lines as tasks of a Slurm array, or as processes on this machine.

Each task writes every outcome to a file of its own under build/executor, which the nodes
must share, as soon as there is one. So a task that is killed costs only what it had not done yet, and the same command,
run again, does only that.

How tasks are sent and waited for: executor_tasks.py. What they do: executor_work.py.
"""

import hashlib
import json
import math
import pathlib
import sys

from .. import cli, machine, settings
from ..checkpoint import saev as saev_loader
from ..cli import UsageError
from ..jsonl import Line
from ..text import n_of, say
from . import tasks as executor_tasks
from .work import Function, Outcome, Part, read

N_TASKS, N_LINES = 16, 4
"""Where JOBS does not say: an array's tasks at most, and a task's lines at least if it is to
be worth the seconds that torch takes to import."""


BASE_BYTES = 300_000_000
"""What a process that has imported torch takes before it has done anything."""


def kind() -> str:
    """The EXECUTOR setting: "slurm", "local", or "" for none.

    Raises:
        UsageError: It is something else.
    """
    name = settings.get("EXECUTOR")
    if name not in ("", *executor_tasks.KINDS):
        kinds = " or ".join(executor_tasks.KINDS)
        raise UsageError(f"EXECUTOR is {name!r}; it takes {kinds}, or nothing")
    return name


def n_jobs(option: int | None) -> int | None:
    """How much is to be done at once: the option --jobs, else the setting JOBS, else None.

    Raises:
        UsageError: It is not a number above 0.
    """
    if option is not None:
        if option < 1:
            raise UsageError(f"--jobs is {option}; it takes 1 or more")
        return option
    return executor_tasks.count("JOBS")


def n_fit(n_bytes: int) -> int:
    """How many processes of `n_bytes` this machine has cores and memory for; 1 at least."""
    return max(1, min(machine.n_cores(), machine.free_bytes() // n_bytes))


def name_of(row: Line) -> str:
    return f"{row['repo']} layer {row['layer']} {row['run_id']}"


def run(
    function: Function, parts: list[Part], n_tasks: int | None, n_bytes: int
) -> list[Outcome]:
    """What became of each part, in the parts' order. What was done before is not done again.

    Args:
        function: Called as function(rows, *args) by a task; of a module of this package.
            Gives as many rows as it takes; its UserError is the part's reason.
        parts: At least one.
        n_tasks: How many tasks share the parts; None for as many as suit the executor.
        n_bytes: The memory that a task needs.

    Raises:
        UserError: The tasks can't be sent.
    """
    dpath = settings.build_dpath().absolute() / "executor"
    versions = _versions()
    fpaths = [dpath / f"{key(function, part, versions)}.json" for part in parts]
    todo: dict[pathlib.Path, Part] = {}
    for fpath, part in zip(fpaths, parts, strict=True):
        kept = read(fpath)
        # What was refused may pass now: a disk came back, a node had too little memory.
        if kept is None or kept.reason:
            fpath.unlink(missing_ok=True)
            todo[fpath] = part
    n_done = sum(
        len(p.rows) for p, f in zip(parts, fpaths, strict=True) if f not in todo
    )
    if n_done:
        say(f"{sys.argv[0]}: {n_of(n_done, 'line')} done before")
    lost: dict[pathlib.Path, str] = {}
    if todo:
        n_tasks = min(n_tasks or _n_tasks(todo, n_bytes), len(todo))
        lost = executor_tasks.do(kind(), function, todo, n_tasks, n_bytes, dpath)
    gone = "somebody removed its result"
    return [read(fpath) or Outcome([], lost=lost.get(fpath, gone)) for fpath in fpaths]


def _n_tasks(todo: dict[pathlib.Path, Part], n_bytes: int) -> int:
    """As many as this machine can bear, or as make a fair array."""
    if kind() == executor_tasks.LOCAL:
        return n_fit(n_bytes)
    n_rows = sum(len(part.rows) for part in todo.values())
    return min(N_TASKS, math.ceil(n_rows / N_LINES))


def tell_lost(lost: list[tuple[Line, str]], reasons: list[str] | None = None) -> None:
    """Name every line that a task did not come to, each with how that task ended.

    Args:
        lost: The lines.
        reasons: What else went wrong and is to be told, if the stage did not.

    Raises:
        UserError: Anything went wrong.
    """
    problems = reasons or []
    problems += [f"{name_of(row)}: not done: {how}" for row, how in lost]
    cli.report(problems, "what is done is kept: the same command does only the rest")


def key(function: Function, part: Part, versions: list) -> str:
    """A name for all that a part's outcome depends on."""
    called = f"{function.__module__}.{function.__qualname__}"
    facts = [called, part.rows, part.args, _facts(part.fpaths), versions]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _versions() -> list:
    """The saev at hand, by its label and its files, and this package, by its files.

    Raises:
        saev_loader.NotUsable: It can't be imported, so no task needs to be sent.
    """
    label = saev_loader.at_hand().label
    fpaths = list(pathlib.Path(__file__).parent.glob("*.py"))
    if src_dpath := saev_loader.checkout_src():
        fpaths += src_dpath.rglob("*.py")
    return [label, *_facts(sorted(fpaths))]


def _facts(fpaths: list[pathlib.Path]) -> list[tuple[str, int, int]]:
    """Path, size and mtime of each; zeros where there is no such file."""
    facts = []
    for fpath in fpaths:
        try:
            info = fpath.stat()
            facts.append((str(fpath), info.st_size, info.st_mtime_ns))
        except OSError:
            facts.append((str(fpath), 0, 0))
    return facts
