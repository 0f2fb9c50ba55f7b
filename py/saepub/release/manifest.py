"""manifest.jsonl and config.json: a repo's contents, for programs."""

import json
import typing as tp

from .. import jsonl
from ..cli import UserError
from ..jsonl import Line
from ..text import one_line

NEEDS = (
    *("run_id", "layer", "l0", "nmse", "numbers", "activation", "activation_config"),
    *("objective", "d_model", "d_sae", "path", "bytes", "sha256", "schema"),
    "created_at",
)
"""The keys that a line must have to be listed."""


def text(rows: list[Line]) -> str:
    """manifest.jsonl: one line per checkpoint, in the table's order and at full precision."""
    return "".join(jsonl.dumps(entry(row)) + "\n" for row in rows)


def entry(row: Line) -> dict[str, tp.Any]:
    """A checkpoint's line. Keys and types are the same in every repo, and all values are text
    or numbers, so that the manifests of several repos form one table."""
    activation = row["activation"] or {}
    return {
        "run_id": row["run_id"],
        "layer": row["layer"],
        "l0": _float(row["l0"]),
        "nmse": _float(row["nmse"]),
        "numbers": row["numbers"],
        "n_tokens": row.get("n_tokens"),
        "l0_logged": _float(row.get("l0_logged")),
        "nmse_logged": _float(row.get("nmse_logged")),
        "n_dead": row.get("n_dead"),
        "activation": activation.get("key"),
        "top_k": activation.get("top_k"),
        "aux": row.get("aux"),
        "activation_config": json.dumps(row["activation_config"]),
        "objective": row["objective"],
        "d_model": row["d_model"],
        "d_sae": row["d_sae"],
        "path": row["path"],
        "bytes": row["bytes"],
        "sha256": row["sha256"],
        "schema": row["schema"],
        "created_at": row["created_at"],
        "wandb_url": row.get("wandb_url"),
    }


def _float(value: tp.Any) -> float | None:
    """A measure as a float, even if it is whole; None if it is not finite."""
    return float(value) if type(value) in (int, float) else None


def config(base_model: str, rows: list[Line]) -> str:
    """config.json: a summary of the repo.

    The Hub counts downloads of this file as the repo's if it doesn't know the library.
    """
    keys = sorted({str((row["activation"] or {}).get("key")) for row in rows})
    obj = {
        "library_name": "saev",
        "base_model": base_model,
        "layers": sorted({row["layer"] for row in rows}),
        "d_model": _only(rows, "d_model"),
        "d_sae": _only(rows, "d_sae"),
        "activation": keys[0] if len(keys) == 1 else keys,
        "objective": _only(rows, "objective"),
        "n_checkpoints": len(rows),
        "manifest": "manifest.jsonl",
        "check": "check.npz",
    }
    return json.dumps(obj, indent=2) + "\n"


def _only(rows: list[Line], key: str) -> tp.Any:
    """The one value that all rows of a repo have.

    Raises:
        UserError: They have several.
    """
    values = {row[key] for row in rows}
    if len(values) > 1:
        text = " and ".join(sorted(one_line(value) for value in values))
        raise UserError(
            f'{rows[0]["repo"]}: lines with "{key}" {text}, but a repo has only one;'
            " run bin/classify again"
        )
    return values.pop()
