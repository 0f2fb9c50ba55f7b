"""EXECUTOR does what the pool does, elsewhere; a killed task costs only its own work."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from kits import checkpoints as util
from kits import executor as executor_kit
from kits.lab import Lab
from kits.programs import rows_of, run_program, text_of
from kits.slurm import Site
from saepub import machine
from saepub.checkpoint import saev as saev_loader
from saepub.cli import UsageError, UserError
from saepub.slurm import array, executor
from saepub.slurm import tasks as executor_tasks
from saepub.stages import preflight

pytestmark = pytest.mark.long

CANARIES = {"HF_TOKEN": "hf_canary_1", "WANDB_API_KEY": "canary_2", "OTHER": "canary_3"}
KINDS = ("local", "slurm")
REST = "finished work is kept; the same command does only the rest"


def spying_lab(dpath: pathlib.Path, kind: str, slurm_conf: str = "") -> Lab:
    """A lab for runs run0, run1, …, the i-th with a d_sae of 16 (i + 1), and a saev that spies."""
    lab = Lab(dpath)
    executor_kit.spy(lab.saev_dir)
    lab.env = {"EXECUTOR": kind} | ({"SLURM_CONF": slurm_conf} if slurm_conf else {})
    return lab


def line_of(lab: Lab, i: int) -> dict:
    return lab.line(f"run{i}", d_sae=16 * (i + 1), seed=i)


def loads(lab: Lab) -> list[tuple[int, int, dict]]:
    """What tasks loaded so far: which run, the process, its environment."""
    text = (lab.saev_dir / "loads").read_text()
    found = [json.loads(row) for row in text.splitlines()]
    return [(d_sae // 16 - 1, pid, env) for d_sae, pid, env in found]


def hang(lab: Lab, i: int) -> pathlib.Path:
    """Make the task that loads the i-th run hang there as long as this file exists."""
    fpath = lab.saev_dir / f"hang-{16 * (i + 1)}"
    fpath.touch()
    return fpath


def start(lab: Lab, lines: list[dict], *argv: str, **env) -> subprocess.Popen:
    return lab.start("bin/preflight", *argv, stdin=text_of(lines), **env)


def until_hanging(lab: Lab, program, i: int, n_others: int) -> tuple[int, dict]:
    """Wait until run i hangs and the others are done; its task's process and environment."""

    def hangs():
        assert program.poll() is None, program.stderr.read()
        n_done = len(list(lab.build.glob("executor/*.json")))
        return n_done == n_others and i in [j for j, _, _ in loads(lab)]

    until(hangs)
    return next((pid, env) for j, pid, env in loads(lab) if j == i)


def slurm(lab: Lab, *argv: str) -> str:
    """What a command of Slurm's prints."""
    env = os.environ | {"SLURM_CONF": lab.env["SLURM_CONF"]}
    return subprocess.run(argv, check=True, env=env, text=True, stdout=-1).stdout


def until(is_so) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def checked(lab: Lab, line: dict) -> dict:
    """The line with what preflight adds to it, except for the probe and saev."""
    fpath = lab.fpath(line["run_id"])
    header = json.loads(fpath.read_bytes().partition(b"\n")[0])
    more = {"schema": 5, "activation_config": header["cfg"]["activation"]}
    more |= {"loader": "saev (commit unknown)", "warnings": []}
    return line | util.facts(fpath) | more


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def lab(request, kind, tmp_path):
    conf = request.getfixturevalue("slurm_conf") if kind == "slurm" else ""
    return spying_lab(tmp_path, kind, conf)


def test_killed_task_costs_what_it_had_not_done_and_secrets_stay(lab, kind):
    lines = [line_of(lab, i) for i in range(6)]
    bad = lab.fpath("run2")
    bad.write_bytes(bad.read_bytes()[:-100])
    stays = hang(lab, 3)
    # Two tasks: run0, run2, run4 and run1, run3, run5.
    with start(lab, lines, "--jobs", "2", **CANARIES) as program:
        pid, env = until_hanging(lab, program, 3, n_others=4)
        if kind == "slurm":
            task = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
            slurm(lab, "scancel", task)
        else:
            task = env["SUBMITIT_LOCAL_JOB_ID"]
            os.kill(pid, signal.SIGKILL)
        out, err = program.communicate()
    assert (program.returncode, out) == (1, "")
    sent, *told = essential(err)
    who = f"Slurm job {task.split('_')[0]}" if kind == "slurm" else "this machine"
    logs = sent.removeprefix(f"preflight: 6 lines as 2 tasks of {who}; logs in ")
    assert pathlib.Path(logs).parent == lab.build / "executor" / "logs"
    assert told[0].startswith(f"preflight: tiny layer 6 run2: {bad}: ")
    assert told[1] == (
        'preflight: to continue without them: make dry-run REPO=tiny EXCLUDE="run2"'
    )
    how = "ended (cancelled)" if kind == "slurm" else "ended"
    for row, i in zip(told[2:4], (3, 5), strict=True):
        why = f"not done: {kind} task {task} {how}; see {logs}/{task}_0_log.err"
        assert row.startswith(f"preflight: tiny layer 6 run{i}: {why}")
    assert told[4:] == [f"preflight: 2 problems; {REST}"]
    assert sorted(i for i, _, _ in loads(lab)) == [0, 1, 3, 4]

    # Neither the nodes nor what lies on the disk for them have seen a secret.
    for _, _, env in loads(lab):
        assert not CANARIES.keys() & env.keys()
        assert env["SAEV_DIR"] == str(lab.saev_dir)
    left = [fpath for fpath in lab.build.rglob("*") if fpath.is_file()]
    for fpath in left:
        assert b"canary" not in fpath.read_bytes(), fpath
    # What is pickled is the lines, and names: no code, no settings.
    sent = [fpath for fpath in left if fpath.name.endswith("_submitted.pkl")]
    assert len(sent) == 2
    assert sum(f.stat().st_size for f in sent) < 2000 + len(text_of(lines))

    # The same command without the bad run does only what is missing, in the lines' order.
    stays.unlink()
    del lines[2]
    with start(lab, lines, JOBS="2", **CANARIES) as program:
        out, err = program.communicate()
    assert program.returncode == 0
    assert err.startswith(
        "preflight: 3 lines already done\npreflight: 2 lines as 2 tasks"
    )
    assert sorted(i for i, _, _ in loads(lab)) == [0, 1, 3, 3, 4, 5]
    rows = rows_of(out)
    assert all(os.path.isfile(row.pop("probe")) for row in rows)
    assert all(row.pop("saev")["requirement"] is None for row in rows)
    assert rows == [checked(lab, line) for line in lines]
    (left,) = (lab.build / "executor" / "logs").iterdir()
    assert str(left) == logs  # the logs of a successful run are gone


def essential(err: str) -> list[str]:
    """What is told, without what depends on how busy machine and cluster are."""
    lines = [text for text in err.splitlines() if not text.endswith(" left")]
    return [text for text in lines if "waiting in Slurm's queue" not in text]


def test_interrupt_cancels_the_tasks(lab, kind):
    lines = [line_of(lab, i) for i in range(2)]
    hang(lab, 0), hang(lab, 1)
    with start(lab, lines, "--jobs", "2") as program:
        pid, _ = until_hanging(lab, program, 0, n_others=0)
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does
        out, err = program.communicate()
    assert (program.returncode, out) == (130, "")
    assert essential(err)[1:] == ["preflight: interrupted"]
    until(lambda: kind == "local" or not slurm(lab, "squeue", "--noheader"))
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert not any("Traceback" in f.read_text() for f in lab.build.rglob("*.err"))


def test_preempted_task_is_named(tmp_path, slurm_conf):
    lab = spying_lab(tmp_path, "slurm", slurm_conf)
    lines = [line_of(lab, 0)]
    hang(lab, 0)
    with start(lab, lines, SLURM_PARTITION="debug") as program:
        until_hanging(lab, program, 0, n_others=0)
        urgent = ["sbatch", "--partition=urgent", "--exclusive", "--wrap=true"]
        urgent += ["--output=/dev/null"]
        slurm(lab, *urgent)
        out, err = program.communicate()
    assert (program.returncode, out) == (1, "")
    assert re.search(r"run0: not done: slurm task \d+_0 ended \(preempted\); see ", err)


def test_saev_that_cannot_be_imported_sends_nothing(tmp_path):
    lab = spying_lab(tmp_path, "local")
    util.write_saev(lab.saev_dir, "import")
    with start(lab, [line_of(lab, 0)]) as program:
        out, err = program.communicate()
    assert (program.returncode, out) == (1, "")
    assert len(err.splitlines()) == 1 and "a_package_that_is_not_there" in err
    assert [f.name for f in lab.build.iterdir()] == [".saepub"]  # our mark alone


def test_stage_splits_between_repos_and_not_within_one(tmp_path):
    lab = Lab(tmp_path)
    lines = []
    for i, slug in enumerate(("one", "one", "two")):
        lines.append(checked(lab, line_of(lab, i) | {"repo": slug}))

    def staged(lines):
        lab.call("stage", *lines)
        return sorted(f.parent.name for f in lab.build.rglob("sae.pt"))

    assert staged(lines[:2]) == ["run0", "run1"]
    assert staged(lines[2:]) == ["run0", "run1", "run2"]
    assert staged(lines[1:]) == ["run1", "run2"]
    assert "from all its lines at once" in run_program("bin/stage", "--help").out


# In this process, with tasks that need no torch.


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Settings for `executor.run` in this process; the log of executor_kit.double."""
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("EXECUTOR", "local")
    monkeypatch.delenv("SAEV_DIR", raising=False)
    return tmp_path / "log"


def parts_of(log: pathlib.Path, *numbers: int) -> list[executor.Part]:
    return [executor.Part((n, str(log)), []) for n in numbers]


def run(
    parts: list[executor.Part], n_tasks: int | None = None
) -> list[executor.Outcome]:
    return executor.run(executor_kit.double, parts, executor.Needs(10**8), n_tasks)


def called(log: pathlib.Path) -> list[int]:
    return sorted(int(row.split()[0]) for row in log.read_text().splitlines())


def test_outcomes_come_in_order_each_of_its_kind(here, capsys):
    parts = parts_of(here, 5, 15, 13, 3, 5, 14, 4)
    outcomes = run(parts, 3)  # tasks of 5 3 4, of 15 14, and of 13
    assert [o.result for o in outcomes] == [10, None, None, 6, 10, None, 8]
    assert outcomes[1].reason.startswith("not enough memory on ")
    assert outcomes[2] == executor.Outcome(reason="13 brings bad luck")
    lost = outcomes[5].lost
    assert lost.endswith("_log.err, which ends with: RuntimeError: 14 is a bug")
    assert called(here) == [3, 4, 5, 13, 14, 15]  # a duplicate is done once
    named = f"tiny layer 6 run14: not done: {lost}"
    with pytest.raises(UserError) as caught:
        executor.fail_on_lost([("tiny layer 6 run14", lost)])
    assert str(caught.value) == f"{named} ({REST})"
    with pytest.raises(UserError, match=f"^2 problems; {REST}"):
        executor.fail_on_lost([("another", "gone"), ("tiny layer 6 run14", lost)])
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == ["stage: another: not done: gone", f"stage: {named}"]


def test_refusal_is_not_kept_for_the_next_run(here):
    parts = parts_of(here, 13, 1)
    run(parts)
    assert run(parts)[0].reason == "13 brings bad luck"
    assert called(here) == [1, 13, 13]


def test_outcome_that_is_not_whole_is_no_outcome(here, tmp_path):
    parts = parts_of(here, 1)
    first = run(parts)
    (kept,) = (tmp_path / "build" / "executor").glob("*.json")
    kept.write_bytes(b"")
    assert run(parts) == first
    assert called(here) == [1, 1]
    kept.write_bytes(json.dumps(first[0]).encode())
    assert run(parts) == first
    assert called(here) == [1, 1]


@pytest.mark.parametrize(("n_tasks", "n_processes"), [(2, 2), (9, 3), (None, 1)])
def test_tasks_are_as_many_as_asked_for(here, monkeypatch, n_tasks, n_processes):
    monkeypatch.setattr(machine, "n_cores", lambda: 1)
    run(parts_of(here, 1, 2, 3), n_tasks)
    processes = {row.split()[1] for row in here.read_text().splitlines()}
    assert len(processes) == n_processes


@pytest.mark.parametrize(
    ("n_lines", "n_tasks"), [(1, 1), (4, 1), (5, 2), (36, 9), (300, executor.N_TASKS)]
)
def test_array_is_worth_its_starts(here, monkeypatch, n_lines, n_tasks):
    def do(kind, function, todo, n, needs, env, dpath):
        assert (kind, len(todo), n) == ("slurm", n_lines, n_tasks)
        return dict.fromkeys(todo, "away")

    monkeypatch.setattr(executor_tasks, "do", do)
    monkeypatch.setenv("EXECUTOR", "slurm")
    outcomes = run(parts_of(here, *range(n_lines)))
    assert outcomes == [executor.Outcome(lost="away")] * n_lines


def test_job_that_slurm_refuses_is_one_line(here, monkeypatch, slurm_conf, capfd):
    monkeypatch.setenv("EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    monkeypatch.setenv("SLURM_PARTITION", "none")
    with pytest.raises(UserError, match="^Slurm refused the job: .*Invalid partition"):
        run(parts_of(here, 1))
    assert capfd.readouterr() == ("", "")


def test_machine_without_slurm_is_told(here, monkeypatch, tmp_path):
    monkeypatch.setenv("EXECUTOR", "slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="slurm, but there is no sbatch on this"):
        run(parts_of(here, 1))


def test_outcome_is_kept_for_as_long_as_all_that_it_depends_on_is_the_same(tmp_path):
    fpath = tmp_path / "sae.pt"
    fpath.write_bytes(b"1234")
    row = {"run_id": "run1", "l0": 3.5}

    def key(function=preflight.check, versions=("saev 1",), runs_root="/a", **more):
        part = executor.Part((row | more, runs_root), [fpath])
        return executor.key(function, part, list(versions))

    keys = [key(), key(l0=3.25), key(runs_root="/b"), key(versions=("saev 2",))]
    keys += [key(function=executor_kit.double)]
    os.utime(fpath, ns=(0, 1))
    keys += [key()]
    fpath.write_bytes(b"12345")
    os.utime(fpath, ns=(0, 1))
    keys += [key()]
    fpath.unlink()
    keys += [key()]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_saev_is_known_by_its_label_and_its_files(tmp_path, monkeypatch):
    saev_dir = util.write_saev(tmp_path / "saev")
    saev = saev_loader.Saev(None, "saev abc-dirty", is_checkout=True)
    monkeypatch.setattr(saev_loader, "available", lambda: saev)
    monkeypatch.setenv("SAEV_DIR", str(saev_dir))
    before = saev_loader.identity()
    assert before == saev_loader.identity()
    (saev_dir / "src" / "saev" / "nn" / "__init__.py").write_text("# changed")
    assert saev_loader.identity() != before


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("EXECUTOR", "slrum", "EXECUTOR is 'slrum'; it takes slurm or local"),
        ("JOBS", "many", "JOBS is 'many'; it takes a whole number, 1 or more"),
        ("JOBS", "0", "JOBS is '0'"),
    ],
)
def test_wrong_setting_is_told(tmp_path, name, value, why):
    done = run_program("bin/preflight", RUNS_ROOT=tmp_path, **{name: value})
    assert done.code == 2 and done.err.startswith(f"preflight: {why}")


def test_wrong_minutes_are_told_before_anything_is_sent(here, monkeypatch):
    monkeypatch.setenv("SLURM_TIME", "1:00:00")
    with pytest.raises(UsageError, match="SLURM_TIME is '1:00:00'; it takes a whole"):
        run(parts_of(here, 1))
    assert not here.exists()


def test_option_goes_before_setting(monkeypatch):
    monkeypatch.setenv("JOBS", "3")
    assert executor.n_jobs(None) == 3
    assert executor.n_jobs("2") == 2
    monkeypatch.delenv("JOBS")
    assert executor.n_jobs(None) is None


# Slurm as sites have it: wrapped, federated, without srun and sacct.


@pytest.fixture
def site(here, tmp_path, monkeypatch):
    """Like `here`, with a `Site` in place of Slurm."""
    site = Site(tmp_path / "site")
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(executor_tasks.POLL_S, "slurm", 0.05)
    return site


@pytest.mark.parametrize(
    ("output", "job_id"),
    [
        ("4711", ("4711", "")),
        ("4711;east\n", ("4711", "east")),
        ("Submitted batch job 4711\n", ("4711", "")),
        ("Submitted batch job 4711 on cluster east\n", ("4711", "east")),
        ("*** Quota: 12 of 40 GB ***\n\n4711\n", ("4711", "")),
        ("4711\nsbatch: info: charged to job-accounting\n", ("4711", "")),
        ("-> account lab\nSubmitted batch job 4711\n", ("4711", "")),
        ("Submitted batch job 4711 on cluster x.\n", ("4711", "x")),
        ("4711;east\nYour last was job 12\n", ("4711", "east")),
        ("Submitted batch job 4711\nYour last was job 12\n", ("4711", "")),
    ],
)
def test_job_is_known_whatever_sbatch_prints(output, job_id):
    assert array.job_id(output) == job_id


@pytest.mark.parametrize("output", ["", "submitted", "Quota: 12 of 40 GB"])
def test_job_that_nobody_can_name_is_cancelled(here, site, output):
    site.idle()
    site.say("sbatch", output)
    with pytest.raises(UserError, match="^no job id in sbatch's output: "):
        run(parts_of(here, 1, 2))
    ((argv, _),) = site.calls("scancel")
    (script,) = site.calls("sbatch")[0][0][-1:]
    (name,) = re.findall(r"--job-name=(\S+)", pathlib.Path(script).read_text())
    assert argv[1:] == ["--name", name] and name.startswith("saepub-stage-")


def test_job_that_may_have_been_accepted_is_cancelled(here, site):
    site.say("sbatch", err="sbatch: error: Socket timed out on send/recv", code=1)
    with pytest.raises(UserError, match="^Slurm refused the job: .*Socket timed out"):
        run(parts_of(here, 1))
    assert site.calls("scancel")[0][0][1] == "--name"


def test_one_cluster_of_several_is_asked_and_nothing_narrows_what_it_says(
    here, site, monkeypatch
):
    monkeypatch.setenv("SLURM_CLUSTERS", "west,east")
    monkeypatch.setenv("SQUEUE_PARTITION", "none")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    site.say("sbatch", "Welcome to east\n4711;east\n")
    site.say("squeue", "CLUSTER: east\n4711_[0-1%2]|PENDING\n")
    outcomes = run(parts_of(here, 3, 4), 2)
    assert [outcome.result for outcome in outcomes] == [6, 8]
    ((argv, env),) = site.calls("sbatch")
    assert argv[0] == "--parsable" and env["SLURM_CLUSTERS"] == "west,east"
    (argv, asked), *_ = site.calls("squeue")
    assert argv[0] == "--clusters=east"
    for seen in (env, asked):
        assert not {"SQUEUE_PARTITION", "HF_TOKEN"} & seen.keys()
    assert not site.calls("scancel")


def test_interrupt_cancels_on_the_cluster_that_has_the_job(here, site, monkeypatch):
    def interrupted(items, n_items, label):
        raise KeyboardInterrupt

    monkeypatch.setattr(executor_tasks, "progress", interrupted)
    site.idle()
    site.say("sbatch", "4711;east\n")
    with pytest.raises(KeyboardInterrupt):
        run(parts_of(here, 1))
    ((argv, _),) = site.calls("scancel")
    assert argv == ["--clusters=east", f"--user={os.getuid()}", "4711"]


def test_scancel_that_fails_is_told(here, site, capsys):
    site.idle()
    site.say("sbatch", "nothing to see\n")
    site.say("scancel", err="scancel: error: no permission", code=1)
    with pytest.raises(UserError):
        run(parts_of(here, 1))
    assert (
        "may still be running, since scancel failed: scancel: error"
        in capsys.readouterr().err
    )


def test_slurm_that_does_not_answer_is_waited_for(here, site, capsys):
    site.say("squeue", err="slurm is away\n", code=1)
    assert [outcome.result for outcome in run(parts_of(here, 3))] == [6]
    assert (
        "still waiting, although squeue fails: slurm is away" in capsys.readouterr().err
    )
    squeue = array.Squeue(dict(os.environ))
    squeue.register_job("4711_0")
    for _ in range(2 * array.N_ABSENT):
        squeue.update()
    assert not squeue.is_done("4711_0", mode="cache")
    assert capsys.readouterr().err.count("squeue fails") == 1
    (site.bin / "squeue").unlink()
    squeue.update()
    assert "squeue fails: [Errno 2]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("queue", "is_done"),
    [
        ("4711_0|RUNNING\n4711_1|OUT_OF_MEMORY\n", (False, True)),
        ("CLUSTER: east\n4711_0|CANCELLED+\n4711_1|COMPLETING\n", (True, False)),
        ("JOBID|STATE\n4711_0|TIMEOUT\n4711_[1]|PENDING\n", (True, False)),
        ("4711_[0-1%2]|PENDING\n", (False, False)),
        ("4711_[0,1-5...]|PENDING\n4711_0|FAILED\n", (True, False)),
        ("4711_0;east|RUNNING\n4711_1;east|NODE_FAIL\n", (False, True)),
        ("4711|PENDING\n", (False, False)),
        ("4711|CANCELLED\n", (True, True)),
        ("47110_0|RUNNING\n4711_1|RUNNING\n\n*** quota | 12 ***\n", (True, False)),
    ],
)
def test_task_has_ended_when_the_queue_says_so(site, queue, is_done):
    site.say("squeue", queue)
    squeue = array.Squeue(dict(os.environ))
    names = ("4711_0", "4711_1")
    for name in names:
        squeue.register_job(name)
    squeue.update()
    for _ in range(array.N_ABSENT - 1):
        squeue.update()
    assert tuple(squeue.is_done(name, mode="cache") for name in names) == is_done


def test_why_a_task_waits_is_told_once(site, capsys):
    """Some reasons last until somebody does something about them."""
    squeue = array.Squeue(dict(os.environ))
    for name in ("4711_0", "4711_1"):
        squeue.register_job(name)
    for reason in ("None", "Priority", "PartitionTimeLimit", "Priority"):
        site.say("squeue", f"4711_[0-1]|PENDING|{reason}\n")
        squeue.update()
    site.say("squeue", "4711_0|RUNNING|None\n4711_1|FAILED|NonZeroExitCode\n")
    squeue.update()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        "waiting in Slurm's queue (Priority)",
        "waiting in Slurm's queue (PartitionTimeLimit)",
    ]


def test_task_that_the_queue_misses_once_has_not_ended(site):
    squeue = array.Squeue(dict(os.environ))
    squeue.register_job("4711_0")
    for queue in ("", "", "4711_0|RUNNING\n", "", ""):
        site.say("squeue", queue)
        squeue.update()
        assert not squeue.is_done("4711_0", mode="cache")
    squeue.update()
    assert squeue.is_done("4711_0", mode="cache")
