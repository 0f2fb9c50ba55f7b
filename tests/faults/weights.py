"""Faults: weights and numbers that are not what they claim to be."""

import functools
import json
import os

from faults.rows import Row
from kits import checkpoints as util
from kits.lab import MTIME, SELECTION, Lab, Labs
from kits.programs import Done, text_of

DAY = 86400
DRY_RUN = (*SELECTION, "preflight")


def with_saev(fault: str):
    """A saev that loads checkpoints wrongly."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        lab.run()
        util.write_saev(lab.saev_dir, fault)
        return lab.stages(*DRY_RUN)

    return bring


@functools.cache
def spoiled(labs: Labs) -> Done:
    """Files that are whole, each wrong in its own way, in one preflight."""
    lab = labs.new()
    lines = [lab.line(run_id) for run_id in ("nan", "huge", "wide", "large", "one")]
    for run_id, spoil in (("nan", set_nan), ("huge", set_huge)):
        state = util.weights()
        spoil(state)
        util.write_raw(lab.fpath(run_id), util.header(), util.archive(state))
    util.write(lab.fpath("wide"), d_model=16)
    util.write(lab.fpath("large"), d_sae=64)
    lines.append(util.line("two"))
    lab.fpath("two").parent.mkdir(parents=True)
    os.link(lab.fpath("one"), lab.fpath("two"))
    return lab.program("bin/preflight", stdin=text_of(lines))


def with_header(expected: str = "relu", **header):
    """A checkpoint that is whole, and not what catalog and W&B say."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        config = lab.run()["config"]["sae"]
        lab.entry["activation"] = expected.replace("-", "")
        config["activation"] = {"key": expected, "top_k": 4}
        util.write(lab.fpath(), **{"activation": expected} | header)
        return lab.stages(*DRY_RUN)

    return bring


def with_config(**changes):
    """A W&B config that is not what the catalog says."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        config = lab.run()["config"]
        for key, value in changes.items():
            config[key] |= value
        return lab.stages(*DRY_RUN)

    return bring


# ---- what a person should see ----------------------------------------------------------------


def odd_lab(labs: Labs) -> Lab:
    """A TopK lab with k = 4: a layer of good runs, then one layer for each oddity."""
    lab = labs.new()
    lab.entry["activation"] = "topk"

    def add(run_id: str, layer: int, l0: float = 3.5, nmse: float = 0.25, **weights):
        row = lab.run(run_id, layer, l0=l0, nmse=nmse)
        row["config"]["sae"]["activation"] = {"key": "top-k", "top_k": 4}
        seed = len(lab.records)
        util.write(lab.fpath(run_id), activation="top-k", seed=seed, **weights)
        lab.touch(run_id)
        return row

    for i in range(3):
        add(f"good{i}", 6, l0=3 + i / 2, nmse=0.5 - i / 10)
    add("few0", 7)
    add("few1", 7, l0=4, nmse=0.2)
    add("worse", 8, nmse=1.25)
    add("zero", 9, nmse=0)
    add("negative", 10, nmse=-0.5)
    add("above", 11, l0=4.05)
    add("below", 12, l0=1.99)
    add("norms", 13, unit_norm=False)
    add("dead", 14)["summary"]["eval/n_dead"] = 17
    add("newer", 15)
    lab.touch("newer", MTIME + 8 * DAY)
    add("older", 16)
    lab.touch("older", MTIME - 9 * DAY)
    # Weights other than those whose numbers were logged.
    add("random", 17)["config"]["val_data"] = {"shards": "/scratch/val"}
    lab.measured("random", "val", l0=4, nmse=31.5)
    add("another", 17, l0=4.0, nmse=0.2)
    return lab


@functools.cache
def reports(labs: Labs) -> tuple[Done, Done]:
    """Two dry runs of `odd_lab`; the second redoes nothing."""
    lab = odd_lab(labs)
    env = {"RECORDS": lab.records_dpath}
    return lab.make("dry-run", **env), lab.make("dry-run", **env)


def report(labs: Labs) -> Done:
    first, second = reports(labs)
    assert first.out == second.out, "the second report is another"
    return second


def report_of_good_runs(labs: Labs) -> Done:
    seen = report(labs)
    assert "warning: layer 6" not in seen.out, "a warning without a reason"
    return seen


# ---- where NMSE comes from -------------------------------------------------------------------


def provenance(wandb: tuple[str, ...], disk: tuple[str, ...]):
    """Runs a to e of one layer: W&B has the NMSE of some, the disk that of others."""

    def bring(labs: Labs) -> Done:
        lab = labs.new()
        for i, run_id in enumerate("abcde"):
            summary = lab.run(run_id, l0=2.0**i, nmse=0.5 - i / 10)["summary"]
            if run_id not in wandb:
                del summary["eval/normalized_mse"]
            if run_id in disk:
                dpath = lab.runs_root / run_id / "inference" / "val"
                dpath.mkdir(parents=True)
                metrics = util.metrics(0.45 - i / 10)
                (dpath / "metrics.json").write_text(json.dumps(metrics))
        seen = lab.stages(*SELECTION, NMSE_SHARD="val")
        sources = {line["numbers"] for line in seen.rows}
        assert len(sources) == 1, f"one frontier of {sources}"
        return seen

    return bring


def mse_alone(labs: Labs) -> Done:
    lab = labs.new()
    del lab.run()["summary"]["eval/normalized_mse"]
    return lab.stages(*SELECTION)


def set_nan(state: dict) -> None:
    state["W_dec"][3, 5] = float("nan")


def set_huge(state: dict) -> None:
    state["W_dec"] *= 1e38
    state["W_enc"] *= 1e38


WARNINGS = (
    (
        "NMSE above 1",
        "layer 8 worse: NMSE 1.25 is above 1: worse than predicting the mean",
    ),
    (
        "numbers that nothing but W&B has of the files",
        "the numbers of 16 runs are as training logged them, not measured from these",
    ),
    (
        "weights that W&B's numbers are not of",
        "layer 17 random: NMSE measured 31.5, logged 0.25",
    ),
    ("NMSE of 0", "layer 9 zero: NMSE 0 is not above 0"),
    ("NMSE below 0", "layer 10 negative: NMSE -0.5 is not above 0"),
    (
        "TopK run with an L0 over 1 % above k",
        "layer 11 above: L0 4.05 is above the run's top_k 4",
    ),
    (
        "TopK run with an L0 below k / 2",
        "layer 12 below: L0 1.99 is below half of the run's",
    ),
    (
        "decoder rows that are not of unit norm",
        "layer 13 norms: 32 of 32 decoder rows are not of",
    ),
    (
        "more than half of the features dead",
        "layer 14 dead: 17 of 32 features are dead",
    ),
    ("frontier of fewer than 3 runs", "layer 7: a frontier of only 2 runs"),
    (
        "checkpoint newer than its W&B run",
        "layer 15 newer: checkpoint is 8 days newer than",
    ),
    (
        "checkpoint older than its W&B run",
        "layer 16 older: checkpoint is 9 days older than",
    ),
)

ROWS = [
    Row(
        "loader that ties W_enc to W_dec transposed",
        "loads other values: W_dec differs in 256 of 256 values",
        with_saev("tied"),
    ),
    Row(
        "loader that changes one value's sign",
        "loads other values: b_enc differs in 1 of 32 values",
        with_saev("sign"),
    ),
    Row(
        "saev that computes other features",
        "computes different features",
        with_saev("forward"),
    ),
    Row("NaN in weights", "W_dec has NaN or infinite values", spoiled),
    Row(
        "weights that overflow when run",
        "what it computes is not finite",
        spoiled,
    ),
    Row(
        "header with another d_model",
        "at odds: d_model: header 16, W&B 8, catalog 8",
        spoiled,
    ),
    Row(
        "header with another d_sae",
        "at odds: d_sae: header 64, W&B 32, catalog 32",
        spoiled,
    ),
    Row(
        "header with another activation",
        "at odds: activation: header top-k, W&B batch-top-k, catalog batch-top-k",
        with_header("batch-top-k", activation="top-k"),
    ),
    Row(
        "header with another top_k",
        "at odds: top_k: header 8, W&B 4",
        with_header("top-k", top_k=8),
    ),
    Row(
        "W&B config with another d_model",
        "at odds with the catalog: d_model 16, not 8",
        with_config(sae={"d_model": 16}),
    ),
    Row(
        "W&B config with another d_sae",
        "at odds with the catalog: d_sae 64, not 32",
        with_config(sae={"d_sae": 64}),
    ),
    Row(
        "W&B config with another activation",
        'wrong activation: "top-k"',
        with_config(sae={"activation": {"key": "top-k", "top_k": 4}}),
    ),
    Row(
        "W&B config with another layer",
        "at odds with the catalog: layer 7, not 6",
        with_config(train_data={"layer": 7}),
    ),
    Row(
        "two ids with one sha256",
        "two: the same file as one (sha256",
        spoiled,
    ),
    *(Row(fault, f"warning: {says}", report, 0) for fault, says in WARNINGS),
    Row("nothing odd: no warning", "layer_6/good0/sae.pt", report_of_good_runs, 0),
    Row(
        "NMSE of a layer partly W&B's, partly the disk's",
        "1 no NMSE on disk for val",
        provenance(wandb="ab", disk="abcd"),
        0,
    ),
    Row(
        "run that the layer's NMSE source lacks",
        "1 no NMSE on disk for val",
        provenance(wandb="abe", disk="abcd"),
        0,
    ),
    Row(
        "disk shard that has no more runs than W&B",
        "2 no NMSE in W&B",
        provenance(wandb="abc", disk="cde"),
        0,
    ),
    Row(
        "run with eval/mse and no eval/normalized_mse",
        "tiny layer 6: no numbers for 1 run; to measure them: make measure REPO=tiny",
        mse_alone,
    ),
]
