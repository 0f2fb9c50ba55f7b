"""Where each (repo, layer) takes its NMSE from: W&B, or its runs' inference on disk.

All NMSE of one (repo, layer) come from one source: two sources measure on different data,
and such numbers don't belong on one frontier.
"""

import collections
import json
import os
import stat
import subprocess

from . import jsonl, settings
from .cli import UserError
from .jsonl import Line
from .text import human, say
from .tracking.run_facts import measure

MAX_METRICS_BYTES = 2**20


def settle(found: list[Line]) -> list[str]:
    """Set `nmse` and `nmse_source` of each line.

    The source is W&B if all eligible runs have their NMSE there, else the shard that
    NMSE_SHARD names if it has more of them. Eligible is what `classify` would not drop for
    any reason but NMSE. A line that its source has no NMSE for gets null.

    Args:
        found: Lines of runs that are in W&B, with W&B's own `nmse`.

    Returns:
        A sentence for each (repo, layer) whose NMSE are not all W&B's.

    Raises:
        UserError: NMSE_SHARD is not a name, or RUNS_ROOT is not a directory.
    """
    shard = _shard()
    groups = collections.defaultdict(list)
    for line in found:
        line["nmse_source"] = "wandb"
        groups[line["repo"], line["layer"]].append(line)
    lacking = {
        key: group
        for key, group in groups.items()
        if any(line["nmse"] is None for line in group)
    }
    eligible = _eligible([line for group in lacking.values() for line in group])
    said = []
    for (repo, layer), group in lacking.items():
        outcome = _settle_group(group, eligible, shard)
        if outcome:
            said.append(f"{repo} layer {layer}: {outcome}")
    return said


def _shard() -> str:
    """The shard's name; "" where none is named."""
    shard = settings.get("NMSE_SHARD")
    if not shard:
        return ""
    if not jsonl.is_id(shard):
        raise UserError(
            f"NMSE_SHARD is {shard!r}, not a shard's name ({jsonl.ID.pattern})"
        )
    runs_root = settings.get("RUNS_ROOT")
    if not os.path.isdir(runs_root):
        raise UserError(
            f"{runs_root}: no such directory; set RUNS_ROOT, where NMSE_SHARD is"
        )
    return shard


def _eligible(candidates: list[Line]) -> set[int]:
    """The `id()` of each line that classify would not drop if it had an NMSE."""
    if not candidates:
        return set()
    stdin = "".join(
        jsonl.dumps(line | {"nmse": 1}) + "\n" for line in candidates
    ).encode()
    classify = os.path.join(settings.ROOT, "bin", "classify")
    done = subprocess.run([classify], input=stdin, capture_output=True)
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip()
        raise UserError(why or f"{classify}: exit {done.returncode}")
    drops = [jsonl.loads(text)["drop"] for text in done.stdout.splitlines()]
    return {
        id(line) for line, drop in zip(candidates, drops, strict=True) if drop is None
    }


def _settle_group(group: list[Line], eligible: set[int], shard: str) -> str:
    """Settle one (repo, layer), whose lines have W&B's NMSE or none; what there is to say."""
    judged = [line for line in group if id(line) in eligible]
    n_wandb = sum(line["nmse"] is not None for line in judged)
    if n_wandb == len(judged):
        return ""
    lack = (
        f"{len(judged) - n_wandb} of {len(judged)} runs have no"
        f" eval/normalized_mse in W&B"
    )
    if not shard:
        return f"{lack}; set NMSE_SHARD=<shard>"
    on_disk = {id(line): read(line["run_id"], shard) for line in group}
    n_disk = sum(on_disk[id(line)] is not None for line in judged)
    if n_disk <= n_wandb:
        return f"{lack}, and no more have it on disk in shard {shard} ({n_disk})"
    for line in group:
        line["nmse"], line["nmse_source"] = on_disk[id(line)], f"disk:{shard}"
    return f"NMSE from disk:{shard} for {n_disk} of {len(judged)} runs"


def read(run_id: str, shard: str) -> float | str | None:
    """The NMSE that a run's inference on a shard measured on the full prefix.

    Null where it didn't; a file that can't be trusted is named on stderr, and null too.
    """
    fpath = os.path.join(
        settings.get("RUNS_ROOT"), run_id, "inference", shard, "metrics.json"
    )
    try:
        # Not waiting for a writer, should it be a FIFO.
        fd = os.open(fpath, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("not a file")
            text = file.read(MAX_METRICS_BYTES + 1)
        if len(text) > MAX_METRICS_BYTES:
            raise ValueError(f"over {human(MAX_METRICS_BYTES)}")
        metrics = json.loads(text)
        if not isinstance(metrics, dict):
            raise ValueError("not a JSON object")
        nmse = measure(metrics.get("normalized_mse"))
        if nmse is None:
            raise ValueError('no number "normalized_mse"')
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        why = getattr(err, "strerror", None) or err
        say(f"fetch-metrics: {fpath}: {why}; passed over")
        return None
    return nmse
