"""Faults: a machine without room or rights, files that go, two at once, and clocks that jump."""

import contextlib
import copy
import functools
import json
import os
import subprocess
import time

from faults.rows import NotHere, Row
from kits.hub import Fault
from kits.lab import Lab, Labs
from kits.programs import Done
from loopback_hub import LoopbackHub

FULL, READ_ONLY = "No space left on device", "Read-only file system"
YEAR = 365 * 86400
TOKEN = "hf_fault_table"


@functools.cache
def own_mounts() -> tuple[str, ...]:
    """The command that runs another with mounts of its own.

    Raises:
        NotHere: There is no right to.
    """
    for command in (("unshare", "-m"), ("unshare", "-r", "-m")):
        argv = [*command, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
        try:
            if subprocess.run(argv, capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            break
    raise NotHere("no right to mount a file system of its own")


def full_disk(lab: Lab, spoil: str, goal: str, **env: object) -> Done:
    """Run make on a disk that is full, then again when it has room."""
    script = f"""
        mkdir "$SAEPUB_BUILD.kept" && cp -a "$SAEPUB_BUILD/." "$SAEPUB_BUILD.kept"
        mount -t tmpfs -o size=8m tmpfs "$SAEPUB_BUILD"
        cp -a "$SAEPUB_BUILD.kept/." "$SAEPUB_BUILD"
        {spoil}
        head -c 20m /dev/zero > "$SAEPUB_BUILD/filler" 2> /dev/null || true
        make {goal} && code=0 || code=$?
        rm "$SAEPUB_BUILD/filler"
        make {goal} > /dev/null 2>&1 || exit 99
        cp -a "$SAEPUB_BUILD/tiny" "$SAEPUB_BUILD.after"
        exit $code
    """
    seen = lab.program(*own_mounts(), "sh", "-euc", script, **env)
    assert seen.code != 99, "with room again, it still fails"
    return seen


def full_while_settings_are_noted(labs: Labs) -> Done:
    lab = labs.copy()
    goal = f"{lab.build}/tiny/selected.jsonl N=2"
    seen = full_disk(lab, 'rm "$SAEPUB_BUILD/.settings/N"', goal)
    assert n_lines(lab, "selected") == 2, "with room again, it trusted what was there"
    return seen


def full_while_a_stage_writes(labs: Labs) -> Done:
    lab = labs.copy()
    spoil = 'rm "$SAEPUB_BUILD/tiny/candidates.jsonl"'
    seen = full_disk(lab, spoil, f"{lab.build}/tiny/selected.jsonl")
    assert n_lines(lab, "selected") == 3, "with room again, it trusted what was there"
    return seen


def full_while_the_card_is_written(labs: Labs) -> Done:
    lab = labs.copy()
    spoil = (
        'rm "$SAEPUB_BUILD/tiny/rendered.jsonl" "$SAEPUB_BUILD/tiny/stage/pareto.png"'
    )
    seen = full_disk(lab, spoil, "dry-run")
    same_documents(labs, lab.dpath / "build.after" / "stage")
    return seen


def n_lines(lab: Lab, joint: str) -> int:
    text = (lab.dpath / "build.after" / f"{joint}.jsonl").read_text()
    return text.count("\n")


def same_documents(labs: Labs, stage) -> None:
    for name in ("README.md", "manifest.jsonl", "pareto.png"):
        was, now = (
            (dpath / name).read_bytes() for dpath in (labs.made.stage_dpath, stage)
        )
        assert was == now, f"another {name} than before"


def into_full_file(name: str):
    """A stage whose output goes to a disk that is full."""

    def bring(labs: Labs) -> Done:
        made = labs.made
        joints = {"extract-ids": "", "classify": "metrics", "select": "classified"}
        joint = made.build / "tiny" / f"{joints[name]}.jsonl"
        stdin = joint.read_text() if joints[name] else ""
        argv = f"bin/{name} {'' if stdin else 'tiny'} > /dev/full"
        return made.program("sh", "-c", argv, stdin=stdin)

    return bring


def read_only(*goal: str, spoil: str = ""):
    """make over a finished build directory that can't be written to."""

    def bring(labs: Labs) -> Done:
        lab = labs.copy()
        script = f"""
            {spoil}
            mount --bind "$SAEPUB_BUILD" "$SAEPUB_BUILD"
            mount -o remount,ro,bind "$SAEPUB_BUILD"
            make {" ".join(goal)}
        """
        return lab.program(*own_mounts(), "sh", "-euc", script)

    return bring


@contextlib.contextmanager
def a_hub(lab: Lab, *faults: Fault):
    """A Hub on this machine, and the settings that make the toolkit use it."""
    user = {"name": "sam", "orgs": ["lab"], "role": "write"}
    tokens, faults = {TOKEN: user}, list(faults)
    with LoopbackHub(lab.dpath / "hub", tokens=tokens, faults=faults) as hub:
        env = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": lab.dpath / "hf",
        }
        yield hub, env


# ---- files that go or change between two stages ----------------------------------------------


def after_preflight(spoil, name: str, joint: str):
    """Run a stage on its joint, after `spoil(lab)`."""

    def bring(labs: Labs) -> Done:
        lab = labs.copy()
        spoil(lab)
        stdin = (lab.build / "tiny" / f"{joint}.jsonl").read_text()
        with a_hub(lab) as (hub, env):
            seen = lab.program(f"bin/{name}", stdin=stdin, **env)
            assert {method for method, _ in hub.requests} <= {"GET"}, (
                "something was sent"
            )
        assert seen.out == "", "it was passed on"
        return seen

    return bring


def plot_settings(labs: Labs) -> Done:
    """A user's own settings of matplotlib, and a backend that isn't there."""
    lab = labs.copy()
    plot_fpath = lab.stage_dpath / "pareto.png"
    before = plot_fpath.read_bytes()
    plot_fpath.unlink()
    rc_fpath = lab.dpath / "matplotlibrc"
    rc_fpath.write_text("text.usetex: true\nfont.family: serif\naxes.grid: false\n")
    env = {"MATPLOTLIBRC": rc_fpath, "MPLBACKEND": "module://no.such.backend"}
    env |= {"HOME": "/proc"}  # where it can't keep its caches
    argv = ("bin/render", "--account", lab.build / "tiny" / "account.jsonl")
    stdin = (lab.build / "tiny" / "staged.jsonl").read_text()
    seen = lab.program(*argv, stdin=stdin, **env)
    assert plot_fpath.read_bytes() == before, "the plot has other bytes"
    page = lab.program("bin/report", "--out", lab.dpath / "page.html", "tiny", **env)
    assert page.code == 0 and page.err.count("\n") == 1, page.err
    assert "atplotlib" not in seen.err, "it says what nobody asked"
    return seen


def staged(lab: Lab):
    return lab.stage_dpath / "layer_6" / "run0" / "sae.pt"


def lose(lab: Lab) -> None:
    lab.fpath("run0").unlink()


def lose_staged(lab: Lab) -> None:
    staged(lab).unlink()


def lose_linked(lab: Lab) -> None:
    """Across file systems, the stage has symlinks."""
    staged(lab).unlink()
    staged(lab).symlink_to(lab.fpath("run0"))
    lose(lab)


def write_on(lab: Lab) -> None:
    with open(staged(lab), "ab") as fd:
        fd.write(b"\0")


def edit_card(lab: Lab) -> None:
    with open(lab.stage_dpath / "README.md", "a") as fd:
        fd.write("P.S.\n")


def edited_card(labs: Labs) -> Done:
    """And the command that the message names repairs it."""
    seen = after_preflight(edit_card, "push", "rendered")(labs)
    lab = labs.copy()
    edit_card(lab)
    assert lab.make("recheck", "REPO=tiny").code == 0
    same_documents(labs, lab.stage_dpath)
    return seen


def add_secret(lab: Lab) -> None:
    (lab.stage_dpath / ".env").write_text("HF_TOKEN=hf_secret\n")


# ---- two at once -----------------------------------------------------------------------------


def two_releases(labs: Labs) -> Done:
    """A release that starts while another of the same repo waits for the Hub."""
    lab, fault = labs.copy(), Fault("commit", stall=True)
    with a_hub(lab, fault) as (hub, env):
        first = lab.start("make", "release", **env)
        try:
            wait_for(lambda: ("POST", "commit") in hub.requests, first)
            stdin = (lab.build / "tiny/rendered.jsonl").read_text()
            seen = lab.program("bin/push", stdin=stdin, **env)
        finally:
            fault.release.set()
            told = first.communicate()[1]
            assert first.returncode == 0, f"the first one failed: {told}"
        n_commits = len(hub.commits("lab/tiny"))
        assert n_commits == 2, (
            f"{n_commits} commits, not the repo's own and one of ours"
        )
    return seen


def two_dry_runs(labs: Labs) -> Done:
    """Both start on the same half-made build; what they leave must be whole."""
    lab = labs.copy()
    (lab.build / "tiny" / "checked.jsonl").touch()
    both = [lab.start("make", "dry-run"), lab.start("make", "dry-run")]
    for process in both:
        told = process.communicate()[1]
        held = "is working on it" in told
        assert process.returncode == 0 or held, f"one of the two failed: {told}"
    seen = lab.make("dry-run")
    same_documents(labs, lab.stage_dpath)
    return seen


def wait_for(is_there, process: subprocess.Popen) -> None:
    while not is_there():
        assert process.poll() is None, "the first one ended"
        time.sleep(0.02)


# ---- clocks ----------------------------------------------------------------------------------


def clock_set_back(labs: Labs) -> Done:
    """All that make made is dated in the future; then the sweep and the catalog change."""
    lab = labs.copy()
    later = time.time() + YEAR
    for fpath in lab.build.rglob("*"):
        if lab.stage_dpath not in fpath.parents:  # those are the checkpoints themselves
            os.utime(fpath, (later, later))
    lab.sweep = {6: ["run0", "run1", "run2", "run3"]}
    lab.records["run3"] = copy.deepcopy(lab.records["run2"]) | {"name": "run3"}
    lab.records["run3"]["summary"] |= {"eval/l0": 8.0, "eval/normalized_mse": 0.01}
    lab.entry["title"] = "Another title"
    lab.write()
    for name in ("saev/sweep.py", "catalog.json", "snapshot.jsonl"):
        os.utime(lab.dpath / name)
    goal = lab.build / "tiny" / "selected.jsonl"
    seen = lab.make(goal)
    run_ids = [json.loads(text)["run_id"] for text in goal.read_text().splitlines()]
    assert run_ids == ["run0", "run1", "run2", "run3"], f"it trusted {run_ids}"
    assert "Another title" not in (lab.stage_dpath / "README.md").read_text()
    return seen


def sweep_from_next_year(labs: Labs) -> Done:
    lab = labs.copy()
    lab.sweep = {6: ["run0", "run1"]}
    lab.write()
    later = time.time() + YEAR
    os.utime(lab.saev_dir / "sweep.py", (later, later))
    goal, fpath = lab.build / "tiny/selected.jsonl", lab.build / "tiny/candidates.jsonl"
    seen, _ = lab.make(goal), lab.make(goal)
    assert fpath.read_text().count("\n") == 2, "it trusted what was there"
    return seen


ROWS = [
    Row("disk full, at the first file", FULL, full_while_settings_are_noted, 2),
    Row(
        "disk full, while a stage writes",
        f"extract-ids: {FULL}",
        full_while_a_stage_writes,
        2,
    ),
    Row(
        "disk full, while the card is written", FULL, full_while_the_card_is_written, 2
    ),
    Row(
        "extract-ids into a full disk",
        f"extract-ids: {FULL}",
        into_full_file("extract-ids"),
    ),
    Row("classify into a full disk", FULL, into_full_file("classify"), 2),
    Row("select into a full disk", f"select: {FULL}", into_full_file("select")),
    Row(
        "read-only build/, nothing to do",
        "3 checkpoints and README.md",
        read_only("dry-run"),
        0,
    ),
    Row("read-only build/, another setting", READ_ONLY, read_only("dry-run", "N=2"), 2),
    Row(
        "read-only build/, another sweep",
        READ_ONLY,
        read_only("dry-run", spoil='touch "$SAEV_DIR/sweep.py"'),
        2,
    ),
    Row(
        "checkpoint gone between preflight and stage",
        "No such file or directory, though preflight read it; make recheck REPO=tiny",
        after_preflight(lose, "stage", "checked"),
    ),
    Row(
        "checkpoint gone from the stage before push",
        "layer_6/run0/sae.pt: missing; make recheck REPO=tiny",
        after_preflight(lose_staged, "push", "rendered"),
    ),
    Row(
        "checkpoint that the stage links to, gone before push",
        "No such file or directory, though preflight read it; make recheck REPO=tiny",
        after_preflight(lose_linked, "push", "rendered"),
    ),
    Row(
        "checkpoint written on between preflight and push",
        "changed since preflight; make recheck REPO=tiny",
        after_preflight(write_on, "push", "rendered"),
    ),
    Row(
        "card edited by hand before push",
        "README.md: changed since it was rendered; make recheck REPO=tiny",
        edited_card,
    ),
    Row(
        "a file of nobody's in the stage",
        ".env: not part of the release, but would be published; remove it",
        after_preflight(add_secret, "push", "rendered"),
    ),
    Row(
        "two releases of one repo at once",
        "is working on it; wait until that",
        two_releases,
    ),
    Row("two dry runs at once", "3 checkpoints and README.md", two_dry_runs, 0),
    Row("matplotlibrc and MPLBACKEND of a user's own", "pareto.png", plot_settings, 0),
    Row("clock set back by a year", "4 chosen", clock_set_back, 0),
    Row("sweep file from next year", "2 candidates", sweep_from_next_year, 0),
]
