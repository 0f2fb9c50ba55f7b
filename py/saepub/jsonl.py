"""The lines that travel between stages: JSON Lines, one training run a line.

`ADDED_BY` is the whole vocabulary. A stage names the keys that it needs, and `read` checks them
on every line, so a stage never sees a line that it can't process.
"""

import functools
import json
import os
import re
import sys
import typing as tp

from .cli import UserError
from .text import clipped, excerpt, say

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The form of a run id or slug. Both become parts of paths."""

IN_REPO = re.compile(rf"layer_(\d{{1,3}})/{ID.pattern}/sae\.pt", re.ASCII)
"""A checkpoint's path in its model repo."""

SOURCE = re.compile(rf"wandb|(measured|disk):{ID.pattern}")
"""Where a line's L0 and NMSE come from."""

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
NANOSECONDS = re.compile(r"-?\d{1,20}", re.ASCII)

CHOSEN, PINNED = "chosen", "pinned"
NOT_NEEDED, OFF_FRONTIER, DROPPED = "not needed", "off the frontier", "dropped"
FATES = (CHOSEN, PINNED, NOT_NEEDED, OFF_FRONTIER, DROPPED)
"""What became of a candidate. A pinned run was chosen by a person, not by the rule."""

BUILTIN = "builtin"
"""The `loader` of a checkpoint that saev can't load: only our own reader has."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How W&B, and therefore a line, writes the numbers that JSON lacks."""


def is_id(value: object) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_measure(value: float | str) -> bool:
    return type(value) is not str or value in NOT_FINITE


def _is_documents(value: dict[str, tp.Any]) -> bool:
    """{"bytes", "sha256"} of each file that render wrote, by its name."""
    return all(
        isinstance(document, dict)
        and type(document.get("bytes")) is int
        and isinstance(document.get("sha256"), str)
        and SHA256.fullmatch(document["sha256"])
        for document in value.values()
    )


def _is_all_text(value: list[tp.Any] | dict[str, tp.Any]) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return all(isinstance(x, str) or x is None for x in values)


# ---- the keys --------------------------------------------------------------------------------


class Kind(tp.NamedTuple):
    """The type of a key's value. Types are compared exactly: JSON's true is not a number."""

    what: str
    types: frozenset[type]
    check: tp.Callable[[tp.Any], object] | None = None
    """Whether a value of these types is right, unless it is null."""

    def holds(self, value: object) -> bool:
        if type(value) not in self.types:
            return False
        return value is None or self.check is None or bool(self.check(value))

    def or_null(self) -> "Kind":
        types = self.types | {type(None)}
        return self._replace(what=f"{self.what} or null", types=types)


def _kind(
    what: str, *types: type, check: tp.Callable[[tp.Any], object] | None = None
) -> Kind:
    return Kind(what, frozenset(types), check)


TEXT = _kind("text", str)
WHOLE = _kind("a whole number", int)
NUMBER = _kind("a number", int, float)
MEASURE = _kind("a number", int, float, str, check=_is_measure).or_null()
OBJECT = _kind("an object", dict)
PATH = _kind("a path", str, check=str.isprintable)
SHARD = _kind("a shard's name", str, check=ID.fullmatch)
FATE = _kind(f"one of {', '.join(FATES)}", str, check=FATES.__contains__)

ADDED_BY: dict[str, dict[str, tuple[Kind, str]]] = {
    "extract-ids": {
        "repo": (_kind("a slug", str, check=ID.fullmatch), "the repo, by its slug in the catalog"),
        "layer": (_kind("a layer", int, check=range(1000).__contains__), "the layer that the sweep lists it under"),
        "run_id": (_kind("a run id", str, check=ID.fullmatch), "the run's id in W&B"),
        "commented": (_kind("true or false", bool), "whether it is commented out in the sweep file"),
        "source": (TEXT, 'where the sweep lists it, "path:line"'),
        "expected": (OBJECT, "what the catalog says about the repo's runs"),
    },
    "fetch-metrics": {
        "wandb": (_kind("a run's record", dict).or_null(), "the run's record in W&B: state, createdAt, url, config, summary; removed by facts"),
    },
    "facts": {
        "l0": (MEASURE, "mean number of non-zero features per token: as training logged it, after settle the number that counts"),
        "nmse": (MEASURE, "squared error of the reconstruction divided by that of the mean: likewise"),
        "objective": (TEXT.or_null(), '"matryoshka" or "vanilla"'),
        "n_prefixes": (WHOLE.or_null(), "the number of prefixes that Matryoshka training was configured with"),
        "n_dead": (NUMBER.or_null(), "how many features never fired"),
        "activation": (OBJECT.or_null(), 'the activation\'s config: "key", "top_k", …'),
        "aux": (TEXT.or_null(), "the auxiliary loss, by its key"),
        "d_model": (WHOLE.or_null(), "the width of an activation"),
        "d_sae": (WHOLE.or_null(), "the number of features"),
        "train_layer": (WHOLE.or_null(), "the layer that the run was trained on"),
        "scaling": (TEXT.or_null(), "how activations were scaled before training, as early saev could"),
        "shard": (SHARD.or_null(), "the shard that the run was evaluated on"),
        "shard_metadata": (OBJECT.or_null(), "saev's metadata of that shard"),
        "state": (TEXT.or_null(), "the run's state in W&B: finished, crashed, …"),
        "created_at": (TEXT.or_null(), "when the run started (ISO 8601)"),
        "wandb_url": (TEXT.or_null(), "the run's page in W&B"),
        "fault": (TEXT.or_null(), "what is malformed in its record"),
    },
    "classify": {
        "drop": (TEXT.or_null(), "why the run can't be released, or null"),
    },
    "settle": {
        "numbers": (_kind("measured:<shard>, wandb or disk:<shard>", str, check=SOURCE.fullmatch).or_null(), "where L0 and NMSE come from"),
        "l0_logged": (MEASURE, "L0 as training logged it"),
        "nmse_logged": (MEASURE, "NMSE as training logged it"),
        "n_tokens": (WHOLE.or_null(), "how many tokens they were measured on"),
    },
    "select": {
        "fate": (FATE, "what became of the candidate"),
    },
    "preflight": {
        "checkpoint": (PATH, "the checkpoint's path on disk"),
        "bytes": (WHOLE, "the checkpoint's size"),
        # Text, because jq 1.6 rounds numbers above 2^53.
        "mtime_ns": (_kind("nanoseconds as text", str, check=NANOSECONDS.fullmatch), "when the checkpoint was last modified, in ns since 1970"),
        "sha256": (_kind("64 hex digits", str, check=SHA256.fullmatch), "the checkpoint's sha256"),
        "schema": (WHOLE.or_null(), "the schema of the checkpoint's header"),
        "activation_config": (OBJECT, "the header's activation"),
        "loader": (TEXT, "what loaded the checkpoint"),
        "saev": (_kind("an object of texts", dict, check=_is_all_text), "how to install the saev that loaded it"),
        "probe": (PATH, "a file with what the SAE computes from a few activations"),
        "warnings": (_kind("a list of texts", list, check=_is_all_text), "what looks wrong but doesn't prevent a release"),
    },
    "stage": {
        "path": (_kind("layer_<N>/<run_id>/sae.pt", str, check=IN_REPO.fullmatch), "the checkpoint's path in the repo on the Hub"),
    },
    "render": {
        "documents": (_kind("sizes and hashes by name", dict, check=_is_documents), "size and sha256 of every other file in the repo"),
    },
    "push": {
        "commit": (_kind("a commit", str, check=COMMIT.fullmatch).or_null(), "the commit on the Hub that contains it"),
        "seconds": (NUMBER, "how long the push took"),
    },
}  # fmt: skip
"""The type and meaning of each key, by the stage that adds it: README's table. facts replaces
"wandb" with what it reads from it, and settle overwrites `l0` and `nmse`."""

KEYS = {key: kind for keys in ADDED_BY.values() for key, (kind, _) in keys.items()}

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
        if not kind.holds(value):
            found = clipped(json.dumps(value))
            raise UserError(f'{where}: "{key}" is {found}, not {kind.what}')


def _kind_of(key: str, is_chosen: bool) -> Kind:
    return NUMBER if is_chosen and key in ("l0", "nmse") else KEYS[key]


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
            if type(value) not in types or (
                is_right and value is not None and not is_right(value)
            ):
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


def depth(value: object) -> int:
    """How many containers deep a value is. Raises RecursionError if that is about 1,000."""
    if not isinstance(value, (dict, list)):
        return 0
    below = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, below), default=0)


def dumps(line: Line) -> str:
    text = json.dumps(line, allow_nan=False)
    if "\\ud" in text:  # a lone surrogate, which other JSON parsers refuse
        text = json.dumps(line, allow_nan=False, ensure_ascii=False)
        text = text.encode("utf-8", "replace").decode()
    return text


def write(line: Line) -> None:
    """Write one line to stdout."""
    sys.stdout.write(dumps(line) + "\n")
