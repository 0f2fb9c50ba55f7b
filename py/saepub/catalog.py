"""catalog.json: the one table of what is released."""

import dataclasses
import difflib
import json
import pathlib
import re
import typing as tp

from . import settings
from .cli import UsageError, UserError
from .jsonl import is_id

OBJECTIVES = ("matryoshka", "vanilla")
ACTIVATION_KEYS = {"relu": "relu", "topk": "top-k", "batchtopk": "batch-top-k"}
"""An activation as the catalog names it, and its `key` in configs and on lines."""

REPO_ID = re.compile(r"[A-Za-z0-9_-][\w.-]{0,95}/[A-Za-z0-9_-][\w.-]{0,95}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Repo:
    """One model repo: what it is called, where its candidates stand, what they must be."""

    slug: str
    repo_id: str
    title: str
    base_model: str
    objective: str
    activation: str
    """As a config's `key`: relu, top-k or batch-top-k."""
    layers: tuple[int, ...]
    d_model: int
    d_sae: int
    sweep: str = ""
    """Path of the sweep file under SAEV_DIR."""
    variable: str = ""
    run_ids: dict[str, list[str]] | None = None
    """Candidates by layer, in the sweep's place."""
    datasets: tuple[str, ...] = ("ILSVRC/imagenet-1k",)

    @property
    def expected(self) -> dict[str, object]:
        """The catalog's testimony, which travels on each of the repo's lines."""
        keys = ("objective", "activation", "d_model", "d_sae")
        return {key: getattr(self, key) for key in keys}


@dataclasses.dataclass(frozen=True)
class Collection:
    namespace: str
    title: str = ""
    slug: str = ""


@dataclasses.dataclass(frozen=True)
class Catalog:
    fpath: pathlib.Path
    repos: tuple[Repo, ...]
    collections: tuple[Collection, ...]

    def get(self, slug: str) -> Repo:
        """The repo with that slug.

        Raises:
            UsageError: There is none.
        """
        slugs = [repo.slug for repo in self.repos]
        if slug in slugs:
            return self.repos[slugs.index(slug)]
        near = difflib.get_close_matches(slug, slugs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(slugs)}"
        raise UsageError(f'{self.fpath} has no repo "{slug}"; {hint}')


def load() -> Catalog:
    """Read and check the catalog that the CATALOG setting names.

    Raises:
        UserError: It can't be read, or an entry is missing, unknown or wrong.
    """
    fpath = pathlib.Path(settings.get("CATALOG"))
    if not fpath.exists() and settings.is_demo_fpath(fpath):
        raise UserError("no data is named and there is no demo yet; run: make demo")
    try:
        raw = json.loads(fpath.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise UserError(f"{fpath}: not JSON: {err}") from None
    except OSError as err:
        raise UserError(f"{fpath}: {err.strerror}; CATALOG names it") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("repos"), list):
        raise UserError(f'{fpath}: no list "repos"')
    repos = tuple(
        _repo(entry, f"{fpath}: repos[{i}]") for i, entry in enumerate(raw["repos"])
    )
    for key in ("slug", "repo_id"):
        values = [getattr(repo, key) for repo in repos]
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise UserError(f'{fpath}: two repos with the {key} "{twice[0]}"')
    collections = tuple(
        _collection(entry, f"{fpath}: collections[{i}]")
        for i, entry in enumerate(raw.get("collections", []))
    )
    return Catalog(fpath, repos, collections)


def _repo(entry: object, where: str) -> Repo:
    fields = {f.name: f for f in dataclasses.fields(Repo)}
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not an object")
    where = f"{where} ({entry.get('slug')})"
    for key in entry:
        if key not in fields:
            raise UserError(f'{where}: unknown key "{key}"')
    for name, field in fields.items():
        if name not in entry and field.default is dataclasses.MISSING:
            raise UserError(f'{where}: no "{name}"')

    def want(key: str, ok: bool, what: str) -> None:
        if not ok:
            raise UserError(f'{where}: "{key}" is {entry[key]!r}, not {what}')

    def is_text(value: object) -> bool:
        return isinstance(value, str) and bool(value) and value.isprintable()

    def is_size(value: object) -> bool:
        return type(value) is int and 0 < tp.cast(int, value) < 2**24

    want("slug", is_id(entry["slug"]), "a slug")
    for key in ("title", "base_model"):
        want(key, is_text(entry[key]), "one line of text")
    want("repo_id", _matches(REPO_ID, entry["repo_id"]), "namespace/name")
    want("objective", entry["objective"] in OBJECTIVES, f"one of {OBJECTIVES}")
    want(
        "activation",
        entry["activation"] in tuple(ACTIVATION_KEYS),
        f"one of {tuple(ACTIVATION_KEYS)}",
    )
    for key in ("d_model", "d_sae"):
        want(key, is_size(entry[key]), "a positive whole number")
    layers = entry["layers"]
    is_layers = (
        isinstance(layers, list)
        and layers
        and len(set(map(str, layers))) == len(layers)
    )
    want("layers", bool(is_layers), "a list of different layers")
    for layer in layers:
        want("layers", type(layer) is int and 0 <= layer < 1000, "a list of layers")
    if "run_ids" in entry:
        ids = entry["run_ids"]
        ok = isinstance(ids, dict) and all(
            k.isdecimal() and isinstance(v, list) for k, v in ids.items()
        )
        want("run_ids", ok, 'an object like {"23": ["id"]}')
    else:
        for key in ("sweep", "variable"):
            if not is_text(entry.get(key)):
                raise UserError(f'{where}: no "{key}" (and no "run_ids")')
    datasets = entry.get("datasets", list(Repo.datasets))
    ok = isinstance(datasets, list) and all(is_text(d) for d in datasets)
    if not ok:
        want("datasets", False, "a list of dataset names")
    return Repo(
        **entry
        | {
            "activation": ACTIVATION_KEYS[entry["activation"]],
            "layers": tuple(sorted(layers)),
            "datasets": tuple(datasets),
        }
    )


def _collection(entry: object, where: str) -> Collection:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not an object")
    if set(entry) not in ({"namespace", "title"}, {"namespace", "slug"}):
        raise UserError(f'{where}: needs "namespace" and one of "title" or "slug"')
    for key, value in entry.items():
        if not isinstance(value, str) or not value or not value.isprintable():
            raise UserError(f'{where}: "{key}" is not one line of text')
    return Collection(**entry)


def _matches(pattern: re.Pattern, value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
