"""What became of every candidate, in words, and what to look at before publishing."""

import collections
import typing as tp

from ..jsonl import CHOSEN, DROPPED, NOT_NEEDED, OFF_FRONTIER, PINNED, Line
from ..text import n_of, one_line
from . import frontier

FEW = 3
"""Warn about a frontier with fewer runs than this."""

N_NAMED = 8
"""How many run ids a sentence names. build/<slug>/account.jsonl has all of them."""

EXCLUDED = "excluded by hand"
"""classify's reason for a run that EXCLUDE names."""

ADVICE = {
    "no NMSE": "measure them: make measure",
    "no L0": "measure them: make measure",
    "not finite": "training diverged: nothing to do",
    "L0 is": "the SAE is dead: nothing to do",
    "not in W&B": "check WANDB_ENTITY and WANDB_PROJECT",
    "no state in W&B": "look at the run in W&B",
    "still running": "wait for it to end, then make refresh",
    EXCLUDED: "EXCLUDE names them",
    "at odds with the catalog": "check CATALOG",
    "wrong activation": "check CATALOG",
    "wrong objective": "check CATALOG",
    "not Matryoshka": "check CATALOG",
    "wrong aux": "check CATALOG",
    "trained on scaled activations": "nothing to do: the scale is in no checkpoint",
}
"""What to do about a reason to drop a run, by the start of the reason. Covers every reason."""


def advice(reasons_: tp.Iterable[str]) -> list[str]:
    """What to do about some drop reasons, without duplicates, in the order of ADVICE."""
    found = tuple(set(reasons_))
    return list(
        dict.fromkeys(
            text
            for start, text in ADVICE.items()
            if any(reason.startswith(start) for reason in found)
        )
    )


def some(run_ids: tp.Sequence[str]) -> str:
    """The first few run ids, and how many more there are."""
    more = len(run_ids) - N_NAMED
    named = " ".join(run_ids[: N_NAMED if more > 1 else None])
    return f"{named} and {more:,} more" if more > 1 else named


def reasons(dropped: tp.Mapping[str, tp.Sized]) -> str:
    """How many runs were dropped for each reason."""
    counts = sorted(dropped.items())
    return ", ".join(f"{len(runs):,} {one_line(why)}" for why, runs in counts)


def equation(n: tp.Mapping[str, int]) -> str:
    """The number of candidates of a panel or a repo, as a sum over their fates.

    Args:
        n: How many there are of each fate; a missing fate counts as 0.
    """
    counts = {fate: n.get(fate, 0) for fate in (OFF_FRONTIER, NOT_NEEDED, DROPPED)}
    n_chosen = n.get(CHOSEN, 0) + n.get(PINNED, 0)
    assert sum(n.values()) == n_chosen + sum(counts.values()), f"an unknown fate: {n}"
    return (
        f"{n_of(sum(n.values()), 'candidate')} = {n_chosen:,} chosen"
        f" + {counts[OFF_FRONTIER]:,} off the frontier"
        f" + {counts[NOT_NEEDED]:,} on it but not needed + {counts[DROPPED]:,} dropped"
    )


def by_layer(account: list[Line]) -> dict[int, list[Line]]:
    """One repo's candidates by layer, in ascending order."""
    layers: dict[int, list[Line]] = {run["layer"]: [] for run in account}
    for run in account:
        layers[run["layer"]].append(run)
    return dict(sorted(layers.items()))


def left_out(account: list[Line]) -> list[str]:
    """One repo's candidates by fate, then the runs left out by reason, one line each."""
    groups: dict[str, list[Line]] = collections.defaultdict(list)
    for run in account:
        if run["fate"] == DROPPED:
            groups[f"dropped, {one_line(run['drop'])}"].append(run)
        elif run["fate"] == NOT_NEEDED:
            groups["on the frontier but not needed"].append(run)
        elif run["fate"] != CHOSEN:
            groups[run["fate"]].append(run)
    out = [equation(collections.Counter(run["fate"] for run in account))]
    for why, runs in sorted(groups.items()):
        layers = "; ".join(
            f"layer {layer}: {some(sorted(run['run_id'] for run in of_layer))}"
            for layer, of_layer in by_layer(runs).items()
        )
        out.append(f"  {len(runs):>3} {why} ({layers})")
    return out


def aux_of(rows: list[Line]) -> dict[str, int]:
    """How many runs were trained with each auxiliary loss.

    Runs from before saev had auxiliary losses count as "no-aux".
    """
    return collections.Counter(row.get("aux") or "no-aux" for row in rows)


def loading(rows: list[Line]) -> list[str]:
    """Why a card can't say how to install a saev that loads the files."""
    reasons_: set[str] = {
        why for row in rows if (why := (row.get("saev") or {}).get("why_not"))
    }
    return [
        f"the saev that loads the checkpoints {one_line(reason)}, so the card can't say how to"
        " install it; set SAEV_DIR to a clean clone at a commit that was pushed"
        for reason in sorted(reasons_)
    ]


def warnings(rows: list[Line], account: list[Line]) -> list[str]:
    """One repo's warnings, one line of text each.

    Args:
        rows: The lines to publish, each with preflight's warnings.
        account: Every candidate with its fate.
    """
    out: list[str] = []
    for layer, panel in by_layer(account).items():
        n = len(frontier.of_account(panel))
        if n < FEW:
            out.append(f"layer {layer}: a frontier of only {n_of(n, 'run')}")
    if len(aux := aux_of(rows)) > 1:
        counts = ", ".join(f"{n} {name}" for name, n in sorted(aux.items()))
        out.append(f"runs with different auxiliary losses: {counts}")
    n_logged = sum(row.get("numbers") == "wandb" for row in rows)
    if n_logged:
        out.append(
            f"the numbers of {n_of(n_logged, 'run')} are as training logged them, not"
            " measured from these files; to measure them: make measure"
        )
    out += loading(rows)
    for row in rows:
        for text in row["warnings"]:
            out.append(f"layer {row['layer']} {row['run_id']}: {one_line(text)}")
    return out
