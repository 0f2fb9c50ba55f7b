"""settle puts each (repo, layer) on one source of numbers, and drops the runs that it lacks."""

import collections
import hashlib
import json
import os
import pathlib
import unittest.mock

import pytest

from kits import checkpoints, in_process
from kits.lab import Lab
from kits.programs import ROOT, run_program
from saepub import catalog, jsonl, measured, numbers

SHARD, OTHER = "52ec5790", "3e27794f"
WANDB, MEASURED, DISK = "wandb", f"measured:{SHARD}", f"disk:{SHARD}"


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def logged(lab: Lab, run_id: str, layer: int = 6, repo: str = "vits-relu", **changes):
    """A classified line with numbers from W&B, and a checkpoint of a few bytes."""
    if not lab.fpath(run_id).exists():
        lab.put(run_id, f"checkpoint of {run_id}".encode())
    line = {"repo": repo, "layer": layer, "run_id": run_id}
    line |= {"expected": {"shard": SHARD}, "shard": SHARD, "fault": None}
    line |= {"l0": 12.5, "nmse": 0.25, "n_dead": 3, "drop": None}
    return line | {"own": {"kept": [1, 2.5, None]}} | changes


def old(lab: Lab, run_id: str, **changes):
    """Such a line from before training logged NMSE."""
    return logged(lab, run_id, **{"nmse": None} | changes)


def infer(lab: Lab, run_id: str, content: object, shard: str = SHARD) -> None:
    dpath = lab.runs_root / run_id / "inference" / shard
    dpath.mkdir(parents=True)
    if isinstance(content, float):
        content = checkpoints.metrics(content)
    text = content if isinstance(content, str) else json.dumps(content)
    (dpath / "metrics.json").write_text(text)


def settle(lab: Lab, *rows: dict, **how) -> tuple[list[dict], str]:
    """What the stage wrote, and what it said."""
    done = lab.call("settle", *rows, **how)
    return done.rows, done.err


def sources(rows: list[dict]) -> list[tuple]:
    return [(row["run_id"], row["l0"], row["nmse"], row["numbers"]) for row in rows]


def drops(rows: list[dict]) -> list[str | None]:
    return [row["drop"] for row in rows]


# ---- which source ----------------------------------------------------------------------------


def test_what_training_logged_serves_where_it_is_complete(lab):
    a, b = logged(lab, "a"), logged(lab, "b", l0=9, nmse=0.4)
    rows, told = settle(lab, a, b)
    found = {"numbers": WANDB, "n_tokens": None}
    assert rows == [
        a | found | {"l0_logged": 12.5, "nmse_logged": 0.25},
        b | found | {"l0_logged": 9, "nmse_logged": 0.4},
    ]
    assert told == ""


def test_what_was_measured_goes_before_what_was_logged(lab):
    lines = [logged(lab, "a"), logged(lab, "b")]
    lab.measured("a", SHARD, l0=20, nmse=0.125)
    lab.measured("b", SHARD)
    rows, told = settle(lab, *lines)
    found = {
        "l0": 20,
        "nmse": 0.125,
        "numbers": MEASURED,
        "n_tokens": checkpoints.N_TOKENS,
    }
    found |= {"l0_logged": 12.5, "nmse_logged": 0.25, "n_dead": 7}
    assert rows[0] == lines[0] | found
    assert sources(rows[1:]) == [("b", 13.0, 0.5, MEASURED)]
    assert told == ""


def test_what_was_measured_of_some_does_not_mix_with_what_was_logged(lab):
    lines = [logged(lab, "a"), logged(lab, "b")]
    lab.measured("a", SHARD)
    rows, _ = settle(lab, *lines)
    assert sources(rows) == [("a", 12.5, 0.25, WANDB), ("b", 12.5, 0.25, WANDB)]


def test_inference_on_disk_gives_nmse_where_training_logged_none(lab):
    lines = [old(lab, "a", l0=3), old(lab, "b")]
    infer(lab, "a", 0.5)
    infer(lab, "b", 0.4)
    rows, told = settle(lab, *lines)
    assert sources(rows) == [("a", 3, 0.5, DISK), ("b", 12.5, 0.4, DISK)]
    assert rows[0].items() >= {"l0_logged": 3, "nmse_logged": None}.items()
    assert (drops(rows), told) == ([None, None], "")


@pytest.mark.parametrize(
    ("n_measured", "n_logged", "n_on_disk", "source"),
    [
        (4, 4, 4, MEASURED),
        (3, 4, 4, WANDB),
        (3, 3, 4, DISK),
        (3, 3, 3, MEASURED),
        (2, 3, 3, WANDB),
        (1, 2, 3, DISK),
        (1, 0, 0, MEASURED),
        (0, 1, 0, WANDB),
    ],
)
def test_the_first_source_that_has_all_serves_else_the_one_that_has_most(
    lab, n_measured, n_logged, n_on_disk, source
):
    lines = []
    for i, run_id in enumerate("abcd"):
        lines.append(logged(lab, run_id) if i < n_logged else old(lab, run_id))
        if i < n_measured:
            lab.measured(run_id, SHARD)
        if i < n_on_disk:
            infer(lab, run_id, 0.75)
    rows, _ = settle(lab, *lines)
    assert {row["numbers"] for row in rows} == {source}
    n = {MEASURED: n_measured, WANDB: n_logged, DISK: n_on_disk}[source]
    nmse = {MEASURED: 0.5, WANDB: 0.25, DISK: 0.75}[source]
    assert [row["nmse"] for row in rows[:n]] == [nmse] * n
    assert [drop is None for drop in drops(rows)] == [i < n for i in range(4)]


def test_a_run_that_the_source_lacks_is_dropped_by_name(lab):
    lines = [
        logged(lab, "a"),
        logged(lab, "b"),
        old(lab, "c"),
        logged(lab, "d", l0=None),
    ]
    lines.append(old(lab, "e", fault='eval/normalized_mse is {"min":1}'))
    rows, _ = settle(lab, *lines)
    assert drops(rows) == [
        None,
        None,
        "no NMSE in W&B",
        "no L0 in W&B",
        'no NMSE in W&B (eval/normalized_mse is {"min":1})',
    ]
    for run_id in "ab":
        lab.measured(run_id, SHARD)
    rows, _ = settle(lab, old(lab, "a"), old(lab, "b"), logged(lab, "c"))
    assert drops(rows) == [None, None, f"no L0: not measured on {SHARD}"]


def test_where_nothing_has_numbers_each_run_says_so(lab):
    infer(lab, "b", {"normalized_mse": 0.5, "sse_sae": 2e6, "sse_baseline": 4e6})
    rows, _ = settle(
        lab, old(lab, "a"), old(lab, "b"), logged(lab, "c", l0=None, nmse=None)
    )
    assert [row["numbers"] for row in rows] == [None] * 3
    a, b, c = drops(rows)
    assert a == "no NMSE: not measured, not in W&B"
    assert b.startswith(f'{a}, on disk has "sse_sae": written between 26 November 2025')
    assert c == "no L0: not measured, not in W&B"
    assert [row["l0"] for row in rows] == [12.5, 12.5, None]


def test_a_run_that_was_dropped_before_has_no_say_and_keeps_what_was_logged(lab):
    gone = old(lab, "x", drop="still running", l0="NaN")
    rows, _ = settle(lab, logged(lab, "a"), gone)
    assert sources(rows) == [("a", 12.5, 0.25, WANDB), ("x", "NaN", None, None)]
    assert drops(rows) == [None, "still running"]


def test_each_layer_and_each_repo_has_its_own_source(lab):
    logged(lab, "a"), logged(lab, "b")
    lab.measured("a", SHARD)
    infer(lab, "b", 0.4)
    lines = [old(lab, "a"), old(lab, "b", layer=7), logged(lab, "c", repo="vitb-relu")]
    assert [row["numbers"] for row in settle(lab, *lines)[0]] == [MEASURED, DISK, WANDB]
    assert [row["numbers"] for row in settle(lab, *lines[::-1])[0]] == [
        WANDB,
        DISK,
        MEASURED,
    ]


# ---- numbers that can't be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "drop"),
    [
        ({"l0": "NaN"}, "not finite: L0 NaN"),
        ({"nmse": "Infinity"}, "not finite: NMSE Infinity"),
        ({"l0": 0}, "L0 is 0: a dead SAE"),
        ({"l0": 0.0499}, "L0 is 0.0499: a dead SAE"),
        ({"l0": -1.5}, "L0 is -1.5: a dead SAE"),
        ({"l0": 0.05}, None),
        ({"nmse": -1}, None),
        ({"l0": 0, "nmse": "NaN"}, "not finite: NMSE NaN"),
    ],
)
def test_a_number_that_can_t_be_drops_its_run(lab, change, drop):
    assert drops(settle(lab, logged(lab, "a", **change))[0]) == [drop]


def test_a_nearly_dead_sae_is_dropped_by_what_was_measured(lab):
    line = logged(lab, "a")
    lab.measured("a", SHARD, l0=0.03)
    assert drops(settle(lab, line)[0]) == ["L0 is 0.03: a dead SAE"]


# ---- measurements are of these bytes ---------------------------------------------------------


def test_a_replaced_checkpoint_s_measurement_no_longer_counts(lab):
    line = old(lab, "a")
    lab.measured("a", SHARD)
    assert sources(settle(lab, line)[0]) == [("a", 13.0, 0.5, MEASURED)]
    # Of the same size and mtime, as `cp -p` leaves it.
    fpath = lab.fpath("a")
    status = fpath.stat()
    other = fpath.with_name("other.pt")
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, fpath)
    rows, _ = settle(lab, line)
    assert rows[0]["numbers"] is None and rows[0]["drop"].startswith("no NMSE")
    rows, _ = settle(lab, line, logged(lab, "b"))
    assert sources(rows)[1] == ("b", 12.5, 0.25, WANDB)
    lab.measured("b", SHARD)
    rows, _ = settle(lab, line, old(lab, "b"))
    assert drops(rows) == [
        f"no L0: measured on {SHARD}, but the file has changed",
        None,
    ]


def test_a_measurement_needs_its_checkpoint(lab):
    lines = [old(lab, "a"), old(lab, "b")]
    for run_id in "ab":
        lab.measured(run_id, SHARD)
    lab.fpath("a").unlink()
    rows, _ = settle(lab, *lines)
    why = f"no L0: measured on {SHARD}, but its checkpoint: No such file or directory"
    assert drops(rows) == [why, None]


def test_a_checkpoint_is_hashed_once(lab, monkeypatch):
    line = logged(lab, "a")
    lab.measured("a", SHARD)
    settle(lab, line)

    def file_digest(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    assert sources(settle(lab, line)[0]) == [("a", 13.0, 0.5, MEASURED)]
    os.utime(lab.fpath("a"), (1, 1))
    with pytest.raises(in_process.Finding, match="read again"):
        settle(lab, line)


def test_a_measurement_on_another_shard_doesn_t_count(lab):
    line = logged(lab, "a")
    lab.measured("a", OTHER)
    assert sources(settle(lab, line)[0]) == [("a", 12.5, 0.25, WANDB)]
    other = line | {"expected": {"shard": OTHER}, "nmse": None}
    assert sources(settle(lab, other)[0]) == [("a", 13.0, 0.5, f"measured:{OTHER}")]


def test_a_broken_record_costs_itself_alone_and_is_named(lab):
    lines = [old(lab, "a"), old(lab, "b")]
    lab.measured("a", SHARD)
    lab.measured("b", SHARD, nmse=0.5, sse_recon=1.0)
    rows, told = settle(lab, *lines)
    assert drops(rows) == [None, f"no L0: not measured on {SHARD}"]
    fpath = measured_fpath(lab, "b")
    assert told.startswith(f"settle: vits-relu layer 6: {fpath}: nmse is not")
    assert told.count("\n") == 1


def measured_fpath(lab: Lab, run_id: str) -> pathlib.Path:
    return lab.records_dpath / "measured" / f"{run_id}@{SHARD}.json"


# ---- which shard -----------------------------------------------------------------------------


def test_without_the_catalog_s_the_shard_is_the_one_that_most_runs_name(lab):
    lines = [
        old(lab, run_id, shard=shard, expected={})
        for run_id, shard in (("a", OTHER), ("b", OTHER), ("c", SHARD), ("d", None))
    ]
    for run_id in "abcd":
        lab.measured(run_id, OTHER)
        lab.measured(run_id, SHARD)
    assert {row["numbers"] for row in settle(lab, *lines)[0]} == {f"measured:{OTHER}"}
    lines = [line | {"shard": None} for line in lines]
    assert {row["numbers"] for row in settle(lab, *lines)[0]} == {None}


def test_what_was_logged_is_of_one_shard_too(lab):
    """Runs that name no shard are kept; the catalog's takes precedence over the commonest."""
    named = {"a": OTHER, "b": OTHER, "c": SHARD, "d": None}
    lines = [logged(lab, run_id, shard=shard) for run_id, shard in named.items()]
    rows, _ = settle(lab, *lines)
    other = f"no NMSE on {SHARD} in W&B, which has one on {OTHER}"
    assert drops(rows) == [other, other, None, None]
    rows, _ = settle(lab, *(line | {"expected": {}} for line in lines))
    this = f"no NMSE on {OTHER} in W&B, which has one on {SHARD}"
    assert drops(rows) == [None, None, this, None]


def test_nmse_shard_overrides_the_shard_of_inference_on_disk_alone(lab):
    lines = [old(lab, "a"), old(lab, "b")]
    for run_id in "ab":
        infer(lab, run_id, 0.5)
        infer(lab, run_id, 0.75, shard="mine")
    rows, _ = settle(lab, *lines, NMSE_SHARD="mine")
    assert sources(rows)[0] == ("a", 12.5, 0.75, "disk:mine")
    for run_id in "ab":
        lab.measured(run_id, SHARD)
    rows, _ = settle(lab, *lines, NMSE_SHARD="mine")
    assert sources(rows)[0] == ("a", 13.0, 0.5, MEASURED)


@pytest.mark.parametrize("shard", ["../../etc", "a/b", ".", "a\nb"])
def test_a_shard_is_a_plain_name(lab, shard):
    _, told = settle(lab, old(lab, "a"), NMSE_SHARD=shard, code=1)
    assert "NMSE_SHARD is" in told and told.count("\n") == 1


def test_a_shard_that_is_asked_for_needs_the_runs_root(lab):
    _, told = settle(
        lab, old(lab, "a"), NMSE_SHARD="mine", RUNS_ROOT="/nowhere", code=1
    )
    assert told == "settle: /nowhere: no such directory; set RUNS_ROOT\n"


# ---- inference on disk -----------------------------------------------------------------------

GOOD = checkpoints.metrics(0.5)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            {"normalized_mse": 0.5, "sse_sae": 2e6, "sse_baseline": 4e6},
            'has "sse_sae": written between 26 November 2025 and 3 March 2026, when saev'
            " overwrote a weight matrix while loading a checkpoint",
        ),
        (GOOD | {"sse_sae": 2e6}, 'has "sse_sae": '),
        (GOOD | {"normalized_mse": 0.51}, "is not sse_recon / sse_baseline"),
        (GOOD | {"sse_baseline": 0}, "is not sse_recon / sse_baseline"),
        (GOOD | {"sse_baseline": -4e6, "normalized_mse": -0.5}, "is not sse_recon"),
        ({"normalized_mse": 0.5, "mse": 9}, 'has no number "sse_recon"'),
        ({"mse": 0.5}, 'has no number "normalized_mse"'),
        (GOOD | {"normalized_mse": "0.5"}, 'has no number "normalized_mse"'),
        (GOOD | {"normalized_mse": True}, 'has no number "normalized_mse"'),
        ('{"normalized_mse": NaN}', 'has no number "normalized_mse"'),
        (GOOD | {"normalized_mse": 10**400}, 'has no number "normalized_mse"'),
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps(GOOD) + " " * 2**20, "is over 1.05 MB"),
    ],
)
def test_a_metrics_file_that_cannot_be_trusted_is_refused_by_name(lab, content, why):
    lines = [old(lab, "good"), old(lab, "odd1")]
    infer(lab, "good", 0.5)
    infer(lab, "odd1", content)
    rows, told = settle(lab, *lines)
    assert [row["nmse"] for row in rows] == [0.5, None]
    assert rows[0]["drop"] is None
    assert rows[1]["drop"].startswith(f"no NMSE on disk for {SHARD}: ")
    assert why in rows[1]["drop"]
    assert told.startswith(
        f"settle: vits-relu layer 6: metrics.json of {SHARD} ignored, it "
    )
    assert why in told and told.endswith(": odd1\n") and told.count("\n") == 1


def test_many_of_one_kind_are_one_line(lab):
    old_form = {"normalized_mse": 0.5, "sse_sae": 2e6, "sse_baseline": 4e6}
    for i in range(9):
        infer(lab, f"run{i}", old_form)
    _, told = settle(lab, *(old(lab, f"run{i}") for i in range(9)))
    assert told.count("\n") == 1
    assert told.endswith(": run0 run1 run2 run3 run4 run5 and 3 more\n")


def test_the_disk_is_not_looked_at_where_it_is_not_needed(lab):
    infer(lab, "a", "{")
    assert settle(lab, logged(lab, "a"))[1] == ""


def test_a_metrics_fifo_or_directory_does_not_hang(lab):
    lines = [old(lab, run_id) for run_id in ("good", "dir1", "fifo")]
    infer(lab, "good", 0.5, shard="real")
    (lab.runs_root / "good/inference" / SHARD).symlink_to("real")
    (lab.runs_root / "dir1/inference" / SHARD / "metrics.json").mkdir(parents=True)
    (lab.runs_root / "fifo/inference" / SHARD).mkdir(parents=True)
    os.mkfifo(lab.runs_root / "fifo/inference" / SHARD / "metrics.json")
    rows, told = settle(lab, *lines)
    assert [row["nmse"] for row in rows] == [0.5, None, None]
    assert "it is not a file: fifo\n" in told
    assert "it can't be read (Is a directory): dir1\n" in told


# ---- what was chosen, held against its file --------------------------------------------------


@pytest.fixture
def checked(lab, monkeypatch):
    """A line as preflight has it, with the sha256 of its file."""
    monkeypatch.setenv("RECORDS", str(lab.records_dpath))

    def line(**changes) -> dict:
        row = logged(lab, "a") | {
            "numbers": WANDB,
            "l0_logged": 12.5,
            "nmse_logged": 0.25,
        }
        sha256 = hashlib.sha256(lab.fpath("a").read_bytes()).hexdigest()
        return row | {"sha256": sha256} | changes

    return line


def test_numbers_that_are_not_of_the_file_are_refused(lab, checked):
    line = checked(numbers=MEASURED)
    other = f"measured on {SHARD}, but the file has changed since; run: make recheck"
    assert numbers.refusal(line) == other
    lab.measured("a", SHARD)
    assert numbers.refusal(line) == ""
    assert numbers.refusal(line | {"sha256": "0" * 64}) == other
    assert numbers.refusal(checked(sha256="0" * 64)) == ""


@pytest.mark.parametrize(
    ("measured_as", "told"),
    [
        ({"l0": 12.5, "nmse": 0.25}, []),
        ({"l0": 12.74, "nmse": 0.2451}, []),
        ({"l0": 12.76, "nmse": 0.25}, ["L0 measured 12.76, logged 12.5"]),
        ({"l0": 12.5, "nmse": 0.2449}, ["NMSE measured 0.2449, logged 0.25"]),
        (
            {"l0": 4000.0, "nmse": 31.5},
            ["L0 measured 4000, logged 12.5", "NMSE measured 31.5, logged 0.25"],
        ),
    ],
)
@pytest.mark.parametrize("source", [WANDB, MEASURED])
def test_what_was_measured_of_the_file_and_logged_otherwise_is_named(
    lab, checked, source, measured_as, told
):
    """As weights that are not the run's would show, whichever numbers were chosen by."""
    line = checked(numbers=source)
    assert numbers.warnings(line) == []
    lab.measured("a", SHARD, **measured_as)
    assert numbers.warnings(line) == told
    assert numbers.warnings(line | {"sha256": "0" * 64}) == []
    unlogged = line | {"l0_logged": None, "nmse_logged": None}
    assert numbers.warnings(unlogged) == []


def test_nmse_on_disk_is_held_against_what_was_logged_too(checked):
    line = checked(numbers=DISK, nmse=0.3)
    assert numbers.warnings(line) == ["NMSE on disk 0.3, logged 0.25"]
    assert numbers.warnings(line | {"nmse_logged": "NaN"}) == [
        "NMSE on disk 0.3, logged NaN"
    ]


# ---- as people read it -----------------------------------------------------------------------


def test_the_source_is_told_by_layer(lab):
    lines = [
        logged(lab, "a"),
        logged(lab, "b"),
        old(lab, "c"),
        logged(lab, "d", drop="x"),
    ]
    rows, _ = settle(lab, *lines)
    assert numbers.describe(rows) == ("2 runs, numbers from W&B; 1 run without numbers")
    for run_id in "abc":
        lab.measured(run_id, SHARD)
    rows, _ = settle(lab, *lines)
    assert numbers.describe(rows) == (
        f"3 runs, measured on 1,048,576 tokens of {SHARD}"
    )
    assert numbers.describe(settle(lab, old(lab, "e"))[0]) == "1 run without numbers"
    infer(lab, "e", 0.5)
    assert numbers.describe(settle(lab, old(lab, "e"))[0]) == (
        f"1 run, L0 from W&B, NMSE from inference on {SHARD}"
    )
    assert numbers.describe(rows[3:]) == "no run has numbers"


@pytest.mark.parametrize("shard", [SHARD, None])
def test_who_has_no_numbers_is_told_what_to_run(lab, monkeypatch, shard):
    monkeypatch.setenv("SHARDS_ROOT", str(lab.dpath / "shards"))
    lines = [old(lab, "a"), old(lab, "b"), old(lab, "c", layer=9)]
    lines = [x | {"expected": {"shard": shard}, "shard": OTHER} for x in lines]
    rows, _ = settle(lab, *lines)
    assert all(numbers.is_lacking(row["drop"]) for row in rows)
    run = "no numbers for 3 runs; to measure them: make measure REPO=vits-relu"
    dpath = lab.dpath / "shards" / (shard or OTHER)
    assert numbers.advice(rows) == (
        f"vits-relu layers 6, 9: {run} (shard {dpath} doesn't exist;"
        " the command says what to do)"
    )
    dpath.mkdir(parents=True)
    assert numbers.advice(rows).endswith(f"{run} (on shard {dpath.name})")
    assert numbers.advice(rows[2:], "3 min").startswith("vits-relu layer 9: no numbers")
    assert numbers.advice(rows, "3 min").endswith(", which takes about 3 min here)")
    monkeypatch.delenv("SHARDS_ROOT")
    assert numbers.advice(rows).endswith("; set SHARDS_ROOT first)")
    rows = [row | {"expected": {}, "shard": None} for row in rows]
    assert numbers.advice(rows).endswith(
        '(W&B names no shard; write "shard" in the catalog first)'
    )


# ---- lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["expected", "l0", "shard", "drop"])
def test_a_line_that_lacks_a_key_is_named(lab, key):
    line = logged(lab, "a")
    del line[key]
    _, told = settle(lab, logged(lab, "b"), line, code=1)
    assert told.startswith(f'settle: stdin:2: no "{key}": {{"repo": ')


def test_the_written_record_is_one_that_measure_would_write(lab):
    logged(lab, "a")
    lab.measured("a", SHARD)
    assert measured.read(measured_fpath(lab, "a")).n_tokens == checkpoints.N_TOKENS


# ---- a whole lab -----------------------------------------------------------------------------

SHARDS = {
    "vits-relu": "52ec5790",
    "vitb-relu": "8762551e",
    "vitl-relu": "3e27794f",
    "vitl-topk": "3e27794f",
}
N_A_LAYER = 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The four repos of the catalog, 24 layers of nine runs, of every age.

    vits-relu is from before training logged NMSE, and was measured; vitb-relu has inference on
    disk, of both forms; vitl-relu is of two ages, a half of it measured; vitl-topk has W&B's.
    """
    lab = Lab(tmp_path_factory.mktemp("whole"))
    lines = []
    of_the_lab = {"CATALOG": str(ROOT / "catalog.json")}
    with unittest.mock.patch.dict(os.environ, of_the_lab):
        repos = catalog.load().repos
    for repo in repos:
        for layer in repo.layers:
            for i in range(N_A_LAYER):
                run_id = f"{repo.slug}-{layer}-{i}"
                logged(lab, run_id)
                lines.append(
                    {"repo": repo.slug, "layer": layer, "run_id": run_id}
                    | {"expected": repo.expected, "wandb": record_of(repo, layer, i)}
                )
                leave_numbers(lab, repo.slug, layer, i, run_id)
    text = "".join(jsonl.dumps(line) + "\n" for line in lines)
    for name in ("facts", "classify"):
        text = run_program(ROOT / "bin" / name, stdin=text).out
    rows, lab.told = settle(lab, *map(json.loads, text.splitlines()))
    lab.panels = collections.defaultdict(list)
    for row in rows:
        lab.panels[row["repo"], row["layer"]].append(row)
    return lab


def test_a_run_that_diverged_does_not_keep_the_others_from_their_measurements(lab):
    """Its weights are NaN, so it can't be measured; W&B has NaN, too."""
    lines = [logged(lab, "a"), logged(lab, "b"), logged(lab, "c", nmse="NaN")]
    for run_id in "ab":
        lab.measured(run_id, SHARD)
    rows, _ = settle(lab, *lines)
    assert [row["numbers"] for row in rows] == [MEASURED] * 3
    assert drops(rows) == [None, None, "not finite: NMSE NaN"]
    on = f"{checkpoints.N_TOKENS:,} tokens of {SHARD}"
    assert numbers.describe(rows) == f"2 runs, measured on {on}"
    lab.measured("c", SHARD)  # only its evaluation was NaN
    rows, _ = settle(lab, *lines)
    assert drops(rows) == [None] * 3


def record_of(repo: catalog.Repo, layer: int, i: int) -> dict:
    """A run's record in W&B as the saev of its time left it."""
    is_old = repo.slug in ("vits-relu", "vitb-relu")
    is_old = is_old or (repo.slug == "vitl-relu" and i % 2 == 0)
    activation = {} if repo.slug != "vitl-topk" else {"top_k": 4 * (i + 1)}
    if not is_old:
        age = "kind" if i % 3 else "key"
        name = "top-k" if repo.slug == "vitl-topk" else "relu"
        activation = {age: name, **activation, "aux": {age: "no-aux"}}
    widths = {"d_vit": repo.d_model, "exp_factor": repo.d_sae / repo.d_model}
    if repo.d_sae % repo.d_model or not is_old:
        widths = {"d_model": repo.d_model, "d_sae": repo.d_sae}
    shards = f"/fs/scratch/lab/shards/{SHARDS[repo.slug]}"
    config = {
        "sae": widths | {"activation": activation},
        "objective": {"n_prefixes": 10},
        "data" if is_old else "train_data": {"layer": layer},
        "val_data": {"shards": shards},
    }
    summary = {"eval/l0": 2.0 ** (i + 1), "eval/mse": 9.0}
    if not is_old:
        summary["eval/normalized_mse"] = 0.5 - 0.05 * i
    record = {"state": "finished", "createdAt": "2025-11-01T00:00:00Z", "url": None}
    return record | {"config": config, "summary": summary}


def leave_numbers(lab: Lab, slug: str, layer: int, i: int, run_id: str) -> None:
    l0, nmse = 2.0 ** (i + 1), 0.5 - 0.05 * i
    if slug == "vits-relu":
        lab.measured(run_id, SHARD, l0=1.25 * l0, nmse=nmse)
    if slug == "vitb-relu":
        infer(lab, run_id, nmse, shard=SHARDS[slug])
        if layer == 6 and i == 0:
            old = {"normalized_mse": nmse, "sse_sae": nmse * 4e6, "sse_baseline": 4e6}
            fpath = lab.runs_root / run_id / "inference" / SHARDS[slug]
            (fpath / "metrics.json").write_text(json.dumps(old))
    if slug == "vitl-relu" and (layer < 19 or i < 5):
        lab.measured(run_id, SHARDS[slug], l0=l0, nmse=nmse)


def test_all_24_layers_of_a_whole_lab_settle_each_on_one_source(whole):
    assert len(whole.panels) == 24
    for (slug, layer), rows in whole.panels.items():
        (source,) = {row["numbers"] for row in rows}
        shard = SHARDS[slug]
        n_kept = sum(row["drop"] is None for row in rows)
        told = numbers.describe(rows)
        if slug == "vits-relu":
            assert (source, n_kept) == (f"measured:{shard}", 9)
            assert told == f"9 runs, measured on 1,048,576 tokens of {shard}"
        elif slug == "vitb-relu":
            assert (source, n_kept) == (f"disk:{shard}", 9 - (layer == 6))
        elif slug == "vitl-relu" and layer < 19:
            assert (source, n_kept) == (f"measured:{shard}", 9)
        elif slug == "vitl-relu":
            # Five were measured, four have W&B's: the source that has most.
            assert (source, n_kept) == (f"measured:{shard}", 5)
            assert told.endswith("; 4 runs without numbers")
        else:
            assert (source, n_kept, told) == ("wandb", 9, "9 runs, numbers from W&B")


def test_only_the_file_of_the_old_form_is_refused(whole):
    assert whole.told.count("\n") == 1
    assert 'ignored, it has "sse_sae"' in whole.told
    assert whole.told.endswith(": vitb-relu-6-0\n")


def test_what_was_logged_is_kept_beside_what_was_measured(whole):
    row = whole.panels["vits-relu", 6][3]
    assert (row["l0"], row["l0_logged"], row["nmse_logged"]) == (20.0, 16.0, None)
    assert row["activation"] == {"key": "relu"} and row["n_tokens"] == 2**20
    assert "wandb" not in row


def test_the_choice_is_made_on_what_was_settled(whole):
    rows = [row for panel in whole.panels.values() for row in panel]
    text = "".join(jsonl.dumps(row) + "\n" for row in rows)
    done = run_program(ROOT / "bin/select", "-n", "3", stdin=text)
    assert done.code == 0, done.err
    chosen = done.rows
    assert len(chosen) == 24 * 3
    assert {row["drop"] for row in chosen} == {None}
