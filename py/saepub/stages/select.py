"""select: choose which runs of each (repo, layer) to publish.

The rule: sort by L0, keep the runs that no sparser run beats in NMSE (the frontier), and
take up to N of them, evenly spaced in log L0.
"""

import collections
import gc
import math
import sys

from .. import jsonl, settings
from ..choice import account
from ..choice.frontier import Run, has_place
from ..choice.panel import Choice, Panel
from ..cli import UserError, fail_on, parser
from ..files import write_aside
from ..jsonl import DROPPED, PINNED, Line
from ..text import n_of, say, timestamp

KEYS = ("repo", "layer", "run_id", "l0", "nmse", "created_at", "drop")


def main(argv: list[str]) -> None:
    p = parser(
        "Choose which runs of each (repo, layer) to publish; pass on only those.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | bin/classify"
        " | bin/settle | bin/select -n 3 | jq -r .run_id",
    )
    p.add_argument("-n", metavar="N", help="runs per layer, at most (default: N, or 6)")
    p.add_argument(
        "--pin", metavar="IDS", help='always choose these: "id id …" (default: PIN)'
    )
    p.add_argument(
        "--account", metavar="FILE", help='write every candidate, with its "fate"'
    )
    args = p.parse_args(argv)
    settings.load()
    n = settings.whole_number("N", settings.get("N") if args.n is None else args.n)
    pins = set(settings.ids("PIN") if args.pin is None else settings.split(args.pin))

    gc.disable()  # a million lines form no cycles, and searching for them takes seconds
    panels, texts = read_panels(pins)
    choices = {key: panel.choose(n, pins) for key, panel in sorted(panels.items())}
    check(panels, choices, texts)
    if args.account:
        write_account(args.account, texts, choices)
    found = {run.run_id for choice in choices.values() for run in choice.chosen}
    if choices and pins - found:
        say(f"select: PIN {' '.join(sorted(pins - found))}: not among these lines")
    for (repo, layer), choice in choices.items():
        say(f"select: {repo} layer {layer}: {describe(panels[repo, layer], choice)}")
        for run in choice.chosen:
            sys.stdout.buffer.write(run.text)


def read_panels(
    pins: set[str],
) -> tuple[dict[tuple[str, int], Panel], dict[tuple[str, str], bytes]]:
    """All lines of stdin.

    Returns:
        The panels by (repo, layer), and each line's bytes by (repo, run_id), in the order of
        the input.
    """
    panels: dict[tuple[str, int], Panel] = collections.defaultdict(Panel)
    texts: dict[tuple[str, str], bytes] = {}
    for line, text in jsonl.read_with_text(KEYS):
        repo, layer, run_id, l0, nmse, created_at, drop = map(line.__getitem__, KEYS)
        if (repo, run_id) in texts:
            raise UserError(f"{run_id} of {repo} is on two lines; pass each run once")
        text = text.rstrip() + b"\n"
        texts[repo, run_id] = text
        panel = panels[repo, layer]
        if drop is not None:
            if run_id in pins:
                raise UserError(f"PIN {run_id} can't be chosen, it was dropped: {drop}")
            panel.dropped[drop].append(run_id)
            continue
        if not has_place(line):
            raise UserError(
                f"{run_id} of {repo} has L0 {l0} and NMSE {nmse} but no drop reason;"
                " run bin/settle before bin/select"
            )
        age = -(timestamp(created_at) or -math.inf)
        panel.runs.append(Run(l0, nmse, age, run_id, text))
    return panels, texts


def check(
    panels: dict[tuple[str, int], Panel],
    choices: dict[tuple[str, int], Choice],
    texts: dict[tuple[str, str], bytes],
) -> None:
    """Raise UserError if any layer has no run to release, naming them all.

    The layers of a repo that only lack numbers are one problem.
    """
    empty = [key for key, choice in choices.items() if not choice.chosen]
    if not empty:
        return
    from ..numbers import advice, is_lacking  # slow to import

    lacking: dict[str, list[Line]] = collections.defaultdict(list)
    problems: list[str] = []
    other: list[str] = []
    for repo, layer in empty:
        dropped = panels[repo, layer].dropped
        without = [
            run_id for why, ids in dropped.items() for run_id in ids if is_lacking(why)
        ]
        if without:
            lacking[repo] += [jsonl.loads(texts[repo, run_id]) for run_id in without]
            continue
        other += dropped
        problems.append(
            f"{repo} layer {layer}: none of {n_of(sum(map(len, dropped.values())), 'run')}"
            f" can be released ({account.reasons(dropped)})"
        )
    if lacking:
        from ..activations import estimate  # numpy: slow to import

        problems += [advice(of, estimate.of(of)) for of in lacking.values()]
    if len(problems) == 1 and not other:
        raise UserError(problems[0])
    fail_on(problems, "; ".join(account.advice(other)) or "nothing was chosen")


def describe(panel: Panel, choice: Choice) -> str:
    """What became of a panel's candidates, in one line of bounded length."""
    counts = {fate: len(ids) for fate, ids in choice.fates.items()}
    counts[DROPPED] = sum(map(len, panel.dropped.values()))
    text = account.equation(counts)
    if pinned := choice.fates[PINNED]:
        text += f"; pinned: {account.some(pinned)}"
    if panel.dropped:
        text += f"; dropped: {account.reasons(panel.dropped)}"
    return text


def write_account(
    fpath: str,
    texts: dict[tuple[str, str], bytes],
    choices: dict[tuple[str, int], Choice],
) -> None:
    """Write every line of the input, in order, with "fate" added."""
    fates = {
        (repo, run_id): fate
        for (repo, _), choice in choices.items()
        for fate, run_ids in choice.fates.items()
        for run_id in run_ids
    }
    settings.claim_new("BUILD")  # the file is usually in there
    with write_aside(fpath) as fd:
        for key, text in texts.items():
            row = jsonl.loads(text) | {"fate": fates.get(key, DROPPED)}
            fd.write(jsonl.dumps(row) + "\n")
