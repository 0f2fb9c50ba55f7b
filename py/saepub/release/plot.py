"""The plot on a model card: NMSE against L0, one panel per layer, with shared axes.

The card shows it about 750 px wide, a phone 360 px, so it is laid out for 360 px and drawn at
four times that. The background is transparent, and the colors are halfway between black and
white, so that they are visible on light and dark pages.
"""

import itertools
import math
import pathlib
import textwrap
import types
import typing as tp

from .. import jsonl
from ..choice import frontier, plane
from ..files import write_aside
from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED
from ..text import l0_text

# All lengths are in pixels of a phone. matplotlib calls them points.
WIDTH, SCALE = 360, 4
LEFT, RIGHT, GAP = 32, 10, 12
PANEL_HEIGHT = 138
LABEL_ROOM = 24
"""Room for a label below the lowest run, and at the top if any run lies above the axes."""
TEXT = 10.5
"""The font size: at least 10 px if the plot is 350 px wide."""
LINE = 13
DIGIT = 0.62 * TEXT
"""The approximate width of a digit."""

# The contrast of each is above 4 against white and against the Hub's dark page, #0b0f19.
INK, BLUE, ORANGE = "#747474", "#2a79b8", "#c95d08"

MARKS: dict[str, dict[str, tp.Any]] = {
    CHOSEN: {"marker": "D", "ms": 6, "color": ORANGE, "mew": 0},
    PINNED: {"marker": "s", "ms": 6.5, "color": ORANGE, "mew": 0},
    NOT_NEEDED: {"marker": "o", "ms": 5, "mfc": "none", "mec": BLUE, "mew": 1.3},
    OFF_FRONTIER: {"marker": "o", "ms": 3.2, "color": INK, "mew": 0},
    DROPPED: {"marker": "x", "ms": 4.2, "color": INK, "mew": 1},
}
EDGE: dict[str, tp.Any] = {"marker": "^", "ms": 5, "color": INK, "mew": 0}
STAIRCASE: dict[str, tp.Any] = {"color": BLUE, "lw": 1.3, "solid_joinstyle": "miter"}

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels of a panel."""


def pareto(fpath: pathlib.Path, title: str, account: list[jsonl.Line]) -> None:
    """Write `figure` as a PNG. The same input gives the same bytes."""
    fig = figure(title, account)
    with write_aside(fpath, "wb") as fd:
        fig.savefig(fd, format="png", dpi=72 * SCALE, metadata={"Software": None})


def figure(title: str, account: list[jsonl.Line]) -> tp.Any:
    """Every candidate, each layer's frontier, and the published runs with their L0.

    Args:
        title: The text above the panels. ASCII, like a repo id: no font has every character.
        account: Lines with layer, l0, nmse and fate; those that can't be drawn (see
            `frontier.has_place`) are left out.

    Returns:
        A matplotlib Figure, independent of this machine's matplotlib settings.
    """
    assert title.isascii(), title
    layers = sorted({run["layer"] for run in account})
    placed = [run for run in account if frontier.has_place(run)]
    by_layer = [[run for run in placed if run["layer"] == layer] for layer in layers]
    fronts = [frontier.of_account(runs) for runs in by_layer]
    title_lines = textwrap.wrap(title, 52)

    n_cols = min(2, len(layers))
    n_rows = math.ceil(len(layers) / n_cols)
    width = (WIDTH - LEFT - RIGHT - GAP * (n_cols - 1)) / n_cols
    top = 6 + LINE * (len(title_lines) + 2)
    row = PANEL_HEIGHT + 2.6 * LINE
    x, y = _spans(placed, sum(fronts, []), width)
    legend = _legend(placed, x, y)
    height = top + n_rows * row + LINE * (len(legend) + 0.5)

    mpl = _matplotlib()
    fig = mpl.figure.Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
    text = "\n".join(title_lines)
    fig.text(4 / WIDTH, 1 - 4 / height, text, va="top", weight="bold")
    for i, layer in enumerate(layers):
        low = height - top - row * (i // n_cols) - PANEL_HEIGHT
        left = LEFT + (width + GAP) * (i % n_cols)
        box = (left / WIDTH, low / height, width / WIDTH, PANEL_HEIGHT / height)
        ax = fig.add_axes(
            box, xlim=(0, width), ylim=(0, PANEL_HEIGHT), facecolor="none"
        )
        ax.set_title(f"Layer {layer}")
        is_left, is_last = i % n_cols == 0, i // n_cols == n_rows - 1
        _axes(ax, width, x, y, is_left=is_left, is_last=is_last)
        _panel(ax, width, x, y, by_layer[i], fronts[i])
    handles = [mpl.lines.Line2D([], [], **style) for style in legend.values()]
    corner = {"loc": "lower left", "bbox_to_anchor": (LEFT / WIDTH, 0)}
    fig.legend(handles, list(legend), **corner)
    return fig


def _legend(
    placed: list[jsonl.Line], x: plane.Span, y: plane.Span
) -> dict[str, dict[str, tp.Any]]:
    """The style of each kind of mark that is drawn, by its label in the legend."""
    is_inside = [
        0 <= x.share(plane.log_l0(run)) <= 1 and 0 <= y.share(plane.nmse(run)) <= 1
        for run in placed
    ]
    seen = {run["fate"] for run, is_in in zip(placed, is_inside, strict=True) if is_in}
    legend = {
        words: MARKS[fate] | {"ls": "none"}
        for fate, words in plane.LEGEND.items()
        if fate in seen
    }
    if not all(is_inside):
        legend["beyond the axes, with its value"] = EDGE | {"ls": "none"}
    return legend | {"frontier": STAIRCASE}


def _spans(
    placed: list[jsonl.Line], front: list[jsonl.Line], width: float
) -> tuple[plane.Span, plane.Span]:
    """The axes that all panels share, with room for labels left of and below the runs."""
    if not placed:
        return plane.Span(0, 1), plane.Span(0, 1)
    x, y = plane.spans(placed, front)
    is_above = any(plane.nmse(run) > y.hi for run in placed)
    across = 2 * DIGIT / width * (x.hi - x.lo)
    up = LABEL_ROOM / PANEL_HEIGHT * (y.hi - y.lo)
    return plane.Span(x.lo - across, x.hi), plane.Span(y.lo - up, y.hi + up * is_above)


def _matplotlib() -> types.ModuleType:
    """matplotlib with its defaults and its bundled font, independent of this machine."""
    plane.matplotlib()
    import matplotlib.figure
    import matplotlib.font_manager

    matplotlib.rcdefaults()
    fonts = matplotlib.font_manager.fontManager
    own = matplotlib.get_data_path()
    fonts.ttflist = [font for font in fonts.ttflist if font.fname.startswith(own)]
    matplotlib.rcParams |= {
        "font.family": "DejaVu Sans",
        "font.size": TEXT,
        "text.color": INK,
        "axes.titlesize": TEXT,
        "axes.titlepad": 4,
        "axes.titleweight": "bold",
        "axes.labelsize": TEXT,
        "axes.labelcolor": INK,
        "axes.labelpad": 2,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": TEXT,
        "ytick.labelsize": TEXT,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.pad": 2,
        "ytick.major.pad": 2,
        "legend.frameon": False,
        "legend.fontsize": TEXT,
        "legend.labelspacing": 0.2,
        "legend.borderpad": 0.2,
        "legend.handlelength": 1.4,
    }
    return matplotlib


def _axes(
    ax: tp.Any,
    width: float,
    x: plane.Span,
    y: plane.Span,
    *,
    is_left: bool,
    is_last: bool,
) -> None:
    """Draw ticks. All panels share the axes, so only the left ones have NMSE labels."""
    x_ticks, y_ticks = plane.l0_ticks(x, 5), plane.nmse_ticks(y, 5)
    ax.set_xticks([x.share(at) * width for at, _ in x_ticks], [t for _, t in x_ticks])
    y_labels = [label for _, label in y_ticks]
    ax.set_yticks([y.share(at) * PANEL_HEIGHT for at, _ in y_ticks], y_labels)
    ax.tick_params(labelleft=is_left)
    if is_left:
        ax.text(4 - LEFT, PANEL_HEIGHT + 5, "NMSE")
    if is_last:
        ax.set_xlabel("L0 (log scale)")


def _panel(
    ax: tp.Any,
    width: float,
    x: plane.Span,
    y: plane.Span,
    runs: list[jsonl.Line],
    front: list[jsonl.Line],
) -> None:
    def at(log_l0: float, nmse: float) -> tuple[float, float]:
        return x.share(log_l0) * width, y.share(nmse) * PANEL_HEIGHT

    def draw(places: list[tuple[float, float]], **style: tp.Any) -> None:
        ax.plot([px for px, _ in places], [py for _, py in places], **style)

    stairs = [at(*corner) for corner in plane.staircase(front)]
    draw(stairs, **STAIRCASE)
    inside: dict[str, list[tuple[float, float, str]]] = {fate: [] for fate in MARKS}
    outside = []
    for run in runs:
        px, py = at(plane.log_l0(run), plane.nmse(run))
        if 0 <= px <= width and 0 <= py <= PANEL_HEIGHT:
            inside[run["fate"]].append((px, py, l0_text(run["l0"])))
        else:
            outside.append((px, py, run))
    for fate, style in reversed(MARKS.items()):
        draw([(px, py) for px, py, _ in inside[fate]], ls="none", **style)
    _label(ax, width, inside, _at_edges(ax, width, outside), stairs)


def _at_edges(
    ax: tp.Any, width: float, outside: list[tuple[float, float, jsonl.Line]]
) -> list[Box]:
    """Draw runs beyond the axes as triangles at the edge, labelled with their values.

    Each value goes beside its triangle if there is room. Otherwise up to three are listed in
    the triangles' order, and more are given as a range.

    Returns:
        The boxes of the labels.
    """
    edges: dict[str, list[tuple[float, float]]] = {}
    for px, py, run in outside:
        side = "^" if py > PANEL_HEIGHT else "v" if py < 0 else "<" if px < 0 else ">"
        px, py = min(max(px, 3.0), width - 3), min(max(py, 6.0), PANEL_HEIGHT - 6)
        color = MARKS[run["fate"]].get("color", BLUE)
        ax.plot([px], [py], **EDGE | {"marker": side, "color": color})
        value = (px, run["nmse"]) if side in "^v" else (py, run["l0"])
        edges.setdefault(side, []).append(value)
    labels = []
    for side, found in edges.items():
        found.sort()
        values = [value for _, value in found]
        texts = [_short(value) for value in values]
        joined = ", ".join(texts)
        if len(values) > 3:
            joined = f"{_short(min(values))}–{_short(max(values))}"
        size = DIGIT * len(joined)
        if side in "<>":
            labels.append((6 if side == "<" else width - 6 - size, found[0][0], joined))
            continue
        py = PANEL_HEIGHT - 6 if side == "^" else 6
        starts = [px + 5 for px, _ in found]
        ends = [*(px - 4 for px, _ in found[1:]), width]
        fits = [
            start + DIGIT * len(text) <= end
            for start, text, end in zip(starts, texts, ends, strict=True)
        ]
        if all(fits):
            labels += [
                (start, py, text) for start, text in zip(starts, texts, strict=True)
            ]
        elif starts[-1] + size <= width:
            labels.append((starts[-1], py, joined))
        elif found[0][0] - 5 - size >= 0:
            labels.append((found[0][0] - 5 - size, py, joined))
        else:
            labels.append((width - size, py + (-LINE if side == "^" else LINE), joined))
    for px, py, text in labels:
        ax.text(px, py, text, va="center_baseline")
    return [
        (px, py - TEXT / 2, px + DIGIT * len(text), py + TEXT / 2)
        for px, py, text in labels
    ]


def _short(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0e}"
    return text.replace("e+0", "e").replace("e+", "e")


def _label(
    ax: tp.Any,
    width: float,
    inside: dict[str, list[tuple[float, float, str]]],
    boxes: list[Box],
    stairs: list[tuple[float, float]],
) -> None:
    """Label each published run with its L0, clear of `boxes`.

    Labels go left of the run and below: no run can lie under the staircase. If that is full,
    right under the run, or else above it and clear of the staircase; from the right, so that
    none is between another and its run.
    """
    boxes = boxes + [
        (px - 4, py - 4, px + 4, py + 4)
        for fate in (CHOSEN, PINNED, NOT_NEEDED)
        for px, py, _ in inside[fate]
    ]
    steps = [
        (a[0], min(a[1], b[1]) - 1, b[0], max(a[1], b[1]) + 1)
        for a, b in itertools.pairwise(stairs)
    ]

    def put(
        px: float,
        py: float,
        text: str,
        places: list[tuple[float, int]],
        avoid: list[Box],
    ) -> bool:
        for left, low in places:
            box = (left, low, left + DIGIT * len(text), low + TEXT)
            if not any(_overlap(box, other) for other in avoid):
                break
        else:
            return False
        if py - low > 2 * TEXT:
            ax.plot([px, px - 3], [py, low + TEXT], color=INK, lw=0.5)
        elif low - py > TEXT:
            ax.plot([px, max(px, left)], [py, low], color=INK, lw=0.5)
        ax.text(left, low + 1, text, va="bottom")
        boxes.append(box)
        return True

    high = []
    for px, py, text in sorted(inside[CHOSEN] + inside[PINNED]):
        left = max(px - 1 - DIGIT * len(text), 1)
        below = [(left, low) for low in range(int(py - 4 - TEXT), 1, -1)]
        if not put(px, py, text, below, boxes):
            high.append((px, py, text))
    for px, py, text in reversed(high):
        size = DIGIT * len(text)
        last = width + RIGHT - size
        under = [(min(px - size / 2, last), max(int(py - 5 - TEXT), 2))]
        lefts = (min(px + 2, last), px - size / 2, px - size)
        lows = range(int(py) + 3, PANEL_HEIGHT)
        above = [(left, low) for low in lows for left in lefts]
        put(px, py, text, under + above, boxes + steps)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
