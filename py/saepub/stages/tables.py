"""tables: generate README's tables, .env.example and catalog.schema.json from the code."""

import json
import pathlib
import typing as tp

from .. import catalog, jsonl, settings
from ..choice import account
from ..cli import UserError, parser
from ..files import write_aside

README = pathlib.Path(settings.ROOT) / "README.md"
SCHEMA = pathlib.Path(settings.ROOT) / "catalog.schema.json"
ENV_EXAMPLE = pathlib.Path(settings.ROOT) / ".env.example"

START = "<!-- {}: made by bin/tables -->\n"
END = "<!-- end -->\n"


def main(argv: list[str]) -> None:
    p = parser(
        "Generate README's tables, .env.example and catalog.schema.json from the code.",
        "bin/tables --check",
    )
    p.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if any is out of date",
    )
    args = p.parse_args(argv)
    readme = README.read_text(encoding="utf-8")
    made = {
        README: with_tables(readme),
        SCHEMA: schema_text(),
        ENV_EXAMPLE: env_example(),
    }
    old = {fpath for fpath, text in made.items() if not _is(fpath, text)}
    if args.check and old:
        names = " and ".join(sorted(fpath.name for fpath in old))
        raise UserError(f"{names}: out of date; run bin/tables")
    for fpath in old:
        with write_aside(fpath) as fd:
            fd.write(made[fpath])


def _is(fpath: pathlib.Path, text: str) -> bool:
    return fpath.exists() and fpath.read_text(encoding="utf-8") == text


def schema_text() -> str:
    return json.dumps(catalog.schema(), indent=2, ensure_ascii=False) + "\n"


def with_tables(readme: str) -> str:
    """README with each of `TABLES` regenerated between its two comments."""
    for name, make in TABLES.items():
        start = START.format(name)
        before, found, rest = readme.partition(start)
        if not found or END not in rest:
            raise UserError(f"{README}: no lines {start.strip()} and {END.strip()}")
        readme = before + start + "\n" + make() + "\n" + END + rest.partition(END)[2]
    return readme


def table(head: tuple[str, ...], rows: tp.Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    cells = [[text.replace("|", r"\|") for text in row] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def catalog_keys() -> str:
    """Every key of a catalog."""
    head = ("key", "what it is")
    return table(head, ((f"`{key}`", what) for key, what in catalog.all_keys()))


def line_keys() -> str:
    """Every key of a line, with the stage that adds it."""
    head = ("key", "added by", "what it is", "type")
    rows = [
        (f"`{key}`", by, means, kind.what)
        for by, keys in jsonl.ADDED_BY.items()
        for key, (kind, means) in keys.items()
    ]
    return table(head, rows)


def drop_reasons() -> str:
    """Every reason to drop a run, with the advice on it."""
    return table(("`drop` starts with", "what to do"), account.ADVICE.items())


def all_settings() -> str:
    """Every setting, with its default."""
    head = ("setting", "default", "what it is")
    return table(
        head,
        (
            (f"`{s.name}`", s.shown or (s.default and f"`{s.default}`"), s.help)
            for s in settings.SETTINGS
        ),
    )


def env_example() -> str:
    """An .env with every setting, each as a comment."""
    own = settings.OWN_DATA
    out = [
        "# Copy to .env and fill in. The environment and make's command line override it.",
        f"# If {', '.join(own[:-1])} and {own[-1]} are all unset,",
        "# everything works on a demo that `make` creates.",
        "# Quotes and # work as in a shell, and so do ~ and $NAME in a path. Relative paths start here.",
    ]
    for s in settings.SETTINGS:
        default = f" (default: {s.shown})" if s.shown else ""
        out += ["", f"# {s.help[0].upper()}{s.help[1:]}{default}."]
        is_allowed = s.name not in settings.NOT_IN_DOTENV
        out.append(
            f"#{s.name}={s.default}" if is_allowed else f"# {s.name}: never in a file."
        )
    return "\n".join(out) + "\n"


TABLES = {
    "catalog keys": catalog_keys,
    "line keys": line_keys,
    "drop reasons": drop_reasons,
    "settings": all_settings,
}
