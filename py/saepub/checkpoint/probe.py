"""A probe: what an SAE computes from a few activations.

It is published beside the checkpoint, so that anyone who loads the file, with any loader, can
check that it computes what was measured.
"""

import contextlib
import dataclasses
import os
import pathlib
import typing as tp

import numpy as np

from ..cli import UserError
from ..files import write_aside
from ..kinds import LARGEST, THRESHOLD
from .sae import Sae

N_TOKENS = 8
"""How many activations an SAE is run on; those least sensitive to rounding are published."""
N_FEATURES = 8
"""How many of the strongest features are recorded for each, at most."""
SEED = 0
TOLERANCE = 1e-4
"""How far values may be from the probe's, relative to the largest: float32 on any machine."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What an SAE computes from n activations, in eval mode. Arrays of float32 and int32."""

    x: np.ndarray
    """The activations, (n, d_model)."""
    features: np.ndarray
    """Indices of the features with the largest values, strongest first, (n, N_FEATURES)."""
    values: np.ndarray
    """Their values."""
    x_hat: np.ndarray
    """The reconstruction from all features, (n, d_model)."""
    margin: np.ndarray
    """How far the pre-activations are from changing which features fire, (n,), relative to the
    largest. Infinite for ReLU, where a feature on the edge has a value near 0."""


def inputs_fpath(dpath: str | os.PathLike[str], layer: int) -> pathlib.Path:
    """Where `inputs` looks for a layer's activations."""
    return pathlib.Path(dpath) / f"layer_{layer}.npy"


def write_inputs(dpath: str | os.PathLike[str], layer: int, x: np.ndarray) -> None:
    """Store a layer's activations where `inputs` looks, unless they are there already."""
    with contextlib.suppress(OSError, ValueError):
        if np.array_equal(np.load(inputs_fpath(dpath, layer), allow_pickle=False), x):
            return
    with write_aside(inputs_fpath(dpath, layer), "wb") as fd:
        np.save(fd, x)


def inputs(dpath: str | os.PathLike[str], layer: int, d_model: int) -> np.ndarray:
    """A layer's real activations if `dpath` has layer_<N>.npy, else random ones."""
    fpath = inputs_fpath(dpath, layer)
    if not fpath.exists():
        return random_inputs(d_model)
    x = np.load(fpath, allow_pickle=False)
    return x if x.shape[1:] == (d_model,) else random_inputs(d_model)


def random_inputs(d_model: int) -> np.ndarray:
    """The same activations every time, (N_TOKENS, d_model), float32, standard normal."""
    # The legacy generator, because numpy promises not to change its stream.
    rng = np.random.RandomState(SEED)
    return rng.standard_normal((N_TOKENS, d_model)).astype(np.float32)


def is_random(x: np.ndarray) -> bool:
    """Whether activations are from `random_inputs`."""
    return np.array_equal(x, random_inputs(x.shape[1]))


class Computed(tp.NamedTuple):
    """What an SAE computes from x, in float64, so that it agrees to the last bit of float32 on
    every machine. Tensors of shape (n, d_sae), (n, d_sae) and (n, d_model)."""

    h_x: tp.Any
    f_x: tp.Any
    x_hat: tp.Any


def compute(sae: Sae, x: np.ndarray, *, subtract_b_dec: bool = False) -> Computed:
    """What an SAE computes from activations x, (n, d_model), float32."""
    import torch

    with torch.no_grad():
        x64 = torch.from_numpy(x).double()
        h_x = sae.pre_activation(x64, subtract_b_dec=subtract_b_dec)
        f_x = sae.activate(h_x)
        return Computed(h_x, f_x, sae.decode(f_x))


def of(sae: Sae, x: np.ndarray, computed: Computed | None = None) -> Probe:
    """Probe an SAE on activations x, (n, d_model), float32."""
    h_x, f_x, x_hat = computed or compute(sae, x)
    values, at = f_x.topk(min(N_FEATURES, f_x.shape[1]), dim=1)
    margin = _margin(sae, h_x) / h_x.abs().amax(dim=1).clamp(min=1e-30)
    return Probe(
        x,
        at.numpy().astype(np.int32),
        values.numpy().astype(np.float32),
        x_hat.numpy().astype(np.float32),
        margin.numpy().astype(np.float32),
    )


def _margin(sae: Sae, h_x: tp.Any) -> tp.Any:
    """The change in h_x that would change which features fire, (n,)."""
    import torch

    k = sae.header.top_k or 0
    if sae.header.rule == LARGEST and k < h_x.shape[1]:
        edge = h_x.topk(k + 1, dim=1).values
        return edge[:, -2] - edge[:, -1]
    if sae.header.rule == THRESHOLD and sae.cut(h_x) > 0:
        return (h_x - sae.cut(h_x)).abs().amin(dim=1)
    return torch.full((len(h_x),), torch.inf, dtype=torch.float64)


def difference(probe: Probe, f_x: tp.Any, x_hat: tp.Any) -> str:
    """How a loaded SAE's results on the probe's x differ from the probe's; "" if they agree.

    Args:
        f_x: Features, (n, d_sae), a tensor.
        x_hat: Reconstructions, (n, d_model), a tensor.
    """
    at = np.take_along_axis(f_x.numpy(), probe.features.astype(np.int64), axis=1)
    for what, found, expected in (
        ("features", at, probe.values),
        ("reconstructions", x_hat.numpy()[:, : probe.x_hat.shape[1]], probe.x_hat),
    ):
        off = np.abs(found - expected).max(initial=0)
        off /= np.abs(expected).max(initial=1e-30)
        if not off <= TOLERANCE:  # NaN is not
            return f"different {what} than published, off by {off:.2g} of the largest"
    return ""


def write(probe: Probe, sha256: str, fpath: str | os.PathLike[str]) -> None:
    """Write the probe of the checkpoint with that sha256 to a file."""
    with write_aside(fpath, "wb") as fd:
        np.savez(fd, sha256=np.array(sha256), **vars(probe))


def read(fpath: str | os.PathLike[str], sha256: str) -> Probe:
    """The probe of the checkpoint with that sha256, from `write`.

    Raises:
        UserError: It is missing, or belongs to another checkpoint.
    """
    try:
        with np.load(fpath, allow_pickle=False) as arrays:
            found = dict(arrays)
        if str(found.pop("sha256")) != sha256:
            raise ValueError("of another checkpoint")
        return Probe(**found)
    except (OSError, ValueError, TypeError, KeyError, EOFError) as err:
        why = getattr(err, "strerror", None) or err
        raise UserError(
            f"{fpath}: not the probe of this run's checkpoint: {why}"
        ) from None
