"""Values look as people write them, and no text controls a terminal."""

import itertools

import pytest

from saepub import text


@pytest.mark.parametrize(
    ("n_bytes", "told"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (134_217_728, "134 MB"),
        (999_600, "1 MB"),
        (7_000_000_000_000_000, "7,000 TB"),
    ],
)
def test_bytes_are_told_in_decimal_units(n_bytes, told):
    assert text.human(n_bytes) == told


def test_a_count_agrees_with_its_noun():
    assert text.n_of(1, "run") == "1 run"
    assert text.n_of(12345, "run") == "12,345 runs"


def test_what_a_terminal_would_obey_is_not_shown():
    assert text.printable("a\x1b[31m\u202eb") == "a?[31m?b"


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    clock = itertools.count(step=10)
    monkeypatch.setattr(text.time, "monotonic", lambda: next(clock))
    assert list(text.progress(range(6), 6, "preflight vitl-topk")) == [*range(6)]
    assert capsys.readouterr().err.splitlines() == [
        "preflight vitl-topk: 2 of 6 runs, 00:40 left",
        "preflight vitl-topk: 4 of 6 runs, 00:20 left",
    ]


def test_progress_that_ends_soon_says_nothing_without_a_terminal(capsys):
    assert list(text.progress("ab", 2, "preflight")) == ["a", "b"]
    assert capsys.readouterr().err == ""
