"""The card's plot is legible at the size at which people see it, and the same everywhere."""

import hashlib
import itertools
import math
import random
import subprocess
import sys

import pytest

from kits.programs import ROOT, bare_env
from saepub.choice import frontier, plane
from saepub.jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED
from saepub.release import plot

PHONE = 350
"""The width of a card's column on a phone, in px."""
PAGES = {"white": (255, 255, 255), "dark": (11, 15, 25), "dark GitHub": (13, 17, 23)}


def run(layer: int, l0, nmse, fate: str = OFF_FRONTIER) -> dict:
    run_id = f"{layer}-{l0}-{nmse}"
    return {"layer": layer, "run_id": run_id, "l0": l0, "nmse": nmse, "fate": fate}


def sweep(layer: int, n: int = 40, n_chosen: int = 6, seed: int = 0) -> list[dict]:
    """A layer's candidates as the real select would judge them."""
    rnd = random.Random(seed + layer)
    runs = []
    for i in range(n):
        l0 = 10 ** rnd.uniform(0.5, 3)
        nmse = (0.9 - 0.02 * layer) * l0**-0.3 * (1 + abs(rnd.gauss(0, 0.12)))
        runs.append(frontier.Run(l0, nmse, 0, str(i)))
    front, _ = frontier.split(runs)
    chosen = frontier.pick(front, n_chosen)

    def fate(r: frontier.Run) -> str:
        return CHOSEN if r in chosen else NOT_NEEDED if r in front else OFF_FRONTIER

    return [run(layer, r.l0, r.nmse, fate(r)) for r in runs]


SIX = [line for layer in (13, 15, 17, 19, 21, 23) for line in sweep(layer)]
ODD = [
    *sweep(13),
    *sweep(15),
    *sweep(17),
    run(13, 100.0, 0.7, PINNED),
    run(15, 0.02, 1.0, DROPPED),
    run(15, 16000.0, 0.9, DROPPED),
    run(17, 30.0, 123456.0),
]


def panels(account: list[dict]):
    return plot.figure("lab/SAE", account).axes


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def boxes(fig) -> list[tuple[str, object]]:
    """Every visible text with its box, in px on a phone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    shown = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text()]
    found = {}
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            drawn = axis._update_ticks()
            hidden = [t.label1 for t in axis.get_major_ticks() if t not in drawn]
            hidden += [t.label2 for t in axis.get_major_ticks()]
            hidden += [t.label1 for t in drawn if not t.label1.get_visible()]
            shown = [t for t in shown if t not in hidden]
    for text in shown:
        found[text] = text.get_window_extent(renderer)
    return [(t.get_text(), box) for t, box in found.items()]


def test_there_are_two_columns_at_most_and_type_is_10_px_on_a_phone():
    from matplotlib.text import Text

    fig = plot.figure("osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K", SIX)
    width = fig.get_figwidth() * 72
    assert len({round(ax.get_position().x0, 3) for ax in fig.axes}) == 2
    for text in fig.findobj(Text):
        assert text.get_fontsize() * PHONE / width >= 10, text


def test_one_layer_has_the_whole_width():
    (ax,) = panels(sweep(13))
    assert ax.get_position().width > 0.85


@pytest.mark.parametrize("account", [SIX, ODD, sweep(13, n=60, n_chosen=12)])
def test_no_text_covers_another_or_leaves_the_picture(account):
    fig = plot.figure("osunlp/SAE_DINOv3_TopK_ViT-L-16_IN1K", account)
    found = boxes(fig)
    assert {"NMSE", "Layer 13", "L0 (log scale)", "0", "frontier"} <= {
        t for t, _ in found
    }
    width, height = fig.bbox.width, fig.bbox.height
    for text, box in found:
        assert box.x0 >= 0 and box.x1 <= width, text
        assert box.y0 >= 0 and box.y1 <= height, text
    for (a, box), (b, other) in itertools.combinations(found, 2):
        # A line's box has room above and below its digits.
        across = min(box.x1, other.x1) - max(box.x0, other.x0)
        up = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert across < 1 or up < 3.5, (a, b, box, other)


@pytest.mark.parametrize("seed", (1, 3, 5))
def test_the_frontier_strikes_out_no_label(seed):
    layers = (13, 15, 17, 19, 21, 23)
    account = [line for layer in layers for line in sweep(layer, n=12, seed=seed)]
    fig = plot.figure("lab/SAE", account)
    boxes(fig)  # draws it
    for ax in fig.axes:
        corners = ax.transData.transform(ax.lines[0].get_xydata())
        for text in ax.texts:
            box = text.get_window_extent()
            for (x0, y0), (x1, y1) in itertools.pairwise(corners):
                across = x0 < box.x1 - 1 and x1 > box.x0 + 1
                up = min(y0, y1) < box.y1 - 3 and max(y0, y1) > box.y0 + 3
                assert not (across and up), text


def test_all_layers_share_one_plane():
    axes = panels(SIX)
    assert len({tuple(ax.get_yticks()) for ax in axes}) == 1
    labels = [[t.get_text() for t in ax.get_yticklabels()] for ax in axes[::2]]
    assert labels == [labels[0]] * 3
    assert len({ax.get_ylim() for ax in axes} | {ax.get_xlim() for ax in axes}) == 2
    # Each has the same measures in the same place.
    first, second = panels([run(1, 8.0, 0.5, CHOSEN), run(2, 8.0, 0.5, CHOSEN)])
    assert [list(a.get_xydata()[0]) for a in first.lines if len(a.get_xydata())] == [
        list(a.get_xydata()[0]) for a in second.lines if len(a.get_xydata())
    ]


def test_every_published_run_is_labelled_as_the_table_has_it():
    for ax, layer in zip(panels(SIX), (13, 15, 17, 19, 21, 23), strict=True):
        chosen = [r for r in SIX if r["layer"] == layer and r["fate"] == CHOSEN]
        assert {f"{r['l0']:.1f}" for r in chosen} <= set(texts(ax))
    assert "100.0" in texts(panels(ODD)[0])


def test_the_frontier_is_a_staircase():
    front = [run(6, 1.0, 0.9), run(6, 10.0, 0.5), run(6, 100.0, 0.1)]
    want = [(0, 0.9), (1, 0.9), (1, 0.5), (2, 0.5), (2, 0.1)]
    assert plane.staircase(front) == want
    line = panels(front)[0].lines[0].get_xydata()
    assert len(line) == 5
    for a, b in itertools.pairwise(line):
        assert (a == b).sum() == 1, "across or down, never both"


def test_the_legend_has_one_order_and_names_what_is_there():
    words = [*plane.LEGEND.values(), "beyond the axes, with its value", "frontier"]
    assert plane.LEGEND[NOT_NEEDED] == "on the frontier, not published"

    def told(account: list[dict]) -> list[str]:
        (legend,) = plot.figure("lab/SAE", account).legends
        return [text.get_text() for text in legend.get_texts()]

    assert told(ODD) == told(ODD[::-1]) == [words[i] for i in (0, 1, 2, 3, 5, 6)]
    assert told(SIX) == [words[i] for i in (0, 2, 3, 6)]
    assert told([*SIX, run(13, 30.0, 0.4, DROPPED)]) == [
        words[i] for i in (0, 2, 3, 4, 6)
    ]


def test_one_outlier_does_not_flatten_the_panels_and_is_told_with_its_value():
    def height(account) -> float:
        ys = [
            y
            for ax in panels(account)
            for line in ax.lines
            if line.get_marker() == "D"
            for y in line.get_ydata()
        ]
        return max(ys) - min(ys)

    usual = height(SIX)
    for outlier in (
        run(13, 30.0, 123456.0),
        run(13, 0.001, 7.5, DROPPED),
        # The sparsest run is on the frontier, however bad it is.
        run(13, 0.9, 99.0, CHOSEN),
    ):
        account = [*SIX, outlier]
        assert height(account) > 0.75 * usual
        want = {123456.0: "1e5", 7.5: "7.5", 99.0: "99"}[outlier["nmse"]]
        assert want in texts(panels(account)[0])
    assert "0.02" in texts(panels([*SIX, run(13, 0.02, 0.4, DROPPED)])[0])


@pytest.mark.parametrize(
    "account",
    [
        [run(6, None, None, DROPPED)],
        [run(6, "NaN", "Infinity", DROPPED)],
        [run(6, 5.0, 0.5, CHOSEN)],
        [run(6, 5.0, 0.0, CHOSEN), run(6, 5.0, 0.0, NOT_NEEDED)],
        [run(6, 5e-324, -1e308, PINNED), run(6, 1e308, 1e308, CHOSEN)],
        [run(6, 5.0, 1e-12, CHOSEN), run(8, 5.0, 0.5, DROPPED)],
        [run(6, 10.0 + i / 100, 0.5 - i / 1000, CHOSEN) for i in range(60)],
    ],
)
def test_anything_can_be_drawn(account, tmp_path):
    plot.pareto(tmp_path / "pareto.png", "lab/" + "x" * 190, account)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def luminance(rgb) -> float:
    """Of WCAG 2, for channels from 0 to 255."""
    channels = [c / 255 for c in rgb]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(a, b) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    fpath = tmp_path_factory.mktemp("plot") / "pareto.png"
    plot.pareto(fpath, "osunlp/SAE_DINOv3_ViT-L-16_IN1K", ODD)
    return Image.open(fpath).convert("RGBA")


def test_the_background_is_the_pages_own(picture):
    alpha = picture.getchannel("A")
    n_clear = alpha.histogram()[0]
    assert n_clear > 0.8 * picture.width * picture.height
    assert picture.getpixel((0, 0))[3] == 0


def test_what_is_drawn_stands_out_from_light_and_dark_pages(picture):
    opaque = {}
    for n, (*rgb, alpha) in picture.getcolors(maxcolors=1 << 24):
        if alpha == 255:
            opaque[tuple(rgb)] = n
    inks = [rgb for rgb, n in opaque.items() if n > 400]
    assert len(inks) >= 3, "text, the frontier, the published"
    for rgb in inks:
        for name, page in PAGES.items():
            assert contrast(rgb, page) > 3.9, (rgb, name)


RC = """\
backend: TkAgg
text.usetex: true
font.family: serif
font.size: 30
axes.grid: false
axes.facecolor: red
savefig.dpi: 10
savefig.transparent: false
savefig.facecolor: black
lines.linewidth: 9
path.simplify: false
no.such.thing: 1
"""
DRAW = """
import sys, pathlib
from saepub.release import plot
runs = [{"layer": 6, "l0": 10.0 * i, "nmse": 1 / i, "fate": "chosen"} for i in (1, 2, 4)]
plot.pareto(pathlib.Path(sys.argv[1]), "lab/SAE", runs)
"""


@pytest.mark.programs
def test_no_setting_of_matplotlib_changes_a_byte(tmp_path):
    def draw(name: str, **env: object) -> str:
        dpath = tmp_path / name
        dpath.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", DRAW, dpath / "pareto.png"],
            env=bare_env(PYTHONPATH=ROOT / "py", **env),
            cwd=dpath,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return hashlib.sha256((dpath / "pareto.png").read_bytes()).hexdigest()

    plain = draw("plain")
    own = tmp_path / "own"
    for dpath in (own, tmp_path / "home/.config/matplotlib"):
        dpath.mkdir(parents=True)
        (dpath / "matplotlibrc").write_text(RC)
    hostile = {
        "HOME": tmp_path / "home",
        "XDG_CONFIG_HOME": tmp_path / "home/.config",
        "MATPLOTLIBRC": own,
    }
    assert draw("own", **hostile, MPLBACKEND="module://no.such.backend") == plain
    assert draw("own", **hostile, MPLBACKEND="nonsense", LANG="C") == plain


def test_axis_ticks_stand_where_their_numbers_are():
    for at, label in plane.l0_ticks(plane.Span(math.log10(3), math.log10(700)), 8):
        assert at == pytest.approx(math.log10(float(label)))
    for at, label in plane.nmse_ticks(plane.Span(-0.02, 0.5), 5):
        assert at == float(label) >= 0


@pytest.mark.parametrize(
    ("lo", "hi", "want"),
    [
        (1, 1000, "1 3 10 30 100 300 1000"),
        (5, 300, "5 10 20 50 100 200"),
        (31, 33, "31 31.5 32 32.5 33"),
        (1e-3, 1e6, "0.01 1 100 10000 1e+06"),
    ],
)
def test_the_l0_axis_names_round_numbers(lo, hi, want):
    span = plane.Span(math.log10(lo * 0.999), math.log10(hi * 1.001))
    assert " ".join(label for _, label in plane.l0_ticks(span, 8)) == want
