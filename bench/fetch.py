"""Fetch 223 runs from a loopback W&B at 100 ms per request: one paged query, or one per run."""

import json
import sys
import tempfile

from loopback_wandb import LoopbackWandb

from .measure import ROOT, measure, table

N_RUNS, LATENCY_S = 223, 0.1
EXPECTED = {"objective": "matryoshka", "activation": "relu", "d_model": 8, "d_sae": 32}

ONE_BY_ONE = """
import json, sys, wandb
api = wandb.Api(overrides={"base_url": sys.argv[1]})
for line in sys.stdin:
    run = api.run("samuelstevens/saev/" + json.loads(line)["run_id"])
    run.config, run.summary.get("eval/l0")
"""


def fetch() -> None:
    names = [f"run{i:05d}" for i in range(N_RUNS)]
    runs = [_run(name) for name in names]
    rows = []
    with tempfile.TemporaryFile() as fd:
        for name in names:
            line = {"repo": "r", "layer": 6, "run_id": name, "source": "x:1"}
            line |= {"commented": False, "expected": EXPECTED}
            fd.write(json.dumps(line).encode() + b"\n")
        for what, argv in (
            ("one api.run() per run", [sys.executable, "-c", ONE_BY_ONE]),
            ("bin/fetch-metrics", [ROOT / "bin/fetch-metrics"]),
        ):
            with LoopbackWandb(runs, latency=LATENCY_S) as server:
                fd.seek(0)
                env = {
                    "WANDB_BASE_URL": server.url,
                    "WANDB_API_KEY": server.key,
                    "CATALOG": ROOT / "catalog.json",
                    "WANDB_ENTITY": server.entity,
                    "WANDB_PROJECT": server.project,
                    "METRICS_SNAPSHOT": "",
                    "WANDB_SILENT": "true",
                }
                argv = [*argv, server.url] if "-c" in argv else argv
                cost = measure(argv, stdin=fd, **env)
                rows.append((what, server.n_requests.total(), cost.wall))
    plain = rows[0][2]
    table(
        f"Fetch {N_RUNS} runs, {LATENCY_S * 1000:.0f} ms per request",
        [(w, n, f"{s:.2f} s", f"{plain / s:.1f} ×") for w, n, s in rows],
        ("way", "GraphQL requests", "wall", "faster"),
    )


def _run(name: str) -> dict:
    config = {
        "sae": {"d_model": 8, "d_sae": 32, "activation": {"key": "relu"}},
        "objective": {"n_prefixes": 10},
        "train_data": {"layer": 6},
    }
    return {
        "name": name,
        "state": "finished",
        "createdAt": "2025-12-01T00:00:00Z",
        "config": config,
        "summary": {"eval/l0": 10.0, "eval/normalized_mse": 0.1, "blob": "x" * 20_000},
    }
