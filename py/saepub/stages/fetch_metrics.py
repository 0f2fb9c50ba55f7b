"""fetch-metrics: add each run's W&B record, which bin/facts then reads."""

import collections
import os
import pathlib

from .. import jsonl, places, settings
from ..cli import UserError, parser
from ..tracking import runs as wandb_runs
from ..tracking import snapshot as wandb_snapshot
from ..tracking.snapshot import Record


def main(argv: list[str]) -> None:
    p = parser(
        "Add each run's record from W&B (or from an export of it), or null.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics"
        " | jq -c '[.run_id, .wandb.state, .wandb.summary[\"eval/l0\"]]'",
    )
    p.add_argument(
        "--snapshot",
        metavar="FILE",
        help="read this JSONL export instead of asking W&B (default: METRICS_SNAPSHOT)",
    )
    p.add_argument(
        "--save-snapshot", metavar="FILE", help="write an export of the requested runs"
    )
    args = p.parse_args(argv)
    settings.load()
    candidates = list(jsonl.read("repo", "layer", "run_id", "expected"))
    snapshot = args.snapshot or settings.get("METRICS_SNAPSHOT")
    records = _exported(snapshot, candidates) if snapshot else _fetched(candidates)
    if args.save_snapshot:
        wandb_snapshot.write(args.save_snapshot, records.values())
    for line in candidates:
        record = records.get(line["run_id"])
        if record is not None:
            record = {key: record[key] for key in wandb_snapshot.KEYS if key != "name"}
        jsonl.write(line | {"wandb": record})


def _exported(snapshot: str, candidates: list[jsonl.Line]) -> dict[str, Record]:
    """The candidates' records from the export."""
    if not os.path.exists(snapshot) and settings.is_demo_fpath(pathlib.Path(snapshot)):
        raise UserError("no data is set and there is no demo yet; run: make demo")
    run_ids = frozenset(line["run_id"] for line in candidates)
    return wandb_snapshot.read(snapshot, run_ids)


def _fetched(candidates: list[jsonl.Line]) -> dict[str, Record]:
    """The candidates' records from W&B, one project at a time."""
    run_ids: dict[tuple[str, str], dict[str, None]] = collections.defaultdict(dict)
    for line in candidates:
        run_ids[places.project(line)][line["run_id"]] = None
    found: dict[str, Record] = {}
    for (entity, project), ids in run_ids.items():
        found |= wandb_runs.fetch(entity, project, list(ids))
    return found
