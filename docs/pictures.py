"""make pictures: draw README's two pictures, the card's plot and the page, from the demo.

usage: pictures.py BUILD [OUT]
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
REPO = "vitl-relu"
PAGE_SIZE = (1200, 690)
PLOT_WIDTH = 960
N_COLORS = 256
"""Enough for flat colors and their edges, in a fraction of the bytes."""


def main(build: str, out: str = str(HERE)) -> None:
    build_dpath, out_dpath = pathlib.Path(build), pathlib.Path(out)
    plot = Image.open(build_dpath / REPO / "stage/pareto.png").convert("RGBA")
    height = round(plot.height * PLOT_WIDTH / plot.width)
    write(
        plot.resize((PLOT_WIDTH, height), Image.Resampling.LANCZOS),
        out_dpath / "plot.png",
    )
    write(screenshot(build_dpath / "report.html"), out_dpath / "page.png")


def screenshot(fpath: pathlib.Path) -> Image.Image:
    """The top of the page in headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("pictures: no Chromium to look with: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        argv = [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={name}/profile",
            f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}",
            f"--screenshot={name}/page.png",
            fpath.resolve().as_uri(),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        shot_fpath = pathlib.Path(name) / "page.png"
        if not shot_fpath.is_file():
            sys.exit(f"pictures: Chromium took no screenshot: {done.stderr[-300:]}")
        return Image.open(shot_fpath).convert("RGB")


def write(picture: Image.Image, fpath: pathlib.Path) -> None:
    # Only FASTOCTREE keeps transparency, but it merges light colors.
    methods = {"RGBA": Image.Quantize.FASTOCTREE, "RGB": Image.Quantize.MEDIANCUT}
    method = methods[picture.mode]
    few = picture.quantize(N_COLORS, method=method, dither=Image.Dither.NONE)
    few.save(fpath, optimize=True)
    print(f"pictures: {fpath}: {fpath.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
