"""How long each stage takes to start and find nothing to do; and make, with nothing to redo."""

import subprocess
import sys

from .measure import ROOT, best, table

STAGES = ("facts", "classify", "settle", "select", "stage", "fetch-metrics")
STAGES += ("preflight", "render", "push", "verify")


def startup() -> None:
    python = best([sys.executable, "-c", "import json"])
    jq = best(["jq", "-n", "1"])
    rows = [("python3 -c 'import json'", _ms(python), "1.0"), ("jq -n 1", _ms(jq), "")]
    for name in STAGES:
        seconds = best([ROOT / "bin" / name])
        rows.append(
            (f"bin/{name} < /dev/null", _ms(seconds), f"{seconds / python:.1f}")
        )
    table("Start-up, on empty input", rows, ("program", "best of 10", "times python3"))


def noop() -> None:
    subprocess.run(["make", "dry-run"], cwd=ROOT, check=True, capture_output=True)
    rows = []
    for argv, goal in (
        (["make", "dry-run"], 500),
        (["make", "dry-run", "REPO=vitl-topk"], 300),
    ):
        seconds = best(argv)
        rows.append(
            (" ".join(argv), _ms(seconds), f"{goal} ms", f"{seconds * 1000 / goal:.3f}")
        )
    table("Nothing changed", rows, ("command", "best of 10", "goal", "of the goal"))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
