"""measure computes L0 and NMSE of the very bytes, on the shard that each layer names."""

import base64
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import warnings

import numpy as np
import pytest
import torch

from kits import checkpoints as util
from kits import shards as kit
from kits.lab import Lab
from kits.programs import rows_of, run_program, text_of
from saepub import checkpoint, measured
from saepub.activations import estimate, measure, partial, remake, shards
from saepub.cli import UserError

D_MODEL, N_TOKENS = 8, 300
SHARD = "52ec5790"

torch.set_num_threads(1)


def activations(
    n_tokens: int = N_TOKENS, seed: int = 0, d_model: int = D_MODEL
) -> np.ndarray:
    """Float32 of shape (n_tokens, d_model), with a mean far from 0 as real ones have."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_tokens, d_model)) + np.arange(d_model)
    return x.astype(np.float32)


def twin(state: dict, x: np.ndarray, activation: str, *, takes_b_dec: bool = False):
    """L0, NMSE and the number of dead features, in float64 and two passes."""
    w = {name: tensor.double().numpy() for name, tensor in state.items()}
    x = x.astype(np.float64)
    h = (x - w["b_dec"] if takes_b_dec else x) @ w["W_enc"] + w["b_enc"]
    if activation == "top-k":
        cut = np.sort(h, axis=1)[:, [-4]]
        f = np.where(h >= cut, h, 0)
    elif activation == "batch-top-k":
        f = np.where(h > w["activation.threshold"], h, 0)
    else:
        f = np.maximum(h, 0)
    error = ((f @ w["W_dec"] + w["b_dec"] - x) ** 2).sum()
    nmse = error / ((x - x.mean(axis=0)) ** 2).sum()
    return (f != 0).sum(axis=1).mean(), nmse, int((f == 0).all(axis=0).sum())


def is_measured(line: dict) -> bool:
    return line["numbers"].startswith("measured:")


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    lab.shards_root.mkdir()
    lab.env = {"SHARDS_ROOT": lab.shards_root, "TOKENS": 1000}
    return lab


def classified(lab: Lab, run_id: str = "aaaaaaaa", activation="relu", **changes):
    """A line of a run, whose seed is the length of its id, and its checkpoint."""
    changes = {"shard": SHARD, "seed": len(run_id)} | changes
    line = lab.line(run_id, activation, **changes)
    line["expected"] |= {"shard": line["shard"]}
    return line


def measure_all(lab: Lab, *lines: dict, **how) -> tuple[list[dict], str]:
    """bin/measure, in this process."""
    done = lab.call("measure", *lines, **how)
    return done.rows, done.err


def records_dpath(lab: Lab) -> pathlib.Path:
    return lab.records_dpath / "measured"


def record_of(lab: Lab, run_id: str, shard=SHARD) -> dict:
    return json.loads((records_dpath(lab) / f"{run_id}@{shard}.json").read_text())


def dates(lab: Lab) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in records_dpath(lab).iterdir()}


def assert_measured(line: dict, x: np.ndarray, **how) -> None:
    key, seed = line["activation"]["key"], len(line["run_id"])
    state = util.weights(line["d_model"], activation=key, seed=seed)
    l0, nmse, n_dead = twin(state, x, key, **how)
    assert line["l0"] == pytest.approx(l0, rel=1e-3)
    assert line["nmse"] == pytest.approx(nmse, rel=1e-6)
    assert line["n_tokens"] == len(x) and line["n_dead"] == n_dead


# ---- numbers ---------------------------------------------------------------------------------


def test_measures_every_activation_as_a_naive_twin_does(lab):
    x = activations()
    lab.shard(x, layers=(6,))
    lines = [
        classified(lab, "a", "relu"),
        classified(lab, "bb", "top-k"),
        classified(lab, "ccc", "batch-top-k"),
    ]
    found, _ = measure_all(lab, *lines)
    for line in found:
        assert_measured(line, x)
        assert line["numbers"] == f"measured:{SHARD}"
        assert (line["l0_logged"], line["nmse_logged"]) == (3.5, 0.25)
    assert found[1]["l0"] == 4


def test_a_record_says_all_that_was_done(lab):
    x = activations()
    lab.shard(x, layers=(3, 6))
    (line,), _ = measure_all(lab, classified(lab, "a"), TOKENS=100)
    record = record_of(lab, "a")
    body = lab.fpath("a").read_bytes()
    assert record["sha256"] == hashlib.sha256(body).hexdigest()
    assert record["bytes"] == len(body)
    assert (record["l0"], record["nmse"]) == (line["l0"], line["nmse"])
    assert record["nmse"] == record["sse_recon"] / record["sse_baseline"]
    assert record["tokens"] == {
        "layer": 6,
        "asked": 100,
        "n_examples": 10,
        "of_examples": 30,
        "per_example": 10,
    }
    assert record["n_tokens"] == 100 and record["device"] == measure.device_name()
    assert set(record["versions"]) == {"numpy", "python", "torch"}
    assert measured.Record(**record)


def test_shards_of_three_models_serve_all_their_layers_and_repos(lab):
    lines, x_of = [], {}
    for shard, d_model, layers in (
        ("s" * 8, 4, (1, 2)),
        ("b", 8, (2,)),
        ("l", 16, (3,)),
    ):
        for layer in layers:
            x_of[shard, layer] = activations(120, len(x_of), d_model)
        kit.write_layers(lab.shards_root / shard, {i: x_of[shard, i] for i in layers})
        for layer in layers:
            for repo in ("one", "two"):
                run_id = f"{repo}-{shard}-{layer}"
                changes = {"shard": shard, "layer": layer, "repo": repo + shard}
                line = classified(lab, run_id, d_model=d_model, **changes)
                lines.append(line)
    found, told = measure_all(lab, *lines)
    assert len(found) == 8 and not told.count("warning")
    for line, given in zip(found, lines, strict=True):
        assert_measured(line, x_of[line["shard"], line["layer"]])
        assert line["run_id"] == given["run_id"]
    assert len(list(records_dpath(lab).iterdir())) == 8


def sae_of(
    activation: str, seed: int = 0, d_sae: int = 32, **header
) -> checkpoint.File:
    head = checkpoint.header.parse(
        json.dumps(util.header(5, D_MODEL, d_sae, activation, **header)).encode()
    )
    return checkpoint.sae.Sae(head, util.weights(D_MODEL, d_sae, activation, seed))


@pytest.mark.parametrize("activation", ("relu", "top-k", "batch-top-k"))
@pytest.mark.parametrize("n_batch", (1, 7, 299, 300, 1000))
def test_the_batch_changes_no_number(activation, n_batch):
    x = activations()
    sae = sae_of(activation)
    (found,) = measure.measure([(sae, False)], [x[:100], x[100:]], n_batch=n_batch)
    l0, nmse, n_dead = twin(sae.tensors, x, activation)
    assert found.l0 == pytest.approx(l0, rel=1e-3) and found.n_dead == n_dead
    assert found.nmse == pytest.approx(nmse, rel=1e-6)


@pytest.mark.parametrize("bias", (-100.0, -3.0, 0.0, 100.0))
def test_few_firing_features_and_many_give_the_same_numbers(bias):
    """From none to all; where few features fire, the products take only those."""
    x = activations()
    sae = sae_of("relu", d_sae=512)
    sae.tensors["b_enc"] += bias
    (found,) = measure.measure([(sae, False)], [x], n_batch=50)
    l0, nmse, n_dead = twin(sae.tensors, x, "relu")
    assert found.l0 == pytest.approx(l0, abs=0.01) and found.n_dead == n_dead
    assert found.nmse == pytest.approx(nmse, rel=1e-5)


def test_a_mean_far_from_zero_costs_no_digits():
    x = activations() + np.float32(4096)
    sae = sae_of("relu")
    (found,) = measure.measure([(sae, False)], [x], n_batch=50)
    assert found.nmse == pytest.approx(twin(sae.tensors, x, "relu")[1], rel=1e-5)


def test_each_token_is_read_once_for_all_saes_of_a_layer():
    sae = sae_of("relu")
    n_read = 0

    def batches():
        nonlocal n_read
        for batch in np.array_split(activations(), 3):
            n_read += len(batch)
            yield batch

    found = measure.measure([(sae, False)] * 5, batches())
    assert n_read == N_TOKENS and len(found) == 5 and len(set(found)) == 1


def test_where_memory_is_short_fewer_share_a_pass_and_all_are_measured(
    lab, monkeypatch
):
    x = activations()
    lab.shard(x, layers=(6,))
    n_passes = []
    run = measure.measure
    monkeypatch.setattr(
        measure,
        "measure",
        lambda saes, *rest, **how: (
            n_passes.append(len(saes)) or run(saes, *rest, **how)
        ),
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    monkeypatch.setattr("saepub.machine.free_bytes", lambda: 0)
    found, _ = measure_all(lab, *[classified(lab, "a" * n) for n in range(1, 6)])
    assert n_passes == [1] * 5
    for line in found:
        assert_measured(line, x)


def test_a_file_of_before_the_forward_changed_is_measured_as_it_was_trained(lab):
    x = activations()
    lab.shard(x, layers=(6,))
    lines = [
        classified(lab, "a", schema=None),
        classified(lab, "bb", schema=1),
        classified(lab, "ccc"),
    ]
    found, told = measure_all(lab, *lines)
    assert_measured(found[0], x, takes_b_dec=True)
    assert_measured(found[1], x, takes_b_dec=True)
    assert_measured(found[2], x)
    assert [record_of(lab, r)["subtracts_b_dec"] for r in ("a", "bb", "ccc")] == [
        True,
        True,
        False,
    ]
    assert "2 runs measured with b_dec subtracted from x" in told
    assert "current saev doesn't do that: a bb" in told


@pytest.mark.usefixtures("really")
def test_on_the_demo_make_measure_reproduces_what_training_logged(demo, tmp_path):
    build = tmp_path / "build"
    shutil.copytree(demo, build / "demo")
    (build / ".saepub").touch()
    argv = ("make", "measure", "REPO=vits-relu")
    done = run_program(*argv, SAEPUB_BUILD=build, RECORDS=tmp_path)
    assert done.code == 0, done.err
    rows = rows_of((demo / "snapshot.jsonl").read_text())
    logged = {row["name"]: row["summary"] for row in rows}
    fpaths = list((tmp_path / "measured").iterdir())
    assert len(fpaths) == 26 and "26 runs measured" in done.err
    for record in map(measured.read, fpaths):
        summary = logged[record.run_id]
        assert record.n_tokens == 500
        assert record.l0 == pytest.approx(summary["eval/l0"], rel=1e-6)
        nmse = summary.get("eval/normalized_mse")  # an old run has none
        assert nmse is None or record.nmse == pytest.approx(nmse, rel=1e-6)
        assert record.n_dead == summary["eval/n_dead"]
    done = run_program(*argv, SAEPUB_BUILD=build, RECORDS=tmp_path)
    assert "26 runs already measured" in done.err


# ---- which tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_examples", "per_example", "asked", "expected"),
    (
        (10, 4, 1000, range(10)),
        (10, 4, 40, range(10)),
        (10, 4, 20, (0, 2, 4, 6, 8)),
        (10, 4, 9, (0, 3, 6)),
        (10, 4, 1, (0,)),
        (3, 1, 2, (0, 1)),
    ),
)
def test_whole_examples_are_sampled_evenly(n_examples, per_example, asked, expected):
    assert shards.sample(n_examples, per_example, asked).tolist() == list(expected)


def test_at_full_size_4096_images_of_50000_are_measured():
    examples = shards.sample(50_000, 256, 2**20)
    assert len(examples) == 4096 and set(np.diff(examples)) == {12, 13}


def test_only_the_sampled_examples_are_read(lab, monkeypatch):
    x = activations(30 * 10)
    x.reshape(30, 10, -1)[np.arange(30) % 10 != 0] = np.nan
    lab.shard(x, layers=(3, 6))
    (line,), _ = measure_all(lab, classified(lab, "a"), TOKENS=30)
    assert_measured(line, x.reshape(30, 10, -1)[::10].reshape(30, -1))


# ---- where activations come from -------------------------------------------------------------


@pytest.mark.parametrize("name", ("tiny/layer_6.npy", "layer_6.npy"))
def test_a_repos_own_directory_goes_before_the_shared_one(lab, name):
    kit.write_npy(lab.shards_root / "layer_6.npy", activations(seed=1))
    kit.write_npy(lab.shards_root / name, activations(seed=2))
    (line,), _ = measure_all(
        lab, classified(lab, "a"), argv=("--shards", lab.shards_root)
    )
    assert_measured(line, activations(seed=2))
    assert line["numbers"] == "measured:shards"
    assert not records_dpath(lab).exists()  # it is not the shard that the line names


def test_one_npy_file_is_measured_on_without_a_record(lab):
    fpath = kit.write_npy(lab.shards_root / "held out.npy", activations())
    (line,), _ = measure_all(lab, classified(lab, "a"), argv=("--shards", fpath))
    assert_measured(line, activations())
    assert line["numbers"] == "measured:held-out" and not records_dpath(lab).exists()


@pytest.mark.parametrize("below", (True, False))
def test_the_lines_own_shard_is_found_wherever_it_is(lab, below):
    other = lab.dpath / "elsewhere"
    kit.write(other / SHARD, activations(), layers=(6,))
    argv = ("--shards", other if below else other / SHARD)
    (line,), _ = measure_all(lab, classified(lab, "a"), argv=argv)
    assert_measured(line, activations())
    assert record_of(lab, "a")["shard"] == SHARD


def test_the_catalogs_shard_goes_before_what_wandb_names(lab):
    lab.shard(activations(seed=1), "from-catalog", layers=(6,))
    lab.shard(activations(seed=2), layers=(6,))
    line = classified(lab, "a")
    line["expected"]["shard"] = "from-catalog"
    (found,), _ = measure_all(lab, line)
    assert_measured(found, activations(seed=1))
    del line["expected"]["shard"]
    (found,), _ = measure_all(lab, line)
    assert_measured(found, activations(seed=2))


def test_a_layer_without_any_shard_is_told(lab):
    line = classified(lab, "a", shard=None)
    _, told = measure_all(lab, line, code=1)
    assert 'tiny layer 6: W&B names no shard; write "shard"' in told


@pytest.mark.parametrize("dtype", ("float16", "float32", "float64", ">f4"))
@pytest.mark.parametrize("order", "CF")
def test_npy_files_of_any_float_and_order_are_read(tmp_path, dtype, order):
    x = np.asarray(activations(), dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    shard = shards.Npy(tmp_path / "x.npy")
    read = np.concatenate(list(shards.batches(shard, np.arange(0, 300, 3), 64)))
    assert read.dtype == np.float32 and read.flags.c_contiguous
    assert np.array_equal(read, x[::3].astype(np.float32))


@pytest.mark.parametrize("n_batch", (1, 27, 60, 10_000))
@pytest.mark.parametrize("cls_token", (True, False))
def test_saevs_own_shards_are_read_without_cls_and_without_spare_room(
    tmp_path, cls_token, n_batch
):
    x = activations(11 * 27)
    kit.write(tmp_path, x, n_examples=11, cls_token=cls_token)
    shard = shards.SaevShards(tmp_path, 6)
    read = np.concatenate(list(shards.batches(shard, np.arange(11), n_batch)))
    assert np.array_equal(read, x)
    read = shard.read(np.array([0, 5, 10]))
    assert np.array_equal(read, x.reshape(11, 27, -1)[[0, 5, 10]].reshape(-1, D_MODEL))


@pytest.mark.parametrize(
    ("tokens", "examples", "width"),
    (("patches_per_ex", "n_ex", "d_model"), ("n_patches_per_img", "n_imgs", "d_vit")),
)
def test_saevs_older_names_for_the_same_fields_are_read(
    tmp_path, tokens, examples, width
):
    x = activations(11 * 27)
    old = {tokens: 27, examples: 11, width: D_MODEL, "dtype": None}
    new = ("content_tokens_per_example", "n_examples", "d_model")
    kit.write(tmp_path, x, n_examples=11, changes=dict.fromkeys(new) | old)
    listed = tmp_path / "shards.json"
    listed.write_text(listed.read_text().replace("n_examples", examples))
    assert np.array_equal(shards.SaevShards(tmp_path, 6).read(np.arange(11)), x)


def test_a_last_file_that_is_listed_without_examples_is_passed_over(tmp_path):
    x = activations(11 * 27)
    kit.write(tmp_path, x, n_examples=11)
    fpath = tmp_path / "shards.json"
    entry = {"name": "acts000003.bin", "n_examples": 0}
    fpath.write_text(json.dumps([*json.loads(fpath.read_text()), entry]))
    (tmp_path / "acts000003.bin").write_bytes(b"")
    assert np.array_equal(shards.SaevShards(tmp_path, 6).read(np.arange(11)), x)


# ---- which runs ------------------------------------------------------------------------------


def test_dropped_runs_and_other_layers_pass_on_as_they_came(lab):
    kit.write_layers(lab.shards_root / SHARD, {6: activations(), 7: activations()})
    lines = [
        classified(lab, "a"),
        classified(lab, "bb", drop="not Matryoshka"),
        classified(lab, "ccc", layer=7),
        classified(
            lab, "dddd", drop="no NMSE: not measured, not in W&B", mine={"a": [1]}
        ),
    ]
    found, _ = measure_all(lab, *lines, LAYERS="6 8, 6", code=1)
    assert not found
    found, _ = measure_all(lab, *lines, LAYERS="6")
    assert [is_measured(line) for line in found] == [
        True,
        False,
        False,
        True,
    ]
    assert found[1:3] == lines[1:3] and found[3]["mine"] == {"a": [1]}


def test_a_run_that_cannot_be_measured_costs_itself_only(lab):
    lab.shard(activations(), layers=(6,))
    lines = [classified(lab, "a" * n) for n in range(1, 6)]
    lab.fpath("a").unlink()
    lab.fpath("aa").write_bytes(b"{}\n")
    util.write(lab.fpath("aaa"), d_model=4)
    state = util.weights()
    state["W_enc"][0, 0] = float("nan")
    util.write_raw(lab.fpath("aaaa"), util.header(), util.archive(state))
    found, told = measure_all(lab, *lines, code=1)
    assert [is_measured(line) for line in found] == [False] * 4 + [True]
    for run_id, why in (
        ("a", "No such file"),
        ("aa", "sae.pt: "),
        ("aaa", "its d_model is 4"),
        ("aaaa", "has NaN or infinite values"),
    ):
        (said,) = [s for s in told.splitlines() if f"tiny layer 6 {run_id}: " in s]
        assert why in said
    assert "3 runs could not be measured" in told


def test_a_run_that_diverged_is_told_and_is_no_failure(lab):
    lab.shard(activations(), layers=(6,))
    line = classified(lab, "a")
    state = util.weights()
    state["b_enc"] += 3e38
    util.write_raw(lab.fpath("a"), util.header(), util.archive(state))
    found, told = measure_all(lab, line, classified(lab, "bb"))
    assert found[0] == line and "not finite" in told
    assert is_measured(found[1])


# ---- again -----------------------------------------------------------------------------------


def test_what_was_measured_is_never_measured_twice(lab):
    x = activations()
    lab.shard(x, layers=(6,))
    first, second = classified(lab, "a"), classified(lab, "bb")
    measure_all(lab, first)
    before = dates(lab)
    found, told = measure_all(lab, first, second)
    assert "1 run already measured" in told
    assert dates(lab).items() > before.items() and len(dates(lab)) == 2
    for line in found:
        assert_measured(line, x)


def test_what_was_measured_needs_no_shard(lab):
    fpath = lab.shard(activations(), layers=(6,))
    (found,), _ = measure_all(lab, classified(lab, "a"))
    fpath.rename(fpath.with_name("cleaned"))
    (again,), _ = measure_all(lab, classified(lab, "a"))
    assert again == found


def test_a_checkpoint_replaced_after_it_was_measured_is_measured_again(lab):
    x = activations()
    lab.shard(x, layers=(6,))
    line = classified(lab, "a")
    (old,), _ = measure_all(lab, line)
    util.write(lab.fpath("a"), seed=9)
    (new,), told = measure_all(lab, line)
    assert "already measured" not in told
    assert new["nmse"] == pytest.approx(twin(util.weights(seed=9), x, "relu")[1])
    assert new["nmse"] != old["nmse"]


def test_a_number_counts_for_the_bytes_that_were_measured_and_no_others(lab):
    """Random weights with W&B's numbers are never taken for measured ones."""
    lab.shard(activations(), layers=(6,))
    found, _ = measure_all(lab, classified(lab, "a"))

    def settle() -> dict:
        return lab.call("settle", found[0]).rows[0]

    settled = settle()
    assert settled == found[0] | {"drop": None}
    assert (settled["l0_logged"], settled["nmse_logged"]) == (3.5, 0.25)
    util.write(lab.fpath("a"), seed=9)
    settled = settle()
    assert (settled["numbers"], settled["l0"], settled["nmse"]) == ("wandb", 3.5, 0.25)
    assert settled["n_tokens"] is None


@pytest.mark.parametrize("change", ({"TOKENS": 100}, {"layer": 3}, {"grown": True}))
def test_other_tokens_are_measured_again(lab, change):
    x = activations(330)
    kit.write_layers(lab.shards_root / SHARD, {3: x[:300], 6: x[:300]})
    measure_all(lab, classified(lab, "a"))
    before = record_of(lab, "a")
    if "grown" in change:
        kit.write_layers(lab.shards_root / SHARD, {3: x, 6: x})
    line = classified(lab, "a", layer=change.get("layer", 6))
    measure_all(lab, line, TOKENS=change.get("TOKENS", 1000))
    assert record_of(lab, "a")["tokens"] != before["tokens"]


def test_a_record_that_cannot_be_read_is_told_and_made_again(lab):
    lab.shard(activations(), layers=(6,))
    measure_all(lab, classified(lab, "a"))
    (records_dpath(lab) / f"a@{SHARD}.json").write_text("{")
    _, told = measure_all(lab, classified(lab, "a"))
    assert f"a@{SHARD}.json: not JSON" in told and record_of(lab, "a")["run_id"] == "a"


def start(lab: Lab, *lines: dict, **settings) -> subprocess.Popen:
    return lab.start("bin/measure", stdin=text_of(lines), **settings)


@pytest.mark.programs
def test_killed_in_the_middle_and_run_again_it_continues(lab):
    """Killed while it waits for a layer that another process measures, its other layer done."""
    for shard, layer in (("one", 6), ("two", 7)):
        kit.write_layers(lab.shards_root / shard, {layer: activations(seed=layer)})
    lines = [
        classified(lab, "a", shard="one"),
        classified(lab, "bb", shard="two", layer=7),
        classified(lab, "ccc", shard="one"),
    ]
    lock = lab.dpath / "build/.measure/two-7.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        process = start(lab, *lines)
        for told in process.stderr:
            if "waiting for another measure of layer 7 of two" in told:
                break
        process.kill()
        process.wait()
    before = dates(lab)
    assert sorted(before) == ["a@one.json", "ccc@one.json"]
    leftover = records_dpath(lab) / ".bb@two.json.node7-4711.tmp"
    leftover.write_text('{"run_id": ')
    found, told = measure_all(lab, *lines)
    assert "2 runs already measured" in told and "1 run measured" in told
    assert not leftover.exists()
    assert dates(lab).items() > before.items()
    for line in found:
        assert_measured(line, activations(seed=line["layer"]))


def passing(lab, monkeypatch) -> list[dict]:
    """Runs of every kind, measured in one pass of six batches, with sums kept after each."""
    monkeypatch.setattr(partial, "KEEP_S", 0)
    monkeypatch.setattr(measure, "READ_TOKENS", 50)
    monkeypatch.setitem(measure.BATCH_BYTES, "cpu", 4 * 512 * 20)
    # A child that is forked, as `kill` does, can't use the parent's GPU.
    monkeypatch.setattr(measure, "device", lambda: "cpu")
    lab.shard(activations(), layers=(6,))
    lines = [
        classified(lab, "a"),
        classified(lab, "bb", "top-k"),
        classified(lab, "ccc", "batch-top-k"),
    ]
    lines.append(classified(lab, "dddd"))  # few of its features fire
    state = util.weights(D_MODEL, 512, "relu", 4)
    state["b_enc"] -= 8
    head = util.header(5, D_MODEL, 512)
    util.write_raw(lab.fpath("dddd"), head, util.archive(state))
    return lines


def records(lab) -> dict[str, dict]:
    """All but their dates."""
    found = (json.loads(f.read_text()) for f in records_dpath(lab).iterdir())
    return {record["run_id"]: record | {"date": ""} for record in found}


def kill(lab, lines: list[dict], n_kept: int) -> None:
    """Measure in a process that is killed when it keeps sums for the n-th time."""
    child = os.fork()
    if not child:
        n_left, savez = n_kept, np.savez

        def save(*args, **kwargs):
            nonlocal n_left
            n_left -= 1
            if not n_left:
                os.kill(os.getpid(), signal.SIGKILL)
            savez(*args, **kwargs)

        np.savez = save
        try:
            measure_all(lab, *lines)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("n_kept", (3, 5, 14, 24))
def test_killed_in_the_middle_of_a_pass_it_continues_to_the_very_same_sums(
    lab, monkeypatch, n_kept
):
    lines = passing(lab, monkeypatch)
    measure_all(lab, *lines)
    straight = records(lab)
    shutil.rmtree(records_dpath(lab))
    kill(lab, lines, n_kept)
    assert not records_dpath(lab).exists()
    read = []
    batches = shards.batches
    monkeypatch.setattr(
        shards, "batches", lambda s, of, n: read.append(len(of)) or batches(s, of, n)
    )
    _, told = measure_all(lab, *lines)
    n_done = 50 * ((n_kept - 1) // 4)  # of all four runs
    assert read == [(300 - n_done) // 10]
    assert (f"layer 6 of {SHARD}: resuming after {n_done} of 300" in told) == (
        n_done > 0
    )
    assert records(lab) == straight
    assert [f.name for f in (lab.dpath / "build/.measure").iterdir()] == [
        f"{SHARD}-6.lock"
    ]


def test_what_is_left_of_a_pass_serves_other_passes(lab, monkeypatch):
    """There may be less memory now, and Slurm's tasks may share the runs differently."""
    lines = passing(lab, monkeypatch)
    measure_all(lab, *lines)
    straight = records(lab)
    shutil.rmtree(records_dpath(lab))
    kill(lab, lines, 14)
    # dddd has a pass of its own; its size would change how many tokens make a batch
    monkeypatch.setattr(measure, "batch_tokens", lambda d_sae: 20)
    monkeypatch.setattr("saepub.machine.free_bytes", lambda: 0)
    _, told = measure_all(lab, *lines)
    assert told.count("resuming after") == 4 and records(lab) == straight


@pytest.mark.parametrize("change", ("checkpoint", "shard", "TOKENS", "code", "torn"))
def test_sums_that_depend_on_what_has_changed_are_removed(lab, monkeypatch, change):
    lines = passing(lab, monkeypatch)
    kill(lab, lines, 14)
    lefts = sorted((lab.dpath / "build/.measure").glob("*.npz"))
    assert len(lefts) == 4
    if change == "checkpoint":
        util.write(lab.fpath("a"), seed=9)
        kill(lab, lines, 3)  # while it is behind the others
    elif change == "shard":
        lab.shard(activations(seed=1), layers=(6,))
    elif change == "code":
        monkeypatch.setattr("saepub.files.package", list)
    elif change == "torn":
        lefts[0].write_bytes(lefts[0].read_bytes()[:-40])
    n_tokens = 200 if change == "TOKENS" else 1000
    _, told = measure_all(lab, *lines, TOKENS=n_tokens)
    assert ("resuming after 100 of" in told) == (change == "checkpoint")
    found = records(lab)
    shutil.rmtree(records_dpath(lab))
    measure_all(lab, *lines, TOKENS=n_tokens)
    assert records(lab) == found


@pytest.mark.programs
def test_two_at_once_measure_each_run_once(lab):
    lines = [
        classified(lab, "a" * n, shard=shard, layer=6 + n % 2)
        for n, shard in enumerate(("one", "two", "one", "two"), start=1)
    ]
    for shard, layer in (("one", 7), ("two", 6)):
        kit.write_layers(lab.shards_root / shard, {layer: activations(seed=layer)})
    ends = [p.communicate() for p in (start(lab, *lines), start(lab, *lines))]
    outs = [sorted(out.splitlines()) for out, _ in ends]
    assert outs[0] == outs[1] and len(outs[0]) == 4, ends
    told = "".join(err for _, err in ends)
    n_measured = [
        int(n) for n in re.findall(r"^measure: (\d+) runs? measured$", told, re.M)
    ]
    assert sum(n_measured) == 4 and len(dates(lab)) == 4


@pytest.mark.programs
@pytest.mark.parametrize(
    "kind", ("local", pytest.param("slurm", marks=pytest.mark.long))
)
def test_an_executors_tasks_measure_and_keep_records(lab, kind, request):
    settings = {"EXECUTOR": kind, "JOBS": 2}
    if kind == "slurm":
        settings["SLURM_CONF"] = request.getfixturevalue("slurm_conf")
        settings["SLURM_CPUS"] = 1
    x = activations()
    lab.shard(x, layers=(6,))
    lab.shard(np.ones((300, D_MODEL), np.float32), "flat", layers=(7,))
    lines = [
        classified(lab, "a"),
        classified(lab, "bb", "top-k"),
        classified(lab, "ccc", shard="flat", layer=7),
        classified(lab, "dddd"),
    ]
    lab.fpath("dddd").unlink()
    first = measure_all(lab, lines[0])
    process = start(lab, *lines, **settings)
    out, told = process.communicate()
    assert process.returncode == 1, told
    found = rows_of(out)
    assert [line["run_id"] for line in found] == ["a", "bb", "ccc", "dddd"]
    assert found[0] == first[0][0]
    assert_measured(found[1], x)
    assert found[2:] == lines[2:]
    assert "tiny layer 7 ccc: " in told and "all activations are the same" in told
    assert "tiny layer 6 dddd: " in told and "No such file" in told
    assert sorted(dates(lab)) == [f"a@{SHARD}.json", f"bb@{SHARD}.json"]


# ---- what is refused, before anything is measured --------------------------------------------


def test_every_missing_or_misfit_shard_is_told_at_once(lab):
    lab.shard(activations(d_model=4), "narrow", layers=(6,))
    lab.shard(activations(0), "empty", layers=(6,), n_examples=0)
    lab.shard(activations(), "other-layer", layers=(3,))
    lines = [
        classified(lab, shard[:3], shard=shard, repo=shard)
        for shard in ("narrow", "empty", "other-layer", "gone")
    ]
    _, told = measure_all(lab, *lines, code=1)
    for text in (
        "300 tokens of width 4, but narrow layer 6 needs width 8",
        "empty/metadata.json: 0 tokens",
        "layer 6 is not one of [3]",
        "shards/gone: no such shard. It must have layer 6 of a model that W&B",
        "4 problems; nothing was measured",
    ):
        assert text in told
    assert not records_dpath(lab).exists()


METADATA = {
    "of": "train_data",
    "family": "dinov3",
    "ckpt": "/models/dinov3 vits16.pth",
    "layers": [5, 6, 7],
    "d_model": 8,
    "content_tokens_per_example": 256,
    "max_tokens_per_shard": 500_000,
    "cls_token": True,
    "dataset": "ILSVRC/imagenet-1k",
    "data": "gASVVgAAAAAAAACME3NhZXYuZGF0YS5kYXRhc2V0c5SMCEltYWdlbmV0lJOUKYGUfZQojARuYW1llIwSSUxTVlJDL2ltYWdlbmV0LTFrlIwFc3BsaXSUjAV0cmFpbpR1Yi4=",
}


def test_a_shard_that_is_gone_is_told_with_saevs_command_for_it(lab):
    lines = [
        classified(lab, "a", **{remake.METADATA: METADATA}),
        classified(lab, "bb", layer=7, **{remake.METADATA: METADATA}),
    ]
    _, told = measure_all(lab, *lines, code=1)
    assert (
        f"{lab.shards_root}/{SHARD}: no such shard. It must have layers 6, 7 of dinov3"
        " /models/dinov3 vits16.pth on the validation split of ILSVRC/imagenet-1k"
        in told
    )
    assert (
        f"uv run launch.py shards --shards-root {lab.shards_root} --family dinov3"
        " --ckpt '/models/dinov3 vits16.pth' --d-model 8 --layers 5 6 7"
        " --content-tokens-per-example 256 --max-tokens-per-shard 500000"
        " data:imagenet --data.split validation" in told
    )
    assert "nothing was measured" in told


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_in_place_of_a_datasets_name_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = base64.b64encode(pickle.dumps(_Runs())).decode()
    remake.instructions("x/y", [6], METADATA | {"data": data})
    for data in ("", "%", 17, None, "gASVVgAA"):
        assert remake.instructions("x/y", [6], METADATA | {"data": data})
    assert not list(tmp_path.iterdir())


def test_a_pickle_in_place_of_numbers_is_refused_and_does_not_run(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fpath = tmp_path / "x.npy"
    np.save(fpath, np.array([[_Runs()]], dtype=object))
    with pytest.raises(UserError, match="not an .npy file of numbers"):
        shards.Npy(fpath)
    fpath.write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(UserError, match="not an .npy file of numbers"):
        shards.Npy(fpath)
    assert list(tmp_path.iterdir()) == [fpath]


@pytest.mark.parametrize(
    ("spoil", "said"),
    (
        (lambda f: np.save(f, np.zeros((3, 2, 8), np.float32)), "of shape (3, 2, 8)"),
        (lambda f: np.save(f, np.zeros((3, 8), np.int64)), "int64"),
        (lambda f: f.write_bytes(b""), "not an .npy file"),
        (lambda f: f.write_bytes(f.read_bytes()[:-9]), "not an .npy file"),
        (lambda f: np.savez(f.open("wb"), x=np.zeros((3, 8))), "an archive"),
        (lambda f: (f.unlink(), os.mkfifo(f)), "no layer_6.npy"),
        (lambda f: np.save(f, np.full((300, 8), 0.3)), "activations are the same"),
        (lambda f: np.save(f, np.full((3, 8), np.nan)), "NaN or infinite"),
        (lambda f: np.save(f, np.full((3, 8), 1e300)), "NaN or infinite"),
        (lambda f: np.save(f, np.eye(8) * 1e38 + 2e38), "not finite"),
    ),
)
def test_activations_without_a_meaning_are_refused_in_one_line(lab, spoil, said):
    fpath = kit.write_npy(lab.shards_root / "layer_6.npy", activations())
    spoil(fpath)
    code = 0 if said == "not finite" else 1
    with warnings.catch_warnings(action="error"):
        found, told = measure_all(
            lab, classified(lab, "a"), argv=("--shards", lab.shards_root), code=code
        )
    assert said in told
    assert not any(map(is_measured, found))


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"layers": [3, 5]}, r"layer 6 is not one of \[3, 5\]"),
        ({"n_examples": 12}, "n_examples differs from the 11"),
        ({"dtype": "float16"}, "dtype is not float32"),
        ({"d_model": "8"}, 'no whole number "d_model"'),
        ({"d_model": 16}, "or shorter than"),
    ),
)
def test_saevs_shards_that_do_not_add_up_are_refused(tmp_path, change, said):
    kit.write(tmp_path, activations(11 * 27), n_examples=11)
    fpath = tmp_path / "metadata.json"
    fpath.write_text(json.dumps(json.loads(fpath.read_text()) | change))
    with pytest.raises(UserError, match=said):
        shards.SaevShards(tmp_path, 6)


def test_a_shard_file_outside_the_directory_is_never_opened(tmp_path):
    kit.write(tmp_path, activations(11 * 27), n_examples=11)
    entries = [{"name": "../acts000000.bin", "n_examples": 11}]
    (tmp_path / "shards.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="without a name like acts<N>.bin"):
        shards.SaevShards(tmp_path, 6)


def test_a_shard_that_shrinks_while_it_is_read_is_told(tmp_path):
    kit.write(tmp_path, activations(11 * 27), n_examples=11)
    shard = shards.SaevShards(tmp_path, 6)
    os.truncate(tmp_path / "acts000001.bin", 100)
    with pytest.raises(UserError, match="acts000001.bin: truncated"):
        list(shards.batches(shard, np.arange(11), 27))


@pytest.mark.parametrize("name", ("TOKENS", "JOBS", "SLURM_CPUS"))
def test_a_setting_that_is_no_number_is_exit_2(lab, name):
    lab.shard(activations(), layers=(6,))
    _, told = measure_all(
        lab, classified(lab, "a"), code=2, EXECUTOR="local", **{name: "many"}
    )
    assert f"{name} is 'many'; it takes a whole number" in told


def test_a_gpu_that_torch_cannot_use_is_told_and_is_no_part_of_an_estimate(
    lab, monkeypatch, tmp_path
):
    monkeypatch.setattr(measure, "device", lambda: "cpu")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0+cpu")
    widths, n_tokens = [(1024, 16384)] * 29, 2**20
    lab.shard(activations(), layers=(6,))
    line = classified(lab, "a")
    before = estimate.seconds(widths, n_tokens, 1)
    assert "GPU" not in measure_all(lab, line)[1]
    driver = tmp_path / "nvidiactl"
    driver.touch()
    monkeypatch.setattr(estimate, "GPU_FPATH", str(driver))
    shutil.rmtree(records_dpath(lab))
    assert "there is a GPU, but torch can't use it" in measure_all(lab, line)[1]
    assert estimate.seconds(widths, n_tokens, 1) > before / 10
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0")
    assert estimate.seconds(widths, n_tokens, 1) < before / 10
