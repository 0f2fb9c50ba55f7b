"""Checks that a checkpoint loads with the values in its bytes, and computes from them."""

import functools
import math
import pathlib
import typing as tp

import numpy as np

from .. import checkpoint, machine
from ..cli import UserError
from ..jsonl import BUILTIN
from ..text import one_line
from . import probe as checkpoint_probe
from . import saev as saev_loader
from .probe import Computed, Probe
from .sae import Sae

TOLERANCE = 1e-5
"""How far two computations of one SAE may differ, relative to the largest value."""

FLOAT32_MAX = 3.4028234e38

COPIES = 4
"""Copies of a file in memory while it is checked: ours, and saev's bytes, tensors and model."""

UNIT_NORM_TOLERANCE = 1e-3


class Loaded(tp.NamedTuple):
    """A loaded checkpoint, and what it computes from some activations."""

    loader: str
    source: saev_loader.Source
    warnings: list[str]
    probe: Probe
    f_x: tp.Any
    x_hat: tp.Any


@functools.cache
def prepare() -> None:
    """Prepare this process for checking one file after another, on one thread.

    Most of the time goes into hashing and copying. In the products of a few activations,
    threads would wait for each other, on a busy machine for seconds.
    """
    machine.keep_freed_memory()
    import torch

    torch.set_num_threads(1)


def check_file(
    fpath: str | pathlib.Path, loader: str, probe: Probe | None = None
) -> None:
    """Check a checkpoint by itself, such as a downloaded one.

    Args:
        loader: The line's `loader`, from preflight. If saev loaded it then, the available saev
            must load it too.
        probe: What it must compute, if known.

    Raises:
        UserError: It is damaged, or doesn't match its bytes or its probe when loaded.
    """
    prepare()
    with checkpoint.File(fpath) as file:
        file.read()
        x = probe.x if probe else checkpoint_probe.random_inputs(file.header.d_model)
        loaded = check_weights(file, x)
    if probe:
        difference = checkpoint_probe.difference(probe, loaded.f_x, loaded.x_hat)
        if difference:
            raise UserError(f"{fpath}: it computes {difference}")
    if loaded.loader == BUILTIN != loader:
        label = saev_loader.available().label
        raise UserError(
            f"{fpath}: {loader} loaded it, but {label} doesn't; set SAEV_DIR as it was then"
        )


def check_weights(file: checkpoint.File, x: np.ndarray) -> Loaded:
    """Load a file that was read, with saev if it can, and run it on x.

    Raises:
        UserError: It doesn't load, or with other values than the file's.
    """
    machine.give_back_memory(machine.TORCH_BYTES + COPIES * file.n_bytes)
    saev = saev_loader.available()
    why_not = saev.why_not(file.header)
    if not why_not:
        return _check_loaded(file, saev, x)
    sae = file.sae()
    own = _compute(file, sae, x)
    warnings = weight_warnings(sae)
    if saev.is_checkout:
        warnings.append(f"saev.nn.load() can't read it: {why_not}")
    probe = checkpoint_probe.of(sae, x, own)
    return Loaded(BUILTIN, saev_loader.Source(), warnings, probe, own.f_x, own.x_hat)


def _check_loaded(
    file: checkpoint.File, saev: saev_loader.Saev, x: np.ndarray
) -> Loaded:
    """Load a file with saev, and compare the result with the file's bytes.

    Raises:
        UserError: saev loads other values, or computes something else.
    """
    import torch

    try:
        model = saev.load(file.loader_fpath())
    except UserError as err:
        raise UserError(f"{file.fpath}: {err}") from None
    state = model.state_dict()
    for name in sorted(state.keys() ^ file.stored.keys()):
        verb = "adds" if name in state else "loses"
        raise UserError(
            f"{file.fpath}: {saev.label} {verb} the tensor {one_line(name)}"
        )
    differences = [file.difference(name, state[name]) for name in file.stored]
    if any(differences):
        text = "; ".join(filter(None, differences))
        raise UserError(f"{file.fpath}: {saev.label} loads other values: {text}")
    # Known to equal the file's bit for bit, so one copy serves both.
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
        # A feature within rounding of firing may fire in one of the two only.
        off_x = _off(x_hat, sae.decode(f_x.double()))
    for what, off in (
        ("different features", off_f),
        ("a different reconstruction", off_x),
    ):
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
    """What the SAE computes from x, by our own forward pass.

    Raises:
        UserError: Its weights are finite, but what it computes is not.
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
    """`_off` for features, except that one within rounding of firing may or may not fire."""
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
    """What looks wrong about the weights but is not an error."""
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
    # One row first: comparing all of them takes as long as hashing them.
    if all(torch.equal(encoder[i], sae.tensors["W_dec"][i]) for i in (0, slice(None))):
        found.append(
            "W_enc is W_dec transposed, as if saved again after loading with a faulty saev"
        )
    if sae.header.subtracts_b_dec and sae.tensors["b_dec"].any():
        found.append(
            "trained by a saev that subtracted b_dec from x first; current saev doesn't, so it"
            " doesn't compute what training logged"
        )
    return found
