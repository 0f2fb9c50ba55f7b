"""The catalog: what is released, and everything specific to a lab.

The models below read a catalog and report all its errors at once. From them and the keys'
descriptions, `bin/tables` generates catalog.schema.json and README's table of keys.
"""

import functools
import glob
import json
import pathlib
import re
import typing as tp

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError, core_schema

from . import settings
from .cli import UsageError, UserError, fail_on
from .jsonl import ID
from .kinds import ACTIVATIONS, OBJECTIVES
from .places import CHECKPOINT
from .text import clipped

NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,95}"
REPO_ID = re.compile(rf"{NAME}/{NAME}")
COLLECTION = re.compile(rf"{NAME}/{NAME}-[0-9a-f]{{24}}")

RESERVED = ("demo", "executor", "hub", "records")
"""Other directories beside the repos' in build/, which no slug may take."""


# ---- kinds of values -------------------------------------------------------------------------


def _error(what: str) -> PydanticCustomError:
    return PydanticCustomError("saepub", "not {what}", {"what": what})


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise _error("one line of text")
    return text


def _lines(value: object) -> object:
    """Text of several lines may be written as a list of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return value


def _text(text: str) -> str:
    is_printable = all(
        line.isprintable() for line in text.replace("\t", " ").split("\n")
    )
    if not text.strip() or not is_printable or "```" in text:
        raise _error("lines of text without ```")
    return text


def _relative(text: str) -> str:
    """A path that stays below its root."""
    path = pathlib.PurePosixPath(_one_line(text))
    if path.is_absolute() or ".." in path.parts:
        raise _error('a relative path without ".."')
    return text


def _checkpoint(text: str) -> str:
    if "{run_id}" not in text or re.search(r"[{}]", text.replace("{run_id}", "")):
        raise _error('a path with "{run_id}" in it')
    return _relative(text)


def _several(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _distinct(values: tuple[tp.Any, ...]) -> tuple[tp.Any, ...]:
    if len(set(values)) != len(values):
        raise _error("different from each other")
    return values


def _some(values: tuple[tp.Any, ...]) -> tuple[tp.Any, ...]:
    if not values:
        raise PydanticCustomError("saepub", "it needs at least one")
    return values


class _Form:
    """A constraint on a text, also stated in the JSON Schema."""

    def __init__(
        self, what: str, is_right: tp.Callable[[str], object], **schema: object
    ):
        self.what, self.is_right, self.schema = what, is_right, schema

    def __get_pydantic_core_schema__(
        self, source: object, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            self._check, handler(source)
        )

    def _check(self, text: str) -> str:
        if not self.is_right(text):
            raise _error(self.what)
        return text

    def __get_pydantic_json_schema__(
        self, of: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, tp.Any]:
        return handler(of) | self.schema


def _like(pattern: str, what: str) -> _Form:
    return _Form(what, re.compile(pattern).fullmatch, pattern=f"^{pattern}$")


def _one_of(known: tp.Collection[str]) -> _Form:
    return _Form(f"one of {', '.join(known)}", known.__contains__, enum=list(known))


SLUG = "a collection's full slug, namespace/name-<24 hex digits>"
Slug = tp.Annotated[str, _like(ID.pattern, f"a slug ({ID.pattern})")]
RepoId = tp.Annotated[str, _like(REPO_ID.pattern, "namespace/name")]
FullSlug = tp.Annotated[str, _like(COLLECTION.pattern, SLUG)]
Shard = tp.Annotated[str, _like(ID.pattern, "a shard's name")]
Word = tp.Annotated[str, _like(r"[a-z][a-z -]{0,30}", "a word in lower case")]
Url = tp.Annotated[str, _like(r"https?://[^\s<>()\"'`\\]+", "an address (https://…)")]
Name = tp.Annotated[
    str, _like(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", "a name as W&B has them")
]
Line = tp.Annotated[str, pydantic.AfterValidator(_one_line)]
Text = tp.Annotated[
    str,
    pydantic.BeforeValidator(_lines),
    pydantic.AfterValidator(_text),
    pydantic.WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    ),
]
Relative = tp.Annotated[str, pydantic.AfterValidator(_relative)]
Template = tp.Annotated[str, pydantic.AfterValidator(_checkpoint)]
Size = tp.Annotated[int, pydantic.Strict(), Field(gt=0, lt=2**24)]
Layer = tp.Annotated[int, pydantic.Strict(), Field(ge=0, lt=1000)]
Place = tp.Annotated[int, pydantic.Strict(), Field(ge=0, lt=8)]
AT_LEAST_ONE = Field(json_schema_extra={"minItems": 1})
Layers = tp.Annotated[
    tuple[Layer, ...],
    pydantic.AfterValidator(_some),
    pydantic.AfterValidator(_distinct),
    AT_LEAST_ONE,
]
ActivationName = tp.Annotated[str, _one_of(ACTIVATIONS)]
ObjectiveName = tp.Annotated[str, _one_of(OBJECTIVES)]
NAMES = {"enum": list(ACTIVATIONS)}
Activations = tp.Annotated[
    tuple[ActivationName, ...],
    pydantic.BeforeValidator(_several),
    pydantic.AfterValidator(_some),
    pydantic.AfterValidator(_distinct),
    pydantic.WithJsonSchema(
        {"anyOf": [NAMES, {"type": "array", "items": NAMES, "minItems": 1}]}
    ),
]
LayerKey = tp.Annotated[str, _like(r"\d{1,3}", "a layer's number")]
ByLayer = dict[LayerKey, tuple[str, ...]]


# ---- the models ------------------------------------------------------------------------------


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Link(_Model):
    """A line of the card's list of links."""

    label: Line = Field(description="what it leads to")
    url: Url = Field(description="its address")


# fmt: off
class Metrics(_Model):
    """Where training logged a run's numbers: keys of the W&B summary."""

    l0: Line = Field("eval/l0", description="L0, the mean number of non-zero features per token")
    nmse: Line = Field("eval/normalized_mse", description="NMSE, the squared error divided by that of the mean")
    n_dead: Line = Field("eval/n_dead", description="how many features never fire")


class FromWandb(_Model):
    """Which runs of the project are candidates."""

    sweep: Name | None = Field(None, description="the id of a sweep")
    filters: dict[str, tp.Any] | None = Field(None, description="filters for `wandb.Api().runs`")
    layer: Line = Field("train_data.layer", description="the dotted key of the layer in a run's config")


class Lab(_Model):
    """What most of a lab's repos share. A repo may override each key."""

    license: Line | None = Field(None, description="the repo's license, as the Hub names it")
    links: tuple[Link, ...] | None = Field(None, description="links on the card, in order")
    contact: Line | None = Field(None, description="the contact on the card")
    citation: Text | None = Field(None, description="the BibTeX entry on the card")
    tags: tuple[Line, ...] | None = Field(None, description="tags on the Hub, in addition to every card's")
    datasets: tuple[Line, ...] | None = Field(None, description="the training datasets, as the Hub names them")
    tokens: Word | None = Field(None, description='what one activation stands for: "patch", "token" (the default), "frame"')
    recipe: Text | None = Field(None, description="Python code on the card that turns an input into `acts`, (n, d_model): a Jinja template with `base_model` and `layer`")
    entity: Name | None = Field(None, description="the W&B entity of the runs; `WANDB_ENTITY` overrides it")
    project: Name | None = Field(None, description="the W&B project of the runs; `WANDB_PROJECT` overrides it")
    metrics: Metrics | None = Field(None, description="the W&B keys that training logged its numbers under")
    facts: Relative | None = Field(None, description="a jq filter to use instead of `bin/facts`, for runs of another trainer; a path relative to the catalog")
    runs_root: Line | None = Field(None, description="the directory of the runs; `RUNS_ROOT` overrides it")
    checkpoint: Template | None = Field(None, description=f"the path of a run's checkpoint under the runs root (default: `{CHECKPOINT}`)")
    shards_root: Line | None = Field(None, description="the directory of cached activations; `SHARDS_ROOT` overrides it")
    shard: Shard | None = Field(None, description="the shard of activations to measure L0 and NMSE on")
    aux: Name | None = Field(None, description='the key of the auxiliary loss that a run must have been trained with ("auxk")')


# fmt: on
class Repo(Lab):
    """One model repo: its name, its candidates and what they must be."""

    # fmt: off
    slug: Slug = Field(description="its short name here: `REPO=<slug>`, `build/<slug>`")
    repo_id: RepoId = Field(description="its name on the Hub")
    title: Line = Field(description="the title of the card and the plot")
    base_model: Line = Field(description="the model that the SAEs were trained on, as the Hub names it")
    objective: ObjectiveName = Field(description=f"the training objective of its runs: {', '.join(OBJECTIVES)}")
    activation: Activations = Field(description=f"the activation function of its runs: {', '.join(ACTIVATIONS)}; or a list of them")
    layers: Layers = Field(description="the layers that it has SAEs for")
    d_model: Size = Field(description="the width of an activation")
    d_sae: Size = Field(description="the number of features")
    sweep: Line | None = Field(None, description="a Python file that lists run ids: a path relative to `SAEV_DIR` or the catalog")
    variable: Line | None = Field(None, description="the variable in `sweep` that lists them")
    layer_at: Place | None = Field(None, description="the layer's index in the tuple keys of `variable`: 1 for `(256, 23)`")
    run_ids: ByLayer | None = Field(None, description='the candidates, by layer: `{"23": ["a1b2c3d4"]}`')
    run_ids_file: Line | None = Field(None, description="a file with one run per line, a path as in `sweep`: `.csv`, `.json` or `.jsonl` with `run_id` and `layer`, or one `.txt` per layer, with `{layer}` in the name")
    wandb: FromWandb | None = Field(None, description="which runs of the W&B project are the candidates")
    # fmt: on

    @property
    def activations(self) -> tuple[str, ...]:
        """Its activations as configs name them: "relu", "top-k", "batch-top-k"."""
        return tuple(ACTIVATIONS[name].key for name in self.activation)

    @property
    def expected(self) -> dict[str, tp.Any]:
        """What the catalog says about the repo's runs; every line carries it."""
        always = {
            "objective": self.objective,
            "activation": list(self.activations),
            "d_model": self.d_model,
            "d_sae": self.d_sae,
        }
        names = "aux shard entity project runs_root shards_root checkpoint"
        also = {name: getattr(self, name) for name in names.split()}
        also["metrics"] = self.metrics.model_dump() if self.metrics else None
        return always | {
            name: value for name, value in also.items() if value is not None
        }


class Collection(_Model):
    """A collection on the Hub that gets every repo, named by either `title` or `slug`."""

    namespace: Name = Field("", description="its owner, if `title` names it")
    title: Line = Field("", description="its title; created if it doesn't exist")
    slug: FullSlug = Field("", description="the full slug of an existing one")


class Catalog(_Model):
    """What is released."""

    schema_: str | None = Field(None, alias="$schema", description="for editors: `catalog.schema.json`")  # fmt: skip
    lab: Lab = Field(Lab.model_validate({}), description="defaults for all repos")
    repos: tp.Annotated[
        tuple[Repo, ...], pydantic.AfterValidator(_some), AT_LEAST_ONE
    ] = Field(description="the model repos")
    collections: tuple[Collection, ...] = Field((), description="the collections that all repos are added to")  # fmt: skip
    _fpath: pathlib.Path = pydantic.PrivateAttr(pathlib.Path())

    @property
    def fpath(self) -> pathlib.Path:
        return self._fpath

    def get(self, slug: str) -> Repo:
        """The repo with that slug.

        Raises:
            UsageError: There is none.
        """
        slugs = [repo.slug for repo in self.repos]
        if slug in slugs:
            return self.repos[slugs.index(slug)]
        hint = settings.suggestion(slug, slugs, f"it has {', '.join(slugs)}")
        raise UsageError(f'{self.fpath} has no repo "{slug}"; {hint}')

    def source(self, path: str) -> pathlib.Path:
        """A file that the catalog names: under SAEV_DIR if it exists there, else beside the
        catalog."""
        beside = self.fpath.parent / path
        saev_dir = settings.get("SAEV_DIR")
        under = pathlib.Path(saev_dir) / path
        if not saev_dir or (not _is_there(under) and _is_there(beside)):
            return beside
        return under


def _is_there(fpath: pathlib.Path) -> bool:
    """Whether a file exists; with "{layer}" in its name, whether any layer's does."""
    return any(fpath.parent.glob(glob.escape(fpath.name).replace("{layer}", "*")))


Loc = tuple[int | str, ...]
"""A path in a catalog: keys and indices, from the outside in."""

# ---- reading ---------------------------------------------------------------------------------


def load() -> Catalog:
    """Read and check the catalog that the CATALOG setting names.

    Raises:
        UserError: It can't be read or has errors, all of which have been printed.
    """
    cat, problems = read(pathlib.Path(settings.get("CATALOG")))
    fail_on(problems, 'README.md lists the keys of a catalog, under "The catalog"')
    assert cat is not None
    return cat


def read(fpath: pathlib.Path) -> tuple[Catalog | None, list[str]]:
    """The catalog in a file, with "lab" merged into each repo; or None and all its errors."""
    if not fpath.exists() and settings.is_demo_fpath(fpath):
        raise UserError("no data is set and there is no demo yet; run: make demo")
    try:
        text = fpath.read_bytes().decode("utf-8-sig")
        raw = json.loads(text, object_pairs_hook=_no_duplicates)
        marked = list(_marked(raw, ()))
    except RecursionError:  # in Python 3.13 and later, only the second line raises it
        return None, [f"{fpath}: nested too deep"]
    except ValueError as err:
        return None, [f"{fpath}: not JSON: {err}"]
    except OSError as err:
        return None, [f"{fpath}: {err.strerror}; set CATALOG"]
    if not isinstance(raw, dict):
        return None, [f"{fpath}: not a JSON object"]
    problems = [_unwritten(raw, loc) for loc in marked]
    try:
        cat = Catalog.model_validate(raw)
    except pydantic.ValidationError as err:
        errors = [e for e in err.errors() if not _is_in(e["loc"], marked)]
        problems += [_explain(raw, error) for error in errors]
    problems += _across(raw)
    if problems:
        return None, [f"{fpath}: {text}" for text in problems]
    repos = tuple(_with_defaults(repo, cat.lab, fpath) for repo in cat.repos)
    collections = tuple(
        c.model_copy(update={"namespace": c.namespace or c.slug.partition("/")[0]})
        for c in cat.collections
    )
    cat = cat.model_copy(update={"repos": repos, "collections": collections})
    cat._fpath = fpath
    return cat, []


MARK = "TO WRITE: "
"""Starts a value that `make init` leaves for a person to write."""


def to_write(key: str) -> str:
    """The placeholder of a key that a person must write."""
    field = Repo.model_fields[key]
    end = "" if field.is_required() else "; or delete this line"
    return f"{MARK}{field.description}{end}"


def _marked(node: object, loc: Loc) -> tp.Iterator[Loc]:
    """The path of every placeholder."""
    if isinstance(node, str) and node.startswith(MARK):
        yield loc
    parts = enumerate(node) if isinstance(node, list) else ()
    for key, below in node.items() if isinstance(node, dict) else parts:
        yield from _marked(below, (*loc, key))


def _is_in(loc: Loc, places: list[Loc]) -> bool:
    return any(loc[: len(place)] == place for place in places)


def _unwritten(raw: dict[str, tp.Any], loc: Loc) -> str:
    what = f": {description(loc)}" if description(loc) else ""
    return f"{_path(raw, loc)}: still to be written{what}"


def _no_duplicates(pairs: list[tuple[str, tp.Any]]) -> dict[str, tp.Any]:
    keys = [key for key, _ in pairs]
    duplicate = next((key for key in keys if keys.count(key) > 1), None)
    if duplicate is not None:
        raise ValueError(f'the key "{duplicate[:60]}" twice in one object')
    return dict(pairs)


DEFAULTS = {"tokens": "token", "links": (), "tags": (), "datasets": ()}
"""The values of keys that neither the repo nor "lab" has."""


def _with_defaults(repo: Repo, lab: Lab, fpath: pathlib.Path) -> Repo:
    values: dict[str, tp.Any] = {}
    for name in Lab.model_fields:
        choices = (getattr(repo, name), getattr(lab, name), DEFAULTS.get(name))
        values[name] = next((value for value in choices if value is not None), None)
    for name in ("runs_root", "shards_root"):
        if root := values[name]:
            values[name] = str(fpath.parent / pathlib.Path(root).expanduser())
    return repo.model_copy(update=values)


SOURCES = ("sweep", "run_ids", "run_ids_file", "wandb")
"""Where candidates may come from; a repo has exactly one."""


def _across(raw: dict[str, tp.Any]) -> tp.Iterator[str]:
    """Errors that involve several keys, even if single keys have errors too."""
    repos = raw.get("repos")
    entries = (
        [e if isinstance(e, dict) else {} for e in repos]
        if isinstance(repos, list)
        else []
    )
    for i, entry in enumerate(entries):
        entry = {key: value for key, value in entry.items() if value is not None}
        at = _path(raw, ("repos", i))
        found = [key for key in SOURCES if key in entry]
        if entry and not found:
            yield f'{at}: no "sweep" with "variable", "run_ids", "run_ids_file" or "wandb"'
        elif len(found) > 1:
            yield f"{at}: {' and '.join(found)}; a repo takes only one of them"
        if ("sweep" in entry) != ("variable" in entry):
            given, missing = sorted(("sweep", "variable"), key=lambda k: k not in entry)
            yield f'{at}: "{given}" without "{missing}"'
        if "layer_at" in entry and "sweep" not in entry:
            yield f'{at}.layer_at: only for "sweep"'
        wandb = entry.get("wandb")
        if isinstance(wandb, dict) and ("sweep" in wandb) == ("filters" in wandb):
            yield f'{at}.wandb: needs either "sweep" or "filters"'
        if entry.get("slug") in RESERVED:
            yield f'{at}.slug: "{entry["slug"]}" is reserved; choose another'
    for key in ("slug", "repo_id"):
        # Some file systems, and the Hub, ignore case.
        values = [str(e[key]).lower() for e in entries if isinstance(e.get(key), str)]
        for value in sorted({v for v in values if values.count(v) > 1}):
            yield f'two repos with the {key} "{value[:60]}"'
    collections = raw.get("collections")
    for i, entry in enumerate(collections if isinstance(collections, list) else []):
        at = f"collections[{i}]"
        if not isinstance(entry, dict):
            continue
        if ("title" in entry) == ("slug" in entry):
            yield f'{at}: needs either "title" or "slug"'
        if "title" in entry and "namespace" not in entry:
            yield f'{at}: "title" without "namespace"'


def _explain(raw: dict[str, tp.Any], error: tp.Any) -> str:
    """One of pydantic's errors in words, with the key's path."""
    loc, kind = error["loc"], error["type"]
    if kind == "missing":
        of = f": {description(loc)}" if description(loc) else ""
        return f'{_path(raw, loc[:-1])}: no "{loc[-1]}"{of}'.removeprefix(": ")
    if kind == "extra_forbidden":
        known = known_keys(loc[:-1])
        hint = settings.suggestion(str(loc[-1]), known, f"known: {', '.join(known)}")
        return f"{_path(raw, loc)}: unknown key; {hint}"
    found = clipped(json.dumps(error["input"], default=str))
    why = error["msg"]
    if kind != "saepub":
        why = why.replace("Input should be ", "not ", 1)
        why = why[0].lower() + why[1:]
    return f"{_path(raw, loc)}: is {found}: {why}"


def _path(raw: tp.Any, loc: Loc) -> str:
    """A path as text: `repos[0] (vits-relu).d_model`."""
    out, node = "", raw
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{str(part)[:60]}"
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
        if (
            out.startswith(".repos[")
            and isinstance(part, int)
            and isinstance(node, dict)
        ):
            slug = node.get("slug")
            out += f" ({slug})" if isinstance(slug, str) and ID.fullmatch(slug) else ""
    return out.removeprefix(".")


MODELS: dict[str, type[_Model]] = {"lab": Lab, "repos": Repo, "collections": Collection}
BELOW: dict[str, type[_Model]] = {"links": Link, "metrics": Metrics, "wandb": FromWandb}


def _model_at(loc: Loc) -> type[_Model]:
    """The model of the object at a path."""
    model: type[_Model] = Catalog
    for part in loc:
        model = (MODELS | BELOW).get(str(part), model)
    return model


def known_keys(loc: Loc) -> list[str]:
    """The keys that the object at a path may have."""
    fields = _model_at(loc).model_fields
    return [field.alias or name for name, field in fields.items()]


def description(loc: Loc) -> str:
    """The description of the key at a path; "" for an unknown key."""
    field = _model_at(loc[:-1]).model_fields.get(str(loc[-1]))
    return (field.description or "") if field else ""


@functools.cache
def schema() -> dict[str, tp.Any]:
    """The JSON Schema of a catalog, for editors."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft} | Catalog.model_json_schema(by_alias=True)


def all_keys() -> tp.Iterator[tuple[str, str]]:
    """The path and description of every key of a catalog."""
    for name, field in Catalog.model_fields.items():
        yield field.alias or name, _what(field)
        if name not in MODELS:
            continue
        at = name if name == "lab" else f"{name}[]"
        own = set(Lab.model_fields) if name == "repos" else set()
        for key, below in MODELS[name].model_fields.items():
            if key in own:
                continue
            yield f"{at}.{key}", _what(below)
            if key in BELOW:
                end = "[]" if key == "links" else ""
                for last, of in BELOW[key].model_fields.items():
                    yield f"{at}.{key}{end}.{last}", _what(of)


def _what(field: tp.Any) -> str:
    default = field.get_default()
    is_shown = isinstance(default, str) and default and not field.is_required()
    return f"{field.description}{f' (default: `{default}`)' if is_shown else ''}"


def at(config: object, path: str) -> object:
    """The value at a dotted path in a config; None if there is none."""
    if isinstance(config, dict) and path in config:
        return config[path]
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config
