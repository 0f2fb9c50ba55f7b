"""The lines that travel between stages: JSON Lines, one training run a line.

`KEYS` is the whole vocabulary. A stage names the keys that it needs; `read` holds every
line to them, so that no stage meets a line it can't work with.
"""

import functools
import json
import os
import re
import sys
import typing as tp

from .cli import UserError
from .text import excerpt, say

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a run id or a slug may be. Both become parts of paths."""

SOURCE = re.compile(rf"wandb|(measured|disk):{ID.pattern}")
"""Where the numbers of a line come from."""

CHOSEN, PINNED = "chosen", "pinned"
NOT_NEEDED, OFF_FRONTIER, DROPPED = "not needed", "off the frontier", "dropped"
FATES = (CHOSEN, PINNED, NOT_NEEDED, OFF_FRONTIER, DROPPED)
"""A candidate's fate. Pinned is what a person chose besides the rule."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How W&B, and so a line, writes what JSON has no number for."""


def is_id(value: object) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_id_or_null(value: object) -> bool:
    return value is None or is_id(value)


def _is_measure(value: object) -> bool:
    return type(value) is not str or value in NOT_FINITE


def _is_source(value: str | None) -> bool:
    return value is None or SOURCE.fullmatch(value) is not None


def _is_sha256(value: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_commit(value: str | None) -> bool:
    return value is None or re.fullmatch(r"[0-9a-f]{40}", value) is not None


def _is_path_in_repo(value: str) -> bool:
    return (
        re.fullmatch(rf"layer_\d{{1,3}}/{ID.pattern}/sae\.pt", value, re.ASCII)
        is not None
    )


def _is_nanoseconds(value: str) -> bool:
    return re.fullmatch(r"-?\d{1,20}", value, re.ASCII) is not None


def _is_layer(value: int) -> bool:
    return 0 <= value < 1000


def _is_documents(value: dict[str, tp.Any]) -> bool:
    """By name, what render wrote: {"bytes", "sha256"}."""
    return all(
        isinstance(of, dict)
        and type(of.get("bytes")) is int
        and isinstance(of.get("sha256"), str)
        and _is_sha256(of["sha256"])
        for of in value.values()
    )


def _is_all_text(value: list[tp.Any] | dict[str, tp.Any]) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return all(isinstance(x, str) or x is None for x in values)


class Kind(tp.NamedTuple):
    """What a key holds. Types are compared exactly: JSON's true is not a number."""

    what: str
    types: frozenset[type]
    check: tp.Callable[[tp.Any], bool] | None = None


def _kind(
    what: str,
    *types: type,
    check: tp.Callable[[tp.Any], bool] | None = None,
    null: bool = False,
) -> Kind:
    if null:
        return Kind(f"{what} or null", frozenset((*types, type(None))), check)
    return Kind(what, frozenset(types), check)


KEYS: dict[str, Kind] = {
    # extract-ids
    "repo": _kind("a slug", str, check=is_id),
    "layer": _kind("a layer", int, check=_is_layer),
    "run_id": _kind("a run id", str, check=is_id),
    "commented": _kind("true or false", bool),
    "source": _kind("text", str),
    "expected": _kind("an object", dict),
    # fetch-metrics; facts puts what it reads in the place of "wandb"
    "wandb": _kind("a run's record", dict, null=True),
    # facts; l0 and nmse are settle's from there on
    "l0": _kind("a number", int, float, str, check=_is_measure, null=True),
    "nmse": _kind("a number", int, float, str, check=_is_measure, null=True),
    "objective": _kind("text", str, null=True),
    "n_prefixes": _kind("a whole number", int, null=True),
    "n_dead": _kind("a number", int, float, null=True),
    "activation": _kind("an object", dict, null=True),
    "aux": _kind("text", str, null=True),
    "d_model": _kind("a whole number", int, null=True),
    "d_sae": _kind("a whole number", int, null=True),
    "train_layer": _kind("a whole number", int, null=True),
    "scaling": _kind("text", str, null=True),
    "shard": _kind("a shard's name", str, check=_is_id_or_null, null=True),
    "shard_metadata": _kind("an object", dict, null=True),
    "state": _kind("text", str, null=True),
    "created_at": _kind("text", str, null=True),
    "wandb_url": _kind("text", str, null=True),
    "fault": _kind("text", str, null=True),
    # classify
    "drop": _kind("text", str, null=True),
    # settle
    "numbers": _kind(
        "measured:<shard>, wandb or disk:<shard>", str, check=_is_source, null=True
    ),
    "l0_logged": _kind("a number", int, float, str, check=_is_measure, null=True),
    "nmse_logged": _kind("a number", int, float, str, check=_is_measure, null=True),
    "n_tokens": _kind("a whole number", int, null=True),
    # select, in its account
    "fate": _kind(f"one of {', '.join(FATES)}", str, check=FATES.__contains__),
    # preflight
    "checkpoint": _kind("a path", str, check=str.isprintable),
    "bytes": _kind("a whole number", int),
    # Text, because jq 1.6 rounds numbers over 2^53.
    "mtime_ns": _kind("nanoseconds as text", str, check=_is_nanoseconds),
    "sha256": _kind("64 hex digits", str, check=_is_sha256),
    "schema": _kind("a whole number", int, null=True),
    "activation_config": _kind("an object", dict),
    "loader": _kind("text", str),
    "saev": _kind("an object of texts", dict, check=_is_all_text),
    "probe": _kind("a path", str, check=str.isprintable),
    "warnings": _kind("a list of texts", list, check=_is_all_text),
    # stage
    "path": _kind("layer_<N>/<run_id>/sae.pt", str, check=_is_path_in_repo),
    # render
    "documents": _kind("sizes and hashes by name", dict, check=_is_documents),
    # push
    "commit": _kind("a commit", str, check=_is_commit, null=True),
    "seconds": _kind("a number", int, float),
}

CHOSEN_MEASURE = _kind("a number", int, float)
"""The L0 and NMSE of a chosen run."""

MEANINGS: dict[str, dict[str, str]] = {
    "extract-ids": {
        "repo": "the repo, by its slug in the catalog",
        "layer": "the layer that the source lists it under",
        "run_id": "its id in W&B",
        "commented": "whether the source has it commented out",
        "source": 'where it stands, "path:line"',
        "expected": "what the catalog says of the repo's runs",
    },
    "fetch-metrics": {
        "wandb": "its record in W&B: state, createdAt, url, config, summary; facts takes it away",
    },
    "facts": {
        "l0": "mean count of non-zero features a token; as training logged it, from settle on the settled one",
        "nmse": "squared error of the reconstruction over that of the mean; likewise",
        "objective": '"matryoshka" or "vanilla"',
        "n_prefixes": "how many prefixes Matryoshka training asked for",
        "n_dead": "how many features never fired",
        "activation": 'its config: "key", "top_k", …',
        "aux": "its auxiliary loss, by key",
        "d_model": "width of an activation",
        "d_sae": "number of features",
        "train_layer": "the layer that it was trained on",
        "scaling": "how activations were scaled before it saw them, as saev once could",
        "shard": "the shard that it was evaluated on",
        "shard_metadata": "what that shard must hold",
        "state": "W&B's: finished, crashed, …",
        "created_at": "when it started (ISO 8601)",
        "wandb_url": "its page",
        "fault": "what is odd about its record",
    },
    "classify": {
        "drop": "why it can't be released, or null",
    },
    "settle": {
        "numbers": "where L0 and NMSE come from",
        "l0_logged": "L0 as training logged it",
        "nmse_logged": "NMSE as training logged it",
        "n_tokens": "how many tokens they were measured on",
    },
    "select": {
        "fate": "what became of a candidate",
    },
    "preflight": {
        "checkpoint": "its file",
        "bytes": "the file's size",
        "mtime_ns": "when the file was last changed, in ns since 1970",
        "sha256": "the file's hash",
        "schema": "the header's schema",
        "activation_config": "the header's activation",
        "loader": "what loaded it",
        "saev": "how anybody else gets the saev that loaded it",
        "probe": "what it computes from a few activations",
        "warnings": "what is odd but may be right",
    },
    "stage": {
        "path": "its path in the repo on the Hub",
    },
    "render": {
        "documents": "size and sha256 of what the repo holds besides checkpoints",
    },
    "push": {
        "commit": "the commit that holds it",
        "seconds": "how long the push took",
    },
}
"""By the stage that adds it, each key and what it means. README's table is made from it."""

Line = dict[str, tp.Any]

_MISSING = object()


def loads(text: bytes) -> Line:
    """One line's object.

    Raises:
        ValueError: It is not JSON, or not an object. NaN and Infinity are not JSON.
    """
    try:
        obj = _decoder()(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if type(obj) is not dict:
        raise ValueError("not a JSON object")
    return obj


@functools.cache
def _decoder() -> tp.Callable[[bytes], object]:
    """orjson, four times as fast, which a million lines show; not before there is a line,
    since it takes longer to import than all the rest of a light stage."""
    try:
        import orjson
    except ImportError:  # before `make setup`
        decoder = json.JSONDecoder(parse_constant=_no_constant)
        return lambda text: decoder.decode(text.decode())
    return orjson.loads


def _no_constant(name: str) -> tp.NoReturn:
    raise ValueError(f"{name} is not JSON")


def check(
    line: Line,
    keys: tp.Iterable[str],
    where: str,
    *,
    also: tp.Iterable[str] = (),
    is_chosen: bool = False,
) -> None:
    """Hold a line to what a stage needs.

    Args:
        keys: What it must have.
        also: What it may have.
        is_chosen: Its L0 and NMSE must be numbers, as those of every chosen run are.

    Raises:
        UserError: It lacks one of `keys`, or holds a key with a wrong type.
    """
    for key in (*keys, *(key for key in also if key in line)):
        if key not in line:
            raise UserError(f'{where}: no "{key}"')
        value, kind = line[key], _kind_of(key, is_chosen)
        if type(value) in kind.types and (kind.check is None or kind.check(value)):
            continue
        found = json.dumps(value)
        found = found if len(found) <= 60 else found[:57] + "..."
        raise UserError(f'{where}: "{key}" is {found}, not {kind.what}')


def _kind_of(key: str, is_chosen: bool) -> Kind:
    return CHOSEN_MEASURE if is_chosen and key in ("l0", "nmse") else KEYS[key]


def read_with_text(
    keys: tp.Iterable[str],
    fd: tp.BinaryIO | None = None,
    name: str = "stdin",
    *,
    also: tp.Iterable[str] = (),
    is_chosen: bool = False,
) -> tp.Iterator[tuple[Line, bytes]]:
    """Each line's object and its own bytes, for a stage that passes lines on untouched.

    Args:
        keys, also, is_chosen: As for `check`.

    Raises:
        UserError: A line is not a JSON object, lacks a key or has it with a wrong type.
    """
    fd = fd or sys.stdin.buffer
    if fd.isatty():
        say("reading lines from the terminal; Ctrl-D ends")
    wanted = [(key, *_kind_of(key, is_chosen)[1:], _MISSING) for key in keys]
    wanted += [(key, *_kind_of(key, is_chosen)[1:], None) for key in also]
    for i, text in enumerate(fd, start=1):
        if text.isspace():
            continue
        try:
            line = loads(text)
        except ValueError as err:
            raise UserError(f"{name}:{i}: not JSON: {err}: {excerpt(text)}") from None
        for key, types, is_right, missing in wanted:
            value = line.get(key, missing)
            if type(value) not in types or (is_right and not is_right(value)):
                try:
                    check(line, keys, f"{name}:{i}", also=also, is_chosen=is_chosen)
                except UserError as err:
                    raise UserError(f"{err}: {excerpt(text)}") from None
        yield line, text


def read(
    *keys: str,
    fd: tp.BinaryIO | None = None,
    name: str = "stdin",
    also: tp.Iterable[str] = (),
    is_chosen: bool = False,
) -> tp.Iterator[Line]:
    """Each line's object, as `read_with_text` has it."""
    for line, _ in read_with_text(keys, fd, name, also=also, is_chosen=is_chosen):
        yield line


def name_of(line: Line) -> str:
    """A run as messages name it."""
    return f"{line['repo']} layer {line['layer']} {line['run_id']}"


def read_file(
    fpath: str | os.PathLike[str], *keys: str, is_chosen: bool = False
) -> list[Line]:
    """All lines of a file, as `read_with_text` has them."""
    with open(fpath, "rb") as fd:
        return list(read(*keys, fd=fd, name=str(fpath), is_chosen=is_chosen))


def dumps(line: Line) -> str:
    text = json.dumps(line, allow_nan=False)
    if "\\ud" in text:  # half a character, as text from outside may have, is no JSON
        text = json.dumps(line, allow_nan=False, ensure_ascii=False)
        text = text.encode("utf-8", "replace").decode()
    return text


def write(line: Line) -> None:
    """Write one line to stdout."""
    sys.stdout.write(dumps(line) + "\n")
