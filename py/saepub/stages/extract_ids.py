"""extract-ids: list the candidates of a repo, from the source of ids that the catalog names.

What a source may be: sweep/python.py, sweep/files.py, tracking/listing.py, or the catalog's
own `run_ids`.
"""

import pathlib
import typing as tp

from .. import catalog, jsonl, places, settings
from ..cli import UsageError, UserError, parser
from ..sweep import Candidate, files, python
from ..text import say


def main(argv: list[str]) -> None:
    p = parser(
        "List the candidates of repos, a line each, from where the catalog says they stand.",
        "bin/extract-ids vitl-topk | jq -c 'select(.commented)'",
    )
    p.add_argument("slugs", nargs="*", metavar="SLUG", help="a repo of the catalog")
    p.add_argument("--all", action="store_true", help="every repo of the catalog")
    p.add_argument(
        "--run-ids",
        action="append",
        metavar="LAYER=ID,ID",
        help="these candidates in the sweep's place (one SLUG; may be repeated)",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    if bool(args.slugs) == args.all:
        raise UsageError("name repos (SLUG…) or say --all, one of the two")
    if args.run_ids and len(args.slugs) != 1:
        raise UsageError("--run-ids goes with one SLUG")
    repos = cat.repos if args.all else [cat.get(slug) for slug in args.slugs]
    found = [(repo, candidates(cat, repo, args.run_ids)) for repo in repos]
    for repo, of_repo in found:
        for c in of_repo:
            line = {"repo": repo.slug, **c._asdict(), "expected": repo.expected}
            jsonl.write(line)


def candidates(
    cat: catalog.Catalog, repo: catalog.Repo, run_ids: list[str] | None = None
) -> list[Candidate]:
    """The repo's candidates, each once, from the one source that it has.

    Raises:
        UserError: The source can't be read, or what it lists is wrong.
    """
    if run_ids:
        found = [c for text in run_ids for c in _from_argument(text)]
    elif repo.run_ids is not None:
        found = list(_from_catalog(cat, repo.run_ids))
    elif repo.run_ids_file is not None:
        found = files.read(cat.source(repo.run_ids_file), repo.layers)
    elif repo.wandb is not None:
        found = _from_wandb(repo, repo.wandb)
    else:
        found = _from_sweep(cat, repo)
    return _checked(found, repo)


def _from_argument(text: str) -> tp.Iterator[Candidate]:
    layer, equals, ids = text.partition("=")
    if not equals or not layer.isdecimal():
        raise UsageError(f'--run-ids "{text}" is not LAYER=ID,ID')
    for run_id in ids.split(","):
        yield Candidate(int(layer), run_id, False, "--run-ids:1")


def _from_catalog(
    cat: catalog.Catalog, by_layer: dict[str, tuple[str, ...]]
) -> tp.Iterator[Candidate]:
    text = cat.fpath.read_text(encoding="utf-8-sig")
    for layer, ids in by_layer.items():
        for run_id in ids:
            start = max(text.find(f'"{run_id}"'), 0)
            source = f"{cat.fpath}:{text.count(chr(10), 0, start) + 1}"
            yield Candidate(int(layer), run_id, False, source)


def _from_sweep(cat: catalog.Catalog, repo: catalog.Repo) -> list[Candidate]:
    assert repo.sweep is not None and repo.variable is not None
    fpath = cat.source(repo.sweep)
    found = python.read(fpath, repo.variable, repo.layers, repo.layer_at)
    for lineno, text in found.not_taken:
        say(f"extract-ids: {fpath}:{lineno}: not taken for a run id: {text[:200]}")
    return found.candidates


def _from_wandb(repo: catalog.Repo, wanted: catalog.FromWandb) -> list[Candidate]:
    from ..tracking import listing

    line = {"repo": repo.slug, "expected": repo.expected}
    entity, project = places.project(line)
    runs = listing.runs(entity, project, wanted.sweep, wanted.filters)
    found = []
    for run_id, config in runs:
        layer = listing.at(config, wanted.layer)
        if type(layer) is not int:
            raise UserError(
                f"{repo.slug}: run {run_id}'s config has no layer's number at"
                f' "{wanted.layer}"; name the right place with "wandb": {{"layer": …}}'
            )
        found.append(Candidate(layer, run_id, False, f"{entity}/{project}:1"))
    # A sweep may go over more layers than a repo holds.
    return [c for c in found if c.layer in repo.layers]


def _checked(found: list[Candidate], repo: catalog.Repo) -> list[Candidate]:
    """`found` without repeats: an id that is listed and commented out is listed.

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
                f"{c.source}: layer {c.layer} is not among the catalog's for {repo.slug}:"
                f" {', '.join(map(str, repo.layers))}"
            )
        seen = first.setdefault(c.run_id, c)
        if seen.layer != c.layer:
            raise UserError(
                f"{c.source}: {c.run_id} is under layer {c.layer}, and under layer"
                f" {seen.layer} at line {seen.source.rpartition(':')[2]}"
            )
        if seen.commented and not c.commented:
            first[c.run_id] = c
    empty = set(repo.layers) - {c.layer for c in first.values()}
    if empty:
        names = {pathlib.Path(c.source.rpartition(":")[0]) for c in found}
        where = f"{sorted(names)[0]}: " if names else ""
        noun = "layer" if len(empty) == 1 else "layers"
        raise UserError(
            f"{where}no run id under {noun} {', '.join(map(str, sorted(empty)))}, which the"
            f" catalog lists for {repo.slug}"
        )
    return list(first.values())
