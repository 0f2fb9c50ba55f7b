"""settle: choose one source of numbers for each (repo, layer), and drop the runs that it lacks.

Numbers are measured from the very bytes that would be published, else come from W&B, else NMSE
comes from inference on disk. saepub.numbers has the rule and each source's conditions.
"""

import collections
import typing as tp

from .. import jsonl, settings
from ..cli import parser
from ..numbers import Run, logged, settle
from ..text import say

KEYS = ("repo", "layer", "run_id", "expected", "l0", "nmse", "n_dead", "shard", "drop")


def main(argv: list[str]) -> None:
    p = parser(
        "Choose one source of L0 and NMSE for the runs of each (repo, layer).",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | bin/classify"
        " | bin/settle | jq -c '[.run_id, .l0, .nmse, .numbers]'",
    )
    p.parse_args(argv)
    settings.load()
    runs, texts = [], []
    panels: dict[tuple[str, int], list[Run]] = collections.defaultdict(list)
    expected: dict[tuple[str, int], dict[str, tp.Any]] = {}
    for line, text in jsonl.read_with_text(KEYS):
        l0, nmse = logged(line).values()
        run = Run(
            **{key: line[key] for key in ("run_id", "drop", "n_dead", "shard")},
            l0=l0,
            nmse=nmse,
            fault=line.get("fault"),
        )
        runs.append(run)
        texts.append(text)  # takes less memory than the object
        key = line["repo"], line["layer"]
        panels[key].append(run)
        expected[key] = line["expected"]
    for (repo, layer), panel in panels.items():
        for sentence in settle(panel, repo, expected[repo, layer]):
            say(f"settle: {repo} layer {layer}: {sentence}")
    for run, text in zip(runs, texts, strict=True):
        line = jsonl.loads(text)
        keys = ("l0", "nmse", "numbers", "n_tokens", "n_dead", "drop")
        settled = {key: getattr(run, key) for key in keys}
        jsonl.write(line | logged(line) | settled)
