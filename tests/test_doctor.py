"""doctor tells what is ready and what to do, whatever state the rest is in."""

import contextlib
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys

import pytest

from kits import checkpoints as util
from kits.hub import Fault
from kits.lab import Lab
from kits.programs import ROOT, bare_env, run_code, run_program, text_of
from kits.terminal import Terminal
from loopback_hub import LoopbackHub
from loopback_wandb import HANG, KEY, LoopbackWandb
from saepub.settings import MARK, NO_TOKEN

pytestmark = pytest.mark.programs

TOKEN = "hf_canaryCANARYcanary"
WHATS = (
    "python",
    "jq",
    "make",
    "packages",
    "catalog",
    "saev",
    "runs",
    "disk",
    "W&B",
    "Hub",
)


def full_lab(dpath: pathlib.Path) -> Lab:
    """A catalog of two repos, a checkpoint for three of four candidates, a choice of them."""
    lab = Lab(dpath)
    for run_id in ("aaaa", "bbbb", "cccc"):
        lab.run(run_id)
    lab.sweep[6].append("dddd")
    lab.catalog = {
        "lab": {"entity": "samuelstevens", "project": "saev"},
        "collections": [{"namespace": "osunlp", "title": "SAEs"}],
        "repos": [
            util.entry("one", license="mit"),
            util.entry("two", license="mit", repo_id="osunlp/SAE"),
        ],
    }
    lab.write()
    lab.env = {"HOME": dpath, "METRICS_SNAPSHOT": lab.catalog_fpath}
    for slug, run_ids in (("one", ("aaaa", "bbbb")), ("two", ("cccc",))):
        rows = [{"repo": slug, "run_id": i, "expected": {}} for i in run_ids]
        (lab.build / slug).mkdir(parents=True)
        (lab.build / slug / "selected.jsonl").write_text(text_of(rows))
        (lab.build / MARK).touch()
    return lab


def settings_of(lab: Lab, **settings: object) -> dict[str, object]:
    """Settings for doctor in this lab; None removes one."""
    found = lab.settings | settings
    return {name: value for name, value in found.items() if value is not None}


def doctor(lab: Lab, **settings: object):
    return told(run_program(ROOT / "bin/doctor", **settings_of(lab, **settings)))


def look_at(lab: Lab, what: str, root=ROOT, **settings) -> list[tuple[str, str]]:
    """What doctor says of one thing: levels and texts."""
    env = settings_of(lab, **settings)
    done = told(run_code(LOOK_AT, what, py_dpath=root / "py", **env))
    assert not done.err
    assert done.code == any(level == "bad" for level, _ in done.lines[what])
    assert KEY not in done.out and TOKEN not in done.out
    return done.lines[what]


LOOK_AT = """
import sys
from saepub.doctor import checks as doctor_checks
from saepub.stages import doctor
doctor_checks.CHECKS = [c for c in doctor_checks.CHECKS if c.what == sys.argv[1]]
sys.exit(doctor.main([]))
"""


def told(done):
    """The run, with `lines`: (level, text) by what was looked at."""
    done.lines = {}
    for line in done.out.splitlines():
        level, what, text = re.fullmatch(r"(ok|todo|bad) +(\S+) +(\S.*)", line).groups()
        done.lines.setdefault(what, []).append((level, text))
    return done


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory):
    return full_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def lab(tmp_path):
    return full_lab(tmp_path)


def test_all_is_told_in_aligned_lines_and_exit_is_0(shared_lab):
    done = doctor(shared_lab)
    assert done.code == 0 and not done.err, done.out
    assert tuple(done.lines) == WHATS
    levels = {level for found in done.lines.values() for level, _ in found}
    assert levels == {"ok", "todo"}
    assert done.lines["Hub"] == [("todo", NO_TOKEN)]
    assert all(
        re.match(r"\S+ +\S+ +", line).end() == 16 for line in done.out.splitlines()
    )
    assert done.out.isascii()


def test_the_demo_needs_no_key_and_no_token(demo):
    done = told(run_program(ROOT / "bin/doctor", BUILD=demo.parent))
    assert done.code == 0
    assert {level for found in done.lines.values() for level, _ in found} == {"ok"}
    assert "the demo needs no key" in done.out and "needs no token" in done.out


def test_before_there_is_a_demo_it_says_what_makes_it(tmp_path):
    done = told(run_program(ROOT / "bin/doctor", BUILD=tmp_path / "build"))
    assert done.code == 0 and "make dry-run creates it" in done.out
    assert not (tmp_path / "build").exists()


def test_nothing_is_left_behind(lab):
    before = {f: f.stat().st_nlink for f in lab.dpath.rglob("*") if f.is_file()}
    doctor(lab)
    after = {f: f.stat().st_nlink for f in lab.dpath.rglob("*") if f.is_file()}
    assert before == {f: n for f, n in after.items() if "__pycache__" not in f.parts}


# ---- this machine ----------------------------------------------------------------------------


def tools(dpath: pathlib.Path, *names: str, **scripts: str) -> pathlib.Path:
    """A PATH with only these programs and scripts."""
    dpath.mkdir()
    for name in ("sh", "env", "git", *names):
        (dpath / name).symlink_to(shutil.which(name))
    for name, text in scripts.items():
        (dpath / name).write_text(f"#!/bin/sh\n{text}\n")
        (dpath / name).chmod(0o755)
    return dpath


def test_missing_tools_are_bad_with_how_to_get_them(lab):
    path = tools(lab.dpath / "bin")
    ((level, text),) = look_at(lab, "jq", PATH=path)
    assert level == "bad" and "apt install jq" in text
    ((level, text),) = look_at(lab, "make", PATH=path)
    assert level == "bad" and "brew install make" in text


def test_an_old_make_is_bad_unless_a_new_one_goes_by_another_name(lab):
    old, new = "echo GNU Make 3.81", "echo GNU Make 4.4.1"
    ((level, _),) = look_at(lab, "make", PATH=tools(lab.dpath / "a", make=old))
    assert level == "bad"
    path = tools(lab.dpath / "b", make=old, gmake=new)
    assert look_at(lab, "make", PATH=path) == [("ok", "4.4, as gmake")]


def test_a_jq_that_cannot_run_the_filters_is_bad(lab):
    path = tools(lab.dpath / "bin", jq="echo jq-1.3; exit 2")
    ((level, text),) = look_at(lab, "jq", PATH=path)
    assert level == "bad" and text.startswith("1.3 can't run bin/classify")


def test_packages_are_held_to_their_pins(lab):
    tree = lab.dpath / "tree"
    shutil.copytree(ROOT / "py", tree / "py")
    pins = (ROOT / "requirements.txt").read_text()
    (tree / "requirements.txt").write_text(re.sub("torch==.*", "torch==9.9.9", pins))
    ((level, text),) = look_at(lab, "packages", tree)
    assert level == "todo" and "(pinned: 9.9.9)" in text and "make setup" in text
    (tree / "requirements.txt").write_text(pins + "no-such-package==1.0\n")
    ((level, text),) = look_at(lab, "packages", tree)
    assert level == "bad" and text.startswith("not installed: no-such-package;")


def test_the_kind_of_links_that_a_stage_will_hold_is_told(lab):
    assert "hard links" in look_at(lab, "disk")[1][1]
    elsewhere = pathlib.Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == lab.dpath.stat().st_dev:
        pytest.skip("no second file system")
    runs = elsewhere / f"saepub-{os.getpid()}"
    try:
        shutil.copytree(lab.runs_root, runs)
        level, text = look_at(lab, "disk", RUNS_ROOT=runs)[1]
    finally:
        shutil.rmtree(runs)
    assert level == "ok" and "symlinks into the runs root (tmpfs)" in text


def test_a_build_directory_that_is_somebody_elses_is_bad(lab):
    ((level, text),) = look_at(lab, "disk", BUILD=lab.runs_root)
    assert level == "bad" and f"BUILD is {lab.runs_root}, which" in text


# ---- data ------------------------------------------------------------------------------------


def test_chosen_checkpoints_are_counted_and_the_missing_named(lab):
    assert "3 of 3 chosen checkpoints found" in look_at(lab, "runs")[0][1]
    shutil.rmtree(lab.runs_root / "bbbb")
    ((level, text),) = look_at(lab, "runs")
    assert level == "bad" and "2 of 3 chosen checkpoints found" in text
    assert text.endswith('EXCLUDE="bbbb"')
    shutil.rmtree(lab.build / "one")
    shutil.rmtree(lab.build / "two")
    assert "no runs are chosen yet" in look_at(lab, "runs")[0][1]


def test_the_saev_at_hand_is_tried_on_each_schema(lab):
    assert look_at(lab, "saev") == [
        ("ok", "saev (commit unknown) (SAEV_DIR) loads checkpoints of every schema")
    ]
    util.write_saev(lab.saev_dir, "old")
    ((level, text),) = look_at(lab, "saev")
    assert level == "todo" and "loads checkpoints without a schema" in text
    assert text.endswith("those of schema 1, 2, 3, 4, 5 need a newer checkout")
    util.write_saev(lab.saev_dir, "import")
    ((level, text),) = look_at(lab, "saev")
    assert level == "bad" and "a_package_that_is_not_there" in text


def test_without_a_checkout_the_released_saev_is_tried(lab):
    shutil.rmtree(lab.saev_dir / "src")
    ((level, text),) = look_at(lab, "saev")
    assert text.startswith("saev 0.1.0 (installed) loads checkpoints without a schema")
    assert level == "todo" and text.endswith("5 need SAEV_DIR set to a checkout")


@pytest.mark.parametrize(
    ("spoil", "said"),
    (
        (lambda lab: lab.catalog_fpath.write_text("{"), "not JSON"),
        (lambda lab: lab.catalog_fpath.unlink(), "No such file or directory"),
    ),
)
def test_a_broken_catalog_is_bad(lab, spoil, said):
    spoil(lab)
    ((level, text),) = look_at(lab, "catalog")
    assert level == "bad" and said in text


def test_what_of_a_catalog_is_ready_is_told_for_each_repo(lab):
    found = look_at(lab, "catalog")
    assert found[0][1].endswith("catalog.json: 2 repos, 2 layers")
    text = f"4 candidates, 3 with a checkpoint under {lab.runs_root}"
    assert found[1:] == [("ok", f"one: {text}"), ("ok", f"two: {text}")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sweep": "gone.py"}, ("bad", "gone.py: No such file or directory; check the catalog")),
        ({"variable": "ids"}, ("bad", 'sweep.py:1: assigns no "ids", which the catalog')),
        ({"layers": [7]}, ("bad", "layer 6 is not one of one's in the catalog: 7")),
        ({"checkpoint": "{run_id}/sae.pt"}, ("bad", "runs/aaaa/sae.pt")),
        ({"license": None}, ("todo", 'one: no "license"')),
        ({"shard": "abc"}, ("todo", "one: no SHARDS_ROOT; write \"shards_root\" in the catalog")),
        ({"shard": "abc", "shards_root": "/s"}, ("todo", "/s/abc: no such directory; make measure")),
        ({"titel": "x"}, ("bad", "repos[0] (one).titel: unknown key; did you mean title?")),
    ],
)  # fmt: skip
def test_what_of_a_repo_is_not_ready_is_told(lab, change, said):
    lab.catalog["repos"][0] |= change
    lab.write()
    found = look_at(lab, "catalog")
    level, text = said
    assert [where for where, what in found if text in what] == [level], found


def test_a_runs_root_that_is_not_there_is_told_for_each_repo(lab):
    found = look_at(lab, "catalog", RUNS_ROOT=lab.dpath / "gone")
    assert [level for level, _ in found] == ["ok", "bad", "bad"]
    assert "gone: no such directory; check RUNS_ROOT" in found[1][1]
    found = look_at(lab, "catalog", RUNS_ROOT="")
    assert 'one: no RUNS_ROOT; write "runs_root" in the catalog, or set' in found[1][1]


def test_a_broken_catalog_breaks_only_what_needs_it(lab):
    snapshot = lab.dpath / "snapshot.jsonl"
    snapshot.touch()
    lab.catalog_fpath.write_text("{")
    done = doctor(lab, METRICS_SNAPSHOT=snapshot, HF_TOKEN=TOKEN)
    assert done.code == 1 and not done.err and tuple(done.lines) == WHATS
    not_ok = {what for what, found in done.lines.items() if found[0][0] != "ok"}
    assert not_ok == {"catalog", "runs", "Hub"}


def test_settings_that_cannot_be_read_are_bad_and_the_rest_is_looked_at(lab):
    shutil.copytree(ROOT / "py", lab.dpath / "tree/py")
    (lab.dpath / "tree/.env").write_text(f"HF_TOKEN={TOKEN}\n")
    done = told(
        run_code(LOOK_AT, "runs", py_dpath=lab.dpath / "tree/py", **settings_of(lab))
    )
    ((level, text),) = done.lines["settings"]
    assert level == "bad" and "read from the environment only" in text
    assert done.lines["runs"][0][0] == "ok" and done.code == 1
    assert TOKEN not in done.out + done.err


# ---- W&B and the Hub -------------------------------------------------------------------------


def test_the_wandb_key_and_project_are_tried(shared_lab):
    with LoopbackWandb() as server:

        def wandb(**settings):
            settings = {
                "WANDB_BASE_URL": server.url,
                "METRICS_SNAPSHOT": None,
            } | settings
            ((level, text),) = look_at(shared_lab, "W&B", **settings)
            return level, text

        level, text = wandb(WANDB_API_KEY=KEY)
        assert level == "ok" and text == "the key has access to samuelstevens/saev"
        level, text = wandb(WANDB_API_KEY=KEY, WANDB_PROJECT="other")
        assert level == "bad" and 'no project "other"' in text
        level, text = wandb(WANDB_API_KEY=KEY[::-1])
        assert level == "bad" and "rejects the API key" in text
        n_before = server.n_total
        level, text = wandb()
        assert level == "bad" and "no API key" in text and "WANDB_API_KEY" in text
        assert server.n_total == n_before


def test_a_missing_export_of_metrics_is_bad(shared_lab):
    ((level, text),) = look_at(shared_lab, "W&B", METRICS_SNAPSHOT="/nowhere")
    assert level == "bad" and "check METRICS_SNAPSHOT" in text


FINE = {"lab": ["repo.write"], "osunlp": ["repo.write", "collection.write"]}
OK_BOTH = [("ok", f"HF_TOKEN can write to {ns}") for ns in ("lab", "osunlp")]


@pytest.mark.parametrize(
    ("user", "expected"),
    (
        ({"orgs": ["osunlp"], "role": "write"}, OK_BOTH),
        ({"orgs": ["osunlp"], "role": "fineGrained", "scoped": FINE}, OK_BOTH),
        ({"orgs": ["osunlp"], "role": "read"}, [("todo", "has only read access")]),
        ({"role": "write"}, [OK_BOTH[0], ("todo", "may not write to osunlp")]),
        (
            {"orgs": ["osunlp"], "role": "fineGrained", "scoped": {"lab": FINE["lab"]}},
            [OK_BOTH[0], ("todo", "lacks repo.write for osunlp")],
        ),
        (
            {
                "orgs": ["osunlp"],
                "role": "fineGrained",
                "scoped": FINE | {"osunlp": ["repo.write"]},
            },
            [OK_BOTH[0], ("todo", "lacks collection.write for osunlp")],
        ),
        (None, [("todo", "401")]),
    ),
)
def test_the_tokens_rights_are_told_for_each_namespace(
    shared_lab, tmp_path, user, expected
):
    tokens = {TOKEN: {"name": "lab"} | user} if user else {}
    with LoopbackHub(tmp_path, tokens=tokens) as hub:
        found = look_at(shared_lab, "Hub", HF_TOKEN=TOKEN, HF_ENDPOINT=hub.endpoint)
        assert {kind for _, kind in hub.requests} == {"whoami"}
    assert len(found) == len(expected)
    for (level, text), (level_expected, said) in zip(found, expected, strict=True):
        assert level == level_expected and said in text


# ---- a check that goes wrong -----------------------------------------------------------------


def test_servers_that_never_answer_are_given_up(shared_lab, tmp_path):
    stall = Fault("whoami", stall=True, times=9)
    tokens = {TOKEN: {"name": "lab", "role": "write"}}
    with (
        LoopbackWandb() as wandb,
        LoopbackHub(tmp_path, tokens=tokens, faults=[stall]) as hub,
    ):
        wandb.faults.default_factory = lambda: [HANG] * 9
        settings = settings_of(
            shared_lab,
            METRICS_SNAPSHOT=None,
            WANDB_BASE_URL=wandb.url,
            WANDB_API_KEY=KEY,
            HF_TOKEN=TOKEN,
            HF_ENDPOINT=hub.endpoint,
        )
        code = "from saepub.stages import doctor as d; from saepub.doctor import run; run.NETWORK_SECONDS = 2; "
        done = run_code(code + "sys.exit(d.main([]))", **settings)
        stall.release.set()
        wandb.let_go.set()
    done = told(done)
    ((level, text),) = done.lines["W&B"]
    assert level == "bad" and text.startswith(
        "no answer within 2 s; check the network and "
    )
    ((level, text),) = done.lines["Hub"]
    assert level == "todo" and text.startswith(
        "no answer within 2 s; check the network and "
    )
    assert done.code == 1


STRANGE = """
import os, sys, time
from saepub.doctor import run as doctor
from saepub.doctor.run import Check
from saepub.stages.doctor import show

def raises():
    yield "ok", "before"
    raise KeyError("x")

def dies():
    os._exit(3)

def hangs():
    os.system("sleep 300 & echo $! > " + sys.argv[1])
    time.sleep(300)

def prints():
    print("noise")
    print("noise", file=sys.stderr)
    os.system("echo noise")
    return [("ok", "two\\nlines \\x1b[31m " + os.environ["HF_TOKEN"])]

def denied():
    open(sys.executable + "/below a file")

doctor.SECONDS = 2
checks = [Check(f.__name__, f) for f in (raises, dies, hangs, prints, denied)]
for finding in doctor.examine(checks):
    show(finding)
"""


def test_no_check_can_break_hold_up_or_be_heard_beside_the_others(tmp_path):
    pid = tmp_path / "pid"
    done = subprocess.run(
        [sys.executable, "-c", STRANGE, pid],
        env=bare_env(PYTHONPATH=ROOT / "py", HF_TOKEN=TOKEN),
        capture_output=True,
    )
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.decode().splitlines() == [
        "bad   raises    KeyError: 'x'",
        "bad   dies      no answer; the check died or took too long",
        "bad   hangs     no answer; the check died or took too long",
        "ok    prints    two lines  [31m <HF_TOKEN>",
        f"bad   denied    {sys.executable}/below a file: Not a directory",
    ]
    # And what it started doesn't outlive it, except for the moment that dying takes.
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(int(pid.read_text()))
        assert select.select([fd], [], [], 60)[0]


def test_color_is_for_terminals(shared_lab):
    def on_a_terminal(**settings) -> str:
        env = settings_of(shared_lab, PYTHONPATH=ROOT / "py", **settings)
        argv = [sys.executable, "-c", LOOK_AT, "python"]
        with Terminal() as terminal:
            streams = {"stdin": subprocess.DEVNULL, "stdout": terminal.fd}
            subprocess.run(argv, env=bare_env(**env), **streams)
        return terminal.shown

    assert "\x1b[32mok  \x1b[0m  python" in on_a_terminal()
    assert "\x1b" not in on_a_terminal(NO_COLOR="1")
