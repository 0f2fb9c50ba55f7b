"""extract-ids: list the candidates of a repo, from its sweep file.

The sweep is Python that nobody runs: `ast` gives its structure and `tokenize` its comments,
because an id that was commented out is a candidate too.
"""

import ast
import collections
import io
import pathlib
import re
import token
import tokenize
import typing as tp
import warnings

from .. import catalog, jsonl, settings
from ..cli import UsageError, UserError, parser
from ..text import human

MAX_SWEEP_BYTES = 64 * 2**20

QUOTED = re.compile(r"""(["'])([^"'\s]+)\1\s*(?:,|(?=[\s\])}#]|$))\s*""")
"""A commented-out id: a string as code has it, at the comment's start or after another."""

CODE = re.compile(r"""(["'])[^"'\s]+\1\s*,""")
"""What is surely commented-out code: a string with a comma."""

LAYER = re.compile(r"(\d+)\s*:\s*\[\s*")
"""The start of a layer that is commented out whole, key and all."""


class Candidate(tp.NamedTuple):
    layer: int
    run_id: str
    commented: bool
    lineno: int


def main(argv: list[str]) -> None:
    p = parser(
        "List the candidates of repos, a line each, from their sweep files.",
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
    found = [(repo, *_candidates(repo, cat.fpath, args.run_ids)) for repo in repos]
    for repo, source, candidates in found:
        for c in candidates:
            jsonl.write(
                {
                    "repo": repo.slug,
                    "layer": c.layer,
                    "run_id": c.run_id,
                    "commented": c.commented,
                    "source": f"{source}:{c.lineno}",
                    "expected": repo.expected,
                }
            )


def _candidates(
    repo: catalog.Repo, catalog_fpath: pathlib.Path, run_ids: list[str] | None
) -> tuple[str, list[Candidate]]:
    """Where the repo's candidates stand, and they, checked."""
    if run_ids:
        source = "--run-ids"
        found = [c for text in run_ids for c in _from_argument(text)]
    elif repo.run_ids is not None:
        source = str(catalog_fpath)
        text = catalog_fpath.read_text(encoding="utf-8")
        found = [
            Candidate(int(layer), run_id, False, _lineno_of(text, run_id))
            for layer, ids in repo.run_ids.items()
            for run_id in ids
        ]
    else:
        saev_dir = settings.need("SAEV_DIR", "the saev checkout with the sweep files")
        fpath = pathlib.Path(saev_dir) / repo.sweep
        source = str(fpath)
        found = read_sweep(fpath, repo.variable)
    return source, _checked(found, repo, source)


def _from_argument(text: str) -> tp.Iterator[Candidate]:
    layer, equals, ids = text.partition("=")
    if not equals or not layer.isdecimal():
        raise UsageError(f'--run-ids "{text}" is not LAYER=ID,ID')
    for run_id in ids.split(","):
        yield Candidate(int(layer), run_id, False, 1)


def _lineno_of(text: str, run_id: object) -> int:
    start = text.find(f'"{run_id}"')
    return text.count("\n", 0, max(start, 0)) + 1


def _checked(
    found: list[Candidate], repo: catalog.Repo, source: str
) -> list[Candidate]:
    """`found` without repeats: an id that is listed and commented out is listed.

    Raises:
        UserError: A bad id, a layer that the catalog doesn't list, an id under two layers,
            or a layer of the catalog without a candidate.
    """
    first: dict[str, Candidate] = {}
    for c in found:
        where = f"{source}:{c.lineno}"
        if not jsonl.is_id(c.run_id):
            raise UserError(
                f"{where}: {c.run_id!r} is not a run id ({jsonl.ID.pattern})"
            )
        if c.layer not in repo.layers:
            raise UserError(
                f"{where}: layer {c.layer} is not among the catalog's for {repo.slug}:"
                f" {', '.join(map(str, repo.layers))}"
            )
        seen = first.setdefault(c.run_id, c)
        if seen.layer != c.layer:
            raise UserError(
                f"{where}: {c.run_id} is under layer {c.layer},"
                f" and under layer {seen.layer} at line {seen.lineno}"
            )
        if seen.commented and not c.commented:
            first[c.run_id] = c
    for layer in repo.layers:
        if all(c.layer != layer for c in first.values()):
            raise UserError(
                f"{source}: no run id under layer {layer}, which the catalog lists for {repo.slug}"
            )
    return list(first.values())


def read_sweep(fpath: pathlib.Path, variable: str) -> list[Candidate]:
    """All ids in the dict literal that a sweep file assigns to `variable`, as they stand.

    Args:
        fpath: A Python file. It is parsed, never run.
        variable: The name of a `dict[int, list[str]]`, anywhere in the file.

    Raises:
        UserError: The file can't be read or parsed, or the dict isn't there, is there
            twice, or isn't a literal of that shape; with file and line.
    """
    if not fpath.is_file():
        raise UserError(
            f"{fpath}: no such sweep file (SAEV_DIR and the catalog name it)"
        )
    with open(fpath, "rb") as fd:
        source = fd.read(MAX_SWEEP_BYTES + 1)
    if len(source) > MAX_SWEEP_BYTES:
        raise UserError(f"{fpath}: over {human(MAX_SWEEP_BYTES)}, not a sweep file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError) as err:
        lineno = getattr(err, "lineno", None) or 1
        raise UserError(f"{fpath}:{lineno}: not Python: {err.args[0]}") from None
    except (ValueError, LookupError, RecursionError, MemoryError) as err:
        raise UserError(f"{fpath}:1: not Python: {err}") from None
    return _Sweep(fpath, tokens, text).candidates(_find_dict(fpath, tree, variable))


def _find_dict(fpath: pathlib.Path, tree: ast.AST, variable: str) -> ast.Dict:
    def names(node: ast.AST) -> list[ast.expr]:
        if isinstance(node, ast.Assign):
            return node.targets
        return [node.target] if isinstance(node, ast.AnnAssign) else []

    found = [
        node
        for node in ast.walk(tree)
        if any(isinstance(t, ast.Name) and t.id == variable for t in names(node))
        and getattr(node, "value", None) is not None
    ]
    if not found:
        raise UserError(f'{fpath}:1: assigns no "{variable}" (the catalog names it)')
    if len(found) > 1:
        linenos = " and ".join(str(node.lineno) for node in found)
        raise UserError(
            f'{fpath}:{found[1].lineno}: assigns "{variable}" at lines {linenos}'
        )
    value = found[0].value
    if not isinstance(value, ast.Dict):
        raise UserError(f'{fpath}:{value.lineno}: "{variable}" is not a dict literal')
    return value


class _Sweep:
    """One sweep file's tokens, asked for the ids between two brackets."""

    def __init__(
        self, fpath: pathlib.Path, tokens: list[tokenize.TokenInfo], text: str
    ):
        self.fpath = fpath
        self.text_lines = text.splitlines(keepends=True)
        self.by_lineno = collections.defaultdict(list)
        for tok in tokens:
            if tok.type in (token.STRING, token.COMMENT):
                self.by_lineno[tok.start[0]].append(tok)

    def candidates(self, node: ast.Dict) -> list[Candidate]:
        found, linenos = [], set()
        layers: dict[int, int] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            layer = self._layer(key, value)
            if layer in layers:
                raise self._error(
                    key, f"layer {layer} again, after line {layers[layer]}"
                )
            layers[layer] = key.lineno
            found += self._in_list(layer, value, self._end(node))
            # A comment behind the closing bracket speaks of the list that it closes.
            linenos.update(range(value.lineno, value.end_lineno + 1))
        found += self._in_commented_layers(node, linenos)
        return sorted(found, key=lambda c: c.lineno)

    def _layer(self, key: ast.expr | None, value: ast.expr) -> int:
        if isinstance(key, ast.Constant) and type(key.value) is int:
            return key.value
        raise self._error(key or value, "a key that is not a layer's number")

    def _in_list(
        self, layer: int, node: ast.expr, end: tuple[int, int]
    ) -> tp.Iterator[Candidate]:
        """Ids of one layer, also those in a comment behind its last bracket, up to `end`."""
        if not isinstance(node, ast.List | ast.Tuple):
            raise self._error(node, f"layer {layer} is not a list of strings")
        for item in node.elts:
            if not isinstance(item, ast.Constant) or not isinstance(item.value, str):
                raise self._error(item, f"layer {layer} holds what is not a string")
            yield Candidate(layer, item.value, False, item.lineno)
        n_strings = 0
        for lineno in range(node.lineno, node.end_lineno + 1):
            for tok in self.by_lineno[lineno]:
                if not self._start(node) < tok.start < end:
                    continue
                if tok.type == token.COMMENT:
                    for run_id in self._in_comment(tok.string.lstrip("#! \t")):
                        yield Candidate(layer, run_id, True, lineno)
                elif tok.start < self._end(node):
                    n_strings += 1
        if n_strings != len(node.elts):
            raise self._error(node, f"layer {layer} lacks a comma between two ids")

    def _in_commented_layers(
        self, node: ast.Dict, taken: set[int]
    ) -> tp.Iterator[Candidate]:
        """Ids of layers that are commented out whole, over one line or many."""
        layer = None
        for lineno in range(node.lineno, node.end_lineno + 1):
            if lineno in taken:
                layer = None
                continue
            for tok in self.by_lineno[lineno]:
                if tok.type != token.COMMENT:
                    continue
                if not self._start(node) < tok.start < self._end(node):
                    continue
                text = tok.string.lstrip("#! \t")
                start = LAYER.match(text)
                if start is not None:
                    layer = int(start[1])
                    text = text[start.end() :]
                ids = self._in_comment(text)
                if layer is None and not CODE.match(text):
                    continue  # prose, even if its first word is quoted
                if layer is None:
                    msg = f'a commented-out "{ids[0]}" that stands under no layer'
                    raise UserError(f"{self.fpath}:{lineno}: {msg}")
                for run_id in ids:
                    yield Candidate(layer, run_id, True, lineno)
                if "]" in text:
                    layer = None

    def _in_comment(self, text: str) -> list[str]:
        """The ids at a comment's start; what follows them, and any other comment, is prose."""
        ids, end = [], 0
        while (match := QUOTED.match(text, end)) is not None:
            ids.append(match[2])
            end = match.end()
        return ids

    def _start(self, node: ast.expr) -> tuple[int, int]:
        return node.lineno, self._column(node.lineno, node.col_offset)

    def _end(self, node: ast.expr) -> tuple[int, int]:
        return node.end_lineno, self._column(node.end_lineno, node.end_col_offset)

    def _column(self, lineno: int, n_bytes: int) -> int:
        """ast counts a line's UTF-8 bytes, tokenize its characters."""
        text = self.text_lines[lineno - 1]
        return len(text.encode("utf-8")[:n_bytes].decode("utf-8", "replace"))

    def _error(self, node: ast.expr, what: str) -> UserError:
        return UserError(f"{self.fpath}:{node.lineno}: {what}")
