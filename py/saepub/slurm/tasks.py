"""An executor's tasks: started through submitit, waited for, cancelled.

They run as a Slurm array (array.py), or as processes on this machine.
"""

import contextlib
import math
import os
import pathlib
import shutil
import signal
import sys
import time
import typing as tp

from .. import machine, settings
from ..cli import UserError, interrupts_held
from ..text import n_of, one_line, progress, say
from . import work as executor_work
from .work import Function, Part

if tp.TYPE_CHECKING:
    import submitit

    from .array import Array

SLURM, LOCAL = KINDS = ("slurm", "local")

ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "SLURM_CONF", "SLURM_CLUSTERS"),
)
"""The variables that tasks and Slurm's commands inherit. sbatch would send all of them,
including secrets, and some variables would restrict what squeue and scancel see."""

POLL_S = {SLURM: 2.0, LOCAL: 0.2}
"""How often to look for outcomes."""


class Needs(tp.NamedTuple):
    """The resources of each task."""

    n_bytes: int
    """Memory."""
    n_cpus: int | None = None
    """Cores; None for the cluster's default."""
    n_gpus: int = 0


class Task(tp.NamedTuple):
    job: "submitit.Job[None]"
    fpaths: list[pathlib.Path]
    """Where it writes the outcomes of its parts."""


class Awaited(tp.NamedTuple):
    """A part, as submitit's `as_completed` takes it."""

    fpath: pathlib.Path
    job: "submitit.Job[None]"

    def done(self) -> bool:
        return self.fpath.exists() or self.job.done()


def do(
    kind: str,
    function: Function,
    todo: dict[pathlib.Path, Part],
    n_tasks: int,
    needs: Needs,
    env: dict[str, str],
    dpath: pathlib.Path,
) -> dict[pathlib.Path, str]:
    """Run the parts in `n_tasks` tasks, and wait for all of them. An interrupt cancels them.

    Args:
        kind: One of `KINDS`.
        function: As for `executor.run`.
        todo: The parts, by the files for their outcomes.
        n_tasks: From 1 to the number of parts.
        env: Additional environment for the function.
        dpath: Its logs/ gets a directory for these tasks, which is kept if one of them fails.

    Returns:
        For each part without an outcome, how its task ended.

    Raises:
        UserError: The tasks can't be started.
    """
    name = f"saepub-{sys.argv[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    logs_dpath = dpath / "logs" / name
    n_lines = sum(part.n_lines for part in todo.values())
    sent = Sent(kind, _environment(kind, n_tasks, function) | env)
    try:
        with interrupts_held():  # until it is known what to cancel
            sent.send(name, function, todo, n_tasks, needs, logs_dpath)
        say(
            f"{sys.argv[0]}: {n_of(n_lines, 'line')} as {n_of(n_tasks, 'task')} of"
            f" {sent.who()}; logs in {logs_dpath}"
        )
        done = (f for f in sent.wait() for _ in range(todo[f].n_lines))
        for _ in progress(done, n_lines, f"{sys.argv[0]} ({kind})"):
            pass
    except BaseException:
        sent.cancel()
        raise
    _refresh(dpath)
    lost = {
        fpath: sent.how_ended(task)
        for task in sent.tasks
        for fpath in task.fpaths
        if not fpath.exists()
    }
    if not lost:
        shutil.rmtree(logs_dpath, ignore_errors=True)
    return lost


class Sent:
    """The tasks of one call, and the environment that they start with."""

    def __init__(self, kind: str, env: dict[str, str]):
        self.kind, self.env = kind, env
        self.tasks: list[Task] = []
        self.array: Array | None = None

    def send(
        self,
        name: str,
        function: Function,
        todo: dict[pathlib.Path, Part],
        n_tasks: int,
        needs: Needs,
        logs_dpath: pathlib.Path,
    ) -> None:
        """Start tasks that share the parts evenly. Arguments as for `do`."""
        if self.kind == SLURM and not shutil.which("sbatch"):
            raise UserError("EXECUTOR is slurm, but there is no sbatch on this machine")
        minutes = settings.number("SLURM_TIME")
        limits: dict[str, tp.Any] = {"time": minutes}
        if self.kind == SLURM:
            limits |= {
                "mem": f"{math.ceil(needs.n_bytes / 2**20)}M",
                "cpus_per_task": needs.n_cpus,
                "gpus_per_node": needs.n_gpus or None,
                "partition": settings.get("SLURM_PARTITION") or None,
                "account": settings.get("SLURM_ACCOUNT") or None,
            }
        with contextlib.redirect_stdout(sys.stderr):  # its logging goes to stdout
            import submitit
        parts = list(todo.items())
        batches = [parts[i::n_tasks] for i in range(n_tasks)]
        todos = [[(str(f), part.args) for f, part in batch] for batch in batches]
        with _environ(self.env):
            if self.kind == SLURM:
                from .array import Array

                self.array = Array(logs_dpath, name, self.env, limits)
                jobs = self.array.send(
                    executor_work.work, [(function, t) for t in todos]
                )
            else:
                local = submitit.LocalExecutor(logs_dpath)
                local.update_parameters(timeout_min=minutes, gpus_per_node=needs.n_gpus)
                functions = [function] * n_tasks
                jobs = local.map_array(executor_work.work, functions, todos)
        self.tasks = [
            Task(job, [fpath for fpath, _ in batch])
            for job, batch in zip(jobs, batches, strict=True)
        ]

    def who(self) -> str:
        return f"Slurm job {self.array.job_id}" if self.array else "this machine"

    def wait(self) -> tp.Iterator[pathlib.Path]:
        """Yield the path of each outcome as it arrives, until every task has ended."""
        from submitit.helpers import as_completed

        awaited: list[tp.Any] = [
            Awaited(fpath, task.job) for task in self.tasks for fpath in task.fpaths
        ]
        one: tp.Any
        for one in as_completed(awaited, poll_frequency=POLL_S[self.kind]):
            if one.fpath.exists():
                yield one.fpath

    def how_ended(self, task: Task) -> str:
        """How a task ended that did not finish its work, as text."""
        state = task.job.state.lower().replace("_", " ") if self.array else ""
        log_fpath = task.job.paths.stderr
        text = log_fpath.read_text(errors="replace") if log_fpath.is_file() else ""
        last = one_line(text.rstrip().rpartition("\n")[2])
        last = f", which ends with: {last}" if last else ""
        ended = f"ended ({state})" if state else "ended"
        return f"{self.kind} task {task.job.job_id} {ended}; see {log_fpath}{last}"

    def cancel(self) -> None:
        """Cancel all tasks."""
        if self.array and self.tasks:
            self.array.cancel()
        while self.kind == LOCAL:
            running = [task.job for task in self.tasks if not task.job.done()]
            if not running:
                return
            for job in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)  # which passes it on
            time.sleep(POLL_S[LOCAL])


def _refresh(dpath: pathlib.Path) -> None:
    """Make a network file system drop its cached listing of a directory."""
    with contextlib.suppress(PermissionError):  # another user's
        dpath.chmod(dpath.stat().st_mode & 0o7777)


def _path_of(function: Function) -> str:
    """The directory that a function's package is imported from."""
    module = sys.modules[function.__module__]
    fpath = pathlib.Path(module.__file__ or "").resolve()
    return str(fpath.parents[module.__name__.count(".")])


def _environment(kind: str, n_tasks: int, function: Function) -> dict[str, str]:
    """The variables of `ENVIRONMENT`, and others that make Python import only what we do."""
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    paths = dict.fromkeys((os.path.join(settings.ROOT, "py"), _path_of(function)))
    env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    env |= {"PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}
    if kind == LOCAL:  # tasks on one machine share its cores
        n_threads = max(1, machine.n_cores() // n_tasks)
        env.setdefault("OMP_NUM_THREADS", str(n_threads))
    return env


@contextlib.contextmanager
def _environ(env: dict[str, str]) -> tp.Iterator[None]:
    """Replace the environment for processes started meanwhile."""
    whole = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(whole)
