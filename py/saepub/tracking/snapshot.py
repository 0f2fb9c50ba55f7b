"""An export of runs from W&B, for machines without a network: JSON Lines, one run a line.

A line has name (the run's id), state, createdAt, config and summary.
"""

import json
import os
import typing as tp

from .. import jsonl
from ..cli import UserError
from ..files import write_aside

KEYS = ("name", "state", "createdAt", "config", "summary")


def read(fpath: str | os.PathLike, run_ids: tp.Collection[str]) -> dict[str, dict]:
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
                record = _loads(text, where)
                name = record.get("name")
                if not isinstance(name, str):
                    raise UserError(f'{where}: no "name" (the run\'s id)')
                first = linenos.setdefault(name, lineno)
                if first != lineno:
                    raise UserError(f"{where}: {name!r} again, after line {first}")
                if name in run_ids:
                    found[name] = _record(record)
    except OSError as err:
        why = f"{err.strerror}; METRICS_SNAPSHOT or --snapshot names it"
        raise UserError(f"{fpath}: {why}") from None
    return found


def write(fpath: str | os.PathLike, records: tp.Iterable[dict]) -> None:
    """Write an export, sorted by name: the same runs give the same bytes."""
    with write_aside(fpath) as fd:
        for record in sorted(records, key=lambda r: r["name"]):
            fd.write(jsonl.dumps(plain(record)) + "\n")


def plain(value: tp.Any) -> tp.Any:
    """JSON's value with NaN and the infinities as the strings that W&B sends for them."""
    return json.loads(json.dumps(value, sort_keys=True), parse_constant=str)


def _loads(text: bytes, where: str) -> dict:
    """Unlike on a line of ours, a bare NaN is let through: W&B's own client writes them."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise UserError(f"{where}: not JSON: {err}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: not a JSON object")
    return record


def _record(raw: dict) -> dict:
    record = {key: raw.get(key) for key in KEYS}
    record["config"] = _unwrapped(_object(record["config"]))
    record["summary"] = _object(record["summary"])
    return record


def _object(value: object) -> dict:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _unwrapped(config: dict) -> dict:
    """The config without W&B's wrapping of each of its values: {"lr": {"value": 0.1}}."""
    wrapped = {k: v for k, v in config.items() if k != "wandb_version"}
    if all(isinstance(v, dict) and "value" in v for v in wrapped.values()):
        return {k: v["value"] for k, v in wrapped.items()}
    return config
