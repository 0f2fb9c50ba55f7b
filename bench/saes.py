"""What measuring SAEs costs, compared with the two matrix products that it can't do without."""

import json
import statistics
import sys
import time

from .measure import MB, ROOT, measure, table

D_SAE, N_TOKENS = 16384, 4096
CANDIDATES = {384: 58, 768: 64, 1024: 65 + 36}
"""How many runs the catalog's sweeps list, by d_model."""
N_LAYERS = {384: 6, 768: 6, 1024: 6}
"""Layers to read; the two repos of ViT-L share theirs."""
FULL = 2**20
GPU_FLOPS, GPU = 4.5e13, "one H100, worked out at 45 TFLOP/s of float32"

PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
import bench.saes as bench
from saepub.activations import measure
import numpy as np
saes = [(bench.sae("relu", 1024, 64, i), False) for i in range(int(sys.argv[2]))]
x = np.arange(4096, dtype=np.float32)[:, None] * np.ones((4096, 1024), np.float32)
measure.measure(saes, [x])
"""


def saes() -> None:
    import numpy as np
    import torch

    from saepub.activations import measure as engine

    rows, rate = [], {}
    for d_model in CANDIDATES:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N_TOKENS, d_model)).astype(np.float32)
        for activation, l0 in (("relu", 64), ("relu", 2048), ("top-k", 64)):
            one = sae(activation, d_model, l0)
            plain, ours = [], []
            for _ in range(3):
                plain.append(_seconds(lambda: _products(torch.from_numpy(x), one)))  # noqa: B023
                ours.append(_seconds(lambda: engine.measure([(one, False)], [x])))  # noqa: B023
            (wall_plain, cpu_plain), (wall, cpu) = map(_best, (plain, ours))
            ratio = cpu_plain / cpu
            n_flops = 4 * d_model * D_SAE * N_TOKENS
            if activation == "relu" and l0 == 64:
                rate[d_model] = n_flops / wall
            rows.append(
                (
                    d_model,
                    f"{activation}, L0 {l0}",
                    f"{wall_plain:.2f} s",
                    f"{wall:.2f} s",
                    f"{cpu_plain:.2f} s",
                    f"{cpu:.2f} s",
                    f"{ratio:.2f}",
                    f"{ratio / 0.8:.2f}",
                )
            )
    title = f"Measuring one SAE of {D_SAE} features on {N_TOKENS} tokens"
    head = ("d_model", "SAE", "torch.matmul", "measure", "torch.matmul, CPU")
    head += ("measure, CPU", "ratio of CPU", "of the goal, 0.8")
    table(title, rows, head)
    _all_candidates(rate, torch.get_num_threads())
    _memory(engine)


def _all_candidates(rate: dict[int, float], n_threads: int) -> None:
    """All candidates at full size, calculated from what was measured here."""
    n_flops = {d: 4 * d * D_SAE * FULL * n for d, n in CANDIDATES.items()}
    n_bytes = sum(4 * d * FULL * N_LAYERS[d] for d in CANDIDATES)
    here = sum(n_flops[d] / rate[d] for d in CANDIDATES)
    of_16 = here * n_threads / 16
    gpu = sum(n_flops.values()) / GPU_FLOPS
    rows = [
        (f"{n_threads} cores, this machine", _hours(here)),
        ("16 cores, worked out at the same speed per core", _hours(of_16)),
        ("an array of 16 nodes of 16 cores, worked out", _hours(of_16 / 16)),
        (GPU, _hours(gpu)),
        (f"reading {n_bytes / 1e9:.0f} GB at 1 GB/s, meanwhile", _hours(n_bytes / 1e9)),
    ]
    n = sum(CANDIDATES.values())
    table(f"All {n} candidates on {FULL:,} tokens", rows, ("where", "takes"))


def _memory(engine) -> None:
    """A pass's peak memory, next to what is requested for it."""
    rows = []
    for n_saes in (1, 8):
        cost = measure([sys.executable, "-c", PEAK, ROOT, n_saes])
        n_bytes = 8 * 1024 * D_SAE
        asked = engine.memory_bytes(n_saes, n_bytes, 1024, D_SAE)
        rows.append(
            (
                n_saes,
                f"{cost.rss / MB:.0f} MB",
                f"{asked / MB:.0f} MB",
                f"{cost.rss / asked:.2f}",
            )
        )
    head = ("SAEs in a pass", "peak memory", "requested", "of that")
    table("Memory of a pass, d_model 1024", rows, head)


def sae(activation: str, d_model: int, l0: int, seed: int = 0):
    """A random SAE with `l0` features that fire for a token of standard normal values."""
    import torch

    from saepub.checkpoint import header
    from saepub.checkpoint.sae import Sae

    cls, params = ("TopK", {"top_k": l0}) if activation == "top-k" else ("Relu", {})
    cfg = {"d_model": d_model, "d_sae": D_SAE}
    cfg |= {"activation": {"cls": cls, "params": params}}
    head = header.parse(json.dumps({"schema": 4, "cfg": cfg}).encode())
    rng = torch.Generator().manual_seed(seed)
    bias = statistics.NormalDist().inv_cdf(l0 / D_SAE)
    tensors = {
        # A transposed view, as in a checkpoint.
        "W_enc": torch.randn(D_SAE, d_model, generator=rng).T / d_model**0.5,
        "b_enc": torch.full((D_SAE,), bias),
        "W_dec": torch.randn(D_SAE, d_model, generator=rng) / d_model**0.5,
        "b_dec": torch.zeros(d_model),
    }
    return Sae(head, tensors)


def _products(x, one) -> None:
    import torch

    with torch.inference_mode():
        for batch in x.split(1024):
            h_x = torch.matmul(batch, one.tensors["W_enc"])
            torch.matmul(h_x, one.tensors["W_dec"])


def _seconds(do) -> tuple[float, float]:
    """Wall and CPU seconds; CPU depends less on other work on the machine."""
    start, cpu = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - start, time.process_time() - cpu


def _best(costs: list[tuple[float, float]]) -> tuple[float, float]:
    walls, cpus = zip(*costs, strict=True)
    return min(walls), min(cpus)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
