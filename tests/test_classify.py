"""classify gives each line the first reason why its run can't be released."""

import json

import pytest

from kits.programs import ROOT, run_program

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
    "l0": 12.5,
    "nmse": 0.25,
    "nmse_source": "wandb",
    "objective": "matryoshka",
    "activation": {"key": "relu"},
    "d_model": 8,
    "d_sae": 32,
    "train_layer": 6,
    "state": "finished",
    "created_at": "2025-12-01T00:00:00Z",
    "unknown_key": {"kept": [1, 2.5, None]},
}
GONE = dict.fromkeys(
    [
        "l0",
        "nmse",
        "nmse_source",
        "objective",
        "activation",
        "d_model",
        "d_sae",
        "train_layer",
        "state",
        "created_at",
    ]
)


def classify(*rows: dict, **env):
    stdin = "".join(json.dumps(row) + "\n" for row in rows)
    done = run_program(ROOT / "bin/classify", stdin=stdin, **env)
    done.rows = [json.loads(line) for line in done.out.splitlines()]
    return done


def test_a_good_run_has_no_reason_and_keeps_every_key():
    assert classify(GOOD).rows == [GOOD | {"drop": None}]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (GONE, "not in W&B"),
        ({"state": "running"}, "still running"),
        ({"objective": "vanilla"}, "not Matryoshka"),
        ({"activation": {"key": "top-k", "top_k": 4}}, 'wrong activation: "top-k"'),
        ({"activation": None}, "wrong activation: null"),
        ({"train_layer": 7}, "at odds with the catalog: layer 7, not 6"),
        ({"d_model": 16}, "at odds with the catalog: d_model 16, not 8"),
        ({"d_sae": 64}, "at odds with the catalog: d_sae 64, not 32"),
        ({"l0": None}, "no L0"),
        ({"nmse": None}, "no NMSE from wandb"),
        ({"nmse": None, "nmse_source": "disk:abc"}, "no NMSE from disk:abc"),
        ({"l0": "NaN"}, 'not finite: L0 "NaN"'),
        ({"nmse": "Infinity"}, 'not finite: NMSE "Infinity"'),
        ({"l0": 0}, "L0 is 0: a dead SAE"),
        ({"l0": -1.5}, "L0 is -1.5: a dead SAE"),
    ],
)
def test_drops(change, reason):
    assert classify(GOOD | change).rows[0]["drop"] == reason


def test_the_first_reason_wins():
    row = GOOD | {"state": "running", "objective": "vanilla", "l0": None, "nmse": None}
    assert classify(row).rows[0]["drop"] == "still running"
    row = GOOD | {"l0": 0, "nmse": None}
    assert classify(row).rows[0]["drop"] == "no NMSE from wandb"


def test_exclude_drops_by_hand():
    rows = [GOOD, GOOD | {"run_id": "bbbb2222"}]
    for exclude in ("aaaa1111", "x aaaa1111 y", "x,aaaa1111"):
        reasons = [row["drop"] for row in classify(*rows, EXCLUDE=exclude).rows]
        assert reasons == ["excluded by hand", None]


def test_hostile_text_stays_one_short_reason():
    row = GOOD | {"activation": {"key": "x\n|`$(id)`" * 1000}}
    reason = classify(row).rows[0]["drop"]
    assert len(reason) < 80 and "\n" not in reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", 'classify: stdin:1: no "repo"\n'),
        (json.dumps(GOOD) + "\n\n{", "classify: stdin:3: not JSON\n"),
        ("[1]", "classify: stdin:1: not a JSON object\n"),
    ],
)
def test_bad_input_is_one_line_with_its_number(text, told):
    done = run_program(ROOT / "bin/classify", stdin=text)
    assert (done.returncode, done.err) == (1, told)
