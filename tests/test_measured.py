"""A record of a measurement doesn't count unless it is whole and valid."""

import json

import pytest

from saepub import measured
from saepub.cli import UserError

RECORD = {
    "run_id": "aaaaaaaa",
    "shard": "52ec5790",
    "sha256": "0" * 64,
    "bytes": 1000,
    "l0": 3.5,
    "nmse": 0.25,
    "n_tokens": 12,
    "tokens": {
        "layer": 6,
        "asked": 10,
        "n_examples": 3,
        "of_examples": 11,
        "per_example": 4,
    },
    "sse_recon": 1.0,
    "sse_baseline": 4.0,
    "n_dead": 2,
    "subtracts_b_dec": False,
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
    "date": "2026-01-02T03:04:05Z",
}


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setenv("RECORDS", str(tmp_path))
    return tmp_path / "measured"


def put(dpath, text, name="aaaaaaaa@52ec5790.json"):
    dpath.mkdir(exist_ok=True)
    (dpath / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return dpath / name


def test_a_record_is_read_as_it_was_written(records):
    record = measured.Record(**RECORD)
    fpath = measured.write(record)
    assert fpath == records / "aaaaaaaa@52ec5790.json"
    assert json.loads(fpath.read_text()) == RECORD
    assert measured.find("aaaaaaaa", "52ec5790") == record
    assert measured.find("aaaaaaaa", "other") is None
    assert list(records.iterdir()) == [fpath]


@pytest.mark.parametrize("key", RECORD)
def test_a_record_without_a_key_is_refused_by_its_name(records, key):
    fpath = put(records, {k: v for k, v in RECORD.items() if k != key})
    with pytest.raises(UserError, match=f'{fpath}: no "{key}"'):
        measured.read(fpath)


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"bytes": -1}, '"bytes" is -1: '),
        ({"bytes": 0}, '"bytes" is 0: '),
        ({"bytes": 1.5}, '"bytes" is 1.5: '),
        ({"bytes": True}, '"bytes" is true: '),
        ({"l0": float("nan")}, '"l0" is NaN: '),
        ({"l0": -0.1}, '"l0" is -0.1: '),
        ({"l0": "3.5"}, '"l0" is "3.5": '),
        ({"nmse": float("inf")}, '"nmse" is Infinity: '),
        ({"nmse": 0.2}, "nmse is not sse_recon / sse_baseline"),
        ({"sse_baseline": 0}, '"sse_baseline" is 0: '),
        ({"n_tokens": 13}, "n_tokens is not"),
        ({"n_dead": -1}, '"n_dead" is -1: '),
        ({"sha256": "0" * 63}, '"sha256" is "0'),
        ({"tokens": {}}, 'no "tokens.layer"; no "tokens.asked"'),
        ({"tokens": RECORD["tokens"] | {"of_examples": 2}}, "more n_examples than"),
        ({"versions": {"torch": 2}}, '"versions.torch" is 2: '),
        ({"date": "yesterday"}, '"date" is "yesterday": '),
        ({"run_id": "../x"}, '"run_id" is "../x": '),
        ({"unknown": 1}, '"unknown" is 1: '),
    ),
)
def test_what_no_measurement_has_is_refused_by_key(records, change, said):
    fpath = put(records, RECORD | change)
    with pytest.raises(UserError) as caught:
        measured.read(fpath)
    assert str(caught.value).startswith(f"{fpath}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ("", "[]", "null", "{" * 5000, '{"a":' * 5000, "\x00"))
def test_what_is_no_record_at_all_is_refused_in_one_line(records, text):
    fpath = put(records, text)
    with pytest.raises(UserError) as caught:
        measured.read(fpath)
    assert "\n" not in str(caught.value)


def test_a_record_under_another_runs_name_is_refused(records):
    fpath = put(records, RECORD, "bbbbbbbb@52ec5790.json")
    with pytest.raises(UserError, match="its content is that of aaaaaaaa@52ec5790"):
        measured.read(fpath)
