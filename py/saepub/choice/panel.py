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
        self.dropped: dict[str, list[str]] = collections.defaultdict(list)
        """Run ids by the reason that they were dropped for."""

    @property
    def n_candidates(self) -> int:
        return len(self.runs) + sum(map(len, self.dropped.values()))

    def choose(self, n: int, pins: tp.Collection[str] = ()) -> Choice:
        """Decide the fate of every run that was not dropped.

        Args:
            n: How many runs the rule may choose; 2 or more.
            pins: Run ids to choose in addition.
        """
        front, off = frontier.split(self.runs)
        by_rule = set(frontier.pick(front, n))
        fates: dict[str, list[str]] = {
            fate: [] for fate in (CHOSEN, PINNED, NOT_NEEDED, OFF_FRONTIER)
        }
        chosen = []
        for run in sorted(self.runs):
            if run in by_rule:
                fate = CHOSEN
            elif run.run_id in pins:
                fate = PINNED
            else:
                fate = ""
            if fate:
                chosen.append(run)
                fates[fate].append(run.run_id)
        taken = {run.run_id for run in chosen}
        for fate, runs in ((NOT_NEEDED, front), (OFF_FRONTIER, off)):
            fates[fate] = [run.run_id for run in runs if run.run_id not in taken]
        return Choice(chosen, fates)
