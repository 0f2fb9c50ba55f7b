"""The plane of log L0 and NMSE in which the plot and the page show a layer's candidates."""

import logging
import math
import os
import statistics
import types
import typing as tp

from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED, Line

LEGEND = {
    CHOSEN: "published",
    PINNED: "published, pinned by hand",
    NOT_NEEDED: "on the frontier, not published",
    OFF_FRONTIER: "off the frontier",
    DROPPED: "not eligible",
}
"""The label of each fate, in the order of every legend and count."""

PAD = 0.06
"""How far an axis extends beyond its outermost values, as a fraction of its length."""


class Span(tp.NamedTuple):
    """The range of an axis as drawn: log10 for L0."""

    lo: float
    hi: float

    def share(self, value: float) -> float:
        """Where `value` is drawn: 0 at the low end, 1 at the high end."""
        return (value - self.lo) / (self.hi - self.lo)


def spans(placed: list[Line], front: list[Line]) -> tuple[Span, Span]:
    """The ranges of log10 L0 and of NMSE.

    They include the frontier, the chosen and pinned runs and any others nearby, so that one
    diverged run doesn't flatten the rest into a line.

    Args:
        placed: Runs with finite measures and an L0 above 0; at least one.
        front: Those on the frontier, of one layer or several.
    """
    kept = front + [run for run in placed if run["fate"] in (CHOSEN, PINNED)]
    kept = kept or placed
    x = _span([log_l0(r) for r in kept], [log_l0(r) for r in placed], least=0.3)
    values = [nmse(run) for run in kept]
    # The sparsest run is always on the frontier, even one far worse than the mean (NMSE 1).
    bound = max(1.0, 2 * abs(statistics.median_low(values)))
    usual = [v for v in values if abs(v) <= bound]
    least = max(*map(abs, usual), 1e-6) / 5
    y = _span(usual, [nmse(run) for run in placed], least)
    return x, y


def log_l0(run: Line) -> float:
    return min(max(math.log10(run["l0"]), -100.0), 100.0)


def nmse(run: Line) -> float:
    """The run's NMSE, clipped so that arithmetic doesn't overflow."""
    return float(min(max(run["nmse"], -1e200), 1e200))


def _span(kept: list[float], others: list[float], least: float) -> Span:
    lo, hi = min(kept), max(kept)
    reach = max(hi - lo, least) / 2
    near = [v for v in others if lo - reach <= v <= hi + reach]
    lo, hi = min([lo, *near]), max([hi, *near])
    pad = PAD * max(hi - lo, least)
    return Span(lo - pad, hi + pad)


def staircase(front: list[Line]) -> list[tuple[float, float]]:
    """The corners of a frontier's line, as (log10 L0, NMSE).

    It is a staircase: between two runs, nothing better than the sparser one was achieved.
    """
    corners: list[tuple[float, float]] = []
    for run in front:
        if corners:
            corners.append((log_l0(run), corners[-1][1]))
        corners.append((log_l0(run), nmse(run)))
    return corners


def matplotlib() -> types.ModuleType:
    """matplotlib, which is slow to import, without this machine's settings of it."""
    # An unknown backend would make the import fail, and warnings about font caches or a
    # matplotlibrc would only confuse our users.
    os.environ |= {"MPLBACKEND": "Agg", "MATPLOTLIBRC": os.devnull}
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib.ticker

    return matplotlib


def l0_ticks(span: Span, n: int) -> list[tuple[float, str]]:
    """At most about `n` round values of L0, each as its position and label."""
    ticker = matplotlib().ticker
    lo, hi = 10**span.lo, 10**span.hi
    tries = [
        ticker.LogLocator(subs=subs, numticks=n) for subs in ((1, 2, 5), (1, 3), (1,))
    ]
    for locator in (*tries, ticker.MaxNLocator(n, steps=[1, 2, 5, 10])):
        values = [v for v in locator.tick_values(lo, hi) if lo <= v <= hi and v > 0]
        if 3 <= len(values) <= n:
            break
    return [(math.log10(v), f"{v:g}") for v in values]


def nmse_ticks(span: Span, n: int) -> list[tuple[float, str]]:
    """As `l0_ticks`, for NMSE."""
    ticker = matplotlib().ticker
    values = ticker.MaxNLocator(n, steps=[1, 2, 5, 10]).tick_values(*span)
    # Padding below the smallest NMSE must not suggest that it could be negative.
    is_room = span.lo < 0 <= span.lo + 0.25 * (span.hi - span.lo)
    least = 0.0 if is_room else span.lo
    # Through text, since 3 × 0.1 is not 0.3 in floating point.
    return [(float(f"{v:.12g}"), f"{v:g}") for v in values if least <= v <= span.hi]
