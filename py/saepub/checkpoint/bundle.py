"""check.npz: the probes of a repo's checkpoints in one small file, which is published.

layer_<N>/x                    activations, (n, d_model), float32
layer_<N>/<run_id>/features    indices of the strongest features of each, (n, k), int64
layer_<N>/<run_id>/values      their values, float32
layer_<N>/<run_id>/x_hat       the reconstructions, (n, d_model), float32; only the first
                               dimensions if all of them would make the file too large
"""

import os

import numpy as np

from ..cli import UserError
from ..files import write_aside
from .probe import Probe

N_TOKENS = 4
"""The most activations per layer."""
MAX_BYTES = 2_000_000
ARRAY_BYTES = 600
"""The most that .npy and zip headers add to an array's values."""

Key = tuple[int, str]
"""Layer and run id."""


def write(fpath: str | os.PathLike[str], probes: dict[Key, Probe]) -> None:
    """Write check.npz. The same probes give the same bytes.

    Args:
        probes: By layer and run id. All probes of a layer have the same activations.
    """
    n, n_dims = _fit(probes)
    arrays = {}
    for layer in sorted({layer for layer, _ in probes}):
        of_layer = {key: probe for key, probe in probes.items() if key[0] == layer}
        x = next(iter(of_layer.values())).x
        assert all(np.array_equal(p.x, x) for p in of_layer.values()), layer
        tokens = _steadiest([probe.margin for probe in of_layer.values()], n)
        arrays[f"layer_{layer}/x"] = x[tokens]
        for (_, run_id), probe in sorted(of_layer.items()):
            name = f"layer_{layer}/{run_id}"
            arrays[f"{name}/features"] = probe.features[tokens].astype(np.int64)
            arrays[f"{name}/values"] = probe.values[tokens]
            arrays[f"{name}/x_hat"] = probe.x_hat[tokens, :n_dims]
    with write_aside(fpath, "wb") as fd:
        np.savez(fd, **arrays)


def n_tokens(probes: dict[Key, Probe]) -> int:
    """How many activations per layer check.npz has for these probes."""
    return _fit(probes)[0]


def _fit(probes: dict[Key, Probe]) -> tuple[int, int]:
    """How many tokens per layer, and how many dimensions of a reconstruction, fit."""
    d_model = next(iter(probes.values())).x.shape[1]
    n_layers = len({layer for layer, _ in probes})
    n_small = sum(probe.features[0].size * 12 for probe in probes.values())
    n_free = MAX_BYTES - ARRAY_BYTES * (n_layers + 3 * len(probes))
    n_token = 4 * d_model * (n_layers + len(probes)) + n_small
    if n := min(N_TOKENS, n_free // n_token):
        return n, d_model
    n_dims = (n_free - n_small - 4 * d_model * n_layers) // (4 * len(probes))
    return 1, max(1, n_dims)


def _steadiest(margins: list[np.ndarray], n: int) -> np.ndarray:
    """The n tokens, in order, whose firing features rounding is least likely to change."""
    least = np.stack(margins).min(axis=0)
    return np.sort(np.argsort(-least, kind="stable")[:n])


def read(fpath: str | os.PathLike[str], layer: int, run_id: str) -> Probe:
    """The probe of one checkpoint.

    Raises:
        UserError: There is none, or the file is not a check.npz.
    """
    try:
        with np.load(fpath, allow_pickle=False) as arrays:
            names = ("features", "values", "x_hat")
            own = {name: arrays[f"layer_{layer}/{run_id}/{name}"] for name in names}
            x = arrays[f"layer_{layer}/x"]
    except (OSError, ValueError, KeyError, EOFError) as err:
        why = getattr(err, "strerror", None) or err
        raise UserError(f"check.npz has nothing for {run_id}: {why}") from None
    return Probe(x, **own, margin=np.full(len(x), np.inf, np.float32))
