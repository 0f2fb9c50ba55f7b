"""The Jinja templates, with filters that escape data."""

import json
import pathlib
import typing as tp

from . import settings
from .text import human, n_of, plural


def environment(**options: tp.Any) -> tp.Any:
    """The Jinja environment of templates/, with our filters and `options`."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(settings.ROOT) / "templates"),
        undefined=jinja2.StrictUndefined,
        **options,
    )
    env.filters |= {
        "yaml": json.dumps,  # a JSON string is a YAML one
        "md": escape_markdown,
        "human": human,
        "n_of": n_of,
        "plural": plural,
    }
    return env


def escape_markdown(text: str) -> str:
    """`text` escaped so that Markdown shows it literally, even in a table cell."""
    text = " ".join(text.split())
    for char in "\\`*_[]<>|$~":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;")


def listed(words: list[str]) -> str:
    """Words joined for a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
