"""What a person should look at before a repo is published, for every stage that tells it."""

from .. import jsonl
from ..text import n_of, one_line
from . import frontier

FEW = 3
"""A frontier of fewer runs than this is worth a look."""


def warnings(rows: list[jsonl.Line], account: list[jsonl.Line]) -> list[str]:
    """One repo's warnings, a line of text each.

    Args:
        rows: The lines to publish, each with the warnings that preflight gave it.
        account: Every candidate with its fate.
    """
    out = []
    for layer in sorted({run["layer"] for run in account}):
        panel = [r for r in account if r["layer"] == layer and frontier.has_place(r)]
        n = len(frontier.of_account(panel))
        if n < FEW:
            out.append(f"layer {layer}: a frontier of {n_of(n, 'run')} only")
    for row in rows:
        for text in row["warnings"]:
            out.append(f"layer {row['layer']} {row['run_id']}: {one_line(text)}")
    return out
