"""The rule that chooses runs: the frontier of L0 against NMSE, and the pick from it."""

import math
import typing as tp

from ..jsonl import DROPPED, Line


class Run(tp.NamedTuple):
    """A run that may be chosen. Sorts in the rule's order."""

    l0: float
    nmse: float
    age: float
    """Minus its date, so that later runs come first."""
    run_id: str
    text: bytes = b""


def split(runs: tp.Iterable[Run]) -> tuple[list[Run], list[Run]]:
    """The runs whose NMSE is strictly below that of every run before them, and the others.

    Runs are ordered by L0, then NMSE, then newest first, then id. Both lists keep this order.
    """
    front: list[Run] = []
    off: list[Run] = []
    for run in sorted(runs):
        (off if front and run.nmse >= front[-1].nmse else front).append(run)
    return front, off


def of_account(account: list[Line]) -> list[Line]:
    """The frontier among those of one panel's candidates that weren't dropped."""
    front: list[Line] = []
    eligible = [run for run in account if run["fate"] != DROPPED and has_place(run)]
    for run in sorted(eligible, key=lambda r: (r["l0"], r["nmse"])):
        if not front or run["nmse"] < front[-1]["nmse"]:
            front.append(run)
    return front


def has_place(run: Line) -> bool:
    """Whether a candidate can be drawn: finite measures and a positive L0."""
    return _is_finite(run["l0"]) and _is_finite(run["nmse"]) and run["l0"] > 0


def _is_finite(measure: float | str | None) -> tp.TypeGuard[float]:
    return isinstance(measure, int | float) and math.isfinite(measure)


def pick(front: list[Run], n: int) -> list[Run]:
    """Up to `n` runs of a frontier, evenly spaced in log L0.

    Args:
        front: The frontier, sparsest first.
        n: How many at most; 2 or more.
    """
    if len(front) <= n:
        return front
    lo, hi = math.log(front[0].l0), math.log(front[-1].l0)
    taken, free = [front[0], front[-1]], front[1:-1]
    for i in range(1, n - 1):
        target = lo + (hi - lo) * i / (n - 1)
        best = min(
            free,
            key=lambda r: (abs(math.log(r.l0) - target), r.nmse, r.age, r.run_id),
        )
        free.remove(best)
        taken.append(best)
    return taken
