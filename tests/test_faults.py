"""Every fault of the table is told as the table says, and does no harm."""

import warnings

import pytest

from faults import __main__ as faults
from faults.rows import Measured, NotHere
from kits.lab import World
from saepub.stages import push


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("row", faults.ROWS, ids=lambda row: row.fault)
def test_fault(world, row):
    try:
        seen = row.bring(world)
    except NotHere as why:
        warnings.warn(f"not tried: {row.fault}: {why}", stacklevel=1)
        pytest.skip(str(why))
    assert not faults.problems(row, seen), seen.err + seen.out


def test_table_tells_what_it_expected_what_it_saw_and_fails(monkeypatch, capsys):
    """A fault that isn't told right is no row that passes."""

    def bring(says, code):
        return lambda world: faults.Done(code, "", f"tool: {says}\n")

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
    assert push.same_files(rows) == ["one and two are one and the same file"]
    rows["b"][0]["sha256"] = 2
    assert push.same_files(rows) == []
