"""The demo is real, small, and the same each time."""

import collections
import dataclasses
import datetime
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from kits.programs import ROOT, bare_env, run_program
from saepub import catalog, checkpoint
from saepub.activations.shards import SaevShards
from saepub.demo import table as demo_table
from saepub.demo import train as demo_train
from saepub.stages import demo as demo_stage

# The tests share one demo; with pytest-xdist they belong on one worker.
pytestmark = pytest.mark.xdist_group("demo")

DEMO = ROOT / "bin/demo"
CHECKPOINTS = ROOT / "tests/checkpoints"


class Built:
    """A demo that bin/demo made, and what it said."""

    def __init__(self, build: pathlib.Path):
        self.build = build
        self.told = (build / "told.txt").read_text()
        self.root = build / "demo"
        self.snapshot = {run["name"]: run for run in self.read_snapshot()}
        self.runs = {run.run_id: run for run in demo_stage.all_runs()}

    def read_snapshot(self) -> list[dict]:
        return list(
            map(json.loads, (self.root / "snapshot.jsonl").read_text().splitlines())
        )

    def fpath(self, run_id: str) -> pathlib.Path:
        return self.root / "runs" / run_id / "checkpoint/sae.pt"

    def with_checkpoint(self, activation: str = "") -> list[demo_stage.Run]:
        return [
            run
            for run in self.runs.values()
            if run.has_checkpoint and run.repo.activation.startswith(activation)
        ]

    def misfit(self, kind: str) -> dict:
        """The snapshot's line of the one run that is a misfit of that kind."""
        (run,) = [run for run in self.runs.values() if run.misfit == kind]
        return self.snapshot[run.run_id]


@pytest.fixture(scope="session")
def built(demo, tmp_path_factory) -> Built:
    """A copy of the demo of all tests."""
    build = tmp_path_factory.mktemp("demo") / "build"
    return Built(shutil.copytree(demo.parent, build))


def test_says_what_it_makes_and_how_long_it_took(built):
    assert re.search(r"created .*/demo: 81 SAEs in \d+ s$", built.told.strip())
    assert "vitl-topk layer 23: 10 runs" in built.told


def test_second_run_says_that_it_is_there_and_redoes_nothing(built):
    before = os.stat(built.root).st_ino
    done = run_program(DEMO, BUILD=built.build)
    assert (done.code, done.out) == (0, "")
    assert "already exists; --force recreates it" in done.err
    assert os.stat(built.root).st_ino == before


def test_demo_that_lacks_a_file_is_not_complete(built, tmp_path):
    assert demo_stage.is_complete(built.root)
    fpath = built.fpath(built.with_checkpoint()[-1].run_id)
    away = tmp_path / "sae.pt"
    os.rename(fpath, away)
    try:
        assert not demo_stage.is_complete(built.root)
    finally:
        os.rename(away, fpath)


def test_demo_of_an_older_table_is_not_complete(built, monkeypatch):
    repo = dataclasses.replace(demo_stage.REPOS[0], d_sae=512)
    monkeypatch.setattr(demo_table, "REPOS", (repo, *demo_stage.REPOS[1:]))
    assert not demo_stage.is_complete(built.root)


@pytest.mark.programs
def test_killed_build_leaves_no_demo_that_a_later_run_would_trust(tmp_path):
    child = subprocess.Popen(
        [DEMO], env=bare_env(BUILD=tmp_path), stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob(".demo.tmp/runs/*/checkpoint/sae.pt")):
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "demo").exists()
    assert not demo_stage.is_complete(tmp_path / "demo")


def test_next_build_clears_away_what_a_killed_one_left(tmp_path, monkeypatch):
    def build(root):
        root.mkdir()
        (root / "catalog.json").write_text("whole")

    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path))
    monkeypatch.setattr(demo_stage, "build", build)
    (tmp_path / ".saepub").touch()
    for left in (".demo.tmp", "demo"):
        (tmp_path / left / "runs/half-made").mkdir(parents=True)
    demo_stage.main([])
    assert {fpath.name for fpath in tmp_path.iterdir()} == {
        ".saepub",
        "demo",
        ".demo.lock",
    }
    assert [fpath.name for fpath in (tmp_path / "demo").iterdir()] == ["catalog.json"]


def test_failed_build_leaves_the_demo_that_was_there(tmp_path, monkeypatch):
    def build(root):
        (root / "runs").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path))
    monkeypatch.setattr(demo_stage, "build", build)
    (tmp_path / ".saepub").touch()
    (tmp_path / "demo").mkdir()
    with pytest.raises(OSError):
        demo_stage.main(["--force"])
    assert {fpath.name for fpath in tmp_path.iterdir()} == {
        ".saepub",
        "demo",
        ".demo.lock",
    }


@pytest.mark.parametrize(("slug", "layer"), [("vits-relu", 11), ("vitl-topk", 23)])
def test_made_elsewhere_by_another_process_it_is_the_same_byte_for_byte(
    built, tmp_path, slug, layer
):
    (repo,) = [repo for repo in demo_stage.REPOS if repo.slug == slug]
    x = demo_train.activations(slug, layer, repo.d_model)
    again = demo_stage.build_panel(tmp_path / "elsewhere", repo, layer, x)
    assert again == [built.snapshot[line["name"]] for line in again]
    fpaths = [f for f in (tmp_path / "elsewhere").rglob("*") if f.is_file()]
    assert len([f for f in fpaths if f.name == "sae.pt"]) == len(again)
    for fpath in fpaths:
        twin = built.root / fpath.relative_to(tmp_path / "elsewhere")
        assert fpath.read_bytes() == twin.read_bytes(), twin
        if fpath.name == "sae.pt":
            assert fpath.stat().st_mtime_ns == twin.stat().st_mtime_ns


def test_its_catalog_is_the_real_one_with_smaller_widths(built, monkeypatch):
    monkeypatch.setenv("CATALOG", str(built.root / "catalog.json"))
    own = catalog.load()
    monkeypatch.setenv("CATALOG", str(ROOT / "catalog.json"))
    real = catalog.load()
    for a, b in zip(own.repos, real.repos, strict=True):
        for key in ("slug", "sweep", "variable", "objective"):
            assert getattr(a, key) == getattr(b, key)
        assert a.activation == b.activation
        # It doesn't claim that anything is a real model's, or of real images.
        assert a.repo_id.startswith("demo-lab/SAE_toy_") and "toy" in a.title
        assert a.base_model.startswith("demo-lab/toy-")
        assert set(a.layers) < set(b.layers)
        assert a.d_model < b.d_model and 256 <= a.d_sae <= 512
    assert {c.namespace for c in own.collections} == {"demo-lab"}
    slugs = [c.slug.partition("/")[2] for c in real.collections]
    assert [c.slug.partition("/")[2] for c in own.collections] == slugs


@pytest.mark.parametrize(
    ("slug", "counts"),
    [
        ("vits-relu", {6: (6, 5), 8: (0, 8), 11: (4, 4)}),
        ("vitb-relu", {10: (0, 8), 11: (5, 4)}),
        ("vitl-relu", {13: (6, 4), 23: (6, 4)}),
        ("vitl-topk", {13: (5, 4), 23: (6, 4)}),
    ],
)
def test_extract_ids_reads_its_sweeps_commented_out_ids_and_all(built, slug, counts):
    done = run_program(ROOT / "bin/extract-ids", slug, BUILD=built.build)
    assert done.code == 0, done.err
    rows = done.rows
    seen = collections.Counter((row["layer"], row["commented"]) for row in rows)
    assert {n: (seen[n, False], seen[n, True]) for n, _ in seen} == counts
    for row in rows:
        run = built.runs[row["run_id"]]
        assert re.fullmatch(r"[a-z0-9]{8}", run.run_id)
        assert (run.layer, run.is_commented) == (row["layer"], row["commented"])


def test_its_sweeps_are_python_whose_run_would_use_what_is_not_commented_out(built):
    for repo in demo_stage.REPOS:
        cfgs = runpy.run_path(str(built.root / "saev" / repo.sweep))["make_cfgs"]()
        used = {pathlib.Path(cfg["run"]).name for cfg in cfgs}
        assert used == {
            r.run_id for r in demo_stage.runs_of(repo) if not r.is_commented
        }


def test_relu_checkpoints_load_with_the_saev_that_wrote_them(built):
    import saev.nn

    runs = built.with_checkpoint("relu")
    assert len(runs) == 62
    for run in runs:
        sae = saev.nn.load(str(built.fpath(run.run_id)))
        assert (sae.cfg.d_vit, sae.cfg.d_sae) == (run.repo.d_model, run.repo.d_sae)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae))
        assert not sae.b_dec.any(), "else saev's versions would differ on its outputs"


def test_topk_checkpoints_have_the_header_of_todays_saev(built):
    def shape(value):
        return {k: shape(v) for k, v in value.items()} if type(value) is dict else None

    def header(fpath):
        with open(fpath, "rb") as fd:
            return json.loads(fd.readline())

    theirs = header(CHECKPOINTS / "schema5-topk.pt")
    runs = built.with_checkpoint("topk")
    assert len(runs) == 19
    for run in runs:
        ours = header(built.fpath(run.run_id))
        assert shape(ours) == shape(theirs)
        assert ours["schema"] == 5
        assert ours["cfg"]["activation"]["params"]["top_k"] == run.sparsity


def remeasured(built: Built, run: demo_stage.Run) -> tuple[float, float]:
    """L0 and NMSE as the design defines them, by the built-in reader and numpy."""
    sae = checkpoint.load(built.fpath(run.run_id))
    shard = SaevShards(built.root / "shards" / run.repo.shard, run.layer)
    x = shard.read(np.arange(shard.n_examples))
    assert (x.shape, x.dtype) == ((500, run.repo.d_model), np.float32)
    f_x = sae.encode(torch.from_numpy(x))
    x_hat = sae.decode(f_x).numpy().astype(np.float64)
    x = x.astype(np.float64)
    sse = ((x - x_hat) ** 2).sum()
    return np.count_nonzero(f_x) / len(x), sse / ((x - x.mean(axis=0)) ** 2).sum()


def test_its_numbers_are_those_of_the_files_as_they_lie_there(built):
    for run in built.with_checkpoint():
        if run.misfit == "diverged":
            continue
        l0, nmse = remeasured(built, run)
        summary = built.snapshot[run.run_id]["summary"]
        assert summary["eval/l0"] == pytest.approx(l0, rel=1e-6)
        if run.misfit != "old":
            assert summary["eval/normalized_mse"] == pytest.approx(nmse, rel=1e-6)
        if run.repo.activation == "topk":
            assert l0 == run.sparsity


def test_eval_mse_is_another_number_than_nmse(built):
    for run in built.with_checkpoint():
        if not run.misfit:
            summary = built.snapshot[run.run_id]["summary"]
            assert summary["eval/mse"] > 1.1 * summary["eval/normalized_mse"]


def test_frontiers_are_longer_and_shorter_than_six_and_leave_some_runs_off(built):
    panels = collections.defaultdict(list)
    for run in built.with_checkpoint():
        if not run.misfit:
            summary = built.snapshot[run.run_id]["summary"]
            point = (summary["eval/l0"], summary["eval/normalized_mse"])
            panels[run.repo.slug, run.layer].append(point)
    n_on = {}
    for panel, points in panels.items():
        points.sort()
        best = [nmse for _, nmse in points]
        n_on[panel] = sum(n < min(best[:i], default=9) for i, n in enumerate(best))
        assert n_on[panel] < len(points), panel
        assert points[-1][0] > 2.5 * points[0][0], f"no range of sparsities in {panel}"
        assert 0 < best[-1] < 1
    assert sum(n > 6 for n in n_on.values()) >= 2
    assert sum(n < 6 for n in n_on.values()) >= 1
    assert min(n_on.values()) >= 3


def test_misfits_are_what_they_are_said_to_be(built):
    vanilla = built.misfit("vanilla")
    assert vanilla["config"]["objective"] == {}
    of_layer = [
        built.snapshot[run.run_id]["summary"]["eval/l0"]
        for run in built.with_checkpoint("relu")
        if (run.repo.slug, run.layer) == ("vitl-relu", 13)
    ]
    assert vanilla["summary"]["eval/l0"] == min(of_layer), "not the sparsest"
    assert built.misfit("dead")["summary"]["eval/l0"] == 0
    assert built.misfit("diverged")["summary"]["eval/normalized_mse"] == "NaN"
    assert "eval/normalized_mse" not in built.misfit("old")["summary"]
    assert built.misfit("old")["createdAt"] < "2025-11-26"
    running = built.misfit("running")
    assert (running["state"], running["summary"]) == ("running", {})
    absent = set(built.runs) - set(built.snapshot)
    assert [built.runs[run_id].misfit for run_id in absent] == ["absent"]


def test_configs_are_of_both_ages_and_dates_fit_together(built):
    ages = set()
    for run_id, line in built.snapshot.items():
        run = built.runs[run_id]
        created_at = datetime.datetime.fromisoformat(line["createdAt"])
        sae = line["config"]["sae"]
        is_new = line["createdAt"] >= "2025-12-01"
        ages.add((run.repo.activation, is_new))
        assert ("key" in sae["activation"]) == ("d_sae" in sae) == is_new
        if not is_new:
            assert sae["exp_factor"] * sae["d_model"] == run.repo.d_sae
        if "eval/normalized_mse" in line["summary"]:
            assert line["createdAt"] >= "2025-11-26"
        if run.has_checkpoint:
            late = built.fpath(run_id).stat().st_mtime - created_at.timestamp()
            assert 0 < late < 86400
            config = built.fpath(run_id).with_name("config.json")
            assert json.loads(config.read_text()) == line["config"]
    # Its TopK runs are all of the same age as their checkpoints' headers.
    assert ages == {("relu", False), ("relu", True), ("topk", True)}


def test_nothing_in_it_names_the_place_where_it_was_made(built):
    for fpath in built.root.rglob("*"):
        if fpath.is_file():
            assert str(built.build).encode() not in fpath.read_bytes(), fpath


def test_whether_it_is_there_is_told_without_loading_torch(built):
    done = run_program(
        sys.executable,
        *("-X", "importtime", "-c", "import saepub.stages.demo"),
        PYTHONPATH=ROOT / "py",
    )
    assert done.code == 0
    assert not re.search(r"\| +(torch|numpy|saev)$", done.err, re.MULTILINE)


def test_every_stage_passes_on_it_and_no_misfit_is_chosen(built):
    text = run_program(ROOT / "bin/extract-ids", "--all", BUILD=built.build).out
    for stage in (
        "fetch-metrics",
        "facts",
        "classify",
        "settle",
        "select",
        "preflight",
    ):
        done = run_program(ROOT / "bin" / stage, stdin=text, BUILD=built.build)
        assert done.code == 0, done.err
        text = done.out
    rows = done.rows
    assert len(rows) == 51
    for row in rows:
        assert not built.runs[row["run_id"]].misfit
        loader = "builtin" if row["repo"] == "vitl-topk" else "saev 0.1.0"
        assert (row["loader"], row["warnings"]) == (loader, [])
