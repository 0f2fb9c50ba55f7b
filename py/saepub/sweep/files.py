"""Run ids from a file with one run per line: .csv, .json, .jsonl, or one .txt per layer."""

import csv
import json
import pathlib
import typing as tp

from ..cli import UserError
from ..text import human
from . import Candidate

MAX_BYTES = 64 * 2**20
LAYER = "{layer}"
"""Stands for the layer in the name of a file per layer."""


def read(fpath: pathlib.Path, layers: tp.Sequence[int]) -> list[Candidate]:
    """All runs that a file, or a file for each of `layers`, lists.

    A .txt has one id per line; blank lines and comments after # are ignored. The others have
    `run_id` and `layer` for each run; a .json may also be an object of lists by layer.

    Raises:
        UserError: It can't be read, or lacks these; with file and line.
    """
    if LAYER in str(fpath):
        files = [(str(fpath).replace(LAYER, str(layer)), layer) for layer in layers]
        found: list[Candidate] = []
        for name, layer in files:
            found += _read(pathlib.Path(name), layer)
        return found
    return _read(fpath, layers[0] if len(layers) == 1 else None)


def _read(fpath: pathlib.Path, only: int | None) -> list[Candidate]:
    """One file's runs; those without a layer get the layer `only`."""
    readers = {".txt": _txt, ".csv": _csv, ".json": _json, ".jsonl": _jsonl}
    reader = readers.get(fpath.suffix.lower())
    if reader is None:
        raise UserError(f"{fpath}: unknown file type; use one of {', '.join(readers)}")
    try:
        text = contents(fpath, "a list of runs").decode("utf-8-sig")
    except ValueError:
        raise UserError(f"{fpath}: not text (UTF-8)") from None
    found = []
    for lineno, row in reader(fpath, text):
        where = f"{fpath}:{lineno}"
        run_id, layer = row.get("run_id"), row.get("layer", only)
        if not isinstance(run_id, str):
            known = ", ".join(map(str, row)) or "none"
            raise UserError(f'{where}: no "run_id"; its keys: {known[:100]}')
        if isinstance(layer, str) and layer.strip().isdecimal():
            layer = int(layer)
        if type(layer) is not int:
            raise UserError(
                f'{where}: no "layer" with a number; add it, or use one file per layer, with'
                f' "{LAYER}" in the name'
            )
        found.append(Candidate(layer, run_id.strip(), False, where))
    return found


def contents(fpath: pathlib.Path, what: str) -> bytes:
    """The bytes of a file that the catalog names.

    Raises:
        UserError: It can't be read, or is too large to be `what`.
    """
    try:
        with open(fpath, "rb") as fd:
            raw = fd.read(MAX_BYTES + 1)
    except OSError as err:
        raise UserError(f"{fpath}: {err.strerror}; check the catalog") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{fpath}: over {human(MAX_BYTES)}, not {what}")
    return raw


Rows = tp.Iterator[tuple[int, dict[str, tp.Any]]]


def _txt(_: pathlib.Path, text: str) -> Rows:
    for lineno, line in enumerate(text.split("\n"), start=1):
        run_id = line.partition("#")[0].strip()
        if run_id:
            yield lineno, {"run_id": run_id}


def _csv(fpath: pathlib.Path, text: str) -> Rows:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    try:
        for row in reader:
            yield reader.line_num, {k: v for k, v in row.items() if k and v is not None}
    except csv.Error as err:
        raise UserError(f"{fpath}:{reader.line_num}: not CSV: {err}") from None


def _jsonl(fpath: pathlib.Path, text: str) -> Rows:
    for lineno, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{fpath}:{lineno}"
            yield lineno, _object(_loads(where, line), where)


def _json(fpath: pathlib.Path, text: str) -> Rows:
    raw = _loads(f"{fpath}:1", text)
    if isinstance(raw, dict):
        rows = [
            {"run_id": run_id, "layer": layer}
            for layer, ids in raw.items()
            for run_id in (ids if isinstance(ids, list) else [ids])
        ]
    elif isinstance(raw, list):
        rows = [_object(row, f"{fpath}:1") for row in raw]
    else:
        raise UserError(f"{fpath}:1: neither a list of runs nor lists by layer")
    for row in rows:
        name = row.get("run_id")
        start = text.find(f'"{name}"') if isinstance(name, str) else 0
        yield text.count("\n", 0, max(start, 0)) + 1, row


def _loads(where: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise UserError(f"{where}: not JSON: {err}") from None


def _object(value: object, where: str) -> dict[str, tp.Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not an object with run_id and layer")
    return value
