"""Passes: measure several runs together on one layer's activations, and write their records.

A pass can run in this process, or as a task on another node.
"""

import concurrent.futures
import contextlib
import datetime
import math
import os
import pathlib
import platform
import typing as tp

from .. import checkpoint, digests, files, measured, settings
from ..checkpoint.file import NotFinite
from ..checkpoint.sae import Sae
from ..cli import UserError
from ..measured import Record, Tokens
from ..text import say
from . import measure, shards
from .partial import Kept


class Source(tp.NamedTuple):
    """A layer's activations, and how many tokens of them to measure."""

    fpath: str
    """A shard's directory, or anything else that `shards.find` takes."""
    slug: str
    """The repo, whose own .npy files take precedence over shared ones."""
    shard: str
    layer: int
    n_asked: int
    is_kept: bool
    """Whether to keep records: only for measurements on the runs' own shard."""

    @property
    def name(self) -> str:
        return f"layer {self.layer} of {self.shard}"

    def open(self) -> shards.Shard:
        """Open the activations. Raises UserError or OSError if there are none."""
        return shards.find(pathlib.Path(self.fpath), self.slug, self.layer)


class Job(tp.NamedTuple):
    """A run to measure."""

    run_id: str
    checkpoint_fpath: str


class Found(tp.NamedTuple):
    """The outcome of a job."""

    record: Record | None
    why: str = ""
    """Why there is no record."""
    has_diverged: bool = False
    """Whether there is none because the run diverged: its numbers are not finite."""
    is_new: bool = False
    """Whether it was measured just now."""


def tokens_of(source: Source, shard: shards.Shard) -> Tokens:
    """Which tokens of a non-empty shard to measure."""
    examples = shards.sample(shard.n_examples, shard.per_example, source.n_asked)
    return Tokens(
        layer=source.layer,
        asked=source.n_asked,
        n_examples=len(examples),
        of_examples=shard.n_examples,
        per_example=shard.per_example,
    )


def n_tokens(source: Source) -> int:
    """How many tokens each run is measured on."""
    return tokens_of(source, source.open()).n_tokens


def n_fit(source: Source, jobs: tp.Sequence[Job]) -> int:
    """How many of these runs can share a pass in this machine's memory."""
    return measure.n_fit(*_sizes(source, jobs))


def memory_bytes(source: Source, jobs: tp.Sequence[Job], n_gpus: int = 0) -> int:
    """The memory of a process that measures these runs in one pass."""
    return measure.memory_bytes(len(jobs), *_sizes(source, jobs), n_gpus)


def _sizes(source: Source, jobs: tp.Sequence[Job]) -> tuple[int, int, int]:
    """The largest checkpoint in bytes, d_model, and the most features of one."""
    n_bytes = 1
    for job in jobs:
        with contextlib.suppress(OSError):  # reported when it is measured
            n_bytes = max(n_bytes, os.stat(job.checkpoint_fpath).st_size)
    d_model = source.open().d_model
    return n_bytes, d_model, math.ceil(n_bytes / (8 * d_model))


def record_of(
    source: Source, shard: shards.Shard | None, job: Job
) -> tuple[Record | None, str]:
    """The record of a run on these tokens, if its checkpoint hasn't changed since.

    Args:
        shard: The activations, open; None if they don't exist, so that only a record can help.

    Returns:
        The record, or None; and an error message if it can't be read.
    """
    if not source.is_kept:
        return None, ""
    try:
        record = measured.find(job.run_id, source.shard)
    except UserError as err:
        return None, str(err)
    if record is None or record.tokens.layer != source.layer:
        return None, ""
    if record.tokens.asked != source.n_asked:
        return None, ""
    if shard and record.tokens != tokens_of(source, shard):
        return None, ""
    fpath = pathlib.Path(job.checkpoint_fpath)
    try:
        is_same = digests.is_of(fpath, record.bytes, record.sha256)
    except OSError:
        return None, ""
    return (record if is_same else None), ""


def run(
    source: Source,
    jobs: tp.Sequence[Job],
    count: tp.Callable[[int], object] = lambda _: None,
) -> list[Found]:
    """Measure some runs in one pass, and write their records.

    Args:
        jobs: As many runs as fit in memory.
        count: Called with the number of tokens measured since its last call.

    Raises:
        UserError: The activations can't be read or have no NMSE.
    """
    shard = source.open()
    found: dict[Job, Found] = {}
    read: list[tuple[Job, checkpoint.File]] = []
    saes = []
    with concurrent.futures.ThreadPoolExecutor(measure.n_readers()) as pool:
        widths = [shard.d_model] * len(jobs)
        for job, one in zip(jobs, pool.map(_read, jobs, widths), strict=True):
            if isinstance(one, UserError):
                diverged = isinstance(one, NotFinite)
                found[job] = Found(None, str(one), has_diverged=diverged)
                continue
            file, sae = one
            read.append((job, file))
            # Subtracting a b_dec of zeros changes nothing.
            subtracts = file.header.subtracts_b_dec and bool(sae.tensors["b_dec"].any())
            saes.append((sae, subtracts))
    if saes:
        tokens = tokens_of(source, shard)
        examples = shards.sample(shard.n_examples, shard.per_example, source.n_asked)
        kept = _kept(source, shard, read, saes)
        begun = kept.read()
        n_done = measure.n_done(begun)
        if n_done:
            n_all = f"{tokens.n_tokens:,}"
            say(f"measure: {source.name}: resuming after {n_done:,} of {n_all} tokens")
            count(n_done)
        examples = examples[n_done // shard.per_example :]
        batches = shards.batches(shard, examples, measure.READ_TOKENS)
        try:
            all_measured = measure.measure(
                saes, batches, count, begun=begun, keep=kept.keep
            )
        except measure.Unfit as err:
            raise UserError(f"{shard.fpath}: {err}") from None
        for (job, file), (_, subtracts), result in zip(
            read, saes, all_measured, strict=True
        ):
            if not result.is_finite:
                why = f"{job.checkpoint_fpath}: what it computes is not finite"
                found[job] = Found(None, why, has_diverged=True)
                continue
            record = _record(source, tokens, job, file, subtracts, result)
            if source.is_kept:
                measured.write(record)
            found[job] = Found(record, is_new=True)
        kept.remove()
    return [found[job] for job in jobs]


def _read(job: Job, d_model: int) -> tuple[checkpoint.File, Sae] | UserError:
    """A run's checkpoint, closed again, and its SAE, where it will be measured.

    Returns an error if the file can't be read, or doesn't fit the activations; NotFinite if its
    weights are not finite.
    """
    try:
        with checkpoint.File(job.checkpoint_fpath) as file:
            if file.header.d_model != d_model:
                raise UserError(
                    f"{file.fpath}: its d_model is {file.header.d_model}, but the"
                    f" activations have width {d_model}"
                )
            file.read()
            sae = measure.on_device(file.sae())
    except UserError as err:
        return err
    with contextlib.suppress(OSError):
        status = os.stat(file.fpath)
        if (status.st_size, status.st_mtime_ns) == (file.n_bytes, file.mtime_ns):
            digests.remember(pathlib.Path(file.fpath), status, file.sha256)
    return file, sae


def _kept(
    source: Source,
    shard: shards.Shard,
    read: list[tuple[Job, checkpoint.File]],
    saes: list[tuple[Sae, bool]],
) -> Kept:
    """The sums of a pass, with all that they depend on."""
    n_batch = measure.batch_tokens(max(sae.header.d_sae for sae, _ in saes))
    where = [files.facts(shard.fpaths), n_batch, measure.device_name(), _versions()]
    return Kept(
        [f"{job.run_id}@{source.shard}" for job, _ in read],
        [
            [source, file.sha256, subtracts, *where]
            for (_, file), (_, subtracts) in zip(read, saes, strict=True)
        ],
    )


def _versions() -> dict[str, str]:
    import numpy as np
    import torch

    return {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _record(
    source: Source,
    tokens: Tokens,
    job: Job,
    file: checkpoint.File,
    subtracts: bool,
    result: measure.Measured,
) -> Record:
    now = datetime.datetime.now(datetime.UTC)
    return Record(
        run_id=job.run_id,
        shard=source.shard,
        sha256=file.sha256,
        bytes=file.n_bytes,
        l0=result.l0,
        nmse=result.nmse,
        n_tokens=tokens.n_tokens,
        tokens=tokens,
        sse_recon=result.sse_recon,
        sse_baseline=result.sse_baseline,
        n_dead=result.n_dead,
        subtracts_b_dec=subtracts,
        device=measure.device_name(),
        versions=_versions(),
        date=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


# ---- as a task, with JSON arguments and results ----------------------------------------------


def as_task(source: list[tp.Any], jobs: list[list[str]]) -> list[list[tp.Any]]:
    """`run` as called by a task; returns each job's `Found` as a list."""
    found = run(Source(*source), [Job(*job) for job in jobs])
    return [[one.record and one.record.model_dump(), *one[1:]] for one in found]


def from_task(source: Source, result: list[list[tp.Any]]) -> list[Found]:
    """The result of `as_task`, from now or earlier. Writes its records."""
    found = [Found(record and Record(**record), *rest) for record, *rest in result]
    for one in found:
        if one.record and source.is_kept:
            measured.write(one.record)
    return found


# ---- concurrent processes --------------------------------------------------------------------


def claimed(source: Source, told: str = "") -> contextlib.AbstractContextManager[bool]:
    """Lock a layer's activations among all `measure` processes that share a build directory.

    The value says whether we have the lock. Without `told`, a message, we don't wait for it.
    """
    settings.claim_new("BUILD")
    dpath = settings.build_dpath() / ".measure"
    return files.turn(dpath / f"{source.shard}-{source.layer}.lock", told)
