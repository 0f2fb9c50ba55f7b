"""The report page and the card's plot at the size of a large sweep: 20 layers of 500 runs."""

import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import typing as tp

from .measure import MB, ROOT, measure, table

LAYERS, N_RUNS = range(20), 500

PLOT = """
import json, pathlib, sys
from saepub.release import plot
account = [json.loads(text) for text in open(sys.argv[1])]
plot.pareto(pathlib.Path(sys.argv[2]), "lab/SAE", account)
"""

PAN = """
const done = arguments[0], n = 240, end = document.documentElement.scrollHeight - innerHeight;
const frames = [];
let i = 0, last = performance.now();
requestAnimationFrame(function step() {
  const now = performance.now();
  frames.push(now - last);
  last = now;
  scrollTo(0, (end * ++i) / n);
  if (i < n) requestAnimationFrame(step);
  else done(frames.slice(1).sort((a, b) => a - b));
});
"""
"""Pans through the whole page in some four seconds; gives the milliseconds of each frame."""


def page() -> None:
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        dpath = pathlib.Path(name)
        _leave(dpath)
        env = {"SAEPUB_BUILD": dpath, "CATALOG": dpath / "catalog.json"}
        cost = measure([ROOT / "bin/report", "big"], **env)
        size = (dpath / "report.html").stat().st_size
        rows.append(("write the page", f"{cost.wall:.1f} s, {size / MB:.1f} MB", ""))
        argv = ["-c", PLOT, dpath / "big/account.jsonl", dpath / "plot.png"]
        cost = measure([sys.executable, *argv], PYTHONPATH=ROOT / "py")
        size = (dpath / "plot.png").stat().st_size
        rows.append(("draw the plot", f"{cost.wall:.1f} s, {size / MB:.2f} MB", ""))
        rows += _look(dpath / "report.html", dpath / "profile")
    title = f"The page and the plot of {len(LAYERS)} layers of {N_RUNS} runs"
    table(title, rows, ("what", "seen", "goal"))


def _look(
    fpath: pathlib.Path, profile_dpath: pathlib.Path
) -> list[tuple[str, str, str]]:
    """The cost of opening the page in Chromium and panning through it."""
    from selenium import webdriver

    if not shutil.which("chromedriver"):
        return [("open, pan", "no Chromium here", "")]
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={profile_dpath}")
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.set_window_size(1280, 800)
        # CPU of the page's own thread, so that other work on the machine doesn't count.
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        browser.get("about:blank")
        before = _cpu(browser)
        browser.get(fpath.as_uri())
        opened = _cpu(browser)
        loaded = browser.execute_script(
            "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        )
        browser.set_script_timeout(120)
        frames = browser.execute_async_script(PAN)
        panned = _cpu(browser)
    finally:
        browser.quit()
    n_slow = sum(frame > 50 for frame in frames)
    return [
        ("open it", f"{loaded / 1000:.1f} s", "2 s"),
        ("… CPU of its thread", f"{opened - before:.1f} s", ""),
        ("pan through it", f"{n_slow} of {len(frames)} frames over 50 ms", "1 in 20"),
        (
            "… CPU of its thread, per frame",
            f"{1000 * (panned - opened) / len(frames):.0f} ms",
            "16 ms",
        ),
    ]


def _cpu(browser: tp.Any) -> float:
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "TaskDuration")


def _leave(dpath: pathlib.Path) -> None:
    """Leave what a dry run of such a sweep leaves, by the real select."""
    rnd = random.Random(0)
    (dpath / "big").mkdir()
    repo = {
        "slug": "big",
        "repo_id": "lab/SAE",
        "title": "SAE",
        "base_model": "lab/vit",
    }
    repo |= {"run_ids": {}, "layers": list(LAYERS)}
    repo |= {"objective": "matryoshka", "activation": "relu", "d_model": 8, "d_sae": 32}
    (dpath / "catalog.json").write_text(json.dumps({"repos": [repo]}))
    with open(dpath / "lines.jsonl", "w") as fd:
        for layer in LAYERS:
            for i in range(N_RUNS):
                fd.write(json.dumps(_line(layer, i, rnd)) + "\n")
    with open(dpath / "lines.jsonl") as lines, open(dpath / "chosen.jsonl", "w") as out:
        argv = [ROOT / "bin/select", "--account", dpath / "big/account.jsonl"]
        measure(argv, stdin=lines, stdout=out)
    with open(dpath / "big/rendered.jsonl", "w") as fd:
        for text in (dpath / "chosen.jsonl").read_text().splitlines():
            more = {"bytes": 134 * MB, "loader": "saev", "warnings": []}
            fd.write(json.dumps(json.loads(text) | more) + "\n")
    os.unlink(dpath / "lines.jsonl")


def _line(layer: int, i: int, rnd: random.Random) -> dict[str, tp.Any]:
    run_id, l0 = f"run{layer:02d}{i:04d}", 10 ** rnd.uniform(0.5, 3)
    nmse = 0.9 * l0**-0.3 * (1 + abs(rnd.gauss(0, 0.12)))
    line = {"repo": "big", "layer": layer, "run_id": run_id, "l0": l0, "nmse": nmse}
    line |= {"l0_logged": l0, "nmse_logged": nmse, "numbers": "wandb", "n_tokens": None}
    line |= {"created_at": "2025-12-01T00:00:00Z", "aux": None, "drop": None}
    return line | {"wandb_url": f"https://wandb.ai/lab/saev/runs/{run_id}"}
