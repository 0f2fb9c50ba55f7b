"""Estimates how long measuring takes here, to help people decide whether to start."""

import importlib.metadata
import os
import time
import typing as tp

import numpy as np

from .. import settings
from ..jsonl import Line

GPU_FLOPS = 2e13
"""A conservative rate for current GPUs in float32, without TF32, per second. An H200 has 5e13."""

READ_BYTES = 3e8
"""A conservative rate for a shared disk, reading about a MB at a time, in bytes per second."""

LOAD_S = 5.0
"""The time to import torch and read the first SAE."""

GPU_FPATH = "/dev/nvidiactl"
"""Exists if NVIDIA's driver is loaded."""


def has_gpu() -> bool:
    """Whether there is a GPU here, which torch may or may not be able to use."""
    return os.path.exists(GPU_FPATH)


def uses_gpu() -> bool:
    """Whether torch will probably use one. Asking torch itself would take seconds."""
    return has_gpu() and not importlib.metadata.version("torch").endswith("+cpu")


def seconds(
    widths: tp.Sequence[tuple[int, int]], n_tokens: int, n_layers: int
) -> float:
    """How long measuring SAEs takes on this machine.

    Args:
        widths: d_model and d_sae of each SAE; at least one.
        n_tokens: How many tokens each is measured on.
        n_layers: How many layers of activations must be read.
    """
    rate = GPU_FLOPS if uses_gpu() else cpu_flops()
    # Two matrix products, each with a multiplication and an addition per weight.
    n_flops = sum(4 * d_model * d_sae for d_model, d_sae in widths) * n_tokens
    n_bytes = 4 * max(d_model for d_model, _ in widths) * n_tokens * n_layers
    n_bytes += sum(8 * d_model * d_sae for d_model, d_sae in widths)
    return LOAD_S + max(n_flops / rate, n_bytes / READ_BYTES)


def of(lines: list[Line]) -> str:
    """How long measuring the runs of some lines takes here, as text."""
    expected = [line.get("expected") or {} for line in lines]
    widths = [
        (x["d_model"], x["d_sae"]) for x in expected if {"d_model", "d_sae"} <= x.keys()
    ]
    n_layers = len({line["layer"] for line in lines})
    n_tokens = settings.number("TOKENS") or 0
    return duration(seconds(widths, n_tokens, n_layers)) if widths else ""


def cpu_flops() -> float:
    """The speed of the cores that this process may use, from a short benchmark."""
    rng = np.random.default_rng(0)
    x = rng.random((512, 512), np.float32)
    w = rng.random((512, 2048), np.float32)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        x @ w
        best = max(best, 2 * 512 * 512 * 2048 / (time.perf_counter() - start))
    return best


def duration(n_seconds: float) -> str:
    """A rough duration as text: "5 s", "40 s", "12 min", "3.5 h"."""
    if n_seconds < 90:
        return f"{max(1, round(n_seconds, -1 if n_seconds > 20 else 0)):.0f} s"
    if n_seconds < 5400:
        return f"{n_seconds / 60:.0f} min"
    return f"{n_seconds / 3600:.2g} h"
