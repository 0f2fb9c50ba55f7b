"""An export of runs from W&B, for machines without a network: JSON Lines, one run a line.

A line is a run's record: name (the run's id), state, createdAt, url (of its page; may be
missing), config and summary. The last two are JSON objects, or whatever W&B has in their
place: whoever looks for something in a record says what was found instead.
"""

import json
import math
import os
import re
import typing as tp

from .. import jsonl
from ..cli import UserError
from ..files import write_aside

Record = dict[str, tp.Any]

KEYS = ("name", "state", "createdAt", "url", "config", "summary")

CLIENTS_OWN = ("_wandb", "wandb_version")
"""What W&B's client adds to a run's config."""

MAX_WHOLE = 2**53
"""Beyond it a whole number is not the same in jq; it travels as text."""

MAX_DEPTH = 64
"""Of nested values in a record. saev's have six; jq 1.6 reads no more than 256."""

MAX_TEXT = 200
"""How much is kept of a config or summary that is not JSON."""


def read(
    fpath: str | os.PathLike[str], run_ids: tp.Collection[str]
) -> dict[str, Record]:
    """The records of those of `run_ids` that the export has, by id.

    Config and summary may be objects or JSON in a string, as W&B's own API has them.

    Raises:
        UserError: The file can't be read, a line is not a JSON object or has no name, or two
            lines have the same.
    """
    linenos: dict[str, int] = {}
    found = {}
    try:
        with open(fpath, "rb") as fd:
            for lineno, text in enumerate(fd, start=1):
                if text.isspace():
                    continue
                where = f"{fpath}:{lineno}"
                raw = _loads(text, where)
                name = raw.get("name")
                if not isinstance(name, str):
                    raise UserError(f'{where}: no "name" (the run\'s id)')
                first = linenos.setdefault(name, lineno)
                if first != lineno:
                    raise UserError(f"{where}: {name!r} again, after line {first}")
                if name in run_ids:
                    found[name] = record(raw)
    except OSError as err:
        why = f"{err.strerror}; METRICS_SNAPSHOT or --snapshot names it"
        raise UserError(f"{fpath}: {why}") from None
    return found


def write(fpath: str | os.PathLike[str], records: tp.Iterable[Record]) -> None:
    """Write an export, sorted by name: the same runs give the same bytes."""
    with write_aside(fpath) as fd:
        for one in sorted(records, key=lambda r: r["name"]):
            fd.write(jsonl.dumps(one) + "\n")


def _loads(text: bytes, where: str) -> Record:
    """Unlike on a line of ours, a bare NaN is let through: W&B's own client writes them."""
    try:
        raw = json.loads(text, parse_int=_whole)
    except ValueError as err:
        raise UserError(f"{where}: not JSON: {err}") from None
    except RecursionError:
        # Costs this run only, provided that its name comes first.
        match = re.match(rb'\s*\{\s*"name"\s*:\s*("[^"\\]*")', text)
        if match is None:
            raise UserError(f"{where}: {TOO_DEEP}") from None
        raw = {"name": json.loads(match[1]), "config": TOO_DEEP, "summary": TOO_DEEP}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: not a JSON object")
    return raw


def record(raw: Record) -> Record:
    """A run's record as a line can carry it, from what W&B's API or an export has.

    NaN and the infinities become the strings that W&B sends for them, whole numbers over
    2^53 become text, and what is nested too deep a text that says so.
    """
    found = {key: raw.get(key) for key in KEYS}
    found["config"] = _unwrapped(_parsed(found["config"]))
    found["summary"] = _parsed(found["summary"])
    return {key: _safe(value) for key, value in found.items()}


def _parsed(value: tp.Any) -> tp.Any:
    """The object that a text holds as JSON; any other value, and text, as it is."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value, parse_int=_whole)
    except ValueError:
        return value[:MAX_TEXT]
    except RecursionError:
        return TOO_DEEP
    return parsed


def _unwrapped(config: tp.Any) -> tp.Any:
    """The run's own config, without W&B's wrapping: {"lr": {"value": 0.1}, "_wandb": …}."""
    if not isinstance(config, dict):
        return config
    own = {k: v for k, v in config.items() if k not in CLIENTS_OWN}
    if all(isinstance(v, dict) and "value" in v for v in own.values()):
        return {k: v["value"] for k, v in own.items()}
    return own


def _whole(digits: str) -> int | str:
    """A whole number, or its text where it has more digits than 2^53."""
    return int(digits) if len(digits) <= 17 else digits[:MAX_TEXT]


TOO_DEEP = f"nested over {MAX_DEPTH} deep"


def _safe(value: tp.Any, depth: int = MAX_DEPTH) -> tp.Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if type(value) is int and abs(value) > MAX_WHOLE:
        return str(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        return TOO_DEEP
    if isinstance(value, list):
        return [_safe(below, depth - 1) for below in value]
    return {key: _safe(value[key], depth - 1) for key in sorted(value)}
