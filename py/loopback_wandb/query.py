"""GraphQL: one query document, parsed and answered."""

import json
import re
import typing as tp

Json = dict[str, tp.Any]


class QueryError(Exception):
    """The query asks for something unknown. Answered with 400 and the reason."""


TOKEN = re.compile(r'#[^\n]*|[\s,]+|(\.\.\.|[$!:={}()\[\]]|"(?:[^"\\]|\\.)*"|-?[\w.]+)')


class Field(tp.NamedTuple):
    key: str
    name: str
    arguments: dict[str, object]
    selected: "Selected"


Selected = list[Field | str]
"""The contents of a pair of braces: fields, and names of fragments."""


class Query:
    """One query document: an operation and its fragments."""

    def __init__(self, text: str):
        self.tokens: list[str] = []
        end = 0
        while end < len(text):
            match = TOKEN.match(text, end)
            if match is None:
                raise QueryError(f"can't read {text[end : end + 20]!r}")
            if match[1]:
                self.tokens.append(match[1])
            end = match.end()
        self.name, self.defaults = "", dict[str, object]()
        self.selected: Selected = []
        self.fragments: dict[str, Selected] = {}
        while self.tokens:
            self._definition()
        if not self.selected:
            raise QueryError("no operation")

    def _take(self, expected: str | None = None) -> str:
        if not self.tokens or (expected and self.tokens[0] != expected):
            raise QueryError(f"expected {expected!r}, found {self.tokens[:1]}")
        return self.tokens.pop(0)

    def _at(self, token: str) -> bool:
        return self.tokens[:1] == [token]

    def _definition(self) -> None:
        if self._at("fragment"):
            self._take()
            name = self._take()
            self._take("on")
            self._take()
            self.fragments[name] = self._selection()
            return
        if not self._at("{"):
            self._take("query")
            self.name = "" if self.tokens[0] in "({" else self._take()
        if self._at("("):
            self._variables()
        self.selected = self._selection()

    def _variables(self) -> None:
        self._take("(")
        while not self._at(")"):
            self._take("$")
            name = self._take()
            self._take(":")
            while self.tokens[0] not in ("$", ")", "="):
                self._take()
            if self._at("="):
                self._take()
                self.defaults[name] = self._literal()
        self._take(")")

    def _literal(self) -> object:
        token = self._take()
        try:
            return json.loads(token)
        except ValueError:
            raise QueryError(f"not a value: {token}") from None

    def _selection(self) -> Selected:
        self._take("{")
        selected: Selected = []
        while not self._at("}"):
            if self._at("..."):
                self._take()
                selected.append(self._take())
                continue
            key = name = self._take()
            if self._at(":"):
                self._take()
                name = self._take()
            arguments = self._arguments() if self._at("(") else {}
            below = self._selection() if self._at("{") else []
            selected.append(Field(key, name, arguments, below))
        self._take("}")
        return selected

    def _arguments(self) -> dict[str, object]:
        self._take("(")
        arguments: dict[str, object] = {}
        while not self._at(")"):
            name = self._take()
            self._take(":")
            if self._at("$"):
                self._take()
                arguments[name] = ("$", self._take())
            else:
                arguments[name] = self._literal()
        self._take(")")
        return arguments

    def answer(self, root: Json, variables: Json) -> Json:
        """The fields that the query selects, and no others.

        Raises:
            QueryError: A field, an argument or a fragment is unknown.
        """
        return self._object(root, self.selected, self.defaults | variables)

    def _object(self, node: Json, selected: Selected, variables: Json) -> Json:
        found: Json = {}
        for field in selected:
            if isinstance(field, str):
                if field not in self.fragments:
                    raise QueryError(f'unknown fragment "{field}"')
                found |= self._object(node, self.fragments[field], variables)
                continue
            if field.name not in node:
                raise QueryError(f'Cannot query field "{field.name}"')
            found[field.key] = self._value(node[field.name], field, variables)
        return found

    def _value(self, value: object, field: Field, variables: Json) -> object:
        if callable(value):
            arguments = {
                name: variables.get(v[1]) if isinstance(v, tuple) else v
                for name, v in field.arguments.items()
            }
            try:
                value = value(**arguments)
            except TypeError as err:
                raise QueryError(f"{field.name}: {err}") from None
        elif field.arguments:
            raise QueryError(f'"{field.name}" takes no arguments')
        if isinstance(value, list) and field.selected:
            return [self._object(item, field.selected, variables) for item in value]
        if isinstance(value, dict) and field.selected:
            return self._object(value, field.selected, variables)
        return value
