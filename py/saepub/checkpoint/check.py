"""Whether a checkpoint is what it claims: it loads as its bytes say, and computes the same."""

import math
import pathlib
import typing as tp

import numpy as np

from .. import checkpoint
from ..cli import UserError
from ..text import one_line
from . import probe as checkpoint_probe
from . import saev as saev_loader
from .probe import Computed, Probe
from .sae import Sae

TOLERANCE = 1e-5
"""How far two computations of one SAE may lie apart, relative to the largest value."""

FLOAT32_MAX = 3.4028234e38

UNIT_NORM_TOLERANCE = 1e-3
BUILTIN = "builtin"


class Loaded(tp.NamedTuple):
    """A checkpoint that was loaded, and what it computes from some activations."""

    loader: str
    source: saev_loader.Source
    warnings: list[str]
    probe: Probe
    f_x: tp.Any
    x_hat: tp.Any


def check_file(
    fpath: str | pathlib.Path, loader: str, probe: Probe | None = None
) -> None:
    """Check a checkpoint by itself, as one that was downloaded.

    Args:
        fpath: The file.
        loader: A line's, from when it was first checked. What saev loaded then must load
            with the saev at hand; what only the built-in reader read, may.
        probe: What it must compute, where that is known.

    Raises:
        UserError: It is not whole, or does not load as its bytes or its probe say.
    """
    with checkpoint.File(fpath) as file:
        file.read()
        x = probe.x if probe else checkpoint_probe.random_inputs(file.header.d_model)
        loaded = check_weights(file, x)
    if probe and (odds := checkpoint_probe.difference(probe, loaded.f_x, loaded.x_hat)):
        raise UserError(f"{fpath}: it computes {odds}")
    if loaded.loader == BUILTIN != loader:
        label = saev_loader.at_hand().label
        raise UserError(
            f"{fpath}: {loader} loaded it, and {label} does not; set SAEV_DIR as it was then"
        )


def check_weights(file: checkpoint.File, x: np.ndarray) -> Loaded:
    """Load a file that was read, with the loader that it loads with, and run it on x.

    Raises:
        UserError: It does not load, or not as what it holds.
    """
    saev = saev_loader.at_hand()
    why_not = saev.why_not(file.header)
    if not why_not:
        return _check_loaded(file, saev, x)
    sae = file.sae()
    own = _compute(file, sae, x)
    warnings = weight_warnings(sae)
    if saev.is_checkout:
        warnings.append(f"saev.nn.load() does not read it: {why_not}")
    probe = checkpoint_probe.of(sae, x, own)
    return Loaded(BUILTIN, saev_loader.Source(), warnings, probe, own.f_x, own.x_hat)


def _check_loaded(
    file: checkpoint.File, saev: saev_loader.Saev, x: np.ndarray
) -> Loaded:
    """Load a file with saev, and hold what comes back against the file's own bytes.

    Raises:
        UserError: It is not what the file holds, or saev computes something else.
    """
    import torch

    try:
        model = saev.load(file.loader_fpath())
    except UserError as err:
        raise UserError(f"{file.fpath}: {err}") from None
    state = model.state_dict()
    for name in sorted(state.keys() ^ file.stored.keys()):
        whose = f"{saev.label} makes up" if name in state else f"{saev.label} loses"
        raise UserError(f"{file.fpath}: {whose} the tensor {one_line(name)}")
    odds = [file.difference(name, state[name]) for name in file.stored]
    if any(odds):
        told = "; ".join(filter(None, odds))
        raise UserError(f"{file.fpath}: {saev.label} loads other values: {told}")
    # Bit for bit the file's own by now, so one copy serves both.
    sae = Sae(file.header, state)
    own = _compute(file, sae, x)
    try:
        f_x, x_hat, subtracts_b_dec = saev.run(model, torch.from_numpy(x))
    except Exception as err:  # noqa: BLE001, it is not our code
        why = one_line(f"{type(err).__name__}: {err}")
        raise UserError(f"{file.fpath}: {saev.label} can't run it: {why}") from None
    expected = own
    if subtracts_b_dec and state["b_dec"].any():
        expected = _compute(file, sae, x, subtract_b_dec=True)
    off_f, off_x = _off_features(sae, expected, f_x), _off(x_hat, expected.x_hat)
    if off_x > TOLERANCE and f_x.shape == expected.f_x.shape:
        # A feature within rounding of firing fires in one of the two.
        off_x = _off(x_hat, sae.decode(f_x.double()))
    for what, off in (("other features", off_f), ("another reconstruction", off_x)):
        if not off <= TOLERANCE:  # NaN is not
            raise UserError(
                f"{file.fpath}: {saev.label} computes {what} than the built-in"
                f" reader, off by {off:.2g} of the largest"
            )
    probe = checkpoint_probe.of(sae, x, own)
    warnings = weight_warnings(sae)
    return Loaded(saev.label, saev.source, warnings, probe, f_x, x_hat)


def _compute(
    file: checkpoint.File, sae: Sae, x: np.ndarray, *, subtract_b_dec: bool = False
) -> Computed:
    """What the SAE computes from x by the built-in reader.

    Raises:
        UserError: Its weights are finite, and what it computes is not.
    """
    own = checkpoint_probe.compute(sae, x, subtract_b_dec=subtract_b_dec)
    if not (own.x_hat.abs() <= FLOAT32_MAX).all():  # NaN is not
        raise UserError(f"{file.fpath}: what it computes is not finite")
    return own


def _off(found: tp.Any, own: tp.Any) -> float:
    """The largest difference, relative to the largest value."""
    if found.shape != own.shape:
        return math.inf
    return float((found - own).abs().max() / own.abs().max().clamp(min=1e-30))


def _off_features(sae: Sae, own: Computed, f_x: tp.Any) -> float:
    """`_off` of features, where one that is within rounding of firing may or may not."""
    import torch

    if f_x.shape != own.f_x.shape:
        return math.inf
    scale = own.h_x.abs().max().clamp(min=1e-30)
    off = (f_x - own.f_x).abs()
    if not off.max() <= TOLERANCE * scale:
        either = torch.minimum(f_x.abs(), (f_x - own.h_x).abs())
        is_near = (own.h_x - sae.cut(own.h_x)).abs() <= TOLERANCE * scale
        off = torch.where(is_near, either, off)
    return float(off.max() / scale)


def weight_warnings(sae: Sae) -> list[str]:
    """What is odd about the weights, though nothing forbids it."""
    import torch

    found = []
    if sae.header.normalize_w_dec:
        norms = torch.linalg.vector_norm(sae.tensors["W_dec"], dim=1)
        off = (norms - 1).abs()
        n_off = int((off > UNIT_NORM_TOLERANCE).sum())
        if n_off:
            found.append(
                f"{n_off} of {sae.header.d_sae} decoder rows are not of unit norm"
                f" (one is {norms[off.argmax()].item():.4g})"
            )
    encoder = sae.tensors["W_enc"].T
    # A row first: to compare all of them takes as long as to hash them.
    if all(torch.equal(encoder[i], sae.tensors["W_dec"][i]) for i in (0, slice(None))):
        found.append(
            "W_enc is W_dec transposed, as a faulty saev loader leaves them on saving again"
        )
    if sae.header.subtracts_b_dec and sae.tensors["b_dec"].any():
        found.append(
            "trained with b_dec taken from x first, which today's saev doesn't do: it does"
            " not compute what training logged"
        )
    return found
