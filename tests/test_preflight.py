"""preflight passes on what can be released, and says why everything else can't."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from kits import checkpoints as util
from kits.programs import bare_env, commit_all, run_program, text_of
from saepub import machine, witnesses
from saepub.checkpoint import check as preflight_check
from saepub.checkpoint import header
from saepub.checkpoint import saev as saev_loader
from saepub.checkpoint.probe import Computed
from saepub.checkpoint.sae import Sae
from saepub.cli import UserError
from saepub.stages import preflight

pytestmark = pytest.mark.programs

DAY = 86400
OF_OLD = (
    "tiny layer 6 aaaaaaaa: trained by a saev that subtracted b_dec from x first; current"
    " saev doesn't, so it doesn't compute what training logged"
)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path / "build"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def installed_saev(monkeypatch):
    monkeypatch.delenv("SAEV_DIR", raising=False)


def run(lines, runs, *args, **settings):
    settings = {"RUNS_ROOT": runs, "BUILD": runs.parent / "build"} | settings
    return run_program("bin/preflight", *args, stdin=text_of(lines), **settings)


def check(line, runs) -> dict:
    """What bin/preflight does with one line, in this process."""
    probes_dpath = runs.parent / "build" / line["repo"] / "probes"
    fpath = runs / line["run_id"] / "checkpoint" / "sae.pt"
    return preflight.check(line, str(fpath), str(probes_dpath))


def line_saev_python() -> str:
    return importlib.metadata.metadata("saev")["Requires-Python"]


def refusal(line, runs) -> str:
    with pytest.raises(UserError) as caught:
        check(line, runs)
    assert str(caught.value).isprintable()
    return str(caught.value)


# What passes.


def test_one_of_several_works_on_all_cores_while_the_others_wait(
    runs, monkeypatch, capsys
):
    util.write(util.run_dir(runs, "aaaaaaaa"), seed=1)
    lock = runs.parent / "build/.preflight.lock"
    lock.parent.mkdir()
    other = open(lock, "w")  # noqa: SIM115, closed when the other is told to wait
    fcntl.flock(other, fcntl.LOCK_EX)
    n_at_once, told = machine.n_at_once, []

    def on_waiting(text):
        told.append(text)
        other.close()

    def on_working(*args):
        assert other.closed and told, "it works while another does"
        return n_at_once(*args)

    monkeypatch.setattr("saepub.files.say", on_waiting)
    monkeypatch.setattr(machine, "n_at_once", on_working)
    (result,) = preflight.check_all([util.line("aaaaaaaa")], "", 1)
    assert not result.reason and not result.lost
    assert told == ["preflight: tiny: waiting until another repo's files are checked"]


def test_lines_gain_what_the_checkpoint_is(runs):
    fpath = util.write(util.run_dir(runs, "aaaaaaaa"), schema=None)
    line = util.line(extra={"kept": [1]})
    done = run([line], runs)
    assert (done.code, done.err) == (0, f"preflight: warning: {OF_OLD}\n")
    info = fpath.stat()
    assert done.rows == [
        line
        | {
            "checkpoint": str(fpath),
            "bytes": info.st_size,
            "mtime_ns": str(info.st_mtime_ns),
            "sha256": hashlib.sha256(fpath.read_bytes()).hexdigest(),
            "schema": None,
            "activation_config": {},
            "loader": "saev 0.1.0",
            "saev": {
                "requirement": None,
                "python": line_saev_python(),
                "why_not": "is a release whose forward differs from today's",
            },
            "probe": str(runs.parent / "build/tiny/probes/aaaaaaaa.npz"),
            "warnings": [OF_OLD.partition(": ")[2]],
        }
    ]


def test_of_the_real_files_those_are_refused_that_saev_refuses(runs):
    want = util.EXPECTED["files"]
    lines = []
    for i, (name, says) in enumerate(want.items()):
        fpath = util.run_dir(runs, f"run{i}")
        fpath.parent.mkdir(parents=True)
        os.link(util.FILES / name, fpath)
        key = (
            name.removesuffix(".pt").split("-")[1].replace("topk", "-top-k").strip("-")
        )
        has_aux = "schema5" in name and key != "relu"
        lines.append(util.line(f"run{i}", key, aux="auxk" if has_aux else None))
        assert says.get("top_k") in (None, 4)
    done = run(lines, runs)
    refused = [f"run{i}" for i, name in enumerate(want) if "f_x" not in want[name]]
    assert done.code == 1 and done.out == ""
    assert done.told[-1].endswith(f'EXCLUDE="{" ".join(refused)}"')
    assert done.err.count("no activation.threshold") == len(refused) == 2


def test_what_was_measured_of_other_bytes_is_not_published(runs):
    fpath = util.write(util.run_dir(runs, "aaaaaaaa"), schema=None)
    line = util.line() | {"numbers": "measured:52ec5790", "l0_logged": 7.0}
    record = util.measurement(fpath, "aaaaaaaa", "52ec5790", 3.5, 0.25)
    util.measure(runs.parent / "records", "aaaaaaaa", "52ec5790", record)
    settings = {"RECORDS": runs.parent / "records"}
    done = run([line], runs, **settings)
    assert done.code == 0
    assert "L0 measured 3.5, logged 7" in done.rows[0]["warnings"]
    util.write(fpath, schema=None, seed=1)
    done = run([line], runs, **settings)
    assert (done.code, done.out) == (1, "")
    assert "measured on 52ec5790, but the file has changed since" in done.err


def test_what_saev_cannot_read_is_told_once_for_all(runs):
    lines = []
    for i, schema in enumerate([None, 3, 4, 5, 5]):
        util.write(util.run_dir(runs, f"run{i}"), schema=schema, seed=i)
        lines.append(util.line(f"run{i}"))
    done = run(lines, runs)
    assert [told for told in done.told if "warning" not in told] == [
        (
            "preflight: 4 checkpoints (schema 3, 4, 5) checked only by the built-in reader;"
            " set SAEV_DIR to load them with saev"
        )
    ]
    assert [line["loader"] for line in done.rows] == ["saev 0.1.0"] + 4 * ["builtin"]


def test_checkout_loads_every_schema_and_is_named_by_commit(runs, tmp_path):
    saev_dir = util.write_saev(tmp_path / "saev")

    lines = []
    for i, schema in enumerate([None, 1, "1b", 2, 3, 4, 5]):
        for activation in ["relu"] if schema is None else util.CLASSES:
            run_id = f"run{i}-{activation}"
            fpath = util.run_dir(runs, run_id)
            util.write(fpath, schema, activation=activation, seed=len(lines))
            lines.append(util.line(run_id, activation))
    head = commit_all(saev_dir)
    label = f"saev {head[:12]}"
    done = run(lines, runs, SAEV_DIR=saev_dir)
    assert done.code == 0
    assert [line["loader"] for line in done.rows] == [label] * len(lines)
    assert "prints what it likes" in done.err  # and stdout is still lines

    with open(saev_dir / "src" / "saev" / "__init__.py", "a") as fd:
        fd.write("# changed\n")
    assert saev_loader.commit(saev_dir / "src") == f"{head}-dirty"
    # A copy within a checkout doesn't have the checkout's commit.
    assert saev_loader.commit(util.write_saev(saev_dir / "copy") / "src") == ""


def test_a_clone_that_git_cannot_read_is_not_called_one_without_history(tmp_path):
    """Where git isn't installed, or refuses another user's clone."""
    src_dpath = util.write_saev(tmp_path / "saev") / "src"
    assert saev_loader._source_of(src_dpath, "").why_not == "has no git history"
    (tmp_path / "saev/.git").mkdir()
    assert saev_loader.commit(src_dpath) == ""
    assert "git can't tell" in saev_loader._source_of(src_dpath, "").why_not


def test_nothing_in_is_nothing_out_without_importing_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = run([], tmp_path, PYTHONPATH=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_many_at_once_keep_their_order(runs):
    lines = []
    for i in range(12):
        # The first ones take longest.
        util.write(util.run_dir(runs, f"run{i}"), None, d_sae=8 << 12 - i, seed=i)
        line = util.line(f"run{i}", d_sae=8 << 12 - i)
        lines.append(line | {"expected": line["expected"] | {"d_sae": 8 << 12 - i}})
    done = run(lines, runs, "--jobs", 2)
    assert done.code == 0
    assert done.rows == [check(line, runs) for line in lines]


def test_jobs_fit_into_cores_and_memory(runs, monkeypatch):
    util.write(util.run_dir(runs, "aaaaaaaa"))
    given = [util.line(), util.line("missing0")]
    monkeypatch.setattr(machine, "n_cores", lambda: 48)
    n_bytes = preflight.memory_bytes(given)
    for free, n_jobs in ((10**12, 48), (machine.TORCH_BYTES * 3, 2), (0, 1)):
        monkeypatch.setattr(machine, "free_bytes", lambda free=free: free)
        assert machine.n_at_once(n_bytes) == n_jobs


# What does not.


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"d_model": 16}, "d_model: header 8, W&B 16, catalog 8"),
        ({"d_sae": None}, "d_sae: header 32, W&B nothing, catalog 32"),
        ({"train_layer": 7}, "layer: sweep 6, W&B 7"),
        ({"train_layer": None}, "layer: sweep 6, W&B nothing"),
        ({"activation": None}, "activation: header top-k, W&B nothing"),
        ({"activation": {"key": "relu"}}, "W&B relu, catalog top-k"),
        ({"activation": {"key": "top-k", "top_k": 5}}, "top_k: header 4, W&B 5"),
        ({"activation": {"key": "top-k", "top_k": "4"}}, "top_k: header 4, W&B 4"),
        ({"activation": {"key": ["\x1b[2J\n"]}}, "activation: header top-k"),
        ({"expected": {}}, "d_model: header 8, W&B 8, catalog nothing"),
        ({"aux": "auxk"}, "aux: header no-aux, W&B auxk"),
        (
            {"d_model": 9, "d_sae": 9},
            "d_model: header 8, W&B 9, catalog 8; d_sae: header 32, W&B 9",
        ),
    ],
)
def test_three_witnesses_must_agree(runs, changes, why):
    util.write(util.run_dir(runs, "aaaaaaaa"), activation="top-k")
    line = util.line(activation="top-k")
    check(line, runs)
    assert why in refusal(line | changes, runs)


def test_witnesses_are_heard_before_the_weights_are_read(runs):
    fpath = util.run_dir(runs, "aaaaaaaa")
    util.write_raw(fpath, util.header(d_sae=64), b"not even an archive")
    assert "d_sae: header 64, W&B 32" in refusal(util.line(), runs)


def test_every_failing_run_is_named_and_the_command_without_them(runs):
    lines = []
    for i in range(5):
        util.write(util.run_dir(runs, f"run{i}"), None, seed=i)
        lines.append(util.line(f"run{i}", layer=i, train_layer=i))
    util.run_dir(runs, "run1").unlink()
    util.run_dir(runs, "run2").write_bytes(b"")
    lines[3]["d_model"] = 16
    done = run(lines, runs, EXCLUDE="before1,before2 $(evil)")
    assert (done.code, done.out) == (1, "")
    fpath = util.run_dir(runs, "run1")
    assert [told for told in done.told if "warning" not in told] == [
        f"preflight: tiny layer 1 run1: {fpath}: No such file or directory",
        f"preflight: tiny layer 2 run2: {util.run_dir(runs, 'run2')}: an empty file",
        "preflight: tiny layer 3 run3: at odds: d_model: header 8, W&B 16, catalog 8",
        (
            "preflight: to continue without them: make dry-run REPO=tiny"
            ' EXCLUDE="before1 before2 run1 run2 run3"'
        ),
    ]


def test_command_names_no_repo_where_several_fail():
    failed = [
        preflight.Result(util.line("run1"), "why"),
        preflight.Result(util.line("run2", repo="other"), "why"),
    ]
    assert preflight.without(failed) == 'make dry-run EXCLUDE="run1 run2"'


def test_two_runs_with_the_same_file_both_fail(runs):
    for run_id, seed in (("run1", 1), ("run2", 1), ("run3", 3)):
        util.write(util.run_dir(runs, run_id), None, seed=seed)
    given = [util.line(f"run{i}") for i in (1, 2, 3)]
    results = preflight.check_together(preflight.check_all(given, "", 1))
    assert [r.reason[:38] for r in results] == [
        "the same file as run2 (sha256 " + results[0].line["sha256"][:8],
        "the same file as run1 (sha256 " + results[0].line["sha256"][:8],
        "",
    ]


def test_released_loader_that_tied_the_weights_is_refused(runs, tmp_path):
    fpath = util.write(util.run_dir(runs, "aaaaaaaa"))
    saev_dir = util.write_saev(tmp_path / "saev", "tied")
    done = run([util.line()], runs, SAEV_DIR=saev_dir)
    assert (done.code, done.out) == (1, "")
    assert (
        f"preflight: tiny layer 6 aaaaaaaa: {fpath}: saev (commit unknown) loads other values:"
        " W_dec differs in 256 of 256 values"
    ) in done.told


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("tied", "loads other values: W_dec differs in 256 of 256 values"),
        ("sign", "loads other values: b_enc differs in 1 of 32 values"),
        ("half", "W_dec became torch.float16; b_dec became torch.float16"),
        ("forgets", "loads other values: W_dec differs in 256 of 256 values"),
        ("lost", "loses the tensor b_dec"),
        ("forward", "computes different features than the built-in reader, off by 0."),
        ("decode", "computes a different reconstruction than the built-in reader"),
        ("nan", "computes different features than the built-in reader, off by nan"),
        ("crash", "can't run it: ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("activation", util.CLASSES)
def test_saev_that_loads_or_computes_something_else_is_refused(
    runs, tmp_path, monkeypatch, activation, fault, why
):
    fpath = util.write(util.run_dir(runs, "aaaaaaaa"), activation=activation)
    use_saev(util.write_saev(tmp_path / "saev", ""), monkeypatch)
    line = util.line(activation=activation)
    assert check(line, runs)["loader"] == "saev test"
    use_saev(util.write_saev(tmp_path / "saev", fault), monkeypatch)
    told = refusal(line, runs)
    assert told.startswith(f"{fpath}: saev test ") and why in told


def use_saev(saev_dir, monkeypatch):
    """Make it the saev at hand, in this process."""
    fpath = saev_dir / "src" / "saev" / "nn" / "__init__.py"
    spec = importlib.util.spec_from_file_location("saev_test_nn", fpath)
    nn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nn)
    saev = saev_loader.Saev(nn, "saev test", is_checkout=True)
    monkeypatch.setattr(saev_loader, "available", lambda: saev)


def test_old_checkout_is_told_apart_from_a_bad_file(runs, tmp_path):
    saev_dir = util.write_saev(tmp_path / "saev", "old")
    util.write(util.run_dir(runs, "old00000"), None)
    util.write(util.run_dir(runs, "new00000"), 5, seed=1)
    done = run([util.line("old00000"), util.line("new00000")], runs, SAEV_DIR=saev_dir)
    assert [line["loader"] for line in done.rows] == [
        "saev (commit unknown)",
        "builtin",
    ]
    assert done.rows[1]["warnings"] == [
        (
            "saev.nn.load() can't read it: saev (commit unknown) refuses it:"
            " TypeError: unexpected keyword argument 'schema'"
        )
    ]
    assert done.told[-1].endswith("the saev in SAEV_DIR can't load them")


def test_file_is_checked_by_itself_with_the_loader_of_its_line(tmp_path):
    old = util.write(tmp_path / "old.pt", None)
    new = util.write(tmp_path / "new.pt", 5)
    preflight_check.check_file(old, "saev 0.1.0")
    preflight_check.check_file(new, "builtin")
    with pytest.raises(UserError, match="saev abc loaded it, but saev 0.1.0 doesn't"):
        preflight_check.check_file(new, "saev abc")
    new.write_bytes(new.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        preflight_check.check_file(new, "builtin")


def test_a_process_that_has_grown_gives_memory_back_before_it_loads_a_file(
    tmp_path, monkeypatch
):
    limits = []
    monkeypatch.setattr(machine, "give_back_memory", limits.append)
    fpath = util.write(tmp_path / "sae.pt", None)
    preflight_check.check_file(fpath, "saev 0.1.0")
    assert limits == [machine.TORCH_BYTES + 4 * fpath.stat().st_size]


def test_weights_that_overflow_are_refused(runs):
    state = util.weights()
    state["W_dec"] = state["W_dec"] * 0 + 3e38
    fpath = util.run_dir(runs, "aaaaaaaa")
    util.write_raw(fpath, util.header(), util.archive(state))
    assert refusal(util.line(), runs) == f"{fpath}: what it computes is not finite"


def test_saev_that_refuses_a_good_file_is_believed(runs, tmp_path, monkeypatch):
    use_saev(util.write_saev(tmp_path / "saev", "large"), monkeypatch)
    fpath = util.write(util.run_dir(runs, "aaaaaaaa"))
    why = refusal(util.line(), runs)
    assert why == f"{fpath}: saev test refuses it: RuntimeError: too large"


def test_saev_that_cannot_be_imported_is_one_line(runs, tmp_path):
    util.write(util.run_dir(runs, "run1"))
    util.write(util.run_dir(runs, "run2"))
    saev_dir = util.write_saev(tmp_path / "saev", "import")
    for jobs in (1, 2):
        lines = [util.line("run1"), util.line("run2")]
        done = run(lines, runs, "--jobs", jobs, SAEV_DIR=saev_dir)
        assert (done.code, done.out) == (1, "")
        assert done.told == [
            (
                f"preflight: {saev_dir}/src needs the package"
                " a_package_that_is_not_there; install it"
            )
        ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_process_that_dies_costs_only_the_run_that_it_was_at(runs, tmp_path, jobs):
    saev_dir = util.write_saev(tmp_path / "saev", "kill")
    lines = []
    for i in range(4):
        d_sae = 512 if i == 1 else 32
        util.write(util.run_dir(runs, f"run{i}"), d_sae=d_sae, seed=i)
        line = util.line(f"run{i}", d_sae=d_sae)
        lines.append(line | {"expected": line["expected"] | {"d_sae": d_sae}})
    done = run(lines, runs, "--jobs", jobs, SAEV_DIR=saev_dir)
    assert (done.code, done.out) == (1, "")
    told = [s for s in done.told if s.startswith("preflight: ")]
    assert told == [
        (
            "preflight: tiny layer 6 run1: the process that checked it died;"
            " was it out of memory?"
        ),
        'preflight: to continue without them: make dry-run REPO=tiny EXCLUDE="run1"',
    ]
    assert "Traceback" not in done.err


def test_interrupt_is_one_line(runs, tmp_path):
    saev_dir = util.write_saev(tmp_path / "saev", "hang")
    for run_id in ("run1", "run2"):
        util.write(util.run_dir(runs, run_id))
    fpath = tmp_path / "stderr"
    with (
        open(fpath, "w") as err,
        subprocess.Popen(
            ["bin/preflight", "--jobs", "2"],
            stdin=subprocess.PIPE,
            stderr=err,
            env=bare_env(RUNS_ROOT=runs, SAEV_DIR=saev_dir, BUILD=tmp_path / "build"),
            start_new_session=True,
            cwd=util.FILES.parents[1],
        ) as program,
    ):
        text = "".join(json.dumps(util.line(f"run{i}")) + "\n" for i in (1, 2))
        program.stdin.write(text.encode())
        program.stdin.close()
        while fpath.read_text().count("hangs") < 2:
            assert program.poll() is None
            time.sleep(0.05)
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(timeout=20) == 130
    told = [s for s in fpath.read_text().splitlines() if not s.startswith("saev ")]
    assert told == ["preflight: interrupted"]


def test_wrong_usage_and_wrong_lines(runs):
    done = run([], runs, "--jobs", 0)
    assert done.code == 2 and "--jobs is '0'; it takes a whole number" in done.err
    line = util.line()
    done = run([line], runs)
    assert done.err.startswith(f"preflight: RUNS_ROOT {runs}: no such directory")
    del line["l0"]
    done = run([line], runs)
    assert done.code == 1
    assert done.err.startswith('preflight: stdin:1: no "l0": {')


def test_aux_of_header_and_wandb_must_agree(runs):
    name = "schema5-topk.pt"
    fpath = util.run_dir(runs, "aaaaaaaa")
    fpath.parent.mkdir(parents=True)
    os.link(util.FILES / name, fpath)
    check(util.line(activation="top-k", aux="auxk"), runs)
    for aux in ("no-aux", None):
        told = refusal(util.line(activation="top-k", aux=aux), runs)
        assert told == "at odds: aux: header auxk, W&B no-aux"


@pytest.mark.parametrize(("schema", "warned"), [(None, 1), (1, 1), ("1b", 0), (4, 0)])
def test_file_trained_by_another_forward_is_warned_of(runs, schema, warned):
    util.write(util.run_dir(runs, "aaaaaaaa"), schema)
    warnings = check(util.line(), runs)["warnings"]
    assert sum("subtracted b_dec from x first" in w for w in warnings) == warned


# Runs that are elsewhere.


def test_wrong_runs_root_is_said_once_with_what_is_there(runs):
    given = [util.line(f"run{i}") for i in range(12)]
    (runs / "2025" / "run0" / "checkpoint").mkdir(parents=True)
    done = run(given, runs)
    assert done.told == [
        (
            f"preflight: RUNS_ROOT {runs}: none of 12 checkpoints exists; looked for"
            f" {runs}/run0/checkpoint/sae.pt, but {runs} has 2025;"
            f" set RUNS_ROOT={runs}/2025"
        )
    ]
    for i in range(12):
        (runs / f"run{i}").mkdir()
        (runs / f"run{i}" / "sae.pt").touch()
    (told,) = run(given, runs).told
    assert told.endswith(f"but {runs}/run0 has sae.pt; set RUNS_ROOT")


def test_command_without_many_runs_stays_short(runs, tmp_path):
    util.write(util.run_dir(runs, "run0"))
    done = run([util.line(f"run{i}") for i in range(30)], runs)
    listed = tmp_path / "build" / "refused.txt"
    assert done.told[-1] == (
        f'preflight: to continue without them: make dry-run REPO=tiny EXCLUDE="$(cat {listed})"'
    )
    assert listed.read_text().split() == [f"run{i}" for i in range(1, 30)]


# Hostile files.

TELL_MEMORY = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_hostile_files_are_refused_in_time_and_memory_and_nothing_runs(runs, tmp_path):
    """Within 10 s of CPU and 1 GB for all of them together, with torch's import."""
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    good = util.archive(util.weights())
    whole = json.dumps(util.header()).encode() + b"\n" + good
    deep = b"[" * 100_000 + b"\n"
    bodies = {
        "pickle": json.dumps(util.header()).encode() + b"\n" + util.archive(Evil()),
        "empty": b"",
        "deep": deep,
        "flipped": whole.replace(util.weights()["b_dec"].numpy().tobytes(), bytes(32)),
        "bomb": json.dumps(util.header()).encode()
        + b"\n"
        + util.rezip(
            good, lambda m: m | {"archive/data/0": bytes(1 << 26)}, deflate=True
        ),
        "claim": whole.replace(b"K\x20K\x08\x86", b"\x8a\x01\x7fK\x08\x86"),
    }
    for i in range(16):
        bodies[f"cut{i}"] = whole[: len(whole) * i // 16]
    for run_id, body in bodies.items():
        util.write_raw(util.run_dir(runs, run_id), body, b"")
    for run_id in ("noline", "sparse", "fifo", "zero", "dir"):
        util.run_dir(runs, run_id).parent.mkdir(parents=True)
    with open(util.run_dir(runs, "noline"), "wb") as fd:
        fd.truncate(1 << 30)
    with open(util.run_dir(runs, "sparse"), "wb") as fd:
        fd.write(whole)
        fd.truncate(1 << 40)
    os.mkfifo(util.run_dir(runs, "fifo"))
    util.run_dir(runs, "zero").symlink_to("/dev/zero")
    util.run_dir(runs, "dir").mkdir()

    run_ids = [*bodies, "noline", "sparse", "fifo", "zero", "dir"]
    lines = [util.line(run_id) for run_id in run_ids]
    text = text_of(lines)
    argv = (sys.executable, "-c", TELL_MEMORY, "bin/preflight")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_before = used.ru_utime + used.ru_stime
    settings = {"RUNS_ROOT": runs, "BUILD": tmp_path / "build"}
    settings |= {"VENV": sys.prefix}  # a fork of another process wouldn't count
    done = run_program(*argv, stdin=text, **settings)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - cpu_before < 10  # all of them, on two cores
    *all_told, n_kbytes = done.told
    assert int(n_kbytes) < 1_000_000
    assert (done.code, done.out) == (1, "")
    assert len(all_told) == len(run_ids) + 1
    for told, run_id in zip(all_told, run_ids, strict=False):
        fpath = util.run_dir(runs, run_id)
        assert told.startswith(f"preflight: tiny layer 6 {run_id}: {fpath}: ")
    assert not mark.exists()


def test_run_id_that_leaves_the_runs_root_is_refused(runs):
    for run_id in ("../../etc", "a/b", "", "a\nb", "$(x)"):
        done = run([util.line(run_id)], runs)
        assert done.code == 1 and '"run_id" is' in done.err


# What a person should see.


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, None),
        ({"nmse": 1.25}, "NMSE 1.25 is above 1: worse than predicting the mean"),
        ({"nmse": 1}, None),
        ({"nmse": 0}, "NMSE 0 is not above 0"),
        ({"nmse": -0.5}, "NMSE -0.5 is not above 0"),
        ({"nmse": "NaN", "l0": None, "activation": None}, None),
        ({"l0": 4.04}, None),
        ({"l0": 4.05}, "L0 4.05 is above the run's top_k 4"),
        ({"l0": 2}, None),
        ({"l0": 1.99}, "L0 1.99 is below half of the run's top_k 4"),
        ({"l0": 400, "activation": {"key": "relu"}}, None),
        ({"n_dead": 16}, None),
        ({"n_dead": 17}, "17 of 32 features are dead"),
        ({"n_dead": None}, None),
        ({"n_dead": "many"}, None),
        ({"created_at": "1970-01-11T00:00:00Z"}, None),
        (
            {"created_at": "1970-01-02T00:00:00Z"},
            "checkpoint is 9 days newer than its W&B run",
        ),
        (
            {"created_at": "1970-01-21T00:00:00"},
            "checkpoint is 10 days older than its W&B run",
        ),
        ({"created_at": "yesterday"}, None),
        ({"state": "crashed"}, "its W&B run crashed"),
        ({"state": "failed"}, "its W&B run failed"),
        ({"state": "killed"}, "its W&B run killed"),
        ({"state": None}, None),
    ],
)
def test_odd_line_is_warned_of(changes, want):
    line = util.line(activation="top-k") | changes
    assert witnesses.warnings(line, 10 * DAY) == ([want] if want else [])


def test_decoder_rows_off_unit_norm_are_warned_of():
    state = util.weights()
    head = header.parse(json.dumps(util.header()).encode())
    state["W_dec"][3] *= 1.0009
    assert preflight_check.weight_warnings(Sae(head, state)) == []
    state["W_dec"][5] *= 1.5
    (warning,) = preflight_check.weight_warnings(Sae(head, state))
    assert warning == "1 of 32 decoder rows are not of unit norm (one is 1.5)"
    raw = util.header()
    raw["cfg"]["normalize_w_dec"] = False
    head = header.parse(json.dumps(raw).encode())
    assert preflight_check.weight_warnings(Sae(head, state)) == []


def test_weights_that_a_faulty_loader_left_are_warned_of():
    state = util.weights()
    state["W_enc"] = state["W_dec"].T.clone()
    head = header.parse(json.dumps(util.header()).encode())
    (warning,) = preflight_check.weight_warnings(Sae(head, state))
    assert warning.startswith("W_enc is W_dec transposed")


def test_warnings_are_told_and_travel_on_the_line(runs, capsys):
    util.write(util.run_dir(runs, "aaaaaaaa"), None, unit_norm=False)
    given = [util.line(state="crashed", nmse=2.5)]
    results = preflight.check_all(given, "", 1)
    warnings = results[0].line["warnings"]
    assert len(warnings) == 4
    preflight.report(results)
    assert capsys.readouterr().err.splitlines() == [
        f"preflight: warning: tiny layer 6 aaaaaaaa: {warning}" for warning in warnings
    ]


def test_features_within_rounding_of_the_cut_may_fire_or_not():
    head = header.parse(json.dumps(util.header(activation="top-k", top_k=2)).encode())
    sae = Sae(head, util.weights())
    h_x = torch.tensor([[5.0, 1.000001, 1.0, 0.5] + [0.0] * 28]).double()
    f_x = sae.activate(h_x)
    own = Computed(h_x, f_x, sae.decode(f_x))
    other = f_x.clone()
    other[0, 1], other[0, 2] = 0.0, 1.0
    assert preflight_check._off_features(sae, own, f_x) == 0
    assert preflight_check._off_features(sae, own, other) <= preflight_check.TOLERANCE
    other[0, 3] = 0.5
    assert preflight_check._off_features(sae, own, other) > preflight_check.TOLERANCE
    other = f_x.clone()
    other[0, 1] = 0.9
    assert preflight_check._off_features(sae, own, other) > preflight_check.TOLERANCE
