"""What a run's W&B record says about its SAE, as keys of a line.

A record's text was written by anyone: whatever is not of the right type is null.
"""

import typing as tp

from ..jsonl import NOT_FINITE
from . import runs as wandb_runs
from .snapshot import plain

NULLS = {
    **dict.fromkeys(("l0", "nmse", "nmse_source", "n_dead", "objective", "n_prefixes")),
    **dict.fromkeys(("activation", "d_model", "d_sae", "train_layer")),
    **dict.fromkeys(("state", "created_at", "wandb_url")),
}
"""The keys that fetch-metrics adds, as a run has them that W&B doesn't know."""

MAX_WHOLE = 2**53
"""Beyond it a whole number is not the same in jq, and none here means anything."""

MAX_DEPTH = 16
"""Of nested values in an activation's config. saev's has two; jq reads no more than 256."""


def facts(record: dict) -> dict[str, tp.Any]:
    """The values for the keys of NULLS that W&B knows.

    Args:
        record: A run's record, as `wandb_runs` describes it.
    """
    config, summary = _object(record["config"]), _object(record["summary"])
    sae, objective = _object(config.get("sae")), config.get("objective")
    # Older runs have it as `data`.
    train_data = _object(config.get("train_data", config.get("data")))
    d_model = _whole(sae.get("d_model", sae.get("d_vit")))
    n_prefixes = _whole(_object(objective).get("n_prefixes"))
    return NULLS | {
        # Not "eval/mse": it averages over the prefixes and is no NMSE.
        "l0": measure(summary.get("eval/l0")),
        "nmse": measure(summary.get("eval/normalized_mse")),
        "n_dead": _whole(summary.get("eval/n_dead")),
        "objective": _objective(objective),
        "n_prefixes": n_prefixes,
        "activation": _activation(sae.get("activation")),
        "d_model": d_model,
        "d_sae": _d_sae(sae, d_model),
        "train_layer": _whole(train_data.get("layer")),
        "state": _text(record["state"]),
        "created_at": _text(record["createdAt"]),
        "wandb_url": wandb_runs.url_of(record["name"]),
    }


def measure(value: object) -> float | str | None:
    """A finite number, or one of NOT_FINITE, or null for anything else."""
    if type(value) is float:
        return plain(value)
    if _whole(value) is not None or value in NOT_FINITE:
        return tp.cast(float, value)
    return None


def _whole(value: object) -> int | None:
    if type(value) is int and abs(value) <= MAX_WHOLE:
        return value
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _objective(config: object) -> str | None:
    if not isinstance(config, dict):
        return None
    if "n_prefixes" not in config:
        return "vanilla"
    return None if _whole(config["n_prefixes"]) is None else "matryoshka"


def _activation(config: object) -> dict | None:
    """An activation's config with a "key", which those before December 2025 lack.

    They are {} for ReLU and {"top_k": 32} for TopK.
    """
    if not isinstance(config, dict) or _is_deeper(config, MAX_DEPTH):
        return None
    key = config.get("key", "top-k" if "top_k" in config else "relu")
    if not isinstance(key, str):
        return None
    found = {"key": key} | plain(config)
    if "top_k" in config:
        found["top_k"] = _whole(config["top_k"])
    return found


def _is_deeper(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return depth == 0 or any(_is_deeper(below, depth - 1) for below in value)


def _d_sae(sae: dict, d_model: int | None) -> int | None:
    """`d_sae`, or d_model × exp_factor in configs that lack it."""
    if "d_sae" in sae:
        return _whole(sae["d_sae"])
    exp_factor = _whole(sae.get("exp_factor"))
    if d_model is None or exp_factor is None:
        return None
    return _whole(d_model * exp_factor)
