"""docs: write the section on repos with many checkpoints in saev's documentation.

release/docs_page.py knows where it goes in the page.
"""

import difflib
import pathlib
import re
import sys
import typing as tp

from .. import catalog, jsonl, places, settings, templating
from ..cli import UserError, parser
from ..files import write_aside
from ..release import docs_page
from ..release import record as release
from ..text import n_of, say


class Repo(tp.NamedTuple):
    """A released repo, for the section."""

    repo_id: str
    paths: dict[int, list[str]]
    """Its checkpoints' paths by layer, in order; within a layer, by L0."""
    l0s: dict[str, float]

    @property
    def layers(self) -> list[int]:
        return list(self.paths)

    @property
    def n_checkpoints(self) -> int:
        return sum(len(paths) for paths in self.paths.values())


def main(argv: list[str]) -> None:
    p = parser(
        "Write the section on released repos in the docs of the saev in SAEV_DIR.",
        "make rehearse REPO=vitl-topk\n"
        "make rehearse REPO=vitl-topk DO=docs   # show what would be written after it",
    )
    p.add_argument("slugs", nargs="*", metavar="SLUG", help="only these repos")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the diff and write nothing (also: DRY_RUN=1)",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    slugs = args.slugs or [repo.slug for repo in cat.repos]
    repos = released(slugs, cat)
    saev_dir = settings.need("SAEV_DIR", "the saev checkout whose docs are written")
    fpath = pathlib.Path(saev_dir) / places.DOCS_PAGE
    old = docs_page.read(fpath)
    try:
        new = docs_page.with_section(old, section(repos))
    except ValueError as err:
        raise UserError(f"{fpath}: {err}") from None
    if by_hand := docs_page.by_hand(old):
        line = old.count("\n", 0, by_hand[0]) + 1
        say(f"docs: {fpath}:{line}: takes the place of what was written by hand")
    others = [repo for repo in cat.repos if repo.slug not in slugs]
    if left_out := [r.repo_id for r in others if release.fpath_of(r.slug).exists()]:
        names = templating.listed(left_out)
        say(f"docs: warning: the section leaves out {names}, released earlier")
    if new == old:
        say(f"docs: {fpath}: up to date")
    elif args.dry_run or settings.get("DRY_RUN") not in ("", "0"):
        sys.stdout.write(diff(old, new))
    else:
        # Through a symlink, so that it stays one.
        with write_aside(fpath.resolve(), "wb") as fd:
            fd.write(new.encode("utf-8"))
        say(f"docs: {fpath}: wrote the section on {n_of(len(repos), 'repo')}")


def released(slugs: list[str], cat: catalog.Catalog) -> list[Repo]:
    """The repos among `slugs` that have been released, from their records.

    Raises:
        UserError: None has been released, or a record is damaged.
    """
    repos = []
    for slug in slugs:
        cat.get(slug)
        if release.fpath_of(slug).exists():
            repos.append(_repo(release.read(slug)))
    if not repos:
        raise UserError(
            f"{release.fpath_of(slugs[0])}: no record of a release, nor for any other repo;"
            " run make release first"
        )
    return repos


def _repo(record: release.Release) -> Repo:
    paths: dict[int, list[str]] = {}
    for path in sorted(record.l0s, key=lambda path: (record.l0s[path], path)):
        if found := jsonl.IN_REPO.fullmatch(path):
            paths.setdefault(int(found[1]), []).append(path)
    return Repo(record.repo_id, dict(sorted(paths.items())), record.l0s)


def section(repos: list[Repo]) -> str:
    """The section with its two comments, with "\\n" between lines.

    Its examples use the middle checkpoint of the first repo's last layer.
    """
    layer, paths = list(repos[0].paths.items())[-1]
    l0 = round(repos[0].l0s[paths[len(paths) // 2]], 1)
    example = {"repo_id": repos[0].repo_id, "layer": layer, "l0": l0}
    template = templating.environment().get_template("docs_section.md")
    text = template.render(repos=repos, example=example)
    return f"{docs_page.START}\n\n{text.strip()}\n\n{docs_page.END}"


def diff(old: str, new: str) -> str:
    """A unified diff that `git apply` accepts in the checkout."""
    pieces = difflib.unified_diff(
        re.findall(r".*\n|.+", old),
        re.findall(r".*\n|.+", new),
        f"a/{places.DOCS_PAGE}",
        f"b/{places.DOCS_PAGE}",
    )
    return "".join(
        piece if piece.endswith("\n") else f"{piece}\n\\ No newline at end of file\n"
        for piece in pieces
    )
