"""The place of our section in the page of saev's documentation.

The section is between two comments, by which a later run finds and replaces it. The first run
replaces the section that was written by hand, if there is one. No other byte of the page changes.
"""

import itertools
import pathlib
import re

from ..cli import UserError

PART, BY_HAND = "Download a Checkpoint", "Multi-checkpoint repos"
"""The headings of the part that the section belongs to, and of the section written by hand."""
START = "<!-- repos with many checkpoints: start (written by saepub's `make docs`) -->"
END = "<!-- repos with many checkpoints: end -->"


def read(fpath: pathlib.Path) -> str:
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
    replaced = by_hand(page)
    start, end = replaced or (part[1], part[1])
    before, after = page[:start], page[end:]
    if replaced:
        return before + text + (newline if page[end - 1] in "\r\n" else "") + after
    if before.endswith("\n"):
        return before + newline + text + newline + after
    return before + 2 * newline + text + after


def by_hand(page: str) -> tuple[int, int] | None:
    """The start and end of the section written by hand, which `with_section` replaces."""
    return None if START in page else find(page, BY_HAND, find(page, PART))


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
