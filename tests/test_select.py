"""select does exactly what the rule says: compared with a second, naive implementation."""

import datetime
import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kits.programs import ROOT, rows_of, run_program, text_of
from saepub.choice.frontier import Run
from saepub.choice.panel import Panel

DAY = datetime.date(2026, 1, 1)


def row(run_id: str, l0: float, nmse: float, day: int = 0, **more) -> dict:
    date = (DAY + datetime.timedelta(days=day)).isoformat() + "T00:00:00Z"
    base = {"repo": "r", "layer": 6, "run_id": run_id, "l0": l0, "nmse": nmse}
    return base | {"created_at": date, "drop": None} | more


def run_select(rows: list[dict], *argv, **env):
    done = run_program(ROOT / "bin/select", *argv, stdin=text_of(rows), **env)
    done.ids = [r["run_id"] for r in done.rows]
    return done


def naive(rows: list[dict], n: int) -> list[str]:
    """The rule again, written as README states it: quadratic, no pruning, no clever keys."""

    def before(a, b) -> bool:
        if a["l0"] != b["l0"]:
            return a["l0"] < b["l0"]
        if a["nmse"] != b["nmse"]:
            return a["nmse"] < b["nmse"]
        if a["created_at"] != b["created_at"]:
            return a["created_at"] > b["created_at"]
        return a["run_id"] < b["run_id"]

    front = [
        a for a in rows if all(a["nmse"] < b["nmse"] for b in rows if before(b, a))
    ]
    front.sort(key=lambda a: a["l0"])
    if len(front) <= n:
        return [a["run_id"] for a in front]
    taken = [front[0], front[-1]]
    lo, hi = math.log(front[0]["l0"]), math.log(front[-1]["l0"])
    for i in range(1, n - 1):
        target = lo + (hi - lo) * i / (n - 1)
        best = None
        for a in front:
            if a in taken:
                continue
            if best is None:
                best = a
                continue
            da, db = (abs(math.log(x["l0"]) - target) for x in (a, best))
            if da != db:
                best = a if da < db else best
            elif a["nmse"] != best["nmse"]:
                best = a if a["nmse"] < best["nmse"] else best
            elif a["created_at"] != best["created_at"]:
                best = a if a["created_at"] > best["created_at"] else best
        taken.append(best)
    return [a["run_id"] for a in sorted(taken, key=lambda a: a["l0"])]


def in_process(rows: list[dict], n: int) -> list[str]:
    panel = Panel()
    for r in rows:
        age = -datetime.datetime.fromisoformat(r["created_at"]).timestamp()
        panel.runs.append(Run(r["l0"], r["nmse"], age, r["run_id"]))
    return [run.run_id for run in panel.choose(n).chosen]


# Few values, so that ties of every kind are common.
few = st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 100.0, 128.0, 1000.0])
any_l0 = st.floats(min_value=1e-3, max_value=1e5)
any_nmse = st.floats(min_value=0, max_value=2)
measures = st.tuples(few | any_l0, few | any_nmse, st.integers(0, 3))


@given(st.lists(measures, max_size=40), st.integers(2, 8), st.randoms())
def test_agrees_with_the_naive_rule_in_any_order(points, n, rnd):
    rows = [row(f"id{i:03d}", *point) for i, point in enumerate(points)]
    expected = naive(rows, n)
    assert in_process(rows, n) == expected
    rnd.shuffle(rows)
    assert in_process(rows, n) == expected


def test_the_program_agrees_with_the_naive_rule():
    rnd = random.Random(0)
    rows = [
        row(f"id{i}", rnd.lognormvariate(3, 1), rnd.random(), rnd.randrange(9))
        for i in range(300)
    ]
    rows += [r | {"layer": 7, "run_id": "x" + r["run_id"]} for r in rows[:50]]
    done = run_select(rows)
    assert done.code == 0
    assert done.ids == naive(rows[:300], 6) + naive(rows[300:], 6)
    assert [r["layer"] for r in done.rows] == sorted(r["layer"] for r in done.rows)


def test_frontier_of_more_than_n_is_thinned_evenly_in_log_l0():
    rows = [row(f"id{i}", 2.0**i, 1 / (i + 1)) for i in range(11)]
    assert run_select(rows, "-n", "3").ids == ["id0", "id5", "id10"]
    assert run_select(rows, N="3").ids == ["id0", "id5", "id10"]


def test_equal_l0_and_nmse_take_the_later_run():
    rows = [row("older", 8, 0.5, day=1), row("newer", 8, 0.5, day=2)]
    assert run_select(rows).ids == ["newer"]


def test_one_run_is_chosen_and_no_run_is_no_error():
    assert run_select([row("only", 8, 0.5)]).ids == ["only"]
    done = run_select([])
    assert (done.code, done.out, done.err) == (0, "", "")


def test_lines_pass_through_byte_for_byte():
    text = '{"repo":"r", "layer":6,"run_id":"a","l0":1.50,"nmse":1e-1,"created_at":null,"drop":null,"é":"\\u00e9"}\n'
    assert run_program(ROOT / "bin/select", stdin=text).out == text


def test_a_pinned_run_is_chosen_besides_the_rule():
    rows = [row("a", 1, 0.5), row("b", 2, 0.4), row("off", 3, 0.9)]
    done = run_select(rows, "--pin", "off")
    assert done.ids == ["a", "b", "off"]
    assert "3 chosen + 0 off the frontier" in done.err and "; pinned: off" in done.err


def test_pins_come_from_the_setting_split_at_anything_between_ids():
    rows = [row("a", 1, 0.5), row("off", 3, 0.9), row("off2", 4, 0.9)]
    assert run_select(rows, PIN="off,\n\toff2").ids == ["a", "off", "off2"]
    assert run_select(rows, "--pin", "", PIN="off").ids == ["a"]


def test_a_pin_of_another_repo_is_no_error_and_is_told():
    done = run_select([row("a", 1, 0.5)], PIN="elsewhere")
    assert (done.code, done.ids) == (0, ["a"])
    assert "PIN elsewhere: not among these lines" in done.err


def test_a_pin_must_be_on_a_line_that_is_not_dropped():
    rows = [row("a", 1, 0.5), row("b", 2, 0.4, drop="still running")]
    done = run_select(rows, "--pin", "b")
    assert done.code == 1 and "it was dropped: still running" in done.err


def test_every_candidate_is_accounted_for(tmp_path):
    rows = [row(f"f{i}", 2.0**i, 1 / (i + 1)) for i in range(8)]
    rows += [row("off", 300, 0.9), row("d1", None, 1, drop="no L0")]
    done = run_select(rows, "--account", tmp_path / "account.jsonl")
    assert "10 candidates = 6 chosen + 1 off the frontier + 2 on it" in done.err
    assert "1 dropped; dropped: 1 no L0" in done.err
    account = rows_of((tmp_path / "account.jsonl").read_text())
    assert [r["run_id"] for r in account] == [r["run_id"] for r in rows]
    fates = {r["run_id"]: r["fate"] for r in account}
    assert [i for i in fates if fates[i] == "chosen"] == done.ids
    assert fates["off"] == "off the frontier" and fates["d1"] == "dropped"
    assert sorted(fates.values()).count("not needed") == 2


def test_a_layer_without_a_run_to_release_names_the_setting():
    rows = [row("a", 1, 0.5), row("b", 2, None, layer=7, drop="not in W&B")]
    done = run_select(rows)
    assert (done.code, done.out) == (1, "")
    assert "r layer 7: none of 1 run can be released (1 not in W&B)" in done.err


def test_it_says_so_without_any_package_too():
    code = "import sys; sys.path.insert(0, 'py'); from saepub import cli; cli.main('select')"
    rows = [row("b", 2, None, layer=7, drop="not in W&B")]
    argv = (sys.executable, "-I", "-S", "-c", code)
    done = run_program(*argv, stdin=text_of(rows))
    assert (done.code, done.out) == (1, "")
    assert "r layer 7: none of 1 run can be released (1 not in W&B)" in done.err
    assert "check WANDB_ENTITY and WANDB_PROJECT" in done.err


def test_layers_without_numbers_are_one_line_a_repo_and_one_hint():
    rows = [row("a", 1, 0.5)]
    for i, layer in enumerate((7, 8, 9)):
        rows.append(row(f"b{i}", 2, None, layer=layer, drop="no NMSE in W&B"))
    done = run_select([*rows, row("c", 1, None, layer=7, drop="still running")])
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "select: r layers 7, 8, 9: no numbers for 3 runs; to measure them: make measure"
        ' REPO=r (W&B names no shard; write "shard" in the catalog first)\n'
    )
    more = [x | {"repo": "s"} for x in rows[1:]] + [row("d", 1, 1, layer=6, drop="x")]
    done = run_select([*rows, *more])
    assert done.err.count("\n") == 3 and done.err.count("REPO=s") == 1
    assert done.err.endswith("select: 2 problems; nothing was chosen\n")


def test_what_is_said_stays_short_however_many_runs_there_are():
    n = 2000
    rows = [row(f"run{i:05}", 1 + i, 0.5) for i in range(n)]
    rows += [row(f"gone{i:05}", None, None, drop="no L0") for i in range(n)]
    pins = " ".join(r["run_id"] for r in rows[:1000])
    (said,) = run_select(rows, PIN=pins).err.splitlines()
    assert len(said) < 400 and "and 991 more" in said and "2,000 no L0" in said


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"repo": "r"}], 'select: stdin:1: no "layer": {"repo": "r"}\n'),
        ([row("a", "NaN", 1)], "run bin/settle before bin/select"),
        ([row("a", 0, 1)], "run bin/settle before bin/select"),
        ([row("a", 1, 1), row("a", 2, 1)], "a of r is on two lines"),
        ([row("a", 1, 1), row("../a", 2, 1)], 'stdin:2: "run_id" is "../a", not a run id'),
        ([row("a", True, 1)], '"l0" is true, not a number or null'),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_1(rows, told):
    done = run_select(rows)
    assert done.code == 1 and done.out == ""
    assert told in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("n", ("1", "x"))
def test_n_must_be_2_or_more(n):
    done = run_select([row("a", 1, 1)], N=n)
    told = f"N is '{n}'; it takes a whole number, 2 or more"
    assert done.code == 2 and told in done.err
