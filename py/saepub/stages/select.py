"""select: choose which runs of each (repo, layer) to publish.

The rule: sort by L0, keep the runs that no sparser run beats in NMSE (the frontier), and
take up to N of them, evenly spaced in log L0.
"""

import collections
import contextlib
import gc
import math
import sys
import typing as tp

from .. import jsonl, settings
from ..choice import frontier
from ..choice.frontier import Run, pick
from ..cli import UsageError, UserError, parser
from ..files import write_aside
from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED
from ..text import n_of, say, timestamp

PRUNE_AT = 4096
"""How many runs a panel holds before those that can't be on its frontier are let go."""

MENDS = {
    "no NMSE": "set NMSE_SHARD=<shard> to take NMSE from the runs' inference on disk",
    "not in W&B": "check WANDB_ENTITY and WANDB_PROJECT",
    "excluded by hand": "EXCLUDE names them",
    "at odds with the catalog": "check CATALOG",
    "wrong activation": "check CATALOG",
}


class Panel:
    """The runs of one (repo, layer)."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.pinned: list[Run] = []
        self.n_held_after_pruning = 0
        self.names: dict[str, list[str]] = collections.defaultdict(list)
        """Run ids by fate, and of the dropped ones by reason."""
        self.dropped: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, run: Run, *, pinned: bool) -> None:
        self.runs.append(run)
        if pinned:
            self.pinned.append(run)
        if len(self.runs) >= PRUNE_AT + 2 * self.n_held_after_pruning:
            self.prune()

    def prune(self) -> list[Run]:
        """Let go of the runs that are off the frontier; the frontier, sparsest first."""
        kept, off = frontier.split(self.runs)
        self.names[OFF_FRONTIER] += [run.run_id for run in off]
        self.runs = kept
        self.n_held_after_pruning = len(kept)
        return kept

    def choose(self, n: int) -> list[Run]:
        """Settle every run's fate; the runs to publish, sparsest first."""
        front = self.prune()
        chosen = set(pick(front, n))
        self.names[CHOSEN] = [run.run_id for run in front if run in chosen]
        pinned = set(self.pinned) - chosen
        self.names[PINNED] = sorted(run.run_id for run in pinned)
        self.names[NOT_NEEDED] = [
            run.run_id for run in front if run not in chosen | pinned
        ]
        names = set(self.names[PINNED])
        off = self.names[OFF_FRONTIER]
        self.names[OFF_FRONTIER] = [run_id for run_id in off if run_id not in names]
        return sorted(chosen | pinned)


def main(argv: list[str]) -> int | None:
    p = parser(
        "Choose which runs of each (repo, layer) to publish; pass on only those.",
        "bin/extract-ids vitl-topk | bin/fetch-metrics | bin/classify"
        " | bin/select -n 3 | jq -r .run_id",
    )
    p.add_argument("-n", type=int, metavar="N", help="runs a layer at most (N, or 6)")
    p.add_argument(
        "--pin", default="", metavar="IDS", help='always choose these: "id id …"'
    )
    p.add_argument(
        "--account", metavar="FILE", help='write every candidate there, with its "fate"'
    )
    args = p.parse_args(argv)
    gc.disable()  # a million lines make no cycles, and looking for them takes seconds
    n = args.n if args.n is not None else _n_setting()
    if n < 2:
        raise UsageError(f"N is {n}; it takes 2 or more (the sparsest and the densest)")

    pins = set(args.pin.replace(",", " ").split())
    with _spool() if args.account else contextlib.nullcontext() as spool:
        panels, order = read_panels(pins, spool)
        chosen = {key: panel.choose(n) for key, panel in sorted(panels.items())}
        check(panels, pins)
        if args.account:
            write_account(args.account, spool, order, panels)
    for key, runs in chosen.items():
        say("select: " + describe(key, panels[key]))
        for run in runs:
            sys.stdout.buffer.write(run.text.rstrip() + b"\n")


def _n_setting() -> int:
    settings.load()
    text = settings.get("N")
    if not text.isdecimal():
        raise UsageError(f"N is {text!r}, not a whole number")
    return int(text)


def read_panels(
    pins: set[str], spool: tp.BinaryIO | None
) -> tuple[dict[tuple, Panel], list[tuple]]:
    """All lines of stdin, copied to `spool` as they come.

    Returns:
        The panels by (repo, layer), and each line's (repo, run_id) in the lines' order.
    """
    keys = ("repo", "layer", "run_id", "l0", "nmse", "created_at", "drop")
    panels: dict[tuple, Panel] = collections.defaultdict(Panel)
    seen: dict[tuple, None] = {}
    for line, text in jsonl.read_with_text(keys):
        repo, layer, run_id, l0, nmse, created_at, drop = map(line.__getitem__, keys)
        if spool is not None:
            spool.write(text.rstrip() + b"\n")
        if (repo, run_id) in seen:
            raise UserError(f"{run_id} of {repo} is on two lines; pass each run once")
        seen[repo, run_id] = None
        panel = panels[repo, layer]
        if drop is not None:
            panel.dropped[drop].append(run_id)
            if run_id in pins:
                raise UserError(f"PIN {run_id} can't be chosen, it was dropped: {drop}")
            continue
        if not _is_finite(l0) or not _is_finite(nmse) or l0 <= 0:
            raise UserError(
                f"{run_id} of {repo} has L0 {l0} and NMSE {nmse} but no drop reason;"
                f" run bin/classify before bin/select"
            )
        age = -(timestamp(created_at) or -math.inf)
        panel.add(Run(l0, nmse, age, run_id, text), pinned=run_id in pins)
    return panels, list(seen)


def _is_finite(measure: float | str | None) -> bool:
    return type(measure) in (float, int) and math.isfinite(measure)


def _spool() -> tp.BinaryIO:
    import tempfile  # slow to import

    return tp.cast(tp.BinaryIO, tempfile.TemporaryFile())


def check(panels: dict[tuple, Panel], pins: set[str]) -> None:
    """Raises UserError where a panel would be empty or a pinned run isn't there."""
    for (repo, layer), panel in sorted(panels.items()):
        if panel.names[CHOSEN]:
            continue
        reasons = {reason: len(ids) for reason, ids in panel.dropped.items()}
        most = max(sorted(reasons), key=reasons.__getitem__)
        mend = next((do for why, do in MENDS.items() if most.startswith(why)), "")
        told = ", ".join(f"{n} {why}" for why, n in sorted(reasons.items()))
        raise UserError(
            f"{repo} layer {layer}: none of {n_of(sum(reasons.values()), 'run')}"
            f" can be released ({told})" + (f"; {mend}" if mend else "")
        )
    found = {run.run_id for panel in panels.values() for run in panel.pinned}
    if pins - found and panels:
        raise UserError(
            f"PIN {' '.join(sorted(pins - found))}: not among the candidates"
        )


def describe(key: tuple, panel: Panel) -> str:
    """Where a panel's candidates went, in one line."""
    names = panel.names
    n_dropped = sum(map(len, panel.dropped.values()))
    n_all = n_dropped + sum(map(len, names.values()))
    parts = [f"{len(names[CHOSEN]) + len(names[PINNED])} chosen"]
    if names[PINNED]:
        parts[0] += f" (pinned: {' '.join(names[PINNED])})"
    for fate, told in (
        (OFF_FRONTIER, OFF_FRONTIER),
        (NOT_NEEDED, "on it but not needed"),
    ):
        part = f"{len(names[fate])} {told}"
        parts.append(part + (f" ({' '.join(names[fate])})" if names[fate] else ""))
    parts.append(f"{n_dropped} dropped")
    told = "; ".join(f"{why}: {' '.join(ids)}" for why, ids in panel.dropped.items())
    repo, layer = key
    return f"{repo} layer {layer}: {n_of(n_all, 'candidate')} = {' + '.join(parts)}" + (
        f" ({told})" if told else ""
    )


def write_account(
    fpath: str, spool: tp.BinaryIO, order: list[tuple], panels: dict[tuple, Panel]
) -> None:
    """Every line that was read, in its order, with "fate" added."""
    fates = {}
    for (repo, _), panel in panels.items():
        for fate, run_ids in panel.names.items():
            fates.update(((repo, run_id), fate) for run_id in run_ids)
    spool.seek(0)
    with write_aside(fpath, "wb") as fd:
        for key, text in zip(order, spool, strict=True):
            fate = fates.get(key, DROPPED)
            # A line is an object with keys in it, so one more fits before its last brace.
            fd.write(text[:-2] + f', "fate": "{fate}"}}\n'.encode())
