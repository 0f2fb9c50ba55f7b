"""Where the L0 and NMSE of each (repo, layer) come from: measured, logged, or on disk.

All numbers of one (repo, layer) come from one source and one shard, since numbers from
different data don't belong on one frontier.
"""

import collections
import dataclasses
import json
import math
import os
import stat
import typing as tp

from . import digests, jsonl, places, settings
from .cli import UserError
from .text import human, layers_text, n_of

if tp.TYPE_CHECKING:
    import pathlib

    from . import measured

DEAD_L0 = 0.05
"""Below this L0, which tables show as 0.0, an SAE counts as dead. Its log L0 would stretch the
range that the choice is spaced over."""

SAME_RATIO = 1e-6
"""Relative tolerance between a normalized_mse on disk and the ratio of its two sums."""

TOLERANCE = 0.02
"""Warn if a number differs by more than this fraction from what training logged."""

MAX_METRICS_BYTES = 2**20

OVERWRITTEN = (
    'has "sse_sae": written between 26 November 2025 and 3 March 2026, when saev overwrote'
    " a weight matrix while loading a checkpoint"
)

NO_L0, NO_NMSE = "no L0", "no NMSE"
"""The start of the drop reason of a run without numbers."""

Measure = float | str | None
"""A finite number, or one of jsonl.NOT_FINITE, or null."""


@dataclasses.dataclass(slots=True)
class Run:
    """One candidate: its line's values, updated by `settle`."""

    run_id: str
    drop: str | None
    l0: Measure
    """As training logged it, until `settle` replaces it; likewise `nmse`."""
    nmse: Measure
    n_dead: float | None
    shard: str | None
    """The shard that it was evaluated on, according to W&B."""
    fault: str | None
    """What is malformed in its W&B record."""
    numbers: str | None = None
    n_tokens: int | None = None


class Found(tp.NamedTuple):
    """A run's numbers from one source."""

    l0: Measure
    nmse: Measure
    n_tokens: int | None = None
    n_dead: float | None = None


class Source(tp.NamedTuple):
    name: str
    """As on a line: "measured:<shard>", "wandb" or "disk:<shard>"."""
    found: dict[str, Found]
    why_not: dict[str, str]
    """Why to drop each eligible run that the source lacks, by id."""


def logged(line: jsonl.Line) -> dict[str, tp.Any]:
    """A line's `l0_logged` and `nmse_logged`: what training logged, even if settle or measure
    has replaced it."""
    return {
        f"{key}_logged": line.get(f"{key}_logged", line[key]) for key in ("l0", "nmse")
    }


def is_lacking(drop: str | None) -> bool:
    """Whether a run was dropped because it has no numbers."""
    return drop is not None and drop.startswith((NO_L0, NO_NMSE))


# ---- one (repo, layer) -----------------------------------------------------------------------


def settle(runs: list[Run], repo: str, expected: dict[str, tp.Any]) -> list[str]:
    """Settle the runs of one (repo, layer) on one source, and drop those that it lacks.

    That is the first source that has every eligible run, else the one that has most of them;
    the earlier one wins a tie. Runs that are already dropped don't count, and keep the logged
    numbers. Nor do runs that diverged according to their logged numbers, since a run whose
    weights are NaN has no other numbers.

    Args:
        runs: All candidates of the (repo, layer). Changed in place.
        repo: Its slug.
        expected: What the catalog says about its runs: the shard, and where files are.

    Returns:
        A note on each number that was refused, one sentence each.

    Raises:
        UserError: NMSE_SHARD is not a name, or it is set and the runs root is not a directory.
    """
    nmse_shard = _nmse_shard()
    eligible = [run for run in runs if run.drop is None]
    shard = shard_of(expected, (run.shard for run in eligible))
    place = {"repo": repo, "expected": expected}
    sound = {run.run_id for run in eligible if not _has_diverged(run)}
    sound = sound or {run.run_id for run in eligible}
    notes: list[str] = []
    tried: list[Source] = []
    for source_of, its_shard in (
        (_measured, shard),
        (_logged, shard),
        (_on_disk, nmse_shard or shard),
    ):
        tried.append(source_of(eligible, its_shard, place, notes))
        if sound <= tried[-1].found.keys():
            break
    best = max(tried, key=lambda source: len(sound & source.found.keys()))
    if not best.found:
        for run in eligible:
            _drop_without(run, tried)
        return notes
    for run in eligible:
        run.numbers = best.name
        if run.run_id not in best.found:
            why = _why_impossible(Found(run.l0, run.nmse)) if _has_diverged(run) else ""
            run.drop = why or best.why_not[run.run_id]
            continue
        found = best.found[run.run_id]
        run.l0, run.nmse, run.n_tokens = found.l0, found.nmse, found.n_tokens
        if found.n_dead is not None:
            run.n_dead = found.n_dead
        run.drop = _why_impossible(found)
    return notes


def shard_of(
    expected: dict[str, tp.Any], shards: tp.Iterable[str | None]
) -> str | None:
    """The shard that the runs of one (repo, layer) are measured on: the catalog's, else the one
    that most of them were evaluated on; None if neither the catalog nor W&B names one.

    Args:
        expected: What the catalog says about the runs.
        shards: The `shard` of each line.
    """
    shard = expected.get("shard")
    return shard if jsonl.is_id(shard) else _most_named(shards)


def _most_named(shards: tp.Iterable[str | None]) -> str | None:
    n_of_shard = collections.Counter(shard for shard in shards if shard)
    return min(n_of_shard, key=lambda shard: (-n_of_shard[shard], shard), default=None)


def _drop_without(run: Run, tried: list[Source]) -> None:
    """Drop a run of a (repo, layer) that no source has numbers for."""
    lack = NO_L0 if run.l0 is None else NO_NMSE
    *_, disk = (source.why_not[run.run_id] for source in tried)
    on_disk = f", on disk {disk.partition(': ')[2]}" if ": " in disk else ""
    fault = f" ({run.fault})" if run.fault else ""
    run.drop = f"{lack}: not measured, not in W&B{fault}{on_disk}"


def _has_diverged(run: Run) -> bool:
    """Whether training logged numbers that are not finite."""
    return isinstance(run.l0, str) or isinstance(run.nmse, str)


def _why_impossible(found: Found) -> str | None:
    """Why a run with these numbers is dropped; None if it isn't."""
    for what, value in (("L0", found.l0), ("NMSE", found.nmse)):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"not finite: {what} {value}"
    l0 = tp.cast(float, found.l0)
    return f"L0 is {l0:.3g}: a dead SAE" if l0 < DEAD_L0 else None


# ---- the sources -----------------------------------------------------------------------------


def _measured(
    runs: list[Run], shard: str | None, place: jsonl.Line, notes: list[str]
) -> Source:
    """What `make measure` found for the very bytes that would be published."""
    source = Source(f"measured:{shard}", {}, {})
    for run in runs:
        try:
            record = _recorded(run.run_id, shard) if shard else None
        except UserError as err:
            notes.append(str(err))
            record = None
        if record is None:
            why = f"not measured on {shard}" if shard else "not measured"
        else:
            line = place | {"run_id": run.run_id}
            why = _not_of(record, places.checkpoint_fpath(line))
        if why:
            source.why_not[run.run_id] = f"{NO_L0}: {why}"
        elif record is not None:
            source.found[run.run_id] = Found(
                record.l0, record.nmse, record.n_tokens, record.n_dead
            )
    return source


def _recorded(run_id: str, shard: str) -> "measured.Record | None":
    """The measurement of a run on a shard, if there is one."""
    from . import measured  # slow to import, for its schema

    return measured.find(run_id, shard)


def _not_of(record: "measured.Record", fpath: "pathlib.Path") -> str:
    """Why a measurement doesn't count for a checkpoint; "" if it does."""
    try:
        is_same = digests.is_of(fpath, record.bytes, record.sha256)
    except OSError as err:
        return f"measured on {record.shard}, but its checkpoint: {err.strerror}"
    return "" if is_same else f"measured on {record.shard}, but the file has changed"


def _logged(
    runs: list[Run], shard: str | None, place: jsonl.Line, notes: list[str]
) -> Source:
    """W&B's numbers. If runs name their shards, only the runs of one shard count."""
    source = Source("wandb", {}, {})
    complete = [run for run in runs if None not in (run.l0, run.nmse)]
    if shard not in {run.shard for run in complete}:
        shard = _most_named(run.shard for run in complete)
    for run in runs:
        fault = f" ({run.fault})" if run.fault else ""
        if run.l0 is None:
            source.why_not[run.run_id] = f"{NO_L0} in W&B{fault}"
        elif run.nmse is None:
            source.why_not[run.run_id] = f"{NO_NMSE} in W&B{fault}"
        elif run.shard not in (None, shard):
            why = f"{NO_NMSE} on {shard} in W&B, which has one on {run.shard}"
            source.why_not[run.run_id] = why
        else:
            source.found[run.run_id] = Found(run.l0, run.nmse)
    return source


def _on_disk(
    runs: list[Run], shard: str | None, place: jsonl.Line, notes: list[str]
) -> Source:
    """NMSE from the runs' inference results on disk; L0 from W&B."""
    runs_root = places.runs_root(place)
    if settings.get("NMSE_SHARD") and not runs_root.is_dir():
        raise UserError(f"{runs_root}: no such directory; set RUNS_ROOT")
    source = Source(f"disk:{shard}", {}, {})
    refused = collections.defaultdict(list)
    for run in runs:
        nmse, why = None, ""
        if shard:
            nmse, why = read(runs_root / run.run_id / f"inference/{shard}/metrics.json")
        if why:
            refused[why].append(run.run_id)
        if run.l0 is None:
            source.why_not[run.run_id] = f"{NO_L0} in W&B"
        elif nmse is None:
            on_shard = f" for {shard}" if shard else ""
            tail = f": {why}" if why else ""
            source.why_not[run.run_id] = f"{NO_NMSE} on disk{on_shard}{tail}"
        else:
            source.found[run.run_id] = Found(run.l0, nmse)
    for why, ids in refused.items():
        named = " ".join(ids[:6]) + (f" and {len(ids) - 6} more" if ids[6:] else "")
        notes.append(f"metrics.json of {shard} ignored, it {why}: {named}")
    return source


def _nmse_shard() -> str:
    """The shard that NMSE_SHARD names; "" if it isn't set."""
    shard = settings.get("NMSE_SHARD")
    if shard and not jsonl.is_id(shard):
        raise UserError(
            f"NMSE_SHARD is {shard!r}, not a shard's name ({jsonl.ID.pattern})"
        )
    return shard


def read(fpath: "pathlib.Path") -> tuple[float | None, str]:
    """The full-prefix NMSE in the metrics.json that a run's inference on a shard wrote.

    Returns:
        The NMSE, or None; and why, if there is a file but it can't be trusted.
    """
    try:
        # O_NONBLOCK: a FIFO without a writer would block the open forever.
        fd = os.open(fpath, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None, "is not a file"
            text = file.read(MAX_METRICS_BYTES + 1)
        if len(text) > MAX_METRICS_BYTES:
            return None, f"is over {human(MAX_METRICS_BYTES)}"
        return _nmse_of(json.loads(text, parse_int=float))
    except FileNotFoundError:
        return None, ""
    except OSError as err:
        return None, f"can't be read ({err.strerror})"
    except (ValueError, RecursionError):
        return None, "is not JSON"


def _nmse_of(metrics: object) -> tuple[float | None, str]:
    """The NMSE in a metrics.json, whose numbers are floats, or why it can't be trusted."""
    if not isinstance(metrics, dict):
        return None, "is not a JSON object"
    if "sse_sae" in metrics:
        return None, OVERWRITTEN
    keys = ("normalized_mse", "sse_recon", "sse_baseline")
    for key in keys:
        value = metrics.get(key)
        if not isinstance(value, float) or not math.isfinite(value):
            return None, f'has no number "{key}"'
    nmse, sse_recon, sse_baseline = (metrics[key] for key in keys)
    if sse_baseline <= 0 or not math.isclose(
        nmse, sse_recon / sse_baseline, rel_tol=SAME_RATIO
    ):
        return None, 'has a "normalized_mse" that is not sse_recon / sse_baseline'
    return nmse, ""


# ---- chosen runs against their files ---------------------------------------------------------


def refusal(line: jsonl.Line) -> str:
    """Why a line's numbers are not its checkpoint's; "" if they are, as far as is known.

    Args:
        line: A checked line, with the `sha256` of the file that would be published.
    """
    kind, _, shard = (line.get("numbers") or "").partition(":")
    if kind != "measured":
        return ""
    record = _recorded(line["run_id"], shard)
    if record is not None and record.sha256 == line["sha256"]:
        return ""
    return f"measured on {shard}, but the file has changed since; run: make recheck"


def warnings(line: jsonl.Line) -> list[str]:
    """How a measurement of this very checkpoint differs from what training logged.

    Args:
        line: As for `refusal`. A measurement is compared even if the line's numbers are W&B's.
    """
    kind, _, shard = (line.get("numbers") or "").partition(":")
    if kind == "wandb":
        shard = line["expected"].get("shard") or line.get("shard")
    found = {key: line[key] for key in ("l0", "nmse")}
    if kind == "disk":
        return _differences("on disk", found, line)
    record = _recorded(line["run_id"], shard) if jsonl.is_id(shard) else None
    if record is None or record.sha256 != line["sha256"]:
        return []
    return _differences("measured", {"l0": record.l0, "nmse": record.nmse}, line)


def _differences(how: str, found: dict[str, tp.Any], line: jsonl.Line) -> list[str]:
    differences = []
    for key, what in (("l0", "L0"), ("nmse", "NMSE")):
        logged, value = line.get(f"{key}_logged"), found[key]
        if logged is None or value is None:
            continue
        if isinstance(logged, str) or abs(value - logged) > TOLERANCE * abs(logged):
            shown = logged if isinstance(logged, str) else f"{logged:.4g}"
            differences.append(f"{what} {how} {value:.4g}, logged {shown}")
    return differences


# ---- for people ------------------------------------------------------------------------------


def describe(lines: list[jsonl.Line]) -> str:
    """Where the numbers of one (repo, layer) come from, in words.

    Args:
        lines: All of its candidates, settled.
    """
    have = [
        line
        for line in lines
        if line["numbers"]
        and not is_lacking(line["drop"])
        # A diverged run has no measurement, whatever source its layer is on.
        and (line["n_tokens"] or not line["numbers"].startswith("measured:"))
    ]
    n_lacking = sum(is_lacking(line["drop"]) for line in lines)
    parts = [f"{n_of(n_lacking, 'run')} without numbers"] if n_lacking else []
    for source, n in sorted(collections.Counter(x["numbers"] for x in have).items()):
        kind, _, shard = source.partition(":")
        if kind == "measured":
            tokens = {x["n_tokens"] for x in have if x["numbers"] == source}
            n_tokens = " or ".join(f"{n:,}" for n in sorted(tokens))
            words = f"measured on {n_tokens} tokens of {shard}"
        elif kind == "disk":
            words = f"L0 from W&B, NMSE from inference on {shard}"
        else:
            words = "numbers from W&B"
        parts.insert(0, f"{n_of(n, 'run')}, {words}")
    return "; ".join(parts) or "no run has numbers"


def advice(lacking: list[jsonl.Line], how_long: str = "") -> str:
    """What to do about runs without numbers, in one sentence.

    Args:
        lacking: Settled lines of one repo, all without numbers.
        how_long: About how long measuring them takes here.
    """
    first: jsonl.Line = {"expected": {}} | lacking[0]
    slug = first["repo"]
    layers = layers_text({line["layer"] for line in lacking})
    text = f"{slug} {layers}: no numbers for {n_of(len(lacking), 'run')}"
    text += f"; to measure them: make measure REPO={slug}"
    shard = shard_of(first["expected"], (line.get("shard") for line in lacking))
    if not shard:
        return f'{text} (W&B names no shard; write "shard" in the catalog first)'
    try:
        dpath = places.shards_root(first) / shard
    except UserError:
        return f"{text} (on shard {shard}; set SHARDS_ROOT first)"
    if not dpath.is_dir():
        return f"{text} (shard {dpath} doesn't exist; the command says what to do)"
    about = f", which takes about {how_long} here" if how_long else ""
    return f"{text} (on shard {shard}{about})"
