"""docs: write the section on repos with many checkpoints in saev's documentation.

The section is between two comments, by which a later run finds and replaces it. The first run
replaces the section that was written by hand, if there is one. No other byte of the page changes.
"""

import difflib
import itertools
import pathlib
import re
import sys
import typing as tp

from .. import catalog, jsonl, places, settings, templating
from ..cli import UserError, parser
from ..files import write_aside
from ..release import record as release
from ..text import n_of, say

PART, BY_HAND = "Download a Checkpoint", "Multi-checkpoint repos"
"""The headings of the part that the section belongs to, and of the section written by hand."""
START = "<!-- repos with many checkpoints: start (written by saepub's `make docs`) -->"
END = "<!-- repos with many checkpoints: end -->"


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
    old = read_page(fpath)
    try:
        new = with_section(old, section(repos))
    except ValueError as err:
        raise UserError(f"{fpath}: {err}") from None
    if by_hand := None if START in old else find(old, BY_HAND, find(old, PART)):
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
    return f"{START}\n\n{text.strip()}\n\n{END}"


def read_page(fpath: pathlib.Path) -> str:
    """The page with its line endings unchanged.

    Raises:
        UserError: It can't be read.
    """
    try:
        return fpath.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{fpath}: no such page; set SAEV_DIR to a checkout of saev"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{fpath}: not UTF-8") from None


def with_section(page: str, text: str) -> str:
    """`page` with `text` replacing an older section, else the one written by hand, else added
    at the end of the part that it belongs to.

    Raises:
        ValueError: There is no such part, or the older section is incomplete.
    """
    newline = "\r\n" if "\r\n" in page else "\n"
    text = text.replace("\n", newline)
    n_starts, n_ends = page.count(START), page.count(END)
    start, end = page.find(START), page.find(END)
    if n_starts == n_ends == 1 and start < end:
        return page[:start] + text + page[end + len(END) :]
    if n_starts or n_ends:
        raise ValueError(
            f'its section has {n_starts} "{START}" and {n_ends} "{END}"; delete the rest of'
            " it, including both comments"
        )
    part = find(page, PART)
    if part is None:
        raise ValueError(f'no heading "## {PART}"; add one where the section belongs')
    by_hand = find(page, BY_HAND, part)
    start, end = by_hand or (part[1], part[1])
    before, after = page[:start], page[end:]
    if by_hand:
        return before + text + (newline if page[end - 1] in "\r\n" else "") + after
    if before.endswith("\n"):
        return before + newline + text + newline + after
    return before + 2 * newline + text + after


def find(
    page: str, title: str, within: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """The start and end of the part under a heading, up to its last non-blank line.

    Args:
        page: Markdown.
        title: The heading's text, of any level.
        within: Where to look; the whole page by default.
    """
    import markdown_it

    lines = re.findall(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", page)
    starts = [0, *itertools.accumulate(map(len, lines))]
    tokens = markdown_it.MarkdownIt("commonmark").parse(page.removeprefix("\ufeff"))
    headings = [
        (token.map[0], int(token.tag[1]), inline.content)
        for token, inline in itertools.pairwise(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]
    first, last = within or (0, len(page))
    for i, (line, level, content) in enumerate(headings):
        if " ".join(content.split()) != title or not first <= starts[line] < last:
            continue
        later = (at for at, its_level, _ in headings[i + 1 :] if its_level <= level)
        end = next(later, len(lines))
        while not lines[end - 1].strip():
            end -= 1
        return starts[line], starts[end]
    return None


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
