"""The lines that travel between stages: JSON Lines, one training run a line.

`KEYS` is the whole vocabulary. A stage names the keys that it needs, and `read` checks them
on every line, so a stage never sees a line that it can't process.
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
"""The form of a run id or slug. Both become parts of paths."""

SOURCE = re.compile(rf"wandb|(measured|disk):{ID.pattern}")
"""Where a line's L0 and NMSE come from."""

CHOSEN, PINNED = "chosen", "pinned"
NOT_NEEDED, OFF_FRONTIER, DROPPED = "not needed", "off the frontier", "dropped"
FATES = (CHOSEN, PINNED, NOT_NEEDED, OFF_FRONTIER, DROPPED)
"""What became of a candidate. A pinned run was chosen by a person, not by the rule."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How W&B, and therefore a line, writes the numbers that JSON lacks."""


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
    """{"bytes", "sha256"} of each file that render wrote, by its name."""
    return all(
        isinstance(document, dict)
        and type(document.get("bytes")) is int
        and isinstance(document.get("sha256"), str)
        and _is_sha256(document["sha256"])
        for document in value.values()
    )


def _is_all_text(value: list[tp.Any] | dict[str, tp.Any]) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return all(isinstance(x, str) or x is None for x in values)


class Kind(tp.NamedTuple):
    """The type of a key's value. Types are compared exactly: JSON's true is not a number."""

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
    # fetch-metrics; facts replaces "wandb" with what it reads from it
    "wandb": _kind("a run's record", dict, null=True),
    # facts; settle overwrites l0 and nmse
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
    # Text, because jq 1.6 rounds numbers above 2^53.
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
        "layer": "the layer that the sweep lists it under",
        "run_id": "the run's id in W&B",
        "commented": "whether it is commented out in the sweep file",
        "source": 'where the sweep lists it, "path:line"',
        "expected": "what the catalog says about the repo's runs",
    },
    "fetch-metrics": {
        "wandb": "the run's record in W&B: state, createdAt, url, config, summary; removed by facts",
    },
    "facts": {
        "l0": "mean number of non-zero features per token: as training logged it, after settle the number that counts",
        "nmse": "squared error of the reconstruction divided by that of the mean: likewise",
        "objective": '"matryoshka" or "vanilla"',
        "n_prefixes": "the number of prefixes that Matryoshka training was configured with",
        "n_dead": "how many features never fired",
        "activation": 'the activation\'s config: "key", "top_k", …',
        "aux": "the auxiliary loss, by its key",
        "d_model": "the width of an activation",
        "d_sae": "the number of features",
        "train_layer": "the layer that the run was trained on",
        "scaling": "how activations were scaled before training, as early saev could",
        "shard": "the shard that the run was evaluated on",
        "shard_metadata": "saev's metadata of that shard",
        "state": "the run's state in W&B: finished, crashed, …",
        "created_at": "when the run started (ISO 8601)",
        "wandb_url": "the run's page in W&B",
        "fault": "what is malformed in its record",
    },
    "classify": {
        "drop": "why the run can't be released, or null",
    },
    "settle": {
        "numbers": "where L0 and NMSE come from",
        "l0_logged": "L0 as training logged it",
        "nmse_logged": "NMSE as training logged it",
        "n_tokens": "how many tokens they were measured on",
    },
    "select": {
        "fate": "what became of the candidate",
    },
    "preflight": {
        "checkpoint": "the checkpoint's path on disk",
        "bytes": "the checkpoint's size",
        "mtime_ns": "when the checkpoint was last modified, in ns since 1970",
        "sha256": "the checkpoint's sha256",
        "schema": "the schema of the checkpoint's header",
        "activation_config": "the header's activation",
        "loader": "what loaded the checkpoint",
        "saev": "how to install the saev that loaded it",
        "probe": "a file with what the SAE computes from a few activations",
        "warnings": "what looks wrong but doesn't prevent a release",
    },
    "stage": {
        "path": "the checkpoint's path in the repo on the Hub",
    },
    "render": {
        "documents": "size and sha256 of every other file in the repo",
    },
    "push": {
        "commit": "the commit on the Hub that contains it",
        "seconds": "how long the push took",
    },
}
"""Each key and its meaning, by the stage that adds it. The source of README's table."""

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
    """orjson's decoder, four times as fast, which shows with a million lines. It is imported
    with the first line, since the import takes longer than the rest of a light stage."""
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
    """Check that a line has the keys that a stage needs.

    Args:
        keys: Required keys.
        also: Optional keys.
        is_chosen: Its L0 and NMSE must be numbers, as a chosen run's are.

    Raises:
        UserError: It lacks one of `keys`, or a value has the wrong type.
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
    """Each line's object and its bytes, for a stage that passes lines on unchanged.

    Args:
        keys, also, is_chosen: As for `check`.

    Raises:
        UserError: A line is not a JSON object, lacks a key or has a value of the wrong type.
    """
    fd = fd or sys.stdin.buffer
    if fd.isatty():
        say("reading lines from the terminal; end with Ctrl-D")
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
    """Each line's object. Arguments and errors as for `read_with_text`."""
    for line, _ in read_with_text(keys, fd, name, also=also, is_chosen=is_chosen):
        yield line


def name_of(line: Line) -> str:
    """A run's name in messages."""
    return f"{line['repo']} layer {line['layer']} {line['run_id']}"


def read_file(
    fpath: str | os.PathLike[str], *keys: str, is_chosen: bool = False
) -> list[Line]:
    """The objects of all lines of a file. Errors as for `read_with_text`."""
    with open(fpath, "rb") as fd:
        return list(read(*keys, fd=fd, name=str(fpath), is_chosen=is_chosen))


def dumps(line: Line) -> str:
    text = json.dumps(line, allow_nan=False)
    if "\\ud" in text:  # a lone surrogate, which other JSON parsers refuse
        text = json.dumps(line, allow_nan=False, ensure_ascii=False)
        text = text.encode("utf-8", "replace").decode()
    return text


def write(line: Line) -> None:
    """Write one line to stdout."""
    sys.stdout.write(dumps(line) + "\n")
