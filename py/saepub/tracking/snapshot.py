"""An export of runs from W&B, for machines without a network: JSON Lines, one run per line.

A line is a run's record: name (the run's id), state, createdAt, url (of its page; may be
missing), config and summary. The last two are JSON objects, or whatever W&B has instead; facts
reports it if they are malformed.
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
"""Keys that W&B's client adds to a run's config."""

MAX_WHOLE = 2**53
"""Larger whole numbers become text, since jq would round them."""

MAX_DEPTH = 64
"""The deepest nesting in a record. saev's have six levels; jq 1.6 reads at most 256."""

MAX_PARSED = 500
"""The deepest nesting of which anything is kept. Python's reader itself gives up at 1,000 levels,
or, from 3.13 on, at many thousands."""

MAX_TEXT = 200
"""How much to keep of a config or summary that is not JSON."""


def read(
    fpath: str | os.PathLike[str], run_ids: tp.Collection[str]
) -> dict[str, Record]:
    """The records of the runs among `run_ids` that the export has, by id.

    Config and summary may be objects, or JSON in a string as in W&B's API.

    Raises:
        UserError: The file can't be read, a line is not a JSON object or has no name, or two
            lines have the same name.
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
        why = f"{err.strerror}; check METRICS_SNAPSHOT or --snapshot"
        raise UserError(f"{fpath}: {why}") from None
    return found


def write(fpath: str | os.PathLike[str], records: tp.Iterable[Record]) -> None:
    """Write an export, sorted by name: the same runs give the same bytes."""
    with write_aside(fpath) as fd:
        for one in sorted(records, key=lambda r: r["name"]):
            fd.write(jsonl.dumps(one) + "\n")


def _loads(text: bytes, where: str) -> Record:
    """One line's object. Unlike on our own lines, a bare NaN is valid: W&B's client writes it."""
    try:
        raw = json.loads(text, parse_int=_whole)
    except ValueError as err:
        raise UserError(f"{where}: not JSON: {err}") from None
    except RecursionError:
        # Only this run is lost, provided that its name comes first.
        match = re.match(rb'\s*\{\s*"name"\s*:\s*("[^"\\]*")', text)
        if match is None:
            raise UserError(f"{where}: {TOO_DEEP}") from None
        raw = {"name": json.loads(match[1]), "config": TOO_DEEP, "summary": TOO_DEEP}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: not a JSON object")
    return raw


def record(raw: Record) -> Record:
    """A run's record in the form for a line, from W&B's API or an export.

    NaN and the infinities become the strings that W&B uses for them, whole numbers above
    2^53 become text, and values nested too deep become a text that says so.
    """
    found = {key: raw.get(key) for key in KEYS}
    found["config"] = _unwrapped(_parsed(found["config"]))
    found["summary"] = _parsed(found["summary"])
    for key, value in found.items():
        try:
            found[key] = _safe(value)
        except RecursionError:
            found[key] = TOO_DEEP
    return found


def _parsed(value: tp.Any) -> tp.Any:
    """The value that a text contains as JSON; any other value, or text, unchanged."""
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
    """The run's config without W&B's wrapping: {"lr": {"value": 0.1}, "_wandb": …}."""
    if not isinstance(config, dict):
        return config
    own = {k: v for k, v in config.items() if k not in CLIENTS_OWN}
    if all(isinstance(v, dict) and "value" in v for v in own.values()):
        return {k: v["value"] for k, v in own.items()}
    return own


def _whole(digits: str) -> int | str:
    """A whole number, or its text if it has more digits than 2^53."""
    return int(digits) if len(digits) <= 17 else digits[:MAX_TEXT]


TOO_DEEP = f"nested over {MAX_DEPTH} deep"


def _safe(value: tp.Any, depth: int = MAX_DEPTH) -> tp.Any:
    """The value as a line can carry it. Raises RecursionError if it is over `MAX_PARSED` deep."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if type(value) is int and abs(value) > MAX_WHOLE:
        return str(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        if jsonl.depth(value) > MAX_PARSED - MAX_DEPTH:
            raise RecursionError
        return TOO_DEEP
    if isinstance(value, list):
        return [_safe(below, depth - 1) for below in value]
    return {key: _safe(value[key], depth - 1) for key in sorted(value)}
