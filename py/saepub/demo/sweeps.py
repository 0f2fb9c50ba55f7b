"""The demo's sweep files, in various styles in which labs list run ids."""

import random
import typing as tp

from .table import Repo, Run, new_id

INDENT = " " * 8


def text(repo: Repo, runs: list[Run]) -> str:
    """A sweep file: Python with a dict of the repo's run ids by layer."""
    layers = dict.fromkeys(run.layer for run in runs)
    body = "\n".join(
        LISTS[repo.style](layer, [run for run in runs if run.layer == layer])
        for layer in layers
    )
    prose = f"{INDENT}# A low L1 coefficient, or a high k, makes for a dense run.\n"
    named = f"    {repo.variable}{repo.annotation} = {{\n{prose}{body}\n    }}\n"
    other = _other(repo, layers) if repo.other_variable else ""
    return f"""def make_cfgs():
    cfgs = []
    runs_root = "runs"
    shards = "shards/{repo.shard}"

{other}    # Runs for {repo.model}. What is commented out was left out of the last plots.
{named}
    for layer, ids in {repo.variable}.items():
        for run_id in ids:
            run = runs_root + "/" + run_id
            cfgs.append({{"run": run, "data": {{"shards": shards, "layer": layer}}}})

    return cfgs
"""


def _other(repo: Repo, layers: tp.Iterable[int]) -> str:
    """A dict with other runs' ids, which must not be mistaken for the repo's."""
    rng = random.Random(repo.other_variable)
    body = "".join(
        f'{INDENT}{layer}: ["{new_id(rng)}", "{new_id(rng)}"],\n' for layer in layers
    )
    return f"    {repo.other_variable}{repo.annotation} = {{\n{body}    }}\n\n"


def _column(layer: int, runs: list[Run]) -> str:
    """One id per line; commented-out ones after another id or on a separate line."""
    rows: list[str] = []
    for run in runs:
        if not run.is_commented:
            rows.append(f'"{run.run_id}",')
        elif rows and "#" not in rows[-1]:
            rows[-1] += f'  # "{run.run_id}",'
        elif not rows or rows[-1].startswith('"'):
            rows.append(f'# "{run.run_id}", from an earlier sweep')
        else:
            rows.append(f'# "{run.run_id}",')
    body = "".join(f"{INDENT}    {row}\n" for row in rows)
    return f"{INDENT}{layer}: [\n{body}{INDENT}],"


def _rows(layer: int, runs: list[Run]) -> str:
    """Four ids per line, the commented-out ones last."""
    rows = [_row(runs[i : i + 4]) for i in range(0, len(runs), 4)]
    body = f"\n{INDENT}    ".join(rows)
    return f"{INDENT}{layer}: [{body}\n{INDENT}],"


def _row(runs: list[Run]) -> str:
    listed = " ".join(f'"{run.run_id}",' for run in runs if not run.is_commented)
    commented = " ".join(f'"{run.run_id}",' for run in runs if run.is_commented)
    return f"{listed}  # {commented}" if commented else listed


def _one_line(layer: int, runs: list[Run]) -> str:
    """One layer per line, with the commented-out ids after its closing bracket."""
    listed = ", ".join(f'"{run.run_id}"' for run in runs if not run.is_commented)
    commented = ", ".join(f'"{run.run_id}"' for run in runs if run.is_commented)
    return f"{INDENT}{layer}: [{listed}],  # {commented}"


LISTS = {"column": _column, "rows": _rows, "one line": _one_line}
