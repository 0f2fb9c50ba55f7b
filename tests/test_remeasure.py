"""remeasure computes L0 and NMSE of the very files, from activations as labs have them."""

import hashlib
import json
import os
import pathlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from kits import checkpoints as util
from kits.programs import ROOT, bare_env, run_program
from saepub import checkpoint
from saepub.cli import UserError
from saepub.stages import remeasure

D_MODEL, N_TOKENS = 8, 300

QUIET = {"CATALOG": "none", "OMP_NUM_THREADS": "1"}
"""No demo. And no threads, which on work as small as this only wait for each other."""

torch.set_num_threads(1)


def activations(n_tokens: int = N_TOKENS, seed: int = 0) -> np.ndarray:
    """Float32 of shape (n_tokens, D_MODEL), with a mean far from 0 as real ones have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_tokens, D_MODEL)) + np.arange(D_MODEL)).astype(
        np.float32
    )


def twin(state: dict, x: np.ndarray, activation: str, *, takes_b_dec: bool = False):
    """L0 and NMSE, all in float64 and two passes."""
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
    return (f != 0).sum(axis=1).mean(), error / ((x - x.mean(axis=0)) ** 2).sum()


class Lab:
    """Checkpoints with their lines, and activations."""

    def __init__(self, dpath: pathlib.Path):
        self.dpath = dpath
        self.shards = dpath / "shards"
        self.shards.mkdir()

    def line(self, run_id: str = "aaaaaaaa", activation="relu", schema=5, **changes):
        fpath = util.run_dir(self.dpath / "runs", run_id)
        util.write(fpath, schema, activation=activation, seed=len(run_id))
        info = fpath.stat()
        checked = {
            "checkpoint": str(fpath),
            "bytes": info.st_size,
            "mtime_ns": str(info.st_mtime_ns),
            "sha256": hashlib.sha256(fpath.read_bytes()).hexdigest(),
            "loader": "builtin",
        }
        return util.line(run_id, activation, **checked) | changes

    def save(self, x: np.ndarray, name: str = "layer_6.npy") -> pathlib.Path:
        fpath = self.shards / name
        fpath.parent.mkdir(exist_ok=True)
        np.save(fpath, x)
        return fpath

    def save_saev(self, x: np.ndarray, layers=(3, 6), cls_token=True, **changes):
        """What saev's own writer leaves: 11 examples, 4 a file, the last file not full."""
        x = x.reshape(11, -1, D_MODEL)
        n_tokens = x.shape[1] + cls_token
        acts = np.full((12, len(layers), n_tokens, D_MODEL), 1e6, np.float32)
        acts[:11, layers.index(6), int(cls_token) :] = x
        for i in range(3):
            (self.shards / f"acts{i:06}.bin").write_bytes(
                acts[4 * i : 4 * i + 4].tobytes()
            )
        meta = {
            "family": "dinov3",
            "layers": list(layers),
            "content_tokens_per_example": x.shape[1],
            "cls_token": cls_token,
            "d_model": D_MODEL,
            "n_examples": 11,
            "data": "gASVAAAA",
            "dtype": "float32",
            "protocol": "2.1",
        }
        counts = [
            {"name": f"acts{i:06}.bin", "n_examples": n}
            for i, n in enumerate((4, 4, 3))
        ]
        meta = {k: v for k, v in (meta | changes).items() if v is not None}
        (self.shards / "metadata.json").write_text(json.dumps(meta))
        (self.shards / "shards.json").write_text(json.dumps(counts))

    def remeasure(self, *rows: dict, argv=(), **settings):
        stdin = "".join(json.dumps(row) + "\n" for row in rows)
        shards = () if "--shards" in argv else ("--shards", self.shards)
        done = run_program(
            ROOT / "bin/remeasure",
            *shards,
            *argv,
            stdin=stdin,
            CATALOG="none",
            **settings,
        )
        done.rows = [json.loads(line) for line in done.out.splitlines()]
        return done

    def measure(self, *rows: dict, n_batch: int | None = None) -> list[dict]:
        """As `remeasure`, for lines of one layer, without the seconds that torch takes to load.

        Raises:
            UserError: What the program says and exits 1 for.
        """
        (source,) = remeasure.find_shards(self.shards, list(rows)).values()
        return remeasure.remeasure(list(rows), source, n_batch)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def state_of(row: dict) -> dict:
    return util.weights(activation=row["activation"]["key"], seed=len(row["run_id"]))


def assert_measured(row: dict, x: np.ndarray, **how) -> None:
    l0, nmse = twin(state_of(row), x, row["activation"]["key"], **how)
    assert row["l0_measured"] == pytest.approx(l0, rel=1e-3)
    assert row["nmse_measured"] == pytest.approx(nmse, rel=1e-5)
    assert row["n_tokens"] == len(x)


def test_measures_every_activation_as_a_naive_twin_does(lab):
    x = activations()
    lab.save(x)
    rows = [
        lab.line("a", "relu"),
        lab.line("bb", "top-k"),
        lab.line("ccc", "batch-top-k"),
    ]
    done = lab.remeasure(*rows)
    assert done.returncode == 0, done.err
    for row in done.rows:
        assert_measured(row, x)
    assert done.rows[1]["l0_measured"] == 4


@pytest.mark.parametrize("n_batch", (1, 7, 299, 300, 1000))
def test_the_batch_changes_no_number(lab, n_batch):
    x = activations()
    lab.save(x)
    (row,) = lab.measure(lab.line("a"), n_batch=n_batch)
    assert_measured(row, x)


def test_a_mean_far_from_zero_costs_no_digits(lab):
    x = activations() + np.float32(4096)
    lab.save(x)
    (row,) = lab.measure(lab.line("a"), n_batch=50)
    assert_measured(row, x)


def test_lines_pass_on_in_order_with_all_their_keys(lab):
    lab.save(activations(seed=6))
    lab.save(activations(seed=7), "layer_7.npy")
    rows = [
        lab.line(run_id, layer=layer, mine={"a": [1]})
        for run_id, layer in (("bb", 7), ("a", 6), ("dddd", 7), ("ccc", 6))
    ]
    done = lab.remeasure(*rows)
    assert [row["run_id"] for row in done.rows] == ["bb", "a", "dddd", "ccc"]
    for row, given in zip(done.rows, rows, strict=True):
        assert_measured(row, activations(seed=row["layer"]))
        assert {key: row[key] for key in given} == given


def test_more_checkpoints_than_share_a_pass_are_all_measured(lab):
    x = activations()
    lab.save(x)
    done = lab.remeasure(*[lab.line("a" * n) for n in range(1, 18)])
    assert len(done.rows) == 17
    for row in done.rows:
        assert_measured(row, x)


def test_the_demos_numbers_are_reproduced(demo):
    env = QUIET | {"BUILD": str(demo.parent)}
    del env["CATALOG"]
    rows = ""
    for program, *argv in (
        ("extract-ids", "vits-relu", "vitl-topk"),
        ("fetch-metrics",),
        ("facts",),
        ("classify",),
        ("settle",),
        ("select", "-n", "2"),
        ("preflight",),
        ("remeasure", "--shards", demo / "shards"),
    ):
        done = run_program(ROOT / "bin" / program, *argv, stdin=rows, **env)
        assert done.returncode == 0, done.err
        rows = done.out
    assert "warning" not in done.err
    rows = [json.loads(line) for line in rows.splitlines()]
    assert len(rows) == 10
    for row in rows:
        assert row["l0_measured"] == pytest.approx(row["l0"], abs=0.01)
        assert row["nmse_measured"] == pytest.approx(row["nmse"], rel=1e-5)
        assert row["n_tokens"] == 500


# ---- warnings --------------------------------------------------------------------------------


def test_a_card_that_is_off_by_more_than_2_percent_is_told(lab):
    x = activations()
    lab.save(x)
    l0, nmse = twin(state_of(lab.line("a")), x, "relu")
    near = lab.line("a", l0=l0 * 1.015, nmse=nmse * 0.985)
    far = near | {"nmse": nmse * 1.03}
    done = lab.remeasure(near, far)
    assert done.returncode == 0 and len(done.rows) == 2
    (told,) = [line for line in done.err.splitlines() if "warning" in line]
    assert "tiny layer 6 a: NMSE is" in told and "L0" not in told
    assert "2 checkpoints, 1 off the card's numbers" in done.err


def test_a_run_without_numbers_is_measured_without_a_warning(lab):
    lab.save(activations())
    (row,) = lab.measure(lab.line("a", l0=None, nmse="NaN"))
    assert not remeasure.warn(row)


# ---- where activations come from -------------------------------------------------------------


@pytest.mark.parametrize("name", ("tiny/layer_6.npy", "layer_6.npy"))
def test_a_repos_own_directory_goes_before_the_shared_one(lab, name):
    lab.save(activations(seed=1), "layer_6.npy")
    lab.save(activations(seed=2), name)
    (row,) = lab.measure(lab.line("a"))
    assert_measured(row, activations(seed=2))


def test_one_file_serves_one_layer(lab):
    fpath = lab.save(activations(), "held-out.npy")
    argv = ("--shards", fpath)
    done = lab.remeasure(lab.line("a"), lab.line("bb"), argv=argv)
    assert len(done.rows) == 2
    done = lab.remeasure(lab.line("a"), lab.line("bb", layer=7), argv=argv)
    assert done.returncode == 2 and not done.out
    assert "one layer's activations" in done.err and "2 layers" in done.err


@pytest.mark.parametrize("dtype", ("float16", "float32", "float64", ">f4"))
@pytest.mark.parametrize("order", "CF")
def test_npy_files_of_any_float_and_order_are_read(lab, dtype, order):
    x = np.asarray(activations(), dtype=dtype, order=order)
    lab.save(x)
    (row,) = lab.measure(lab.line("a"), n_batch=64)
    assert_measured(row, x.astype(np.float32))


@pytest.mark.parametrize("n_batch", (1, 27, 60, 10_000))
@pytest.mark.parametrize("cls_token", (True, False))
def test_saevs_own_shards_are_read_without_cls_and_without_spare_room(
    lab, cls_token, n_batch
):
    x = activations(11 * 27)
    lab.save_saev(x, cls_token=cls_token)
    (row,) = lab.measure(lab.line("a"), n_batch=n_batch)
    assert_measured(row, x)


@pytest.mark.parametrize(
    ("tokens", "examples", "width"),
    (("patches_per_ex", "n_ex", "d_model"), ("n_patches_per_img", "n_imgs", "d_vit")),
)
def test_saevs_older_names_for_the_same_fields_are_read(lab, tokens, examples, width):
    x = activations(11 * 27)
    old = {tokens: 27, examples: 11, width: D_MODEL, "dtype": None}
    new = ("content_tokens_per_example", "n_examples", "d_model")
    lab.save_saev(x, **(dict.fromkeys(new) | old))
    listed = lab.shards / "shards.json"
    listed.write_text(listed.read_text().replace("n_examples", examples))
    (row,) = lab.measure(lab.line("a"))
    assert_measured(row, x)


def test_a_last_file_that_is_listed_without_examples_is_passed_over(lab):
    x = activations(11 * 27)
    lab.save_saev(x)
    fpath = lab.shards / "shards.json"
    entry = {"name": "acts000003.bin", "n_examples": 0}
    fpath.write_text(json.dumps([*json.loads(fpath.read_text()), entry]))
    (lab.shards / "acts000003.bin").write_bytes(b"")
    (row,) = lab.measure(lab.line("a"))
    assert_measured(row, x)


# ---- what is refused, before anything is measured --------------------------------------------


def refused(done, *said: str) -> None:
    assert done.returncode == 1 and not done.out, done.err
    assert "Traceback" not in done.err
    for text in said:
        assert text in done.err


def test_every_missing_or_misfit_shard_is_told_at_once(lab):
    lab.save(activations()[:, :7])
    lab.save(np.zeros((0, 8), np.float32), "layer_8.npy")
    rows = [lab.line("a"), lab.line("bb", layer=7), lab.line("ccc", layer=8)]
    done = lab.remeasure(*rows)
    refused(
        done,
        "layer_6.npy: 300 tokens of width 7, where tiny layer 6 takes width 8",
        "no tiny/layer_7.npy, no layer_7.npy",
        "layer_8.npy: 0 tokens",
        "3 problems; nothing was measured",
    )


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_in_place_of_numbers_is_refused_and_does_not_run(lab):
    lab.save(np.array([[_Runs()]], dtype=object))
    refused(lab.remeasure(lab.line("a"), cwd=lab.dpath), "not an .npy file of numbers")
    (lab.shards / "layer_6.npy").write_bytes(pickle.dumps(_Runs()))
    refused(lab.remeasure(lab.line("a")), "not an .npy file of numbers")
    assert not list(lab.dpath.rglob("ran")) and not (ROOT / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    (
        (
            lambda f: np.save(f, np.zeros((3, 2, 8), np.float32)),
            r"of shape \(3, 2, 8\)",
        ),
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
    fpath = lab.save(activations())
    spoil(fpath)
    with warnings.catch_warnings(action="error"), pytest.raises(UserError, match=said):
        lab.measure(lab.line("a"))


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"layers": [3, 5]}, r"its layers are \[3, 5\], without 6"),
        ({"n_examples": 12}, "another number of examples than the 11"),
        ({"dtype": "float16"}, "dtype is not float32"),
        ({"d_model": "8"}, 'no count "d_model"'),
        ({"d_model": 16}, "or less than"),
    ),
)
def test_saevs_shards_that_do_not_add_up_are_refused(lab, change, said):
    lab.save_saev(activations(11 * 27))
    fpath = lab.shards / "metadata.json"
    fpath.write_text(json.dumps(json.loads(fpath.read_text()) | change))
    with pytest.raises(UserError, match=said):
        lab.measure(lab.line("a"))


def test_a_shard_file_outside_the_directory_is_never_opened(lab):
    lab.save_saev(activations(11 * 27))
    entries = [{"name": "../acts000000.bin", "n_examples": 11}]
    (lab.shards / "shards.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="names no acts<N>.bin"):
        lab.measure(lab.line("a"))


def test_a_checkpoint_other_than_the_lines_is_refused(lab):
    lab.save(activations())
    row = lab.line("a")
    os.utime(row["checkpoint"], (1, 1))
    refused(lab.remeasure(row), "changed since preflight", "make recheck REPO=tiny")
    refused(
        lab.remeasure(lab.line("a", sha256="0" * 64)), "not the file that preflight"
    )
    pathlib.Path(row["checkpoint"]).unlink()
    refused(lab.remeasure(row), "make recheck REPO=tiny")


def test_a_line_that_preflight_has_not_seen_is_refused(lab):
    row = lab.line("a")
    del row["sha256"]
    refused(lab.remeasure(row), 'remeasure: stdin:1: no "sha256"')


@pytest.mark.parametrize(
    ("argv", "said"),
    (((), "--shards DIR"), (("--shards", ".", "--batch", "0"), "it takes 1 or more")),
)
def test_wrong_usage_is_exit_2(argv, said):
    done = run_program(ROOT / "bin/remeasure", *argv, **QUIET)
    assert done.returncode == 2 and said in done.err


# ---- the formula, and the memory -------------------------------------------------------------


def test_a_file_of_before_schemas_is_measured_as_its_loader_computes(lab):
    x = activations()
    lab.save(x)
    old = lab.line("a", schema=None, loader="saev 0.1.0")
    today = old | {"loader": "builtin"}
    done = lab.remeasure(old, today)
    assert done.returncode == 0, done.err
    assert_measured(done.rows[0], x, takes_b_dec=True)
    assert_measured(done.rows[1], x, takes_b_dec=False)
    assert done.rows[0]["nmse_measured"] != done.rows[1]["nmse_measured"]


def test_a_loader_that_is_no_longer_at_hand_is_asked_for(lab):
    lab.save(activations())
    row = lab.line("a", schema=None, loader="saev 0123456789ab")
    refused(lab.remeasure(row), "saev 0123456789ab, and saev 0.1.0 is at hand")


def test_memory_is_bounded_by_the_batch_not_by_the_shard(lab):
    """A shard of 128 MB takes hardly more than one of 128 kB."""
    row = lab.line("a", d_model=64)
    fpath = util.write(pathlib.Path(row["checkpoint"]), d_model=64, d_sae=8)
    info = fpath.stat()
    row |= {"bytes": info.st_size, "mtime_ns": str(info.st_mtime_ns)}
    row |= {"sha256": hashlib.sha256(fpath.read_bytes()).hexdigest()}
    peak = {}
    for n_tokens in (500, 500_000):
        fpath = lab.shards / f"{n_tokens}.npy"
        x = np.lib.format.open_memmap(fpath, "w+", np.float32, (n_tokens, 64))
        x[::100] = 1
        del x
        done = subprocess.run(
            [sys.executable, "-c", PEAK, ROOT / "bin/remeasure", fpath],
            input=json.dumps(row).encode(),
            capture_output=True,
            check=True,
            env=bare_env(**QUIET),
        )
        peak[n_tokens] = int(done.stdout)
    assert peak[500_000] - peak[500] < 64_000  # kB


PEAK = """
import resource, subprocess, sys
program, shards = sys.argv[1:]
argv = [program, "--shards", shards, "--batch", "2000"]
subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_each_token_is_read_once_for_all_checkpoints_of_a_layer():
    sae = checkpoint.load(util.FILES / "schema5-relu.pt")
    n_read = 0

    def batches():
        nonlocal n_read
        for batch in np.array_split(activations(), 3):
            n_read += len(batch)
            yield batch

    measured = remeasure.measure([(sae, False)] * 5, batches())
    assert n_read == N_TOKENS and len(measured) == 5 and len(set(measured)) == 1
