"""One panel of the report: where a layer's candidates stand in the plane of log L0 and NMSE.

Places are per cent of the plot's width and height, from the top left, so that the page can
draw at any width with type that keeps its size.
"""

import dataclasses
import math
import typing as tp

from .. import jsonl
from ..choice import frontier
from ..choice.frontier import has_place
from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED
from ..text import n_of

AT_MOST = 2000
"""How many runs of one fate a panel shows, apart from the chosen, which it shows all."""

PAD = 0.06
"""What an axis spans beyond its outermost runs, of its length."""

N_TICKS = 8
"""How many numbers fit along an axis on a phone."""

BACK_TO_FRONT = (DROPPED, OFF_FRONTIER, NOT_NEEDED, PINNED, CHOSEN)


@dataclasses.dataclass(frozen=True)
class Axis:
    """A span of values and the ones to name. `lo`, `hi` and `ticks` are as drawn: log10 for L0."""

    lo: float
    hi: float
    ticks: tuple[tuple[float, str], ...]

    def percent(self, value: float) -> float:
        """How far along the axis `value` is drawn; at the end where it lies beyond."""
        share = (value - self.lo) / (self.hi - self.lo)
        return 100 * min(max(share, 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class Point:
    row: int
    """Which of the panel's runs it is."""
    fate: str
    x: str
    y: str


@dataclasses.dataclass(frozen=True)
class Panel:
    layer: int
    runs: list[jsonl.Line]
    """The runs that are shown, by L0; those without a place in the plane come last."""
    points: list[Point]
    """Those with a place, in drawing order: the chosen lie on top."""
    frontier: str
    """The corners of the frontier's line, in thousandths of the plot."""
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    """Place and label."""
    notes: list[str]
    """What the picture leaves out."""


def panel(layer: int, account: list[jsonl.Line]) -> Panel:
    """The panel of one layer.

    Args:
        layer: The layer.
        account: All its candidates, each with l0, nmse, run_id and fate, in any order.
    """
    ordered = sorted(account, key=_order)
    runs, notes = thin(ordered)
    placed = [run for run in runs if has_place(run)]
    if not placed:
        return Panel(
            layer, runs, [], "", [], [], [*notes, "No candidate has L0 and NMSE."]
        )
    front = frontier.of_account([run for run in ordered if has_place(run)])
    x_axis = l0_axis([run["l0"] for run in placed])
    y_axis = nmse_axis([run["nmse"] for run in placed], [run["nmse"] for run in front])
    n_beyond = sum(not y_axis.lo <= run["nmse"] <= y_axis.hi for run in placed)
    if n_beyond:
        told = "is drawn at its edge" if n_beyond == 1 else "are drawn at its edge"
        notes.append(f"{n_of(n_beyond, 'run')} beyond the NMSE axis {told}.")

    def place(run: jsonl.Line) -> tuple[float, float]:
        x, y = x_axis.percent(math.log10(run["l0"])), 100 - y_axis.percent(run["nmse"])
        return x, y

    points = []
    for i, run in enumerate(placed):
        x, y = place(run)
        points.append(Point(i, run["fate"], f"{x:.2f}%", f"{y:.2f}%"))
    points.sort(key=lambda point: BACK_TO_FRONT.index(point.fate))
    corners = [f"{10 * x:.0f},{10 * y:.0f}" for x, y in map(place, front)]
    return Panel(
        layer,
        runs,
        points,
        " ".join(corners),
        [(f"{x_axis.percent(at):.2f}%", label) for at, label in x_axis.ticks],
        [(f"{100 - y_axis.percent(at):.2f}%", label) for at, label in y_axis.ticks],
        notes,
    )


def _order(run: jsonl.Line) -> tuple:
    if has_place(run):
        return 0, run["l0"], run["nmse"], run["run_id"]
    return 1, 0, 0, run["run_id"]


def thin(ordered: list[jsonl.Line]) -> tuple[list[jsonl.Line], list[str]]:
    """At most `AT_MOST` runs of each fate but the chosen, spread evenly, and what is told of it."""
    kept, notes = [], []
    for fate in BACK_TO_FRONT:
        runs = [run for run in ordered if run["fate"] == fate]
        shown = runs
        if len(runs) > AT_MOST and fate not in (CHOSEN, PINNED):
            shown = runs[:: math.ceil(len(runs) / AT_MOST)]
            notes.append(f"Shown: {len(shown):,} of the {len(runs):,} {fate}.")
        kept += shown
    return sorted(kept, key=_order), notes


def l0_axis(values: list[float]) -> Axis:
    """An axis in log10 L0 that holds all `values`, which are positive."""
    # Kept within what a float can count on; no L0 is out there.
    exponents = [min(max(math.log10(value), -200.0), 200.0) for value in values]
    lo, hi = _padded(min(exponents), max(exponents), least=0.2)
    decades = range(math.floor(lo), math.ceil(hi) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [(d + math.log10(m), m * 10.0**d) for d in decades for m in steps]
        ticks = [(at, value) for at, value in ticks if lo <= at <= hi]
        if len(ticks) <= N_TICKS:
            break
    ticks = ticks[:: math.ceil(len(ticks) / N_TICKS) or 1]
    if len(ticks) < 3:
        ticks = [(math.log10(v), v) for v in _round_values(10**lo, 10**hi) if v > 0]
    return Axis(lo, hi, tuple((at, f"{value:g}") for at, value in ticks))


def nmse_axis(values: list[float], frontier_values: list[float]) -> Axis:
    """An axis from the least NMSE to the greatest, but not far beyond what anyone would choose.

    An NMSE of 1 is no better than predicting the mean. A diverged run far above it must not
    press the frontier flat.
    """
    lo = min(max(min(values), 0.0), 1e200)
    hi = min(max(values), max([1.0, *frontier_values]), 1e200)
    lo, hi = _padded(lo, max(lo, hi), least=max(lo, hi, 1e-9))
    return Axis(lo, hi, tuple((value, f"{value:g}") for value in _round_values(lo, hi)))


def _padded(lo: float, hi: float, least: float) -> tuple[float, float]:
    """The span with room at both ends, as of one of at least `least`: never empty."""
    pad = PAD * max(hi - lo, least)
    return lo - pad, hi + pad


def _round_values(lo: float, hi: float) -> tp.Iterator[float]:
    """Round numbers between `lo` and `hi`, three to six of them."""
    rough = (hi - lo) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    for k in range(math.ceil(lo / step), math.floor(hi / step) + 1):
        # Through text, since 3 × 0.1 is not 0.3 to a computer.
        yield float(f"{k * step:.12g}")
