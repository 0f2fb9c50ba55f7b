"""About how long it takes here to measure SAEs: for a person who decides whether to start."""

import os
import time
import typing as tp

import numpy as np

from .. import settings
from ..jsonl import Line

GPU_FLOPS = 2e13
"""What a GPU of these years does a second in float32, without TF32, for certain."""

READ_BYTES = 3e8
"""What a shared disk gives a second, for certain, in pieces of a MB."""

LOAD_S = 5.0
"""Importing torch, and reading the first SAE."""

GPU_FPATH = "/dev/nvidiactl"
"""There where a driver of NVIDIA's is: to ask torch would take seconds."""


def seconds(
    widths: tp.Iterable[tuple[int, int]], n_tokens: int, n_layers: int = 1
) -> float:
    """How long it takes to measure SAEs on this machine.

    Args:
        widths: d_model and d_sae of each SAE.
        n_tokens: Tokens that each is measured on.
        n_layers: How many layers' activations must be read.
    """
    shapes = list(widths)
    if not shapes:
        return 0.0
    rate = GPU_FLOPS if os.path.exists(GPU_FPATH) else cpu_flops()
    # Two products, each with a multiplication and an addition a weight.
    n_flops = sum(4 * d_model * d_sae for d_model, d_sae in shapes) * n_tokens
    d_model = max(d for d, _ in shapes)
    n_bytes = 4 * d_model * n_tokens * n_layers
    n_bytes_saes = sum(8 * d_model * d_sae for d_model, d_sae in shapes)
    reading = n_bytes / READ_BYTES + n_bytes_saes / READ_BYTES
    return LOAD_S + max(n_flops / rate, reading)


def of(lines: list[Line]) -> str:
    """How long it takes here to measure the runs of some lines, for people."""
    expected = [line.get("expected") or {} for line in lines]
    widths = [
        (x["d_model"], x["d_sae"]) for x in expected if {"d_model", "d_sae"} <= x.keys()
    ]
    n_layers = len({line["layer"] for line in lines})
    n_tokens = settings.number("TOKENS") or 0
    return duration(seconds(widths, n_tokens, n_layers)) if widths else ""


def cpu_flops() -> float:
    """What the cores that this process may use do a second, tried out for a moment."""
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
    """A time for people, roughly: "5 s", "40 s", "12 min", "3.5 h"."""
    if n_seconds < 90:
        return f"{max(1, round(n_seconds, -1 if n_seconds > 20 else 0)):.0f} s"
    if n_seconds < 5400:
        return f"{n_seconds / 60:.0f} min"
    return f"{n_seconds / 3600:.2g} h"
