"""The candidates of one (repo, layer), and the fate of each."""

import collections
import typing as tp

from ..jsonl import CHOSEN, NOT_NEEDED, OFF_FRONTIER, PINNED
from . import frontier
from .frontier import Run


class Choice(tp.NamedTuple):
    """The fates of a panel's eligible candidates."""

    chosen: list[Run]
    """The runs to publish, including pinned ones, sparsest first."""
    fates: dict[str, list[str]]
    """Run ids by fate, each sparsest first."""


class Panel:
    """The candidates of one (repo, layer)."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        """Those that were not dropped."""
        self.dropped: dict[str, list[str]] = collections.defaultdict(list)
        """Run ids by the reason that they were dropped for."""

    def choose(self, n: int, pins: tp.Collection[str] = ()) -> Choice:
        """Decide the fate of every run that was not dropped.

        Args:
            n: How many runs the rule may choose; 2 or more.
            pins: Run ids to choose in addition.
        """
        front, off = frontier.split(self.runs)
        by_rule = frontier.pick(front, n)
        taken = {run.run_id for run in by_rule}
        pinned = [r for r in self.runs if r.run_id in pins and r.run_id not in taken]
        taken |= {run.run_id for run in pinned}
        of_fate = {
            CHOSEN: sorted(by_rule),
            PINNED: sorted(pinned),
            NOT_NEEDED: [run for run in front if run.run_id not in taken],
            OFF_FRONTIER: [run for run in off if run.run_id not in taken],
        }
        fates = {fate: [run.run_id for run in runs] for fate, runs in of_fate.items()}
        return Choice(sorted(by_rule + pinned), fates)
