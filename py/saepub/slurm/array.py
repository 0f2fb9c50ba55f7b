"""A Slurm job array, through submitit, adapted to real clusters.

submitit assumes that srun and sacct exist, that sbatch prints a certain sentence, and that there
is only one cluster. Sites differ, so here the job id is parsed from whatever sbatch prints,
states come from squeue only, and a job whose id is unknown is cancelled by its name.
"""

import collections
import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import time
import typing as tp
import uuid

from submitit.core import core, utils
from submitit.slurm import slurm

from ..cli import UserError
from ..text import one_line, say

ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
"""Slurm's final states of a task."""

N_ABSENT = 3
"""A task that is missing from so many squeue outputs in a row has ended."""

DELAY_S = 10
"""How often to run squeue."""

TIMEOUT_S = 60
"""The time limit of a Slurm command. A busy controller answers late."""


class Array(slurm.SlurmExecutor):
    """A job array.

    Args:
        folder: Where submitit puts pickles and the tasks' logs.
        name: The job's name, unique among this user's jobs.
        env: The environment of Slurm's commands.
        limits: sbatch's options, by submitit's names for them; None for the default.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        env: dict[str, str],
        limits: dict[str, tp.Any],
    ):
        super().__init__(folder)
        # Tasks need no srun, and no signal before their time is up.
        self.update_parameters(
            job_name=name, use_srun=False, signal_delay_s=0, **limits
        )
        self.job_name, self.env = name, env
        self.job_id = self.cluster = ""

    @classmethod
    def affinity(cls) -> int:
        return 2  # submitit's wants srun

    def send(
        self, function: tp.Callable[..., None], todos: list[tuple[tp.Any, ...]]
    ) -> list[core.Job[None]]:
        """Submit function(*todo) for each of `todos`, as one array.

        Raises:
            UserError: Slurm refuses it, or its answer has no job id. Nothing is left running.
        """
        self.parameters["map_count"] = len(todos)
        folder = utils.JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for todo in todos:
            delayed = utils.DelayedSubmission(function, *todo)
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            pickles.append(folder / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(pickles[-1])
        try:
            # submitit prints sbatch's error and then raises it.
            with contextlib.redirect_stderr(io.StringIO()):
                self._submit_command(self._submitit_command_str)
        except utils.FailedJobError as err:
            self.cancel()  # it may have been accepted, with only the answer lost
            why = one_line(err) or "sbatch gives no reason"
            raise UserError(f"Slurm refused the job: {why}") from None
        except UserError:
            self.cancel()
            raise
        squeue = Squeue(self.env, self.cluster)
        jobs: list[core.Job[None]] = []
        for i, fpath in enumerate(pickles):
            job: core.Job[None] = slurm.SlurmJob(self.folder, f"{self.job_id}_{i}")
            job.watcher = squeue
            job.paths.move_temporary_file(fpath, "submitted_pickle")
            jobs.append(job)
        return jobs

    def _make_submission_command(self, fpath: pathlib.Path) -> list[str]:
        return ["sbatch", "--parsable", str(fpath)]

    def _get_job_id_from_submission_command(self, output: str | bytes) -> str:  # type: ignore[override]
        self.job_id, self.cluster = job_id(str(output))
        return self.job_id

    def cancel(self) -> None:
        """Cancel all its tasks."""
        which = [self.job_id] if self.job_id else ["--name", self.job_name]
        try:
            ask("scancel", self.env, self.cluster, f"--user={os.getuid()}", *which)
        except Unanswered as err:
            say(
                f"{sys.argv[0]}: Slurm job {self.job_id or self.job_name} may still be"
                f" running, since scancel failed: {err}"
            )


class Unanswered(Exception):
    """A Slurm command failed; the message says why."""


def ask(program: str, env: dict[str, str], cluster: str, *args: str) -> str:
    """The output of a Slurm command.

    Raises:
        Unanswered: It fails.
    """
    where = [f"--clusters={cluster}"] if cluster else []
    try:
        done = subprocess.run(
            [program, *where, *args],
            env=env,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise Unanswered(one_line(err)) from None
    if done.returncode:
        output = one_line(done.stderr.strip() or done.stdout.strip())
        raise Unanswered(output or f"exit code {done.returncode}")
    return done.stdout


FORMS = (
    re.compile(r"(\d+)(?:;([\w.-]+))?").fullmatch,
    re.compile(r"Submitted batch job (\d+)(?: on cluster (\w[\w.-]*\b))?").search,
    re.compile(r"\bjob (\d+)(?: on cluster (\w[\w.-]*\b))?").search,
)
"""The forms in which sbatch prints a job id, the most reliable first."""


def job_id(output: str) -> tuple[str, str]:
    """The job's id, and its cluster if there is one, from sbatch's output.

    With --parsable it prints "123" or "123;cluster". A site's wrapper may drop the option, and
    print a banner around the answer that names other jobs.

    Raises:
        UserError: There is no id.
    """
    lines = [line.strip() for line in reversed(output.splitlines())]
    for form in FORMS:
        for text in lines:
            if found := form(text):
                return found[1], found[2] or ""
    raise UserError(f"no job id in sbatch's output: {one_line(output) or 'nothing'}")


QUEUED = r"(\d+)(_\d+|_\[\S+\])?(?:;\S+)?\|([A-Z_]+)[^|]*(?:\|(.*))?"
"""A line of squeue: array, task, state, and why it is pending."""


class Squeue(core.InfoWatcher):
    """The states of this user's tasks, polled with squeue."""

    def __init__(self, env: dict[str, str], cluster: str = ""):
        super().__init__(delay_s=DELAY_S)
        self.env, self.cluster = env, cluster
        self.n_absent: collections.Counter[str] = collections.Counter()
        self.complaint = ""
        self.reasons = {"", "None"}
        """Why tasks are pending, as told so far. Some reasons last until somebody acts."""

    def update(self) -> None:
        """Run squeue. If it fails, the states stay as they were."""
        self._last_status_check = time.time()
        try:
            output = ask(
                *("squeue", self.env, self.cluster, f"--user={os.getuid()}"),
                *("--noheader", "--array", "--states=all", "--format=%i|%T|%r"),
            )
        except Unanswered as err:
            if str(err) != self.complaint:
                say(f"{sys.argv[0]}: still waiting, although squeue fails: {err}")
            self.complaint = str(err)
            return
        self._info_dict = self.read_info(output)
        for name in self._registered:
            info = self.get_info(name, mode="cache")
            self.n_absent[name] = 0 if info else self.n_absent[name] + 1
            reason = info.get("Reason", "")
            if info.get("State") == "PENDING" and reason not in self.reasons:
                say(f"{sys.argv[0]}: waiting in Slurm's queue ({one_line(reason)})")
                self.reasons.add(reason)

    def read_info(self, string: str | bytes) -> dict[str, dict[str, str]]:
        """{"State", "Reason"} by task, "7_0", and by array, "7", for tasks that are not listed singly.

        Slurm may list tasks that have not started as "7_[2-5,8%4]". Other lines, such as a
        cluster's heading, are skipped.
        """
        info: dict[str, dict[str, str]] = {}
        for line in str(string).splitlines():
            match = re.match(QUEUED, line.strip())
            if match is None:
                continue
            array, task, state, reason = match.groups("")
            name = array if "[" in task else array + task
            if state not in ENDED or name not in info:
                info[name] = {"State": state, "Reason": reason}
        return info

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        info = self.get_info(job_id, mode=mode)
        return info.get("State", "")

    def get_info(self, job_id: str, mode: str = "standard") -> dict[str, str]:
        own = super().get_info(job_id, mode=mode)
        return own or self._info_dict.get(job_id.partition("_")[0], {})

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        state = self.get_state(job_id, mode)
        return state in ENDED or self.n_absent[job_id] >= N_ABSENT
