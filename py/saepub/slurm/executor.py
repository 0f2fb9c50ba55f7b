"""EXECUTOR: run a stage's work as tasks of a Slurm array, or as processes on this machine.

A task writes each outcome at once to a separate file under build/executor, which the nodes must
share. So a killed task loses only unfinished work, and rerunning the command does only that.

tasks.py starts tasks and waits for them; work.py is what they run.
"""

import math
import pathlib
import sys
import typing as tp

from .. import cli, digests, files, machine, settings
from ..cli import UsageError
from ..text import n_of, say
from . import tasks as executor_tasks
from .tasks import Needs
from .work import Function, Outcome, Part, read

N_TASKS, N_LINES = 16, 4
"""If JOBS is not set: the most tasks in an array, and the fewest lines per task that are worth
the seconds its imports take."""


def kind() -> str:
    """The EXECUTOR setting: "slurm", "local", or "" for none.

    Raises:
        UsageError: It has another value.
    """
    name = settings.get("EXECUTOR")
    if name not in ("", *executor_tasks.KINDS):
        kinds = " or ".join(executor_tasks.KINDS)
        raise UsageError(f"EXECUTOR is {name!r}; it takes {kinds}, or nothing")
    return name


def n_jobs(option: str | None) -> int | None:
    """How many jobs to run at once: the option --jobs, else the setting JOBS, else None.

    Raises:
        UsageError: It is not a number above 0.
    """
    if option is None:
        return settings.number("JOBS")
    return settings.whole_number("--jobs", option)


def run(
    function: Function,
    parts: list[Part],
    needs: Needs,
    n_tasks: int | None = None,
    *,
    depends_on: tp.Any = None,
    env: dict[str, str] | None = None,
) -> list[Outcome]:
    """The outcome of each part, in the parts' order. Results of earlier runs are reused.

    Args:
        function: Called as function(*part.args) by a task. Its UserError becomes the part's
            reason; its SetupError ends the task.
        parts: At least one.
        n_tasks: How many tasks share the parts; None to decide automatically.
        depends_on: What every result depends on besides the part, its files and this
            package; JSON. If it has changed, everything is redone.
        env: Additional environment for the function.

    Raises:
        UserError: The tasks can't be started.
    """
    settings.claim_new("BUILD")
    dpath = settings.build_dpath().absolute() / "executor"
    common = [depends_on, files.facts(files.package())]
    fpaths = [dpath / f"{key(function, part, common)}.json" for part in parts]
    todo: dict[pathlib.Path, Part] = {}
    n_done = 0
    for fpath, part in zip(fpaths, parts, strict=True):
        kept = read(fpath)
        if kept and not kept.reason:
            n_done += part.n_lines
        else:
            # A refused part may succeed now: a disk came back, or a node had too little memory.
            fpath.unlink(missing_ok=True)
            todo[fpath] = part
    if n_done:
        say(f"{sys.argv[0]}: {n_of(n_done, 'line')} already done")
    lost: dict[pathlib.Path, str] = {}
    if todo:
        n_tasks = min(_n_tasks(n_tasks, todo, needs), len(todo))
        lost = executor_tasks.do(
            kind(), function, todo, n_tasks, needs, env or {}, dpath
        )
    gone = "its result was removed"
    return [read(fpath) or Outcome(lost=lost.get(fpath, gone)) for fpath in fpaths]


def _n_tasks(asked: int | None, todo: dict[pathlib.Path, Part], needs: Needs) -> int:
    """How many tasks to start: as requested, or a reasonable number."""
    if kind() == executor_tasks.LOCAL:
        return machine.n_at_once(needs.n_bytes, asked)
    if asked is not None:
        return asked
    n_lines = sum(part.n_lines for part in todo.values())
    return min(N_TASKS, math.ceil(n_lines / N_LINES))


def fail_on_lost(lost: list[tuple[str, str]]) -> None:
    """Raise UserError if any work was lost, naming it and how its task ended.

    Args:
        lost: Names, each with how the task ended.
    """
    problems = [f"{name}: not done: {how}" for name, how in lost]
    cli.fail_on(problems, "finished work is kept; the same command does only the rest")


def key(function: Function, part: Part, common: list[tp.Any]) -> str:
    """A hash of everything that a part's outcome depends on."""
    called = f"{function.__module__}.{function.__qualname__}"
    return digests.of_json([called, part.args, files.facts(part.fpaths), common])
