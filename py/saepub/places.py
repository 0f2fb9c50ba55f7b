"""Where a run's files are: under the root that a setting names, else the catalog's, which
the run's line carries. And where saev's docs tell of released repos."""

import os
import pathlib

from . import settings
from .cli import UserError
from .jsonl import Line
from .text import n_of

CHECKPOINT = "{run_id}/checkpoint/sae.pt"
"""Where saev writes a checkpoint, below the runs root, unless the catalog says otherwise."""

DOCS_PAGE = "docs/src/users/inference.md"
"""The page that `make docs` writes in, below a checkout of saev."""


def runs_root(line: Line) -> pathlib.Path:
    """The directory of the runs.

    Raises:
        UserError: Neither a setting nor the catalog names it.
    """
    return _root(line, "RUNS_ROOT", "runs_root")


def shards_root(line: Line) -> pathlib.Path:
    """The directory of cached activations. Raises as `runs_root` does."""
    return _root(line, "SHARDS_ROOT", "shards_root")


def checkpoint_fpath(line: Line) -> pathlib.Path:
    """A run's checkpoint, whether or not it exists."""
    template = line["expected"].get("checkpoint") or CHECKPOINT
    return runs_root(line) / template.replace("{run_id}", line["run_id"])


def check_runs_root(given: list[Line]) -> None:
    """Raise UserError if a runs root has none of its checkpoints, since it must be wrong."""
    for root in dict.fromkeys(map(runs_root, given)):
        if not root.is_dir():
            raise UserError(f"RUNS_ROOT {root}: no such directory; set RUNS_ROOT")
        here = [line for line in given if runs_root(line) == root]
        fpaths = [checkpoint_fpath(line) for line in here]
        if len(here) == 1 or any(os.path.lexists(fpath) for fpath in fpaths):
            continue
        there = next(dpath for dpath in fpaths[0].parents if dpath.is_dir())
        names = sorted(os.listdir(there))
        holds = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        deeper = [n for n in names if (there / n / here[0]["run_id"]).is_dir()]
        value = f"={there / deeper[0]}" if deeper else ""
        raise UserError(
            f"RUNS_ROOT {root}: none of {n_of(len(here), 'checkpoint')} exists; looked for"
            f" {fpaths[0]}, but {there} has {holds or 'nothing'}; set RUNS_ROOT{value}"
        )


def project(line: Line) -> tuple[str, str]:
    """The W&B entity and project of the run.

    Raises:
        UserError: Neither a setting nor the catalog names them.
    """
    entity = settings.get("WANDB_ENTITY") or line["expected"].get("entity")
    name = settings.get("WANDB_PROJECT") or line["expected"].get("project")
    if not entity or not name:
        key = "project" if entity else "entity"
        raise UserError(
            f'{line["repo"]}: no W&B {key}; write "{key}" in the catalog, or set'
            f" WANDB_{key.upper()}"
        )
    return entity, name


def _root(line: Line, name: str, key: str) -> pathlib.Path:
    root = settings.get(name) or line["expected"].get(key)
    if not root:
        raise UserError(
            f'{line["repo"]}: no {name}; write "{key}" in the catalog, or set {name}'
        )
    return pathlib.Path(os.path.abspath(root))
