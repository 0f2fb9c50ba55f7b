"""The catalog: the one table of what is released, and all that is a lab's own.

The models below read a catalog, name all that is wrong with it at once, and are what
catalog.schema.json and README's table of keys are made from. A key's description says what
it is for. `bin/tables` writes both.
"""

import difflib
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
from .cli import UsageError, UserError, report
from .jsonl import ID
from .kinds import ACTIVATIONS, OBJECTIVES
from .places import CHECKPOINT

NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,95}"
REPO_ID = re.compile(rf"{NAME}/{NAME}")
COLLECTION = re.compile(rf"{NAME}/{NAME}-[0-9a-f]{{24}}")

RESERVED = ("demo", "executor", "hub", "records")
"""What else has a directory of its own beside the repos' in build/."""


# ---- kinds of values -------------------------------------------------------------------------


def _error(what: str) -> PydanticCustomError:
    return PydanticCustomError("saepub", "not {what}", {"what": what})


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise _error("one line of text")
    return text


def _lines(value: object) -> object:
    """A text of several lines may be written as a list of them."""
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
    """A path under some root, which it can't leave."""
    path = pathlib.PurePosixPath(_one_line(text))
    if path.is_absolute() or ".." in path.parts:
        raise _error("a path below the directory that it is under")
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
    """Text of a form that the schema states too."""

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
    what = f"one of {', '.join(known)}, which is all that is known"
    return _Form(what, known.__contains__, enum=list(known))


SLUG = "a collection's whole slug, namespace/name-<24 hex digits>"
Slug = tp.Annotated[str, _like(ID.pattern, f"a slug ({ID.pattern})")]
RepoId = tp.Annotated[str, _like(REPO_ID.pattern, "namespace/name")]
WholeSlug = tp.Annotated[str, _like(COLLECTION.pattern, SLUG)]
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


class Metrics(_Model):
    """Where training logged a run's numbers: keys of W&B's summary."""

    l0: Line = Field("eval/l0", description="L0, the mean count of non-zero features")
    nmse: Line = Field(
        "eval/normalized_mse",
        description="NMSE, the squared error over that of the mean",
    )
    n_dead: Line = Field("eval/n_dead", description="how many features never fire")


class FromWandb(_Model):
    """Which runs of the project are candidates."""

    sweep: Name | None = Field(None, description="a sweep's id")
    filters: dict[str, tp.Any] | None = Field(
        None, description="filters, as `wandb.Api().runs` takes them"
    )
    layer: Line = Field(
        "train_data.layer", description="where a run's config has its layer, by dots"
    )


class Lab(_Model):
    """What is the same for most of a lab's repos. Each key may stand in a repo too."""

    license: Line | None = Field(
        None, description="the repo's license, by the Hub's name"
    )
    links: tuple[Link, ...] | None = Field(
        None, description="links on the card, in order"
    )
    contact: Line | None = Field(None, description="whom to write to, on the card")
    citation: Text | None = Field(None, description="BibTeX, on the card")
    tags: tuple[Line, ...] | None = Field(
        None, description="the Hub's tags, besides those that every card has"
    )
    datasets: tuple[Line, ...] | None = Field(
        None, description="what the SAEs were trained on, by the Hub's names"
    )
    tokens: Word | None = Field(
        None,
        description='what one activation is of: "patch", "token" (the default), "frame"',
    )
    recipe: Text | None = Field(
        None,
        description="lines of Python on the card that turn an input into `acts`,"
        " (n, d_model): a Jinja template of `base_model` and `layer`",
    )
    entity: Name | None = Field(
        None, description="whose W&B project; `WANDB_ENTITY` overrides it"
    )
    project: Name | None = Field(
        None, description="the W&B project; `WANDB_PROJECT` overrides it"
    )
    metrics: Metrics | None = Field(
        None, description="which of W&B's keys are the numbers"
    )
    facts: Relative | None = Field(
        None,
        description="a jq filter in the place of `bin/facts`, beside the catalog, for runs"
        " that another trainer logged",
    )
    runs_root: Line | None = Field(
        None, description="the directory of the runs; `RUNS_ROOT` overrides it"
    )
    checkpoint: Template | None = Field(
        None,
        description=f"a run's checkpoint, below the runs root (default: `{CHECKPOINT}`)",
    )
    shards_root: Line | None = Field(
        None,
        description="the directory of cached activations; `SHARDS_ROOT` overrides it",
    )
    shard: Shard | None = Field(
        None, description="the cached activations that L0 and NMSE are measured on"
    )
    aux: Name | None = Field(
        None,
        description='the auxiliary loss that a run must have had, by its key ("auxk")',
    )


class Repo(Lab):
    """One model repo: what it is called, where its candidates stand, what they must be."""

    slug: Slug = Field(description="its short name here: `REPO=<slug>`, `build/<slug>`")
    repo_id: RepoId = Field(description="its name on the Hub")
    title: Line = Field(description="the card's and the plot's title")
    base_model: Line = Field(
        description="the model that the SAEs were trained on, on the Hub"
    )
    objective: ObjectiveName = Field(
        description=f"what its runs were trained with: {', '.join(OBJECTIVES)}"
    )
    activation: Activations = Field(
        description=f"its activation function: {', '.join(ACTIVATIONS)}; or a list of them"
    )
    layers: Layers = Field(description="the layers of which it has SAEs")
    d_model: Size = Field(description="the width of an activation")
    d_sae: Size = Field(description="the number of features")
    sweep: Line | None = Field(
        None,
        description="a Python file that lists run ids, under `SAEV_DIR` or beside the catalog",
    )
    variable: Line | None = Field(
        None, description="the variable of `sweep` that lists them"
    )
    layer_at: Place | None = Field(
        None,
        description="where tuple keys of `variable` have the layer: 1 for `(256, 23)`",
    )
    run_ids: ByLayer | None = Field(
        None, description='the candidates themselves, by layer: `{"23": ["a1b2c3d4"]}`'
    )
    run_ids_file: Line | None = Field(
        None,
        description="a file with a line a run, found as `sweep` is: `.csv`, `.json` or"
        " `.jsonl` with `run_id` and `layer`, or a `.txt` a layer, with `{layer}` in its name",
    )
    wandb: FromWandb | None = Field(
        None, description="which runs of the W&B project are the candidates"
    )

    @property
    def activations(self) -> tuple[str, ...]:
        """Its activations as configs name them: "relu", "top-k", "batch-top-k"."""
        return tuple(ACTIVATIONS[name].key for name in self.activation)

    @property
    def expected(self) -> dict[str, tp.Any]:
        """What the catalog says of each of the repo's runs, which travels on their lines."""
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
    """A collection on the Hub that gets every repo: one of `title` and `slug` names it."""

    namespace: Name = Field("", description="whose, where `title` names it")
    title: Line = Field("", description="its title; made if it isn't there")
    slug: WholeSlug = Field("", description="an existing one's whole slug")


class Catalog(_Model):
    """What is released."""

    schema_: str | None = Field(
        None, alias="$schema", description="for editors: `catalog.schema.json`"
    )
    lab: Lab = Field(
        Lab.model_validate({}), description="what is the same for all repos"
    )
    repos: tp.Annotated[
        tuple[Repo, ...], pydantic.AfterValidator(_some), AT_LEAST_ONE
    ] = Field(description="the model repos")
    collections: tuple[Collection, ...] = Field(
        (), description="the collections that get all of them"
    )
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
        near = difflib.get_close_matches(slug, slugs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(slugs)}"
        raise UsageError(f'{self.fpath} has no repo "{slug}"; {hint}')

    def source(self, path: str) -> pathlib.Path:
        """A file that the catalog names: under SAEV_DIR where it is there, else beside it."""
        beside = self.fpath.parent / path
        saev_dir = settings.get("SAEV_DIR")
        under = pathlib.Path(saev_dir) / path
        if not saev_dir or (not _is_there(under) and _is_there(beside)):
            return beside
        return under


def _is_there(fpath: pathlib.Path) -> bool:
    """Whether a file is there, or with "{layer}" in its name one of several."""
    return any(fpath.parent.glob(glob.escape(fpath.name).replace("{layer}", "*")))


Loc = tuple[int | str, ...]
"""Where something stands in a catalog: keys and places, from the outside in."""

# ---- reading ---------------------------------------------------------------------------------


def load() -> Catalog:
    """Read and check the catalog that the CATALOG setting names.

    Raises:
        UserError: It can't be read, or something is wrong with it; all of it is told.
    """
    cat, problems = read(pathlib.Path(settings.get("CATALOG")))
    report(problems, 'README.md lists the keys of a catalog, under "The catalog"')
    assert cat is not None
    return cat


def read(fpath: pathlib.Path) -> tuple[Catalog | None, list[str]]:
    """The catalog in a file, each repo with what it takes from "lab"; or all that is wrong."""
    if not fpath.exists() and settings.is_demo_fpath(fpath):
        raise UserError("no data is named and there is no demo yet; run: make demo")
    try:
        text = fpath.read_bytes().decode("utf-8-sig")
        raw = json.loads(text, object_pairs_hook=_no_twice)
        marked = list(_marked(raw, ()))
    except RecursionError:  # since Python 3.13 the second one alone
        return None, [f"{fpath}: nested too deep"]
    except ValueError as err:
        return None, [f"{fpath}: not JSON: {err}"]
    except OSError as err:
        return None, [f"{fpath}: {err.strerror}; CATALOG names it"]
    if not isinstance(raw, dict):
        return None, [f"{fpath}: not a JSON object"]
    problems = [_left(raw, loc) for loc in marked]
    try:
        cat = Catalog.model_validate(raw)
    except pydantic.ValidationError as err:
        errors = [e for e in err.errors() if not _is_in(e["loc"], marked)]
        problems += [_told(raw, error) for error in errors]
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
"""What starts a value that `make init` left to be written."""


def to_write(key: str) -> str:
    """What stands in a catalog's key until a person writes it."""
    field = Repo.model_fields[key]
    end = "" if field.is_required() else "; or delete this line"
    return f"{MARK}{field.description}{end}"


def _marked(node: object, loc: Loc) -> tp.Iterator[Loc]:
    """Where something is still to be written."""
    if isinstance(node, str) and node.startswith(MARK):
        yield loc
    parts = enumerate(node) if isinstance(node, list) else ()
    for key, below in node.items() if isinstance(node, dict) else parts:
        yield from _marked(below, (*loc, key))


def _is_in(loc: Loc, places: list[Loc]) -> bool:
    return any(loc[: len(place)] == place for place in places)


def _left(raw: dict[str, tp.Any], loc: Loc) -> str:
    what = f": {description(loc)}" if description(loc) else ""
    return f"{_path(raw, loc)}: still to be written{what}"


def _no_twice(pairs: list[tuple[str, tp.Any]]) -> dict[str, tp.Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f'the key "{twice[:60]}" twice in one object')
    return dict(pairs)


DEFAULTS = {"tokens": "token", "links": (), "tags": (), "datasets": ()}
"""What a repo has where neither it nor "lab" says."""


def _with_defaults(repo: Repo, lab: Lab, fpath: pathlib.Path) -> Repo:
    own = {name: getattr(repo, name) for name in Lab.model_fields}
    taken = {name: getattr(lab, name) for name, value in own.items() if value is None}
    defaults = {
        name: DEFAULTS.get(name) for name, value in taken.items() if value is None
    }
    taken |= defaults
    for name in ("runs_root", "shards_root"):
        root = taken.get(name, own[name])
        taken[name] = root and str(fpath.parent / pathlib.Path(root).expanduser())
    return repo.model_copy(update=taken)


SOURCES = ("sweep", "run_ids", "run_ids_file", "wandb")
"""Where candidates may come from; a repo has one of them."""


def _across(raw: dict[str, tp.Any]) -> tp.Iterator[str]:
    """What is wrong between keys, whatever else is wrong with each of them."""
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
            yield f"{at}: {' and '.join(found)}, of which a repo has one"
        if ("sweep" in entry) != ("variable" in entry):
            missing = "variable" if "sweep" in entry else "sweep"
            yield f'{at}: no "{missing}", which goes with the other'
        if "layer_at" in entry and "sweep" not in entry:
            yield f'{at}.layer_at: goes with "sweep"'
        wandb = entry.get("wandb")
        if isinstance(wandb, dict) and ("sweep" in wandb) == ("filters" in wandb):
            yield f'{at}.wandb: needs one of "sweep" and "filters"'
        if entry.get("slug") in RESERVED:
            yield f'{at}.slug: "{entry["slug"]}" is a name of our own; take another'
    for key in ("slug", "repo_id"):
        # Some file systems, and the Hub, take names apart by case for one and the same.
        values = [str(e[key]).lower() for e in entries if isinstance(e.get(key), str)]
        for value in sorted({v for v in values if values.count(v) > 1}):
            yield f'two repos with the {key} "{value[:60]}"'
    collections = raw.get("collections")
    for i, entry in enumerate(collections if isinstance(collections, list) else []):
        at = f"collections[{i}]"
        if not isinstance(entry, dict):
            continue
        if ("title" in entry) == ("slug" in entry):
            yield f'{at}: needs one of "title" and "slug"'
        if "title" in entry and "namespace" not in entry:
            yield f'{at}: no "namespace", which goes with "title"'


def _told(raw: dict[str, tp.Any], error: tp.Any) -> str:
    """One of pydantic's errors, with the key's path."""
    loc, kind = error["loc"], error["type"]
    if kind == "missing":
        of = f": {description(loc)}" if description(loc) else ""
        return f'{_path(raw, loc[:-1])}: no "{loc[-1]}"{of}'.removeprefix(": ")
    if kind == "extra_forbidden":
        known = known_keys(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]).lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{_path(raw, loc)}: unknown key; {hint}"
    found = json.dumps(error["input"], default=str)
    found = found if len(found) <= 60 else found[:57] + "..."
    why = error["msg"]
    if kind != "saepub":
        why = why.replace("Input should be ", "not ", 1)
        why = why[0].lower() + why[1:]
    return f"{_path(raw, loc)}: is {found}: {why}"


def _path(raw: tp.Any, loc: Loc) -> str:
    """Where something stands, as in `repos[0] (vits-relu).d_model`."""
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
    """The model of the object at a place."""
    model: type[_Model] = Catalog
    for part in loc:
        model = (MODELS | BELOW).get(str(part), model)
    return model


def known_keys(loc: Loc) -> list[str]:
    """The keys that an object may have, by its place."""
    fields = _model_at(loc).model_fields
    return [field.alias or name for name, field in fields.items()]


def description(loc: Loc) -> str:
    """What the key at a place is for; "" for an unknown one."""
    field = _model_at(loc[:-1]).model_fields.get(str(loc[-1]))
    return (field.description or "") if field else ""


@functools.cache
def schema() -> dict[str, tp.Any]:
    """The JSON Schema of a catalog, for editors."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft} | Catalog.model_json_schema(by_alias=True)


def all_keys() -> tp.Iterator[tuple[str, str]]:
    """Every key of a catalog by its path, and what it is for."""
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
    is_said = isinstance(default, str) and default and not field.is_required()
    return f"{field.description}{f' (default: `{default}`)' if is_said else ''}"


def at(config: object, path: str) -> object:
    """What a config has at a path of keys with dots between; None for nothing."""
    if isinstance(config, dict) and path in config:
        return config[path]
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config
