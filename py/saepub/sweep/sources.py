"""A repo's candidates, from the source of run ids that the catalog names."""

import pathlib
import typing as tp

from .. import catalog, jsonl, places
from ..cli import UserError
from ..text import layers_text
from ..tracking import runs as wandb_runs
from . import Candidate, files, python


class Listed(tp.NamedTuple):
    candidates: list[Candidate]
    notes: list[str]
    """Notes on the source for the user, one line each."""


def candidates(cat: catalog.Catalog, repo: catalog.Repo) -> Listed:
    """The repo's candidates from its source, without duplicates.

    Raises:
        UserError: The source can't be read, or lists something invalid.
    """
    notes: list[str] = []
    if repo.run_ids is not None:
        found = list(_from_catalog(cat, repo.run_ids))
    elif repo.run_ids_file is not None:
        found = files.read(cat.source(repo.run_ids_file), repo.layers)
    elif repo.wandb is not None:
        found, notes = _from_wandb(repo, repo.wandb)
    else:
        found, notes = _from_sweep(cat, repo)
    return Listed(checked(found, repo), notes)


def _from_catalog(
    cat: catalog.Catalog, by_layer: dict[str, tuple[str, ...]]
) -> tp.Iterator[Candidate]:
    text = cat.fpath.read_text(encoding="utf-8-sig")
    for layer, ids in by_layer.items():
        for run_id in ids:
            start = max(text.find(f'"{run_id}"'), 0)
            source = f"{cat.fpath}:{text.count(chr(10), 0, start) + 1}"
            yield Candidate(int(layer), run_id, False, source)


def _from_sweep(cat: catalog.Catalog, repo: catalog.Repo) -> Listed:
    assert repo.sweep is not None and repo.variable is not None
    fpath = cat.source(repo.sweep)
    found = python.read(fpath, repo.variable, repo.layers, repo.layer_at)
    what = "not taken for a run id"
    notes = [f"{fpath}:{n}: {what}: {text[:200]}" for n, text in found.not_taken]
    return Listed(found.candidates, notes)


def _from_wandb(repo: catalog.Repo, wanted: catalog.FromWandb) -> Listed:
    line = {"repo": repo.slug, "expected": repo.expected}
    entity, project = places.project(line)
    filters = {"sweep": wanted.sweep} if wanted.sweep else wanted.filters or {}
    found, notes = [], []
    for record in wandb_runs.listed(entity, project, filters):
        run_id, config = record["name"], record["config"]
        layer = catalog.at(config, wanted.layer)
        if type(layer) is int and layer in repo.layers:
            source = f"{entity}/{project}/{run_id}:1"
            found.append(Candidate(layer, run_id, False, source))
        elif type(layer) is not int:
            notes.append(
                f"{repo.slug}: run {run_id} left out: its config has no layer number at"
                f' "{wanted.layer}" (wandb.layer in the catalog)'
            )
    return Listed(found, notes)


def checked(found: list[Candidate], repo: catalog.Repo) -> list[Candidate]:
    """`found` without duplicates: an id that is both listed and commented out counts as listed.

    Raises:
        UserError: A bad id, a layer that the catalog doesn't list, an id under two layers,
            or a layer of the catalog without a candidate.
    """
    first: dict[str, Candidate] = {}
    for c in found:
        if not jsonl.is_id(c.run_id):
            raise UserError(
                f"{c.source}: {c.run_id!r} is not a run id ({jsonl.ID.pattern})"
            )
        if c.layer not in repo.layers:
            raise UserError(
                f"{c.source}: layer {c.layer} is not one of {repo.slug}'s in the catalog:"
                f" {', '.join(map(str, repo.layers))}"
            )
        seen = first.setdefault(c.run_id, c)
        if seen.layer != c.layer:
            raise UserError(
                f"{c.source}: {c.run_id} is under layer {c.layer}, but also under layer"
                f" {seen.layer} at line {seen.source.rpartition(':')[2]}"
            )
        if seen.commented and not c.commented:
            first[c.run_id] = c
    empty = set(repo.layers) - {c.layer for c in first.values()}
    if empty:
        names = {pathlib.Path(c.source.rpartition(":")[0]) for c in found}
        where = f"{sorted(names)[0]}: " if names else ""
        raise UserError(
            f"{where}no run id under {layers_text(empty)}, which the catalog lists for"
            f" {repo.slug}"
        )
    return list(first.values())
