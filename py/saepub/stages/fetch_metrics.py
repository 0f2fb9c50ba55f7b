"""fetch-metrics: add to each line the run's record as W&B has it. What is in it is for facts."""

import os
import pathlib

from .. import jsonl, settings
from ..cli import UserError, parser
from ..tracking import runs as wandb_runs
from ..tracking import snapshot as wandb_snapshot


def main(argv: list[str]) -> None:
    p = parser(
        "Add each run's record in W&B (or in an export of it), or null.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics"
        " | jq -c '[.run_id, .wandb.state, .wandb.summary[\"eval/l0\"]]'",
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
    candidates = list(jsonl.read("repo", "layer", "run_id"))
    run_ids = list(dict.fromkeys(line["run_id"] for line in candidates))
    records = _records(run_ids, args.snapshot or settings.get("METRICS_SNAPSHOT"))
    if args.save_snapshot:
        wandb_snapshot.write(args.save_snapshot, records.values())
    for line in candidates:
        record = records.get(line["run_id"])
        if record is not None:
            record = {key: record[key] for key in wandb_snapshot.KEYS if key != "name"}
        jsonl.write(line | {"wandb": record})


def _records(run_ids: list[str], snapshot: str) -> dict[str, dict]:
    """The records of those of `run_ids` that W&B, or the export, has."""
    if not snapshot:
        return wandb_runs.fetch(run_ids) if run_ids else {}
    if not os.path.exists(snapshot) and settings.is_demo_fpath(pathlib.Path(snapshot)):
        raise UserError("no data is named and there is no demo yet; run: make demo")
    return wandb_snapshot.read(snapshot, frozenset(run_ids))
