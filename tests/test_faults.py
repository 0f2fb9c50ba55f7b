"""Every fault of the table is reported as the table says, and does no harm."""

import json
import warnings

import pytest

from faults import __main__ as faults
from faults.machine import a_hub
from faults.rows import Measured, NotHere
from kits import jq
from kits.lab import Labs
from saepub.release import publishable

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    return Labs(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("row", faults.ROWS, ids=lambda row: row.fault)
def test_fault(labs, row):
    try:
        seen = row.bring(labs)
    except NotHere as why:
        warnings.warn(f"not tried: {row.fault}: {why}", stacklevel=1)
        pytest.skip(str(why))
    assert not faults.problems(row, seen), seen.err + seen.out


def test_no_line_of_the_pipe_holds_a_number_that_jq_rounds(labs):
    """From every joint of a dry run to what plan, push and verify pass on."""
    lab = labs.copy()
    joints = sorted((lab.build / "tiny").glob("*.jsonl"))
    assert len(joints) == 10
    assert all(jq.check(fpath.read_text(), fpath.name) for fpath in joints)
    jq.check((lab.stage_dpath / "manifest.jsonl").read_text(), "manifest.jsonl")
    stdin = (lab.build / "tiny/rendered.jsonl").read_text()
    with a_hub(lab) as (_, env):
        files = lab.program("bin/plan", "--files", stdin=stdin, **env)
        jq.check(files.out, "plan --files")
        for name in ("plan", "push", "verify"):
            done = lab.program(f"bin/{name}", stdin=stdin, **env)
            assert jq.check(done.out, name) == 3, done.err
            stdin = done.out


@pytest.mark.parametrize("value", [2**53 + 1, -(2**60), 1e300])
def test_a_number_that_jq_rounds_is_seen(value):
    with pytest.raises(AssertionError, match="a.b"):
        jq.check(json.dumps({"a": {"b": value}}) + "\n", "x")


def test_table_tells_what_it_expected_what_it_saw_and_fails(monkeypatch, capsys):
    """A row doesn't pass if its fault isn't reported as expected."""

    def bring(says, code):
        return lambda labs: faults.Done(code, "", f"tool: {says}\n")

    rows = [
        faults.Row("good", "too large", bring("too large", 1)),
        faults.Row("silent", "too large", bring("well", 1)),
        faults.Row("passes", "too large", bring("too large", 0)),
        faults.Row("coloured", "too large", bring("too large\x1b[2J", 1)),
        faults.Row(
            "slow", "too large", lambda _: Measured(1, "", "sae.pt: too large", 6)
        ),
    ]
    slow = rows.pop()._replace(is_file=True)
    monkeypatch.setattr(faults, "TABLE", {"Some": [*rows, slow]})
    assert faults.main() == 1
    told = capsys.readouterr().out
    for text in (
        "ok    good",
        "FAIL  silent",
        "FAIL  passes",
        "FAIL  coloured",
        "FAIL  slow",
    ):
        assert text in told
    assert "5 faults, 4 not as expected, 0 not tried" in told


def test_one_file_under_two_ids_is_found_over_repos_too():
    rows = {
        slug: [{"run_id": run_id, "sha256": sha256}]
        for slug, run_id, sha256 in (("a", "one", 1), ("b", "two", 1), ("c", "one", 1))
    }
    assert publishable.same_files(rows) == ["one and two have identical files"]
    rows["b"][0]["sha256"] = 2
    assert publishable.same_files(rows) == []
