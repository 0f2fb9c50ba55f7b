"""Compares what a checkpoint's header, W&B, the catalog and the sweep say about a run."""

import typing as tp

from .jsonl import Line
from .kinds import LARGEST, RULES
from .text import one_line, timestamp

KEYS = (
    *("repo", "layer", "run_id", "expected", "activation", "aux", "d_model", "d_sae"),
    *("train_layer", "created_at", "l0", "nmse"),
)
"""The keys that a line must have to be compared."""

L0_ABOVE_K = 1.01
MAX_DAYS_APART = 7
TROUBLED_STATES = ("crashed", "failed", "killed")


def conflicts(line: Line, header: dict[str, tp.Any]) -> str:
    """Every fact on which two sources disagree; "" if they all agree.

    Args:
        line: Has `KEYS`.
        header: Its d_model, d_sae, activation, top_k and aux; None for one it lacks.
    """
    config = line["activation"] or {}
    expected = line["expected"]
    facts: dict[str, dict[str, object]] = {
        "d_model": {"header": header["d_model"], "W&B": line["d_model"]},
        "d_sae": {"header": header["d_sae"], "W&B": line["d_sae"]},
        "activation": {"header": header["activation"], "W&B": config.get("key")},
    }
    for key, values in facts.items():
        values["catalog"] = expected.get(key)
    may_be = expected.get("activation")
    if isinstance(may_be, list) and header["activation"] in may_be:
        facts["activation"]["catalog"] = header["activation"]
    facts["layer"] = {"sweep": line["layer"], "W&B": line["train_layer"]}
    if header["top_k"] is not None:
        facts["top_k"] = {"header": header["top_k"], "W&B": config.get("top_k")}
    # A source from before saev had auxiliary losses names none.
    aux = {"header": header["aux"], "W&B": line["aux"]}
    facts["aux"] = {source: key or "no-aux" for source, key in aux.items()}
    return "; ".join(
        f"{key}: "
        + ", ".join(f"{source} {_show(value)}" for source, value in values.items())
        for key, values in facts.items()
        if len({(type(value), str(value)) for value in values.values()}) > 1
    )


def _show(value: object) -> str:
    if isinstance(value, list):
        return " or ".join(map(_show, value))
    return "nothing" if value is None else one_line(value)[:40]


def warnings(line: Line, mtime: float) -> list[str]:
    """What looks wrong about a run's metrics, state and date.

    Args:
        line: Has `KEYS`, and perhaps `state` and `n_dead`.
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
    if (
        l0 is not None
        and k is not None
        and RULES.get(str(config.get("key"))) == LARGEST
    ):
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


def _number(value: tp.Any) -> float | None:
    return value if type(value) in (int, float) else None
