"""One run's check, from line to line. It can run anywhere: here, in a pool, on another node."""

import math
import pathlib
import typing as tp

import numpy as np

from .. import checkpoint, jsonl
from ..cli import UserError
from ..text import one_line, timestamp
from . import probe as checkpoint_probe
from . import saev as saev_loader
from .header import Header
from .probe import Computed, Probe
from .sae import Sae

KEYS = (
    *("repo", "layer", "run_id", "expected"),
    *("activation", "d_model", "d_sae", "train_layer", "created_at", "l0", "nmse"),
)

TOLERANCE = 1e-5
"""How far two computations of one SAE may lie apart, relative to the largest value."""

FLOAT32_MAX = 3.4028234e38

UNIT_NORM_TOLERANCE = 1e-3
L0_ABOVE_K = 1.01
MAX_DAYS_APART = 7
TROUBLED_STATES = ("crashed", "failed", "killed")

BUILTIN = "builtin"


class Loaded(tp.NamedTuple):
    """A checkpoint that was loaded, and what it computes from some activations."""

    loader: str
    warnings: list[str]
    probe: Probe
    f_x: tp.Any
    x_hat: tp.Any


def check(
    line: jsonl.Line, fpath: str | pathlib.Path, probes_dpath: str | pathlib.Path
) -> jsonl.Line:
    """Check a run's checkpoint and note what it is.

    The file is read from disk once. Besides its arguments this depends on SAEV_DIR alone.

    Args:
        line: Has `KEYS`; its `state` and `n_dead` are looked at where it has them.
        fpath: Its checkpoint.
        probes_dpath: Where the run's probe goes, and where the activations for it may lie.

    Returns:
        The line with checkpoint, bytes, mtime_ns, sha256, schema, activation_config,
        loader, probe and warnings.

    Raises:
        UserError: Why this run can't be released.
        SetupError: saev can't be imported, so no run can be checked.
    """
    with checkpoint.File(fpath) as file:
        _check_witnesses(line, file.header)
        file.read()
        x = checkpoint_probe.inputs(probes_dpath, line["layer"], file.header.d_model)
        loaded = _check_weights(file, x)
    probe_fpath = pathlib.Path(probes_dpath).absolute() / f"{line['run_id']}.npz"
    checkpoint_probe.write(loaded.probe, file.sha256, probe_fpath)
    return line | {
        "checkpoint": file.fpath,
        "bytes": file.n_bytes,
        "mtime_ns": file.mtime_ns,
        "sha256": file.sha256,
        "schema": file.header.schema,
        "activation_config": file.header.activation_config,
        "loader": loaded.loader,
        "probe": str(probe_fpath),
        "warnings": line_warnings(line, file.mtime_ns / 1e9) + loaded.warnings,
    }


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
        loaded = _check_weights(file, x)
    if probe and (odds := checkpoint_probe.difference(probe, loaded.f_x, loaded.x_hat)):
        raise UserError(f"{fpath}: it computes {odds}")
    if loaded.loader == BUILTIN != loader:
        label = saev_loader.at_hand().label
        raise UserError(
            f"{fpath}: {loader} loaded it, and {label} does not; set SAEV_DIR as it was then"
        )


def _check_weights(file: checkpoint.File, x: np.ndarray) -> Loaded:
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
    return Loaded(BUILTIN, warnings, probe, own.f_x, own.x_hat)


def _check_witnesses(line: jsonl.Line, header: Header) -> None:
    """Raises UserError where header, W&B config and catalog differ, naming all that do."""
    config = line["activation"] or {}
    expected = line["expected"]
    testimony: dict[str, dict[str, object]] = {
        "d_model": {"header": header.d_model, "W&B": line["d_model"]},
        "d_sae": {"header": header.d_sae, "W&B": line["d_sae"]},
        "activation": {"header": header.activation, "W&B": config.get("key")},
    }
    for key, said in testimony.items():
        said["catalog"] = expected.get(key)
    may_be = expected.get("activation")
    if isinstance(may_be, list) and header.activation in may_be:
        testimony["activation"]["catalog"] = header.activation
    testimony["layer"] = {"sweep": line["layer"], "W&B": line["train_layer"]}
    if header.top_k is not None:
        testimony["top_k"] = {"header": header.top_k, "W&B": config.get("top_k")}
    odds = [
        f"{key}: " + ", ".join(f"{who} {_show(value)}" for who, value in said.items())
        for key, said in testimony.items()
        if len({(type(value), str(value)) for value in said.values()}) > 1
    ]
    if odds:
        raise UserError("at odds: " + "; ".join(odds))


def _show(value: object) -> str:
    return "nothing" if value is None else one_line(value)[:40]


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
        odds = "; ".join(filter(None, odds))
        raise UserError(f"{file.fpath}: {saev.label} loads other values: {odds}")
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
    return Loaded(saev.label, weight_warnings(sae), probe, f_x, x_hat)


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
    return ((found - own).abs().max() / own.abs().max().clamp(min=1e-30)).item()


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
    return (off.max() / scale).item()


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
    return found


def line_warnings(line: jsonl.Line, mtime: float) -> list[str]:
    """What is odd about a run's metrics, state and date.

    Args:
        line: As in `check`.
        mtime: When the checkpoint was last written, in seconds since the epoch.
    """
    found = []
    l0, nmse, n_dead = (_number(line.get(key)) for key in ("l0", "nmse", "n_dead"))
    if nmse is not None and nmse > 1:
        found.append(f"NMSE {nmse:.3g} is above 1: worse than predicting the mean")
    if nmse is not None and nmse <= 0:
        found.append(f"NMSE {nmse:.3g} is not above 0")
    config = line["activation"] or {}
    k = _number(config.get("top_k"))
    if l0 is not None and k is not None and config.get("key") == "top-k":
        if l0 > k * L0_ABOVE_K:
            found.append(f"L0 {l0:.5g} is above the run's top_k {k:g}")
        if l0 < k / 2:
            found.append(f"L0 {l0:.5g} is below half of the run's top_k {k:g}")
    if n_dead is not None and n_dead > line["d_sae"] / 2:
        found.append(f"{n_dead:g} of {line['d_sae']} features are dead")
    created = timestamp(line["created_at"])
    if created is not None:
        days = (mtime - created) / 86400
        if abs(days) > MAX_DAYS_APART:
            age = "newer" if days > 0 else "older"
            found.append(f"checkpoint is {abs(days):.0f} days {age} than its W&B run")
    if line.get("state") in TROUBLED_STATES:
        found.append(f"its W&B run {line['state']}")
    return found


def _number(value: object) -> float | None:
    return value if type(value) in (int, float) else None
