"""What a run's witnesses say of it: its checkpoint's header, W&B, the catalog and the sweep."""

import typing as tp

from .jsonl import Line
from .kinds import LARGEST, RULES
from .text import one_line, timestamp

KEYS = (
    *("repo", "layer", "run_id", "expected", "activation", "aux", "d_model", "d_sae"),
    *("train_layer", "created_at", "l0", "nmse"),
)
"""What a line must have to be judged by it."""

L0_ABOVE_K = 1.01
MAX_DAYS_APART = 7
TROUBLED_STATES = ("crashed", "failed", "killed")


def odds(line: Line, header: dict[str, tp.Any]) -> str:
    """Everything that two witnesses tell differently; "" where they agree.

    Args:
        line: Has `KEYS`.
        header: Its d_model, d_sae, activation, top_k and aux; None where it doesn't say.
    """
    config = line["activation"] or {}
    expected = line["expected"]
    testimony: dict[str, dict[str, object]] = {
        "d_model": {"header": header["d_model"], "W&B": line["d_model"]},
        "d_sae": {"header": header["d_sae"], "W&B": line["d_sae"]},
        "activation": {"header": header["activation"], "W&B": config.get("key")},
    }
    for key, said in testimony.items():
        said["catalog"] = expected.get(key)
    may_be = expected.get("activation")
    if isinstance(may_be, list) and header["activation"] in may_be:
        testimony["activation"]["catalog"] = header["activation"]
    testimony["layer"] = {"sweep": line["layer"], "W&B": line["train_layer"]}
    if header["top_k"] is not None:
        testimony["top_k"] = {"header": header["top_k"], "W&B": config.get("top_k")}
    # Before there was one, nobody said so.
    said_aux = {"header": header["aux"], "W&B": line["aux"]}
    testimony["aux"] = {who: aux or "no-aux" for who, aux in said_aux.items()}
    told = [
        f"{key}: " + ", ".join(f"{who} {_show(value)}" for who, value in said.items())
        for key, said in testimony.items()
        if len({(type(value), str(value)) for value in said.values()}) > 1
    ]
    return "; ".join(told)


def _show(value: object) -> str:
    if isinstance(value, list):
        return " or ".join(map(_show, value))
    return "nothing" if value is None else one_line(value)[:40]


def warnings(line: Line, mtime: float) -> list[str]:
    """What is odd about a run's metrics, state and date.

    Args:
        line: Has `KEYS`; its `state` and `n_dead` are looked at where it has them.
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
