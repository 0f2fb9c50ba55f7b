"""classify gives each line the first reason why its run can't be released."""

import functools
import json

import pytest

from kits.programs import ROOT, run_program, text_of

GOOD = {
    "repo": "vits-relu",
    "layer": 6,
    "run_id": "aaaa1111",
    "expected": {
        "objective": "matryoshka",
        "activation": "relu",
        "d_model": 8,
        "d_sae": 32,
    },
    "l0": None,
    "nmse": "NaN",
    "objective": "matryoshka",
    "activation": {"key": "relu"},
    "aux": None,
    "d_model": 8,
    "d_sae": 32,
    "train_layer": 6,
    "state": "finished",
    "created_at": "2025-12-01T00:00:00Z",
    "fault": None,
    "unknown_key": {"kept": [1, 2.5, None]},
}
GONE = dict.fromkeys(
    [
        *("objective", "activation", "aux", "d_model", "d_sae", "train_layer"),
        *("state", "created_at"),
    ]
)
VANILLA = {"expected": GOOD["expected"] | {"objective": "vanilla"}}
BATCHTOPK = {"key": "batch-top-k", "top_k": 4}
TWO = {"expected": GOOD["expected"] | {"activation": ["relu", "top-k"]}}
AUXK = {"expected": GOOD["expected"] | {"aux": "auxk"}}
HOSTILE = {"key": "x\n|`$(id)`" * 1000}

DROPS = [
    (GONE, "not in W&B"),
    (GONE | {"fault": "state is 5"}, "no state in W&B (state is 5)"),
    (GONE | {"created_at": "2025-12-01"}, "no state in W&B"),
    ({"state": "running"}, "still running"),
    ({"state": "pending"}, "still running"),
    ({"state": "crashed"}, None),
    ({"objective": "vanilla"}, "not Matryoshka"),
    (
        {"objective": None, "fault": 'config is ""'},
        'not Matryoshka (config is "")',
    ),
    (VANILLA, "wrong objective"),
    (VANILLA | {"objective": "vanilla"}, None),
    ({"activation": BATCHTOPK}, 'wrong activation: "batch-top-k"'),
    ({"activation": None}, "wrong activation: null"),
    (TWO | {"activation": {"key": "top-k", "top_k": 4}}, None),
    (TWO | {"activation": BATCHTOPK}, 'wrong activation: "batch-top-k"'),
    (AUXK, "wrong aux: null"),
    (AUXK | {"aux": "no-aux"}, 'wrong aux: "no-aux"'),
    (AUXK | {"aux": "auxk"}, None),
    ({"aux": "auxk"}, None),
    ({"train_layer": 7}, "at odds with the catalog: layer 7, not 6"),
    ({"d_model": 16}, "at odds with the catalog: d_model 16, not 8"),
    ({"d_sae": 64}, "at odds with the catalog: d_sae 64, not 32"),
    ({"d_sae": None}, "at odds with the catalog: d_sae null, not 32"),
    (
        {"scaling": "train_data.scale_norm is true"},
        "trained on scaled activations: train_data.scale_norm is true",
    ),
    ({"scaling": None}, None),
    # The first that holds.
    ({"state": "running", "objective": "vanilla", "d_sae": 64}, "still running"),
    ({"objective": "vanilla", "activation": None}, "not Matryoshka"),
    (AUXK | {"activation": None}, "wrong activation: null"),
    (AUXK | {"d_model": 16}, "wrong aux: null"),
    # Numbers are settle's.
    ({"l0": 0, "nmse": None}, None),
    ({"l0": None, "fault": 'eval/l0 is {"max":3}'}, None),
]


def classify(*rows: dict, **env):
    return run_program(ROOT / "bin/classify", stdin=text_of(rows), **env)


@functools.cache
def classified():
    hostile = GOOD | {"activation": HOSTILE}
    return classify(GOOD, hostile, *(GOOD | change for change, _ in DROPS)).rows


def test_a_good_run_has_no_reason_and_keeps_every_key():
    assert classified()[0] == GOOD | {"drop": None}


@pytest.mark.parametrize(
    ("i", "reason"), list(enumerate((reason for _, reason in DROPS), start=2))
)
def test_drops(i, reason):
    assert classified()[i]["drop"] == reason


def test_hostile_text_stays_one_short_reason():
    reason = classified()[1]["drop"]
    assert len(reason) < 80 and "\n" not in reason


def test_exclude_drops_by_hand():
    rows = [GOOD, GOOD | {"run_id": "bbbb2222"}]
    for exclude in ("aaaa1111", "x aaaa1111 y", "x,aaaa1111", "x\n\taaaa1111\n"):
        reasons = [row["drop"] for row in classify(*rows, EXCLUDE=exclude).rows]
        assert reasons == ["excluded by hand", None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", 'classify: stdin:1: no "repo": {}\n'),
        (json.dumps(GOOD) + "\n\n{", "classify: stdin:3: not JSON: {\n"),
        ("[1]", "classify: stdin:1: not a JSON object: [1]\n"),
    ],
)
def test_bad_input_is_one_line_with_its_number(text, told):
    done = run_program(ROOT / "bin/classify", stdin=text)
    assert (done.code, done.err) == (1, told)
