"""Records of measurements: what `measure` found of one run on one shard, a small file each.

They are the lab's memory: `records/measured/<run_id>@<shard>.json`, fit for git. A record
counts for the bytes whose sha256 it names, and for no others.
"""

import json
import math
import os
import typing as tp

import pydantic

from . import settings
from .cli import UserError
from .files import write_aside

if tp.TYPE_CHECKING:
    import pathlib

Id = tp.Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Count = tp.Annotated[int, pydantic.Field(ge=0)]
Positive = tp.Annotated[int, pydantic.Field(ge=1)]
NotNegative = tp.Annotated[float, pydantic.Field(ge=0)]

SAME_RATIO = 1e-9
"""How far nmse may be from its two sums' ratio, relative to it."""

CHECKED = pydantic.ConfigDict(
    strict=True, extra="forbid", frozen=True, allow_inf_nan=False
)


class Tokens(pydantic.BaseModel):
    """Which tokens of a shard were measured: of `n_examples` of its `of_examples` examples,
    evenly spaced, all content tokens of one layer."""

    model_config = CHECKED

    layer: Count
    asked: Positive
    """The TOKENS setting."""
    n_examples: Positive
    of_examples: Positive
    per_example: Positive

    @property
    def n_tokens(self) -> int:
        return self.n_examples * self.per_example


class Record(pydantic.BaseModel):
    """What was measured of one run on one shard."""

    model_config = CHECKED

    run_id: Id
    shard: Id
    sha256: tp.Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the checkpoint that was measured."""
    bytes: Positive
    """Its size."""
    l0: NotNegative
    """Mean count of non-zero features a token."""
    nmse: NotNegative
    """sse_recon / sse_baseline."""
    n_tokens: Positive
    tokens: Tokens
    sse_recon: NotNegative
    """Sum of squared errors of the full-prefix reconstruction."""
    sse_baseline: tp.Annotated[float, pydantic.Field(gt=0)]
    """Sum of squares of the same tokens about their mean."""
    n_dead: Count
    """Features that fired for none of the tokens."""
    subtracts_b_dec: bool
    """Whether b_dec was taken from x before encoding, as the saev that trained it did."""
    device: tp.Annotated[str, pydantic.Field(min_length=1)]
    versions: dict[str, str]
    date: tp.Annotated[
        str, pydantic.Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    ]
    """When, ISO 8601 in UTC."""

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> tp.Self:
        ratio = self.sse_recon / self.sse_baseline
        if not math.isclose(self.nmse, ratio, rel_tol=SAME_RATIO):
            raise ValueError("nmse is not sse_recon / sse_baseline")
        if self.n_tokens != self.tokens.n_tokens:
            raise ValueError("n_tokens is not tokens' n_examples times per_example")
        if self.tokens.n_examples > self.tokens.of_examples:
            raise ValueError("tokens has more n_examples than of_examples")
        return self


def dpath() -> "pathlib.Path":
    """Where the records lie."""
    return settings.records_dpath() / "measured"


def fpath_of(run_id: str, shard: str) -> "pathlib.Path":
    """Where the record of a run on a shard lies, if there is one."""
    return dpath() / f"{run_id}@{shard}.json"


def write(record: Record) -> "pathlib.Path":
    """Keep a record in place of the run's earlier one on that shard; its path.

    A reader sees the earlier one or this one, whole, whenever the writer is killed.
    """
    fpath = fpath_of(record.run_id, record.shard)
    text = json.dumps(record.model_dump(), indent=2, allow_nan=False) + "\n"
    with write_aside(fpath) as fd:
        fd.write(text)
        fd.flush()
        os.fsync(fd.fileno())
    return fpath


def tidy(run_id: str, shard: str) -> None:
    """Remove what a writer left that was killed. No other may be writing."""
    for leftover in dpath().glob(f".{run_id}@{shard}.json.*.tmp"):
        leftover.unlink(missing_ok=True)


def read(fpath: "pathlib.Path") -> Record:
    """One record.

    Raises:
        UserError: It can't be read, or is no record of ours. One line: the file, the key,
            what is wrong with it.
    """
    try:
        record = Record.model_validate_json(fpath.read_bytes())
    except pydantic.ValidationError as err:
        raise UserError(f"{fpath}: {told(err)}; remove it or mend it") from None
    except OSError as err:
        raise UserError(f"{fpath}: {err.strerror}") from None
    name = f"{record.run_id}@{record.shard}.json"
    if fpath.name != name:
        raise UserError(f"{fpath}: its content is that of {name}; rename or remove it")
    return record


def find(run_id: str, shard: str) -> Record | None:
    """The record of a run on a shard; None where there is none. Raises as `read` does."""
    fpath = fpath_of(run_id, shard)
    return read(fpath) if fpath.exists() else None


def find_all(shard: str) -> tuple[dict[str, Record], list[str]]:
    """Every record on a shard.

    Returns:
        The records by run id; and for each file that holds no record, what `read` says.
    """
    records: dict[str, Record] = {}
    problems = []
    for fpath in sorted(dpath().glob(f"*@{shard}.json")):
        try:
            record = read(fpath)
            records[record.run_id] = record
        except UserError as err:
            problems.append(str(err))
    return records, problems


def told(err: pydantic.ValidationError) -> str:
    """All that is wrong with a record, each with its key, in one line."""
    told = []
    for error in err.errors(include_url=False, include_context=False):
        key = ".".join(map(str, error["loc"]))
        if error["type"] == "missing":
            told.append(f'no "{key}"')
        elif error["type"] == "json_invalid":
            told.append(f"not JSON ({error['msg'].rpartition(': ')[2]})")
        elif not key:
            told.append(error["msg"].removeprefix("Value error, "))
        else:
            found = json.dumps(error["input"], default=str)[:60]
            told.append(f'"{key}" is {found}: {error["msg"]}')
    return "; ".join(told)
