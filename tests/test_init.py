"""init writes a catalog from a sweep and its runs, and marks what they don't tell."""

import json
import types

import pytest

from kits.programs import ROOT, run_program
from loopback_wandb import LoopbackWandb
from saepub import catalog

pytestmark = pytest.mark.programs

ACTIVATION = {"key": "batch-top-k", "top_k": 8, "aux": {"key": "auxk"}}


def run(name: str, layer: int, sweep: str = "") -> dict:
    config = {
        "sae": {"d_model": 16, "d_sae": 64, "activation": ACTIVATION},
        "objective": {},
        "train_data": {"layer": layer},
        "val_data": {"shards": "/shards/abcd1234"},
    }
    base = {"name": name, "state": "finished", "summary": {"eval/l0": 8.0}}
    return base | {
        "config": config,
        "createdAt": "2026-01-01T00:00:00Z",
        "sweep": sweep,
    }


@pytest.fixture
def init(tmp_path):
    """Runs bin/init over a sweep's text and W&B's runs."""

    def init(text: str, *argv: str, runs=(), **env: object):
        (tmp_path / "sweeps").mkdir(exist_ok=True)
        (tmp_path / "sweeps/first_try.py").write_text(text)
        fpath = tmp_path / "own.json"
        fpath.unlink(missing_ok=True)
        env = {"CATALOG": fpath, "HOME": tmp_path, "RUNS_ROOT": "/runs"} | env
        with LoopbackWandb(runs, entity="us", project="audio") as server:
            env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
            env |= {"WANDB_ENTITY": "us", "WANDB_PROJECT": "audio"}
            done = run_program(ROOT / "bin/init", *argv, cwd=tmp_path, **env)
        made = json.loads(fpath.read_text()) if fpath.exists() else {}
        repo = made["repos"][0] if made else {}
        left = catalog.read(fpath)[1] if made else []
        return types.SimpleNamespace(made=made, repo=repo, left=left, done=done)

    return init


SWEEP = "sweeps/first_try.py"


def test_a_sweep_and_its_runs_fill_in_what_they_tell(init):
    text = 'ids = {6: ["aaaa1111"], 7: ["bbbb2222",  # "cccc3333",\n]}'
    runs = [run("aaaa1111", 6), run("bbbb2222", 7)]
    got = init(text, SWEEP, "ids", runs=runs)
    assert got.done.code == 0, got.done.err
    assert "2 runs of 3 found" in got.done.err
    told = {k: v for k, v in got.repo.items() if not str(v).startswith(catalog.MARK)}
    assert told == {
        "slug": "first-try",
        "sweep": SWEEP,
        "variable": "ids",
        "layers": [6, 7],
        "objective": "vanilla",
        "activation": "batchtopk",
        "d_model": 16,
        "d_sae": 64,
        "shard": "abcd1234",
    }
    lab = got.made["lab"]
    assert (lab["entity"], lab["project"], lab["runs_root"]) == ("us", "audio", "/runs")


def test_each_key_that_is_left_has_its_line_with_what_it_is_for(init):
    got = init('ids = {6: ["aaaa1111"]}', SWEEP, "ids", runs=[run("aaaa1111", 6)])
    paths = [line.partition(": ")[2] for line in got.left]
    for key in ("license", "contact", "citation", "datasets", "tokens"):
        assert (
            sum(p.startswith(f"lab.{key}: still to be written: ") for p in paths) == 1
        )
    for key in ("repo_id", "title", "base_model"):
        start = f"repos[0] (first-try).{key}: still to be written: "
        assert sum(p.startswith(start) for p in paths) == 1
    assert len(paths) == 8 and f"{len(paths)} keys to fill in" in got.done.err
    assert "or delete this line" in got.made["lab"]["license"]
    assert "or delete" not in got.repo["repo_id"]


def test_without_wandb_the_sweep_alone_is_read(init):
    got = init('ids = {6: ["aaaa1111"]}', SWEEP, "ids", METRICS_SNAPSHOT="/gone")
    assert got.done.code == 0 and "/gone" in got.done.err
    assert got.repo["layers"] == [6]
    for key in ("objective", "activation", "d_model", "d_sae"):
        assert got.repo[key].startswith(catalog.MARK)
    assert sum(".activation" in line for line in got.left) == 1


def test_tuple_keys_and_flat_lists_are_told(init):
    got = init('ids = {(256, 23): ["a"], (384, 21): ["b"]}', SWEEP, "ids")
    assert (got.repo["layer_at"], got.repo["layers"]) == (1, [21, 23])
    got = init('ids = ["a", "b"]', SWEEP, "ids", runs=[run("a", 3), run("b", 3)])
    assert (got.repo["variable"], got.repo["layers"]) == ("ids", [3])
    got = init('ids = ["a", "b"]', SWEEP, "ids", runs=[run("a", 3), run("b", 4)])
    assert "sweep" not in got.repo
    assert got.repo["run_ids"] == {"3": ["a"], "4": ["b"]}


def test_a_sweep_of_wandb_is_enough(init):
    runs = [run("a", 0, "s1"), run("b", 1, "s1"), run("c", 5, "s2")]
    got = init("", "--wandb-sweep", "s1", runs=runs)
    assert got.done.code == 0, got.done.err
    assert got.repo["wandb"] == {"sweep": "s1"}
    assert (got.repo["layers"], got.repo["d_sae"]) == ([0, 1], 64)
    for of in runs:
        of["config"] = {"model": {"hook_layer": of["config"]["train_data"]["layer"]}}
    got = init("", "--wandb-sweep", "s1", runs=runs)
    assert got.repo["wandb"] == {"sweep": "s1", "layer": "model.hook_layer"}


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        ((), 2, "name a sweep file and its variable, or --wandb-sweep=ID"),
        (
            (SWEEP,),
            2,
            "name the variable that lists run ids; sweeps/first_try.py has: ids",
        ),
        ((SWEEP, "di"), 1, 'assigns no "di", which the catalog names; it has ids'),
        (("gone.py", "ids"), 1, "gone.py: No such file or directory"),
        (("--wandb-sweep", "gone"), 1, "us/audio: no runs of a sweep gone"),
    ],
)
def test_wrong_usage_is_told(init, argv, code, told):
    got = init('ids = {6: ["a"]}', *argv)
    assert (got.done.code, got.made) == (code, {})
    assert told in got.done.err and got.done.err.count("\n") == 1


def test_make_init_is_the_same(tmp_path):
    (tmp_path / "my sweep.py").write_text('ids = {6: ["a"]}')
    fpath = tmp_path / "own.json"
    argv = ("make", "init", f"SWEEP={tmp_path}/my sweep.py", "VARIABLE=ids")
    env = {"SAEPUB_BUILD": tmp_path / "build", "HOME": tmp_path}
    done = run_program(*argv, f"CATALOG={fpath}", **env)
    assert done.code == 0, done.err
    assert json.loads(fpath.read_text())["repos"][0]["slug"] == "my-sweep"
    done = run_program(*argv, **env)
    assert done.code == 2 and "with CATALOG=<file>" in done.err


def test_a_catalog_that_is_there_is_never_overwritten(init):
    got = init('ids = {6: ["a"]}', SWEEP, "ids", CATALOG=ROOT / "catalog.json")
    assert got.done.code == 2 and "already exists" in got.done.err
