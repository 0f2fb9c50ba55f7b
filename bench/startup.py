"""How long each stage takes to start and find nothing to do; make, with nothing to redo; and make
with several repos at once."""

import subprocess
import sys
import tempfile

from .measure import ROOT, best, measure, table

STAGES = ("facts", "classify", "settle", "select", "stage", "fetch-metrics")
STAGES += ("preflight", "render", "push", "verify")


def startup() -> None:
    subprocess.run(["make", "demo"], cwd=ROOT, check=True, capture_output=True)
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


def repos() -> None:
    """A dry run of the demo's four repos, one after another and several at once."""
    costs = {}
    for jobs in ("-j1", "-j4"):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
            env = {"SAEPUB_BUILD": f"{name}/build"}
            measure(["make", "demo"], **env)
            costs[jobs] = measure(["make", jobs, "dry-run"], **env)
    rows = [
        (f"make {jobs} dry-run", f"{cost.wall:.1f} s", f"{cost.cpu:.1f} s")
        for jobs, cost in costs.items()
    ]
    table("Four repos", rows, ("command", "wall", "CPU"))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
