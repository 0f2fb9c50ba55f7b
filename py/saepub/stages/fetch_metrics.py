"""fetch-metrics: add to each line what W&B knows of its run, and where its NMSE comes from."""

import os
import pathlib

from .. import jsonl, settings
from .. import numbers as nmse
from ..cli import UserError, parser
from ..text import say
from ..tracking import runs as wandb_runs
from ..tracking import snapshot as wandb_snapshot
from ..tracking.run_facts import NULLS, facts


def main(argv: list[str]) -> None:
    p = parser(
        "Add each run's metrics and configuration, from W&B or an export of it.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | jq -c '[.run_id, .l0, .nmse]'",
    )
    p.add_argument(
        "--snapshot",
        metavar="FILE",
        help="read this JSONL export instead of asking W&B (default: METRICS_SNAPSHOT)",
    )
    p.add_argument(
        "--save-snapshot", metavar="FILE", help="write an export of the runs asked for"
    )
    args = p.parse_args(argv)
    settings.load()
    candidates = list(jsonl.read("repo", "layer", "run_id", "expected"))
    run_ids = list(dict.fromkeys(line["run_id"] for line in candidates))
    records = _records(run_ids, args.snapshot or settings.get("METRICS_SNAPSHOT"))
    if args.save_snapshot:
        wandb_snapshot.write(args.save_snapshot, records.values())
    for line in candidates:
        record = records.get(line["run_id"])
        line |= facts(record) if record else NULLS
    said = nmse.settle([line for line in candidates if line["run_id"] in records])
    for line in candidates:
        jsonl.write(line)
    for sentence in said:
        say(f"fetch-metrics: {sentence}")


def _records(run_ids: list[str], snapshot: str) -> dict[str, dict]:
    """The records of those of `run_ids` that W&B, or the export, has."""
    if not snapshot:
        return wandb_runs.fetch(run_ids) if run_ids else {}
    if not os.path.exists(snapshot) and settings.is_demo_fpath(pathlib.Path(snapshot)):
        raise UserError("no data is named and there is no demo yet; run: make demo")
    return wandb_snapshot.read(snapshot, frozenset(run_ids))
