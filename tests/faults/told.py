"""Faults: cards, lists and lines that say what isn't so or nothing at all, and the programs of
others that answer in their own way."""

import functools
import json
import os
import pathlib

from faults.machine import own_mounts
from faults.rows import Row
from kits import checkpoints as util
from kits.lab import SELECTION, Labs
from kits.programs import Done, commit_all, text_of
from kits.slurm import Site

N_COLUMNS = 160
"""The longest line that a list may have."""


# ---- cards -----------------------------------------------------------------------------------


@functools.cache
def chosen_by_hand(labs: Labs) -> Done:
    """Card and summary of a lab with PIN and EXCLUDE, whose saev has uncommitted changes."""
    lab = labs.new()
    for run_id, l0, nmse in (("a", 1, 0.5), ("b", 2, 0.3), ("c", 4, 0.6)):
        lab.run(run_id, l0=l0, nmse=nmse)
    commit_all(lab.saev_dir)
    with open(lab.saev_dir / "src/saev/__init__.py", "a") as fd:
        fd.write("# tried something\n")
    goal = lab.build / "tiny/summary.txt"
    seen = lab.make(goal, "PIN=c", "EXCLUDE=b")
    return Done(seen.code, card(lab) + goal.read_text(), seen.err)


def without_git(labs: Labs) -> Done:
    text = card(labs.made)
    assert "9.9.9" not in text.replace("saev 9.9.9 (not a release)", ""), "a release"
    return Done(0, text, "")


def card(lab) -> str:
    return (lab.stage_dpath / "README.md").read_text()


# ---- Slurm, as sites have it -----------------------------------------------------------------


def on_cluster(sbatch: str, squeue: str = "", cancels: str = "", idle: bool = True):
    """preflight as a Slurm array where sbatch and squeue print this."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        site = Site(lab.dpath / "site")
        site.say("sbatch", sbatch)
        site.say("squeue", squeue)
        if idle:
            site.idle()
        stdin = json.dumps(lab.line()) + "\n"
        path = f"{site.bin}:{os.environ['PATH']}"
        seen = lab.program("bin/preflight", stdin=stdin, **site.env | {"PATH": path})
        cancelled = [" ".join(argv) for argv, _ in site.calls("scancel")]
        assert len(cancelled) == bool(cancels), f"scancel was called with {cancelled}"
        assert cancels in "".join(cancelled), f"scancel was called with {cancelled}"
        return seen

    return bring


def without_sbatch(labs: Labs) -> Done:
    """All programs but Slurm's."""
    lab = labs.new()
    path = lab.dpath / "programs"
    path.mkdir()
    for dpath in os.environ["PATH"].split(os.pathsep):
        for fpath in pathlib.Path(dpath).glob("*"):
            if fpath.name != "sbatch" and not (path / fpath.name).is_symlink():
                (path / fpath.name).symlink_to(fpath)
    stdin = json.dumps(lab.line()) + "\n"
    return lab.program("bin/preflight", stdin=stdin, PATH=path, EXECUTOR="slurm")


# ---- one bad record --------------------------------------------------------------------------


def one_bad_record(spoil):
    """Two runs in W&B, one of them spoiled: it alone is lost, by name."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run("good")
        spoil(lab.run("bad"))
        seen = lab.stages(*SELECTION)
        assert [json.loads(text)["run_id"] for text in seen.out.splitlines()] == [
            "good"
        ], seen.err
        return seen

    return bring


def deep(n: int) -> object:
    value: object = 1
    for _ in range(n):
        value = {"x": value}
    return value


# ---- lists -----------------------------------------------------------------------------------


def short(seen: Done, n_bytes: int) -> Done:
    assert len(seen.err) <= n_bytes, f"{len(seen.err)} bytes"
    longest = max(map(len, seen.err.splitlines()))
    assert longest <= N_COLUMNS, f"a line of {longest} characters"
    return seen


def wrong_runs_root(layout: str):
    """Twelve checkpoints, none of which is where RUNS_ROOT says."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lines = [util.line(f"run{i}") for i in range(12)]
        for line in lines:
            (lab.dpath / layout.format(line["run_id"])).mkdir(parents=True)
        stdin = text_of(lines)
        seen = lab.program("bin/preflight", stdin=stdin, RUNS_ROOT=lab.dpath / "root")
        assert seen.err.count("\n") == 1, "it says so more than once"
        return seen

    return bring


def many_candidates(labs: Labs) -> Done:
    lines = [util.line(f"run{i}", l0=1 + i, nmse=1 / (2 + i)) for i in range(10_000)]
    lines[5000]["drop"] = "running"
    return short(labs.made.program("bin/select", stdin=text_of(lines)), 4000)


def unknown_id(name: str):
    def bring(labs: Labs) -> Done:
        made = labs.made
        stdin = (made.build / "tiny/candidates.jsonl").read_text()
        return made.program("bin/known-ids", stdin=stdin, **{name: "run0 nobody"})

    return bring


def one_hint(labs: Labs) -> Done:
    lab = labs.new()
    for i in range(9):
        del lab.run(f"run{i}", layer=6 + i // 3)["summary"]["eval/normalized_mse"]
    seen = lab.stages(*SELECTION)
    assert seen.err.count("make measure") == 1, "the hint stands more than once"
    return seen


# ---- numbers through jq ----------------------------------------------------------------------


def through_jq(labs: Labs) -> Done:
    """The next stage takes jq's word for when a checkpoint was last changed."""
    lab = labs.copy()
    checked = (lab.build / "tiny/checked.jsonl").read_text()
    return lab.stages("stage", stdin=lab.program("jq", "-c", ".", stdin=checked).out)


def number_on_line(labs: Labs) -> Done:
    lab = labs.copy()
    line = json.loads((lab.build / "tiny/checked.jsonl").read_text().split("\n")[0])
    line["mtime_ns"] = int(line["mtime_ns"])
    return lab.stages("stage", stdin=json.dumps(line) + "\n")


def large_numbers(record: dict) -> None:
    record["config"] |= {"seed": 2**63 - 1, "train_data": {"layer": 2**60}}


# ---- memory ----------------------------------------------------------------------------------


def on_machine(n_kbytes: int, *argv: str):
    """preflight where the kernel says that so much memory is available."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        meminfo = f"MemTotal: 64000000 kB\nMemAvailable: {n_kbytes} kB\n"
        (lab.dpath / "meminfo").write_text(meminfo)
        stdin = text_of([lab.line(f"run{i}", seed=i) for i in range(3)])
        script = f"""
            mount --bind '{lab.dpath}/meminfo' /proc/meminfo
            bin/preflight {" ".join(argv)}
        """
        return lab.program(*own_mounts(), "sh", "-euc", script, stdin=stdin)

    return bring


ROWS = [
    Row(
        "card of a release with EXCLUDE",
        "Left out by hand, and not among the runs compared: `b` (layer 6).",
        chosen_by_hand,
        0,
    ),
    Row(
        "card of a release with a PIN that is off the frontier",
        "Except for `c` (layer 6), the checkpoints here lie on the Pareto frontier of the 2",
        chosen_by_hand,
        0,
    ),
    Row("saev with changes of its own", "has uncommitted changes", chosen_by_hand, 0),
    Row(
        "saev without its git history",
        "which commit of it loads them isn't on record",
        without_git,
        0,
    ),
    Row(
        "sbatch that prints no id",
        "no job id in sbatch's output: Welcome",
        on_cluster("Welcome\n", cancels="--name"),
    ),
    Row(
        "sbatch in its own words, and a queue with a cluster's heading",
        "1 task of Slurm job 4711",
        on_cluster(
            "Submitted batch job 4711 on cluster east\n",
            "CLUSTER: east\n4711_0|RUNNING\n",
            idle=False,
        ),
        0,
    ),
    Row(
        "a queue that has lost the task",
        "slurm task 4711_0 ended",
        on_cluster("4711;east\n", "CLUSTER: east\n4711_0|NODE_FAIL\n"),
    ),
    Row("no Slurm", "there is no sbatch on this machine", without_sbatch),
    Row(
        "W&B record nested 900 deep",
        "dropped: 1 not Matryoshka",
        one_bad_record(lambda record: record.update(config=deep(900))),
        0,
    ),
    Row(
        "W&B record whose config is a list",
        "dropped: 1 not Matryoshka (config is [1])",
        one_bad_record(lambda record: record.update(config=[1])),
        0,
    ),
    Row(
        "W&B record of numbers over 2^53",
        "1 at odds with the catalog",
        one_bad_record(large_numbers),
        0,
    ),
    Row(
        "RUNS_ROOT one level too high",
        "none of 12 checkpoints exists; looked for",
        wrong_runs_root("root/saev/{}"),
    ),
    Row(
        "RUNS_ROOT of another layout",
        "none of 12 checkpoints exists; looked for",
        wrong_runs_root("root/runs-{}"),
    ),
    Row(
        "RUNS_ROOT that is not there",
        "no such directory; set RUNS_ROOT",
        wrong_runs_root("elsewhere/{}"),
    ),
    Row("10,000 candidates", "10,000 candidates = 6 chosen", many_candidates, 0),
    Row("PIN of nobody", "PIN nobody: not a candidate of", unknown_id("PIN")),
    Row(
        "EXCLUDE of nobody", "EXCLUDE nobody: not a candidate of", unknown_id("EXCLUDE")
    ),
    Row("three layers without numbers", "make measure REPO=tiny", one_hint),
    Row(
        "lines that jq has passed on",
        '"path": "layer_6/run2/sae.pt"',
        through_jq,
        0,
    ),
    Row(
        "a time in nanoseconds as a number",
        '"mtime_ns" is 1768',
        number_on_line,
    ),
    Row(
        "more jobs than fit into memory",
        "1000 at once would need",
        on_machine(700_000, "--jobs 1000"),
        0,
    ),
]
