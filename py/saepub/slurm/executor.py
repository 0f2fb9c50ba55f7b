"""EXECUTOR: a stage's work as tasks of a Slurm array, or as processes on this machine.

Each task writes every outcome to a file of its own under build/executor, which the nodes
must share, as soon as there is one. So a task that is killed costs only what it had not
done yet, and the same command, run again, does only that.

How tasks are sent and waited for: tasks.py. What they do: work.py.
"""

import hashlib
import json
import math
import pathlib
import sys
import typing as tp

from .. import cli, files, machine, settings
from ..cli import UsageError
from ..text import n_of, say
from . import tasks as executor_tasks
from .tasks import Needs
from .work import Function, Outcome, Part, read

__all__ = ["Needs", "Outcome", "Part", "kind", "n_jobs", "run", "tell_lost"]

N_TASKS, N_LINES = 16, 4
"""Where JOBS does not say: an array's tasks at most, and a task's lines at least if it is to
be worth the seconds that its imports take."""


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
    return settings.number("JOBS")


def run(
    function: Function,
    parts: list[Part],
    needs: Needs,
    n_tasks: int | None = None,
    *,
    depends_on: tp.Any = None,
    env: dict[str, str] | None = None,
) -> list[Outcome]:
    """What became of each part, in the parts' order. What was done before is not done again.

    Args:
        function: Called as function(*part.args) by a task. Its UserError is the part's
            reason; its SetupError ends the task.
        parts: At least one.
        needs: What each task takes.
        n_tasks: How many tasks share the parts; None for as many as suit the executor.
        depends_on: What every result depends on besides the part, its files and this
            package; JSON. Where it has changed, everything is done again.
        env: What the function reads of the environment.

    Raises:
        UserError: The tasks can't be sent.
    """
    settings.claim_new("BUILD")
    dpath = settings.build_dpath().absolute() / "executor"
    common = [depends_on, files.facts(files.package())]
    fpaths = [dpath / f"{key(function, part, common)}.json" for part in parts]
    todo: dict[pathlib.Path, Part] = {}
    for fpath, part in zip(fpaths, parts, strict=True):
        kept = read(fpath)
        # What was refused may pass now: a disk came back, a node had too little memory.
        if kept is None or kept.reason:
            fpath.unlink(missing_ok=True)
            todo[fpath] = part
    n_done = sum(
        part.n_lines
        for part, fpath in zip(parts, fpaths, strict=True)
        if fpath not in todo
    )
    if n_done:
        say(f"{sys.argv[0]}: {n_of(n_done, 'line')} done before")
    lost: dict[pathlib.Path, str] = {}
    if todo:
        n_tasks = min(_n_tasks(n_tasks, todo, needs), len(todo))
        lost = executor_tasks.do(
            kind(), function, todo, n_tasks, needs, env or {}, dpath
        )
    gone = "somebody removed its result"
    return [read(fpath) or Outcome(lost=lost.get(fpath, gone)) for fpath in fpaths]


def _n_tasks(asked: int | None, todo: dict[pathlib.Path, Part], needs: Needs) -> int:
    """As many as are asked for or make a fair array, and as this machine can bear."""
    if kind() == executor_tasks.LOCAL:
        return machine.n_at_once(needs.n_bytes, asked)
    if asked is not None:
        return asked
    n_lines = sum(part.n_lines for part in todo.values())
    return min(N_TASKS, math.ceil(n_lines / N_LINES))


def tell_lost(lost: list[tuple[str, str]], reasons: list[str] | None = None) -> None:
    """Name everything that a task did not come to, each with how that task ended.

    Args:
        lost: The names.
        reasons: What else went wrong and is to be told, if the stage did not.

    Raises:
        UserError: Anything went wrong.
    """
    problems = reasons or []
    problems += [f"{name}: not done: {how}" for name, how in lost]
    cli.fail_on(problems, "what is done is kept: the same command does only the rest")


def key(function: Function, part: Part, common: list[tp.Any]) -> str:
    """A name for all that a part's outcome depends on."""
    called = f"{function.__module__}.{function.__qualname__}"
    facts = [called, part.args, files.facts(part.fpaths), common]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
