"""extract-ids: list the candidates of a repo, from the source that the catalog names."""

import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UsageError, parser
from ..sweep import Candidate, sources
from ..text import say


def main(argv: list[str]) -> None:
    p = parser(
        "List the candidates of repos, one per line, from the sources that the catalog names.",
        "bin/extract-ids vitl-topk | jq -c 'select(.commented)'",
    )
    p.add_argument("slugs", nargs="*", metavar="SLUG", help="a repo of the catalog")
    p.add_argument("--all", action="store_true", help="every repo of the catalog")
    p.add_argument(
        "--run-ids",
        action="append",
        metavar="LAYER=ID,ID",
        help="use these candidates instead (with one SLUG; may be repeated)",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    if bool(args.slugs) == args.all:
        raise UsageError("give either repos (SLUG…) or --all")
    if args.run_ids and len(args.slugs) != 1:
        raise UsageError("--run-ids needs exactly one SLUG")
    repos = cat.repos if args.all else [cat.get(slug) for slug in args.slugs]
    found = [(repo, listed(cat, repo, args.run_ids)) for repo in repos]
    for repo, (candidates, notes) in found:
        for note in notes:
            say(f"extract-ids: {note}")
        for c in candidates:
            line = {"repo": repo.slug, **c._asdict(), "expected": repo.expected}
            jsonl.write(line)


def listed(
    cat: catalog.Catalog, repo: catalog.Repo, run_ids: list[str] | None
) -> sources.Listed:
    """The repo's candidates, or those given by hand."""
    if not run_ids:
        return sources.candidates(cat, repo)
    by_hand = [c for text in run_ids for c in from_argument(text)]
    return sources.Listed(sources.checked(by_hand, repo), [])


def from_argument(text: str) -> tp.Iterator[Candidate]:
    layer, equals, ids = text.partition("=")
    if not equals or not layer.isdecimal():
        raise UsageError(f'--run-ids "{text}" is not LAYER=ID,ID')
    for run_id in ids.split(","):
        yield Candidate(int(layer), run_id, False, "--run-ids:1")
