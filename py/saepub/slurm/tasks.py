"""Tasks of an executor: sent through submitit, waited for, cancelled.

submitit pickles what each task is to do, and starts it: as a Slurm array, or as processes of
this machine. How the tasks of an array fare is asked of Slurm directly, because submitit
asks sacct, which not every cluster has, and notices a killed task after minutes only.
"""

import contextlib
import io
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import typing as tp

from .. import machine, settings
from ..cli import UsageError, UserError
from ..text import n_of, one_line, progress, say
from . import work as executor_work
from .work import Function, Part

if tp.TYPE_CHECKING:
    import submitit

SLURM, LOCAL = KINDS = ("slurm", "local")

MINUTES = 60
"""How long a task may take where SLURM_TIME does not say."""

ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "SLURM_CONF", "SAEV_DIR"),
)
"""What a task gets of our environment. sbatch would send all of it, secrets included."""

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
"""The states of Slurm that a task does not leave again."""

PAUSE_S, PAUSE_GROWS, LONGEST_PAUSE_S = 0.2, 1.25, 10
"""Between two looks at the tasks. It stays a fraction of the time that they have taken."""


class Task(tp.NamedTuple):
    job: "submitit.Job"
    fpaths: list[pathlib.Path]
    """Where it writes the outcomes of its parts."""


def count(name: str) -> int | None:
    """A setting that is a number above 0; None where it is not set.

    Raises:
        UsageError: It is something else.
    """
    text = settings.get(name)
    if text and not (text.isdecimal() and int(text)):
        raise UsageError(f"{name} is {text!r}; it takes a whole number, 1 or more")
    return int(text) if text else None


def do(
    kind: str,
    function: Function,
    todo: dict[pathlib.Path, Part],
    n_tasks: int,
    n_bytes: int,
    dpath: pathlib.Path,
) -> dict[pathlib.Path, str]:
    """Have `n_tasks` tasks do the parts, and wait for all of them. An interrupt cancels them.

    Args:
        kind: One of `KINDS`.
        function: As `executor.run` takes it.
        todo: The parts, by where their outcomes go.
        n_tasks: From 1 to the number of parts.
        n_bytes: The memory that a task needs.
        dpath: Its logs/ gets a directory for these tasks, which stays if one of them fails.

    Returns:
        For each part without an outcome, how its task ended.

    Raises:
        UserError: The tasks can't be sent.
    """
    logs_dpath = dpath / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    n_rows = sum(len(part.rows) for part in todo.values())
    waiting = dict(todo)
    tasks: list[Task] = []
    try:
        with _interrupts_held():
            tasks += send(kind, function, todo, n_tasks, n_bytes, logs_dpath)
        who = f"Slurm job {_slurm_id(tasks[0])}" if kind == SLURM else "this machine"
        say(
            f"{sys.argv[0]}: {n_of(n_rows, 'line')} as"
            f" {n_of(n_tasks, 'task')} of {who}; logs in {logs_dpath}"
        )
        done = (row for fpath in wait(kind, tasks) for row in waiting.pop(fpath).rows)
        for _ in progress(done, n_rows, f"{sys.argv[0]} ({kind})"):
            pass
    except BaseException:
        cancel(kind, tasks)
        raise
    lost = {f: how_ended(kind, t) for t in tasks for f in t.fpaths if f in waiting}
    if not lost:
        shutil.rmtree(logs_dpath, ignore_errors=True)
    return lost


def send(
    kind: str,
    function: Function,
    todo: dict[pathlib.Path, Part],
    n_tasks: int,
    n_bytes: int,
    logs_dpath: pathlib.Path,
) -> list[Task]:
    """Start tasks that share the parts evenly. As `do`."""
    minutes = count("SLURM_TIME") or MINUTES
    if kind == SLURM and not shutil.which("sbatch"):
        raise UserError("EXECUTOR is slurm, and there is no sbatch on this machine")
    with contextlib.redirect_stdout(sys.stderr):  # where it would log to
        import submitit

    sender = submitit.AutoExecutor(logs_dpath, cluster=kind)
    sender.update_parameters(
        name=f"saepub-{sys.argv[0]}",
        timeout_min=minutes,
        mem_gb=math.ceil(n_bytes / 2**30),
        slurm_partition=settings.get("SLURM_PARTITION") or None,
        slurm_account=settings.get("SLURM_ACCOUNT") or None,
        slurm_use_srun=False,
        slurm_signal_delay_s=0,  # a warning before the time is up would be of no use
    )
    parts = list(todo.items())
    batches = [parts[i::n_tasks] for i in range(n_tasks)]
    todos = [[(str(f), part.rows, part.args) for f, part in b] for b in batches]
    functions = [function] * n_tasks
    try:
        # submitit prints what sbatch says before it raises the same.
        with _environment(kind, n_tasks), contextlib.redirect_stderr(io.StringIO()):
            jobs = sender.map_array(executor_work.work, functions, todos)
    except submitit.core.utils.FailedJobError as err:
        raise UserError(f"Slurm refused the job: {one_line(err)}") from None
    fpaths = [[fpath for fpath, _ in batch] for batch in batches]
    return [Task(*both) for both in zip(jobs, fpaths, strict=True)]


def wait(kind: str, tasks: list[Task]) -> tp.Iterator[pathlib.Path]:
    """Give the path of each outcome as it comes, until every task has ended."""
    pause_s = PAUSE_S
    given: set[pathlib.Path] = set()
    going = tasks
    while going:
        time.sleep(pause_s)
        pause_s = min(pause_s * PAUSE_GROWS, LONGEST_PAUSE_S)
        # First who has ended, then what is there: so that nothing can come in between.
        states = slurm_states() if kind == SLURM else {}
        ended = [task for task in going if has_ended(kind, task, states)]
        _look_anew(tasks[0].fpaths[0].parent)
        for fpath in (f for task in going for f in task.fpaths):
            if fpath not in given and fpath.exists():
                given.add(fpath)
                yield fpath
        going = [task for task in going if task not in ended]


def has_ended(kind: str, task: Task, states: dict[str, str] | None) -> bool:
    """Whether nothing more is to come from a task.

    Args:
        kind: One of `KINDS`.
        task: The task.
        states: Of `slurm_states`, if it is Slurm's.
    """
    if kind == LOCAL:
        return task.job.done()
    if task.job.paths.result_pickle.exists():
        return True
    return states is not None and states.get(task.job.job_id, ENDED[0]) in ENDED


def slurm_states() -> dict[str, str] | None:
    """The states of this user's jobs, of late; None where Slurm can't say."""
    command = ["squeue", "--noheader", "--me", "--array", "--states=all"]
    done = subprocess.run(
        [*command, "--format=%i|%T"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = one_line(done.stderr)
        say(f"{sys.argv[0]}: waiting, though squeue fails: {why}")
        return None
    return dict(row.split("|") for row in done.stdout.splitlines())


def how_ended(kind: str, task: Task) -> str:
    """What to tell of a task that did not do all of its work."""
    state = ""
    if kind == SLURM and (states := slurm_states()):
        state = states.get(task.job.job_id, "").lower().replace("_", " ")
    log_fpath = task.job.paths.stderr
    text = log_fpath.read_text(errors="replace") if log_fpath.is_file() else ""
    last = one_line(text.rstrip().rpartition("\n")[2])
    says = f", which ends: {last}" if last else ""
    ended = f"ended ({state})" if state else "ended"
    return f"{kind} task {task.job.job_id} {ended}; see {log_fpath}{says}"


def cancel(kind: str, tasks: list[Task]) -> None:
    """End all tasks."""
    if kind == SLURM and tasks:
        subprocess.run(["scancel", _slurm_id(tasks[0])], check=False)
    while kind == LOCAL and (going := [t.job for t in tasks if not t.job.done()]):
        for job in going:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # which passes it on
        time.sleep(PAUSE_S)


def _slurm_id(task: Task) -> str:
    """The array's id, without the task's own."""
    return task.job.job_id.split("_")[0]


def _look_anew(dpath: pathlib.Path) -> None:
    """Make a network file system forget what it believes to be in a directory."""
    with contextlib.suppress(PermissionError):  # it is a colleague's
        dpath.chmod(dpath.stat().st_mode & 0o7777)


@contextlib.contextmanager
def _interrupts_held() -> tp.Iterator[None]:
    """Keep Ctrl-C back until it is known what to cancel.

    The processes that are started meanwhile never see it: `cancel` ends them.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@contextlib.contextmanager
def _environment(kind: str, n_tasks: int) -> tp.Iterator[None]:
    """Let what is started meanwhile have `ENVIRONMENT`, and the package to import."""
    whole = dict(os.environ)
    env = {name: whole[name] for name in ENVIRONMENT if name in whole}
    paths = [os.path.join(settings.ROOT, "py"), whole.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if env.get("SAEV_DIR"):
        env["SAEV_DIR"] = os.path.abspath(env["SAEV_DIR"])
    if kind == LOCAL:
        n_threads = max(1, machine.n_cores() // n_tasks)
        env.setdefault("OMP_NUM_THREADS", str(n_threads))
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(whole)
