"""One panel of the page: the positions of a layer's candidates in the plane of log L0 and NMSE.

Positions are percentages of the plot's width and height, from the top left, so that the page can
be drawn at any width without scaling its text.
"""

import dataclasses

from .. import jsonl
from ..choice import frontier, plane
from ..choice.frontier import has_place
from ..text import n_of

N_TICKS = 7
"""How many labels fit along an axis on a phone."""

BACK_TO_FRONT = tuple(reversed(plane.LEGEND))


@dataclasses.dataclass(frozen=True)
class Point:
    row: int
    """Its index in the panel's runs."""
    fate: str
    x: str
    y: str
    edge: str
    """The edge that it lies beyond: up, down, left, right, or "" for none."""


@dataclasses.dataclass(frozen=True)
class Panel:
    layer: int
    runs: list[jsonl.Line]
    """By L0; those that can't be drawn come last."""
    points: list[Point]
    """Those that can be drawn, in drawing order: chosen ones on top."""
    frontier: str
    """The corners of the frontier's line, in thousandths of the plot."""
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    """Position and label."""
    notes: list[str]
    """What the plot can't show."""


def panel(layer: int, account: list[jsonl.Line]) -> Panel:
    """The panel of one layer.

    Args:
        account: All its candidates with l0, nmse, run_id and fate, in any order.
    """
    runs = sorted(account, key=_order)
    placed = [run for run in runs if has_place(run)]
    if not placed:
        notes = ["No candidate has L0 and NMSE."]
        return Panel(layer, runs, [], "", [], [], notes)
    front = frontier.of_account(placed)
    x, y = plane.spans(placed, front)
    points = [_point(i, run, x, y) for i, run in enumerate(placed)]
    n_beyond = sum(point.edge != "" for point in points)
    notes = []
    if n_beyond:
        are = "is drawn at its edge" if n_beyond == 1 else "are drawn at its edge"
        notes.append(f"{n_of(n_beyond, 'run')} beyond the plot {are}.")
    corners = [
        f"{1000 * min(max(x.share(at), 0), 1):.0f},{1000 - 1000 * min(max(y.share(nmse), 0), 1):.0f}"
        for at, nmse in plane.staircase(front)
    ]
    x_ticks, y_ticks = plane.l0_ticks(x, N_TICKS), plane.nmse_ticks(y, N_TICKS)
    return Panel(
        layer,
        runs,
        sorted(points, key=lambda point: BACK_TO_FRONT.index(point.fate)),
        " ".join(corners),
        [(_percent(x.share(at)), label) for at, label in x_ticks],
        [(_percent(1 - y.share(at)), label) for at, label in y_ticks],
        notes,
    )


def _point(row: int, run: jsonl.Line, x: plane.Span, y: plane.Span) -> Point:
    across, up = x.share(plane.log_l0(run)), y.share(plane.nmse(run))
    edge = "up" if up > 1 else "down" if up < 0 else ""
    edge = edge or ("right" if across > 1 else "left" if across < 0 else "")
    return Point(row, run["fate"], _percent(across), _percent(1 - up), edge)


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _order(run: jsonl.Line) -> tuple[object, ...]:
    if has_place(run):
        return 0, run["l0"], run["nmse"], run["run_id"]
    return 1, 0, 0, run["run_id"]
