"""The plot of a model card: L0 against NMSE, one panel a layer."""

import math
import os
import pathlib

from .. import jsonl
from ..choice.frontier import has_place, of_account
from ..files import write_aside
from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED


def pareto(fpath: pathlib.Path, title: str, account: list[jsonl.Line]) -> None:
    """Write a PNG with one panel a layer: every candidate, the frontier, the chosen.

    Args:
        fpath: Where to write it. The same input gives the same bytes.
        title: Stands above the panels.
        account: Lines with layer, l0, nmse and fate; those without finite, positive
            measures have no place in the plane and are left out.
    """
    # matplotlib writes a font cache, and a home may be read-only on a compute node.
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.figure
    import matplotlib.ticker

    layers = sorted({run["layer"] for run in account})
    n_cols = min(3, len(layers))
    n_rows = math.ceil(len(layers) / n_cols)
    fig = matplotlib.figure.Figure(
        figsize=(4 * n_cols, 3.1 * n_rows + 0.7), layout="constrained"
    )
    axes = fig.subplots(n_rows, n_cols, squeeze=False).flatten()
    for ax, layer in zip(axes, layers, strict=False):
        _panel(ax, layer, [run for run in account if run["layer"] == layer])
    for ax in axes[len(layers) :]:
        ax.set_axis_off()
    # An unescaped pair of $ would be a formula to matplotlib.
    fig.suptitle(title.replace("$", r"\$"), fontsize=10, wrap=True)
    handles = {}
    for ax in axes[: len(layers)]:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    with write_aside(fpath, "wb") as fd:
        fig.savefig(fd, format="png", dpi=150, metadata={"Software": None})


def _panel(ax, layer: int, runs: list[jsonl.Line]) -> None:
    import matplotlib.ticker

    def draw(marker: str, label: str, *fates: str, **style) -> None:
        found = [r for r in placed if r["fate"] in fates] if fates else front
        if found:
            xy = [r["l0"] for r in found], [r["nmse"] for r in found]
            ax.plot(*xy, marker, label=label, **style)

    placed = [r for r in runs if has_place(r)]
    front = of_account(placed)

    # Blue and orange hold apart for colour-blind readers too; shapes tell them besides.
    blue = "tab:blue"
    draw("x", "dropped", DROPPED, color="0.7", ms=5)
    draw("o", "off the frontier", OFF_FRONTIER, color="0.65", ms=4)
    draw("-", "frontier", color=blue, lw=1.2)
    draw("o", "on it, not needed", NOT_NEEDED, color=blue, mfc="white", ms=5)
    draw("D", "in this repo", CHOSEN, PINNED, color="tab:orange", mec="black", ms=6)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_title(f"Layer {layer}", fontsize=10)
    ax.set_xlabel("L0 (log scale)", fontsize=9)
    ax.set_ylabel("NMSE", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
