"""Passes: some runs' SAEs measured together on one layer's activations, and the records kept.

A pass can run anywhere: in this process, or as a task on another node.
"""

import contextlib
import datetime
import fcntl
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
    """A layer's activations, and how many tokens of them are measured."""

    fpath: str
    """A shard's directory, or whatever `shards.find` takes."""
    slug: str
    """The repo, whose own .npy files go before the shared ones."""
    shard: str
    layer: int
    n_asked: int
    is_kept: bool
    """Whether it is the runs' own shard: what is measured on another is no record."""

    @property
    def name(self) -> str:
        return f"layer {self.layer} of {self.shard}"

    def open(self) -> shards.Shard:
        """Raises UserError or OSError where there are no such activations."""
        return shards.find(pathlib.Path(self.fpath), self.slug, self.layer)


class Job(tp.NamedTuple):
    """A run to be measured."""

    run_id: str
    checkpoint_fpath: str


class Found(tp.NamedTuple):
    """What became of a job."""

    record: Record | None
    why: str = ""
    """Why there is none."""
    has_diverged: bool = False
    """Whether that is the run's own fault: its numbers are not finite."""
    is_new: bool = False
    """Whether it was measured now."""


def tokens_of(source: Source, shard: shards.Shard) -> Tokens:
    """Which tokens of a shard are measured. It has some."""
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
    """How many of these runs may share a pass, by this machine's memory."""
    return measure.n_fit(*_sizes(source, jobs))


def memory_bytes(source: Source, jobs: tp.Sequence[Job], n_gpus: int = 0) -> int:
    """The memory that a process takes that measures these runs in one pass."""
    return measure.memory_bytes(len(jobs), *_sizes(source, jobs), n_gpus)


def _sizes(source: Source, jobs: tp.Sequence[Job]) -> tuple[int, int, int]:
    """The largest checkpoint in bytes, d_model, and the most features of one."""
    n_bytes = 1
    for job in jobs:
        with contextlib.suppress(OSError):  # told when it is to be measured
            n_bytes = max(n_bytes, os.stat(job.checkpoint_fpath).st_size)
    d_model = source.open().d_model
    return n_bytes, d_model, math.ceil(n_bytes / (8 * d_model))


def record_of(
    source: Source, shard: shards.Shard | None, job: Job
) -> tuple[Record | None, str]:
    """The record of a run on these tokens and of the bytes that its checkpoint now has.

    Args:
        source: The activations.
        shard: The same, open; None where they are not there, and a record must do.
        job: The run.

    Returns:
        The record, or None; and what to tell of one that can't be read.
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
        is_same = fpath.stat().st_size == record.bytes
        is_same = is_same and digests.sha256(fpath) == record.sha256
    except OSError:
        return None, ""
    return (record if is_same else None), ""


def run(
    source: Source,
    jobs: tp.Sequence[Job],
    tell: tp.Callable[[int], object] = lambda _: None,
) -> list[Found]:
    """Measure some runs in one pass, and keep their records.

    Args:
        source: The activations.
        jobs: The runs, as many as memory allows.
        tell: Called with the number of tokens that were measured since it was last.

    Raises:
        UserError: The activations can't be read or have no NMSE.
    """
    shard = source.open()
    found: dict[Job, Found] = {}
    read: list[tuple[Job, checkpoint.File]] = []
    saes = []
    for job in jobs:
        try:
            file, sae = _read(job, shard.d_model)
        except NotFinite as err:
            found[job] = Found(None, str(err), has_diverged=True)
        except UserError as err:
            found[job] = Found(None, str(err))
        else:
            read.append((job, file))
            # Where b_dec is zero, it makes no difference who takes it from what.
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
            say(f"measure: {source.name}: goes on after {n_done:,} of {n_all} tokens")
            tell(n_done)
        examples = examples[n_done // shard.per_example :]
        batches = shards.batches(shard, examples, measure.READ_TOKENS)
        try:
            all_measured = measure.measure(
                saes, batches, tell, begun=begun, keep=kept.keep
            )
        except measure.Unfit as err:
            raise UserError(f"{shard.fpath}: {err}") from None
        for (job, file), (_, subtracts), of_one in zip(
            read, saes, all_measured, strict=True
        ):
            if not of_one.is_finite:
                why = f"{job.checkpoint_fpath}: what it computes is not finite"
                found[job] = Found(None, why, has_diverged=True)
                continue
            record = _record(source, tokens, job, file, subtracts, of_one)
            if source.is_kept:
                measured.write(record)
            found[job] = Found(record, is_new=True)
        kept.remove()
    return [found[job] for job in jobs]


def _read(job: Job, d_model: int) -> tuple[checkpoint.File, Sae]:
    """A run's checkpoint, closed again, and its SAE.

    Raises:
        NotFinite: Its weights are not finite.
        UserError: It can't be read, or is of another width.
    """
    with checkpoint.File(job.checkpoint_fpath) as file:
        if file.header.d_model != d_model:
            raise UserError(
                f"{file.fpath}: its d_model is {file.header.d_model}, where the"
                f" activations are of width {d_model}"
            )
        file.read()
        sae = file.sae()
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
    of_one: measure.Measured,
) -> Record:
    now = datetime.datetime.now(datetime.UTC)
    return Record(
        run_id=job.run_id,
        shard=source.shard,
        sha256=file.sha256,
        bytes=file.n_bytes,
        l0=of_one.l0,
        nmse=of_one.nmse,
        n_tokens=tokens.n_tokens,
        tokens=tokens,
        sse_recon=of_one.sse_recon,
        sse_baseline=of_one.sse_baseline,
        n_dead=of_one.n_dead,
        subtracts_b_dec=subtracts,
        device=measure.device_name(),
        versions=_versions(),
        date=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


# ---- as a task, which takes and gives JSON ---------------------------------------------------


def as_task(source: list[tp.Any], jobs: list[list[str]]) -> list[list[tp.Any]]:
    """`run`, as a task calls it: each job's `Found`, as a list."""
    found = run(Source(*source), [Job(*job) for job in jobs])
    return [[one.record and one.record.model_dump(), *one[1:]] for one in found]


def from_task(source: Source, result: list[list[tp.Any]]) -> list[Found]:
    """What `as_task` gave, now or before, its records kept."""
    found = [Found(record and Record(**record), *rest) for record, *rest in result]
    for one in found:
        if one.record and source.is_kept:
            measured.write(one.record)
    return found


# ---- two at once -----------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(source: Source, *, waits: bool) -> tp.Iterator[bool]:
    """Have a layer's activations to oneself among all `measure` that share a build directory.

    Args:
        source: The activations.
        waits: Whether to wait for another one that has them.

    Yields:
        Whether they are had. Never without `waits` and while another one has them.
    """
    settings.claim_new("BUILD")
    dpath = settings.build_dpath() / ".measure"
    dpath.mkdir(parents=True, exist_ok=True)
    with open(dpath / f"{source.shard}-{source.layer}.lock", "w") as fd:
        is_had = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            is_had = False
        except OSError:  # a disk without locks: two at once only measure twice
            pass
        yield is_had
