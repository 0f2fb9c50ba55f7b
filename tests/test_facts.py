"""facts reads configs of all three ages of saev from a W&B record, and replaces it by what it says."""

import functools
import math
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kits.programs import ROOT, run_program
from saepub import jsonl
from saepub.tracking import snapshot

SAE = {"d_model": 8, "d_sae": 32, "activation": {"key": "relu"}}
CONFIG = {
    "sae": SAE,
    "objective": {"n_prefixes": 10},
    "train_data": {"layer": 6, "shards": "/scratch/shards/1234abcd"},
    "val_data": {"layer": 6, "shards": "/scratch/shards/52ec5790"},
    "lr": 1e-3,
}
SUMMARY = {
    "eval/l0": 12.5,
    "eval/normalized_mse": 0.25,
    "eval/mse": 0.75,
    "eval/n_dead": 3,
}
RECORD = {
    "state": "finished",
    "createdAt": "2025-12-01T10:00:00Z",
    "url": "https://wandb.ai/lab/saev/runs/aaaa1111",
    "config": CONFIG,
    "summary": SUMMARY,
}
FACTS = {
    "l0": 12.5,
    "nmse": 0.25,
    "n_dead": 3,
    "objective": "matryoshka",
    "n_prefixes": 10,
    "activation": {"key": "relu"},
    "aux": None,
    "d_model": 8,
    "d_sae": 32,
    "train_layer": 6,
    "scaling": None,
    "shard": "52ec5790",
    "shard_metadata": None,
    "state": "finished",
    "created_at": "2025-12-01T10:00:00Z",
    "wandb_url": "https://wandb.ai/lab/saev/runs/aaaa1111",
    "fault": None,
}
LINE = {"repo": "vits-relu", "layer": 6, "run_id": "aaaa1111", "expected": {}}
LINE |= {"own": {"kept": [1, 2.5, None, "é"]}}


def config(**changes) -> dict:
    return {"config": CONFIG | changes}


def sae(**changes) -> dict:
    return config(sae=SAE | changes)


def activation(value: object) -> dict:
    return sae(activation=value)


def summary(**changes) -> dict:
    named = {f"eval/{key}": value for key, value in changes.items()}
    return {"summary": SUMMARY | named}


def without(key: str) -> dict:
    return {"summary": {k: v for k, v in SUMMARY.items() if k != key}}


def val_shards(value: object) -> dict:
    return config(val_data={"shards": value})


KIND = {
    "kind": "top-k",
    "top_k": 16,
    "sparsity": {"kind": "no-sparsity"},
    "aux": {"kind": "auxk", "k_aux": 512},
}
KEY = {
    "key": "top-k",
    "top_k": 16,
    "sparsity": {"key": "no-sparsity"},
    "aux": {"key": "auxk", "k_aux": 512},
}
BATCH = {"key": "batch-top-k", "top_k": 16, "momentum": 0.1, "aux": {"key": "auxk"}}
ODD_L0 = {"min": 1, "max": 3}

CASES = [
    # Activations of each age get a "key", and so do the objects in them.
    (activation({}), {"activation": {"key": "relu"}, "aux": None}),
    (activation({"top_k": 32}), {"activation": {"key": "top-k", "top_k": 32}}),
    (activation(KIND), {"activation": KEY, "aux": "auxk"}),
    (activation(KEY), {"activation": KEY, "aux": "auxk"}),
    (activation(BATCH), {"activation": BATCH, "aux": "auxk"}),
    (activation({"key": "relu", "aux": {"key": "no-aux"}}), {"aux": "no-aux"}),
    (activation({"key": "relu", "aux": "auxk"}), {"aux": None}),
    (activation({"top_k": "32"}), {"activation": {"key": "top-k", "top_k": None}}),
    (activation({"key": 7}), {"activation": None, "aux": None}),
    (activation("relu"), {"activation": None}),
    (activation(None), {"activation": None}),
    # Widths of each age.
    (sae(d_sae=64), {"d_model": 8, "d_sae": 64}),
    (
        config(sae={"d_model": 8, "exp_factor": 4, "activation": {}}),
        {"d_model": 8, "d_sae": 32},
    ),
    (config(sae={"d_vit": 8, "exp_factor": 4}), {"d_model": 8, "d_sae": 32}),
    (config(sae={"d_model": 8, "exp_factor": "4"}), {"d_sae": None}),
    (config(sae={"exp_factor": 4}), {"d_model": None, "d_sae": None}),
    (sae(d_model=True, d_sae=1e30), {"d_model": None, "d_sae": None}),
    (sae(d_model=2**60), {"d_model": None}),
    # Where it was trained and evaluated.
    (config(train_data={"layer": 11}), {"train_layer": 11}),
    (
        {"config": {**CONFIG, "data": {"layer": 9}, "train_data": None}},
        {"train_layer": None},
    ),
    (
        {
            "config": {k: v for k, v in CONFIG.items() if k != "train_data"}
            | {"data": {"layer": 9}}
        },
        {"train_layer": 9},
    ),
    (config(train_data="x"), {"train_layer": None}),
    (val_shards("/scratch/me/3e27794f/"), {"shard": "3e27794f"}),
    (val_shards("3e27794f"), {"shard": "3e27794f"}),
    (val_shards("/"), {"shard": None}),
    (val_shards("/a/.."), {"shard": None}),
    (val_shards("/a/b c"), {"shard": None}),
    (val_shards("/a/b\nc"), {"shard": None}),
    (val_shards(["/a/b"]), {"shard": None}),
    (config(val_data=None), {"shard": None}),
    (
        config(train_data={"layer": 6, "metadata": {"family": "dinov3"}}),
        {"shard_metadata": {"of": "train_data", "family": "dinov3"}},
    ),
    (
        config(
            train_data={"layer": 6, "metadata": {"family": "dinov3"}},
            val_data={"metadata": {"ckpt": "vits"}},
        ),
        {"shard_metadata": {"of": "val_data", "ckpt": "vits"}, "shard": None},
    ),
    # What saev's loaders once did to activations.
    (
        config(data={"scale_mean": True, "layer": 6}),
        {"scaling": "data.scale_mean is true"},
    ),
    (
        config(train_data={"layer": 6, "scale_norm": "norm.pt"}),
        {"scaling": 'train_data.scale_norm is "norm.pt"'},
    ),
    (
        config(val_data={"scale_norm": True}),
        {"scaling": "val_data.scale_norm is true", "shard": None},
    ),
    (
        config(train_data={"layer": 6, "clamp": 10}),
        {"scaling": "train_data.clamp is 10"},
    ),
    (
        config(train_data={"layer": 6, "scale_norm": False, "clamp": 1e5}),
        {"scaling": None},
    ),
    # Matryoshka means that the objective has prefixes.
    (config(objective={}), {"objective": "vanilla", "n_prefixes": None}),
    (
        config(objective={"n_prefixes": "10"}),
        {"objective": None, "fault": 'objective is {"n_prefixes":"10"}'},
    ),
    (config(objective=None), {"objective": None, "fault": "objective is null"}),
    # Numbers, and what W&B sends where JSON has none.
    (summary(l0="NaN"), {"l0": "NaN", "fault": None}),
    (summary(normalized_mse="-Infinity"), {"nmse": "-Infinity", "fault": None}),
    (without("eval/normalized_mse"), {"nmse": None, "l0": 12.5, "fault": None}),
    ({"summary": {"eval/mse": 1}}, {"nmse": None, "l0": None, "fault": None}),
    (summary(n_dead="3"), {"n_dead": None, "fault": None}),
    (summary(l0=True), {"l0": None, "fault": "eval/l0 is true"}),
    (summary(l0=ODD_L0), {"l0": None, "fault": 'eval/l0 is {"min":1,"max":3}'}),
    (
        summary(normalized_mse="0.25"),
        {"nmse": None, "fault": 'eval/normalized_mse is "0.25"'},
    ),
    # What is odd about a record is said as it was found.
    ({"config": ""}, {"objective": None, "fault": 'config is ""'}),
    ({"config": None}, {"d_model": None, "fault": "config is null"}),
    ({"config": [1]}, {"activation": None, "fault": "config is [1]"}),
    (config(sae=5), {"d_sae": None, "fault": "sae is 5"}),
    ({"summary": None}, {"l0": None, "fault": "summary is null"}),
    ({"state": 5}, {"state": None, "fault": "state is 5"}),
    ({"createdAt": 5}, {"created_at": None, "fault": None}),
    ({"url": None}, {"wandb_url": None, "fault": None}),
]


def facts(*rows: dict):
    stdin = "".join(jsonl.dumps(row) + "\n" for row in rows)
    done = run_program(ROOT / "bin/facts", stdin=stdin)
    assert (done.code, done.err) == (0, "")
    return done.rows


def line(record: dict | None, **changes) -> dict:
    return LINE | {"wandb": record} | changes


@functools.cache
def found() -> list[dict]:
    named = {"metrics": {"l0": "val/L0", "nmse": "val/fvu", "n_dead": "val/dead"}}
    other = {"val/L0": 2.0, "val/fvu": "x", "val/dead": 1, "eval/l0": 9}
    return facts(
        line(RECORD),
        line(None),
        line(RECORD | {"summary": other}, expected=named),
        *(line(RECORD | change) for change, _ in CASES),
    )


def test_a_record_gives_way_to_what_it_says():
    assert found()[0] == LINE | FACTS


def test_a_run_that_wandb_lacks_has_every_key():
    assert found()[1] == LINE | dict.fromkeys(FACTS)


def test_the_catalog_may_name_other_metrics():
    keys = ("l0", "nmse", "n_dead", "fault")
    values = [found()[2][key] for key in keys]
    assert values == [2, None, 1, 'val/fvu is "x"']


@pytest.mark.parametrize("i", range(len(CASES)))
def test_a_record_is_read_as_saev_wrote_it(i):
    change, expected = CASES[i]
    assert found()[i + 3].items() >= expected.items(), change


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", 'facts: stdin:1: no "wandb", which bin/fetch-metrics adds: {}\n'),
        ('{"wandb": null}\n\n{', "facts: stdin:3: not JSON: {\n"),
        ("[1]", "facts: stdin:1: not a JSON object: [1]\n"),
    ],
)
def test_bad_input_is_one_line_with_its_number(text, told):
    done = run_program(ROOT / "bin/facts", stdin=text)
    assert (done.code, done.err) == (1, told)


TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf, "NaN", "-Infinity"])
SCALAR = NOT_FINITE | st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANY = st.recursive(SCALAR, lambda below: st.lists(below, max_size=2), max_leaves=4)


def maybe(**fields) -> st.SearchStrategy:
    """An object with some of these fields, or anything else in its place."""
    return ANY | st.fixed_dictionaries({}, optional=fields)


CONFIGS = maybe(
    sae=maybe(
        activation=maybe(
            key=ANY, kind=ANY, top_k=ANY, sparsity=maybe(kind=ANY), aux=maybe(key=ANY)
        ),
        **dict.fromkeys(("d_model", "d_vit", "d_sae", "exp_factor"), ANY),
    ),
    objective=maybe(n_prefixes=ANY),
    train_data=maybe(layer=ANY),
    val_data=maybe(shards=ANY),
)
SUMMARIES = maybe(
    **dict.fromkeys(("eval/l0", "eval/normalized_mse", "eval/n_dead"), ANY)
)
RECORDS = st.fixed_dictionaries(
    {
        **dict.fromkeys(("state", "createdAt", "url"), ANY),
        "config": CONFIGS,
        "summary": SUMMARIES,
    }
)


def test_any_record_gives_a_line_that_the_next_stage_reads():
    texts = []

    @settings(max_examples=400, deadline=None)
    @given(RECORDS)
    def gather(record):
        safe = snapshot.record({"name": "a1"} | record)
        texts.append(jsonl.dumps(line(safe)) + "\n")

    gather()  # and then one jq for all of them
    done = subprocess.run(
        [ROOT / "bin/facts"], input="".join(texts).encode(), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [jsonl.loads(row) for row in done.stdout.splitlines()]
    assert len(rows) == len(texts) >= 400
    for row in rows:
        jsonl.check(row, FACTS, "here")
