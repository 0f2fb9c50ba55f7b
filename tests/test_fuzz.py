"""Whatever a stage reads, it ends with 0, 1 or 2 and a line, runs nothing, writes nowhere else.

A short run of what `make fuzz` does for as long as one likes.
"""

import contextlib
import json
import os
import pathlib
import sys
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from kits import in_process
from kits.lab import Labs
from kits.programs import ROOT, Done, run_program
from saepub.stages import select

pytestmark = pytest.mark.programs

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
JOINTS = {
    "fetch-metrics": "candidates",
    "settle": "classified",
    "select": "settled",
    "stage": "checked",
}
JOINTS |= {"summary": "rendered"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Labs(tmp_path_factory.mktemp("fuzz")).made


@pytest.mark.long
def test_spoiled_input_breaks_no_promise(tmp_path):
    argv = (
        sys.executable,
        ROOT / "tests/fuzz/run.py",
        "--cases",
        "100",
        "--out",
        tmp_path,
    )
    done = run_program(*argv)
    assert done.code == 0, done.out + done.err
    assert done.out.count(" 0 findings") == len(done.out.splitlines()) > 20


@pytest.mark.parametrize("stage", JOINTS)
def test_any_value_in_any_key_is_refused_or_passed_on(lab, stage):
    first, *rest = (lab.build / f"tiny/{JOINTS[stage]}.jsonl").read_text().splitlines()
    line = json.loads(first)
    argv = (
        ["--account", str(lab.build / "tiny/account.jsonl")]
        if stage == "summary"
        else []
    )

    @hypothesis.given(key=st.sampled_from([*line, "other"]), value=VALUES)
    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
    def check(key, value):
        stdin = "\n".join([json.dumps(line | {key: value}), *rest]).encode()
        in_process.run(stage, *argv, stdin=stdin, env=lab.settings)

    check()


def tell(text: str, code: int):
    print(text, file=sys.stderr)
    return code


MISTAKES = {
    "hangs": lambda dpath: time.sleep(5),
    "internal error": lambda dpath: 1 / 0,
    "exit 3": lambda dpath: tell("why", 3),
    "not printable": lambda dpath: tell("\x1b[2J", 1),
    "without a word": lambda dpath: 1,
    "lines: ": lambda dpath: tell("why\n" * 50, 1),
    "passed on": lambda dpath: print("[]"),
    "ran ": lambda dpath: os.system("true"),
    "open ": lambda dpath: (dpath / "there").write_text("x"),
    "os.rename ": lambda dpath: os.rename(dpath / "a", dpath / "build" / "a"),
    "os.mkdir ": lambda dpath: (dpath / "build" / ".." / "d").mkdir(),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_promise_is_found(tmp_path, monkeypatch, mistake):
    (tmp_path / "a").touch()
    (tmp_path / "build").mkdir()
    monkeypatch.setattr(select, "main", lambda argv: MISTAKES[mistake](tmp_path))
    with pytest.raises(in_process.Finding, match=mistake):
        in_process.run("select", env={"BUILD": tmp_path / "build"}, seconds=1)


def test_keeping_to_the_rules_is_no_finding(tmp_path, monkeypatch):
    build = tmp_path / "build"
    build.mkdir()

    def main(argv):
        with contextlib.suppress(FileNotFoundError):
            pathlib.Path(tmp_path / "nothing").read_text()
        (build / "a").write_text("x")
        os.rename(build / "a", build / "b")
        print("{}")

    monkeypatch.setattr(select, "main", main)
    done = in_process.run("select", env={"BUILD": build})
    assert done == Done(0, "{}\n", "")
