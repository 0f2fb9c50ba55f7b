"""Run ids from a sweep file: Python that is parsed, never run.

`ast` gives its structure and `tokenize` its comments, because an id that was commented out
is a candidate too. One rule applies to every comment within the variable's brackets: it is code if
it starts with a layer's key or a string, and a string is an id if a comma, a closing bracket
or the end of the comment follows it. Any other quoted text in a comment is reported, as is a layer
or the variable with quoted text in a comment elsewhere, so that nothing is silently lost.
"""

import ast
import bisect
import io
import pathlib
import platform
import re
import token
import tokenize
import typing as tp
import warnings

from ..cli import UserError
from . import Candidate
from .files import contents
from .uses import findings, targets

WAY_OUT = 'or list the ids in the catalog instead ("run_ids" or "run_ids_file")'

KEY = re.compile(r"(\d+|\([\d\s,]+\))\s*:\s*[\[(]\s*")
"""The start of a layer that is commented out whole, key and all."""
ID = re.compile(r"""(["'])([^"'\s]*)\1\s*(?:,|(?=[\])}#]|$))\s*""")
CLOSE = re.compile(r"[\])},\s]*")
QUOTED = re.compile(r"""(?<!\w)[rRbBuUfF]{0,2}["'“‘][^\s"']""")
"""The start of quoted text. An apostrophe follows a letter."""


class Found(tp.NamedTuple):
    candidates: list[Candidate]
    """In the order of the file."""
    not_taken: list[tuple[int, str]]
    """Line and text of each comment that holds quoted text that was not taken for an id."""


class Key(tp.NamedTuple):
    """The key of a layer's list."""

    layer: int
    key: object
    """As in the file; None for a list that is not in a dict."""


def read(
    fpath: pathlib.Path,
    variable: str,
    layers: tp.Sequence[int],
    layer_at: int | None = None,
) -> Found:
    """All ids in the literal that a sweep file assigns to `variable`.

    Args:
        fpath: A Python file. It is parsed, never run.
        variable: The name of a dict of lists, or of a list, anywhere in the file.
        layers: The catalog's. A list that is not in a dict needs exactly one.
        layer_at: The layer's index in the dict's keys, if they are tuples.

    Raises:
        UserError: The file can't be read or parsed; or the literal is missing, is there twice,
            has another shape, or another statement may change it; with file and line.
    """
    text = _text(fpath)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError) as err:
        lineno = getattr(err, "lineno", None) or 1
        raise _not_parsed(fpath, lineno, err.args[0]) from None
    except (ValueError, RecursionError, MemoryError) as err:
        raise _not_parsed(fpath, 1, err) from None
    statement, value = _definition(fpath, tree, variable)
    n_levels = 2 if isinstance(value, ast.Dict) else 1
    try:
        changes = findings(tree, statement, variable, n_levels)
    except RecursionError:
        raise _not_parsed(fpath, 1, "nested too deep") from None
    if changes:
        lineno, what = changes[0]
        raise UserError(
            f"{fpath}:{lineno}: {what}; move that out of the file, {WAY_OUT}"
        )
    found = _Literal(fpath, text, tokens, value, layers, layer_at).read()
    beside = [
        (tok.start[0], tok.string)
        for tok in tokens
        if tok.type == token.COMMENT
        and not value.lineno <= tok.start[0] <= (value.end_lineno or 0)
        and _is_code_of(variable, tok.string)
    ]
    return found._replace(not_taken=sorted(found.not_taken + beside))


def variables(fpath: pathlib.Path) -> list[str]:
    """The variables of a sweep file that a catalog could name: dicts and lists of strings."""
    try:
        tree = ast.parse(_text(fpath))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        lists = value.values if isinstance(value, ast.Dict) else [value]
        if lists and all(_is_list_of_text(part) for part in lists):
            found += [t.id for t in targets(node) if isinstance(t, ast.Name)]
    return list(dict.fromkeys(found))


def keys(fpath: pathlib.Path, variable: str) -> list[object]:
    """The keys of the dict that a sweep file assigns to `variable`; none for a list."""
    _, value = _definition(fpath, ast.parse(_text(fpath)), variable)
    if not isinstance(value, ast.Dict):
        return []
    return [_constant(key) for key in value.keys]


def _is_list_of_text(node: object) -> bool:
    return isinstance(node, (ast.List, ast.Tuple)) and all(
        isinstance(e, ast.Constant) and isinstance(e.value, str) for e in node.elts
    )


def _text(fpath: pathlib.Path) -> str:
    """The file's text, normalized so that `ast` and `tokenize` agree on lines and columns.

    Raises:
        UserError: It can't be read.
    """
    source = contents(fpath, "a sweep file")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (SyntaxError, ValueError, LookupError) as err:
        raise UserError(f"{fpath}:1: not text: {err}; save it as UTF-8") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    # A form feed resets a line's indentation, and elsewhere is a space.
    return re.sub(r"(?m)^[ \t\f]*\f", "", text).replace("\f", " ")


def _not_parsed(fpath: pathlib.Path, lineno: int, why: object) -> UserError:
    return UserError(
        f"{fpath}:{lineno}: Python {platform.python_version()} can't parse this: {why}; if a"
        f" newer one can, set PYTHON to it and run make distclean setup, {WAY_OUT}"
    )


def _definition(
    fpath: pathlib.Path, tree: ast.Module, variable: str
) -> tuple[ast.stmt, ast.Dict | ast.List | ast.Tuple]:
    """The one statement that assigns a literal to the variable, and the literal."""
    found = [
        tp.cast(ast.Assign, node)
        for node in ast.walk(tree)
        if any(isinstance(t, ast.Name) and t.id == variable for t in targets(node))
        and getattr(node, "value", None) is not None
    ]
    if not found:
        names = variables(fpath)
        has = f"; it has {', '.join(names[:8])}" if names else ""
        raise UserError(
            f'{fpath}:1: assigns no "{variable}", which the catalog names{has}'
        )
    literals = (ast.Dict, ast.List, ast.Tuple)
    found = [node for node in found if isinstance(node.value, literals)] or found
    if len(found) > 1:
        linenos = " and ".join(str(node.lineno) for node in found)
        raise UserError(
            f'{fpath}:{found[1].lineno}: assigns "{variable}" at lines {linenos}; keep only'
            f" one, {WAY_OUT}"
        )
    value = found[0].value
    if not isinstance(value, literals):
        raise UserError(
            f'{fpath}:{value.lineno}: "{variable}" is not a literal dict or list; make it one,'
            f" {WAY_OUT}"
        )
    return found[0], value


class _Literal:
    """The variable's literal with its tokens; finds the ids."""

    def __init__(
        self,
        fpath: pathlib.Path,
        text: str,
        tokens: list[tokenize.TokenInfo],
        value: ast.Dict | ast.List | ast.Tuple,
        layers: tp.Sequence[int],
        layer_at: int | None,
    ):
        self.fpath, self.value, self.layers = fpath, value, layers
        self.layer_at = layer_at
        self.text_lines = text.split("\n")
        self.strings: list[tuple[int, int]] = []
        """Where each string starts, in order."""
        self.comments: dict[int, tokenize.TokenInfo] = {}
        """By line, which has at most one."""
        for tok in tokens:
            if not value.lineno <= tok.start[0] <= (value.end_lineno or 0):
                continue
            if tok.type == token.COMMENT:
                self.comments[tok.start[0]] = tok
            elif tok.type == token.STRING:
                self.strings.append(tok.start)
        self.found: list[Candidate] = []
        self.not_taken: list[tuple[int, str]] = []

    def read(self) -> Found:
        lists: list[tuple[int, ast.List | ast.Tuple]] = []
        if isinstance(self.value, ast.Dict):
            seen: dict[object, int] = {}
            for key, value in zip(self.value.keys, self.value.values, strict=True):
                layer = self._layer(key, value)
                text = ast.dump(tp.cast(ast.expr, key))
                if text in seen:
                    what = (
                        f"key {ast.unparse(tp.cast(ast.expr, key))} again, after line"
                    )
                    raise self._error(key, f"{what} {seen[text]}")
                seen[text] = value.lineno
                lists.append((layer, self._list(layer, value)))
        else:
            if len(self.layers) != 1:
                raise self._error(
                    self.value,
                    'a list without layers; give the repo a single layer in the catalog ("layers":'
                    f" [23]), {WAY_OUT}",
                )
            lists.append((self.layers[0], self._list(self.layers[0], self.value)))
        for layer, node in lists:
            self._listed(layer, node)
        self._commented(lists)
        self.found.sort(key=lambda c: int(c.source.rpartition(":")[2]))
        return Found(self.found, self.not_taken)

    def _layer(self, key: ast.expr | None, value: ast.expr) -> int:
        constant = _constant(key)
        if self.layer_at is None and type(constant) is int:
            return constant
        if isinstance(constant, tuple):
            if self.layer_at is None:
                raise self._error(
                    key,
                    f"the key {constant} is a tuple; set the layer's index in it with"
                    f' "layer_at" in the catalog (1 for {constant[-1]}), {WAY_OUT}',
                )
            if self.layer_at < len(constant):
                layer = constant[self.layer_at]
                if type(layer) is int:
                    return layer
        at = "" if self.layer_at is None else f" at {self.layer_at} (layer_at)"
        name = ast.unparse(key) if key is not None else "**"
        raise self._error(
            key or value,
            f"the key {name[:60]} has no layer number{at}; {WAY_OUT[3:]}",
        )

    def _list(self, layer: int, node: ast.expr) -> ast.List | ast.Tuple:
        if not isinstance(node, (ast.List, ast.Tuple)):
            raise self._error(
                node, f"layer {layer} is not a literal list; make it one, {WAY_OUT}"
            )
        return node

    def _listed(self, layer: int, node: ast.List | ast.Tuple) -> None:
        for item in node.elts:
            if not isinstance(item, ast.Constant) or not isinstance(item.value, str):
                raise self._error(
                    item,
                    f"layer {layer} has an item that is not a literal string; make it one,"
                    f" {WAY_OUT}",
                )
            self._take(layer, item.value, False, item.lineno)
            first = bisect.bisect_left(self.strings, self._start(item))
            if bisect.bisect_left(self.strings, self._end(item)) - first != 1:
                raise self._error(item, f"layer {layer} lacks a comma between two ids")

    def _commented(self, lists: list[tuple[int, ast.List | ast.Tuple]]) -> None:
        """Find the ids in comments, each under the list that it is in or closes, or under a
        layer that is commented out as a whole, on one line or several."""
        inside: dict[int, int] = {}
        for of, node in lists:
            for lineno in range(node.lineno, (node.end_lineno or 0) + 1):
                inside.setdefault(lineno, of)
            inside[node.end_lineno or 0] = of
        open_layer: int | None = None
        for lineno in range(self.value.lineno, (self.value.end_lineno or 0) + 1):
            layer = inside.get(lineno)
            if layer is not None:
                open_layer = None
            if (comment := self.comments.get(lineno)) is None:
                continue
            rest = comment.string
            if self._is_inside(comment):
                key, run_ids, is_closed, rest = _parse(rest.lstrip("#! \t"))
                layer = open_layer if layer is None else layer
                if key is not None:
                    layer = open_layer = self._layer(key, self.value)
                if is_closed:
                    open_layer = None
                for run_id in run_ids:
                    if layer is None:
                        raise UserError(
                            f'{self.fpath}:{lineno}: a commented-out "{run_id}" under no layer;'
                            f" delete it or move it into its list, {WAY_OUT}"
                        )
                    self._take(layer, run_id, True, lineno)
            if QUOTED.search(rest):
                self.not_taken.append((lineno, comment.string))

    def _is_inside(self, comment: tokenize.TokenInfo) -> bool:
        """Whether a comment is in the dict, or in or after the list that has no dict."""
        is_dict = isinstance(self.value, ast.Dict)
        return not is_dict or comment.start < self._end(self.value)

    def _take(self, layer: int, run_id: str, commented: bool, lineno: int) -> None:
        self.found.append(Candidate(layer, run_id, commented, f"{self.fpath}:{lineno}"))

    def _start(self, node: ast.expr) -> tuple[int, int]:
        return node.lineno, self._column(node.lineno, node.col_offset)

    def _end(self, node: ast.expr) -> tuple[int, int]:
        lineno, n_bytes = node.end_lineno or 0, node.end_col_offset or 0
        return lineno, self._column(lineno, n_bytes)

    def _column(self, lineno: int, n_bytes: int) -> int:
        """A column in characters, as tokenize counts; ast counts UTF-8 bytes."""
        text = self.text_lines[lineno - 1]
        return len(text.encode("utf-8")[:n_bytes].decode("utf-8", "replace"))

    def _error(self, node: ast.expr | None, what: str) -> UserError:
        return UserError(f"{self.fpath}:{getattr(node, 'lineno', 1)}: {what}")


def _parse(text: str) -> tuple[ast.expr | None, list[str], bool, str]:
    """A comment as code: a layer's key, ids, whether a list is closed, and the rest.

    All but the rest are empty for prose.
    """
    end, key = 0, None
    run_ids: list[str] = []
    if (start := KEY.match(text)) is not None:
        key = ast.parse(start[1], mode="eval").body
        end = start.end()
    while (match := ID.match(text, end)) is not None:
        run_ids.append(match[2])
        end = match.end()
    close = CLOSE.match(text, end)
    is_closed = close is not None and "]" in close[0]
    rest = text[close.end() if close else end :]
    return key, run_ids, is_closed, rest


def _is_code_of(variable: str, comment: str) -> bool:
    """Whether a comment outside of the brackets may be code with ids of the variable."""
    is_layer = KEY.match(comment.lstrip("#! \t")) is not None
    is_named = re.search(rf"\b{variable}\s*[\[.=|+:]", comment) is not None
    return (is_layer or is_named) and QUOTED.search(comment) is not None


def _constant(node: ast.expr | None) -> object:
    """A number, a text or a tuple of them; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple):
        parts = tuple(_constant(part) for part in node.elts)
        return None if None in parts or not parts else parts
    return None
