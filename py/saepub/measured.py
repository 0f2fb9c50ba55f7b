"""Records of measurements: what `measure` found for one run on one shard, a small file each.

They are kept in git: `records/measured/<run_id>@<shard>.json`. A record is valid only for the
checkpoint whose sha256 it has.
"""

import json
import math
import os
import typing as tp

import pydantic

from . import jsonl, settings
from .cli import UserError
from .files import remove_leftovers, write_aside

if tp.TYPE_CHECKING:
    import pathlib

Id = tp.Annotated[str, pydantic.Field(pattern=f"^{jsonl.ID.pattern}$")]
Sha256 = tp.Annotated[str, pydantic.Field(pattern=f"^{jsonl.SHA256.pattern}$")]
Text = tp.Annotated[str, pydantic.Field(min_length=1)]
Count = tp.Annotated[int, pydantic.Field(ge=0)]
Positive = tp.Annotated[int, pydantic.Field(ge=1)]
NotNegative = tp.Annotated[float, pydantic.Field(ge=0)]

SAME_RATIO = 1e-9
"""Relative tolerance between nmse and the ratio of its two sums."""

CHECKED = pydantic.ConfigDict(
    strict=True, extra="forbid", frozen=True, allow_inf_nan=False
)


class Tokens(pydantic.BaseModel):
    """Which tokens of a shard were measured: all content tokens of one layer in `n_examples`
    of its `of_examples` examples, evenly spaced."""

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
    """The measurement of one run on one shard."""

    model_config = CHECKED

    run_id: Id
    shard: Id
    sha256: Sha256
    """The measured checkpoint's."""
    bytes: Positive
    """The checkpoint's size."""
    l0: NotNegative
    """Mean number of non-zero features per token."""
    nmse: NotNegative
    """sse_recon / sse_baseline."""
    n_tokens: Positive
    tokens: Tokens
    sse_recon: NotNegative
    """Sum of squared errors of the full-prefix reconstruction."""
    sse_baseline: tp.Annotated[float, pydantic.Field(gt=0)]
    """Sum of squared deviations of the same tokens from their mean."""
    n_dead: Count
    """Features that fired on none of the tokens."""
    subtracts_b_dec: bool
    """Whether b_dec was subtracted from x before encoding, as the saev that trained it did."""
    device: Text
    versions: dict[str, str]
    date: tp.Annotated[
        str, pydantic.Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    ]
    """When it was measured, ISO 8601 in UTC."""

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
    """The directory of the records."""
    return settings.records_dpath() / "measured"


def fpath_of(run_id: str, shard: str) -> "pathlib.Path":
    """The path of a run's record on a shard, whether or not it exists."""
    return dpath() / f"{run_id}@{shard}.json"


def write(record: Record) -> "pathlib.Path":
    """Write a record, replacing the run's earlier one on that shard; return its path.

    The replacement is atomic, even if the writer is killed.
    """
    fpath = fpath_of(record.run_id, record.shard)
    text = json.dumps(record.model_dump(), indent=2, allow_nan=False) + "\n"
    with write_aside(fpath) as fd:
        fd.write(text)
        fd.flush()
        os.fsync(fd.fileno())
    return fpath


def tidy(run_id: str, shard: str) -> None:
    """Remove what killed writers left. Nobody else may be writing."""
    remove_leftovers(dpath(), fpath_of(run_id, shard).name, is_locked=True)


def read(fpath: "pathlib.Path") -> Record:
    """Read one record.

    Raises:
        UserError: It can't be read or is not a valid record. The message names the file, the
            key and the fault.
    """
    try:
        record = Record.model_validate_json(fpath.read_bytes())
    except pydantic.ValidationError as err:
        raise UserError(f"{fpath}: {explain(err)}; fix it or remove it") from None
    except OSError as err:
        raise UserError(f"{fpath}: {err.strerror}") from None
    name = f"{record.run_id}@{record.shard}.json"
    if fpath.name != name:
        raise UserError(f"{fpath}: its content is that of {name}; rename or remove it")
    return record


def find(run_id: str, shard: str) -> Record | None:
    """The record of a run on a shard; None if there is none. Raises as `read` does."""
    fpath = fpath_of(run_id, shard)
    return read(fpath) if fpath.exists() else None


def explain(err: pydantic.ValidationError) -> str:
    """Everything that is wrong with a record, with the keys, in one line."""
    faults = []
    for error in err.errors(include_url=False, include_context=False):
        key = ".".join(map(str, error["loc"]))
        if error["type"] == "missing":
            faults.append(f'no "{key}"')
        elif error["type"] == "json_invalid":
            faults.append(f"not JSON ({error['msg'].rpartition(': ')[2]})")
        elif not key:
            faults.append(error["msg"].removeprefix("Value error, "))
        else:
            found = json.dumps(error["input"], default=str)[:60]
            faults.append(f'"{key}" is {found}: {error["msg"]}')
    return "; ".join(faults)
