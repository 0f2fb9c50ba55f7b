"""The model card: every statement comes from the catalog or from checked values."""

import collections
import re
import typing as tp

from .. import catalog, templating
from ..choice import frontier
from ..choice.account import EXCLUDED, by_layer
from ..cli import UserError
from ..jsonl import BUILTIN, DROPPED, PINNED, Line
from ..kinds import ACTIVATIONS, OBJECTIVES
from ..text import human, l0_text, nmse_text, plural, web_url

ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
N_NAMED = 20
"""The most runs that a sentence names."""


class Check(tp.NamedTuple):
    """The contents of check.npz."""

    n_tokens: int
    """Activations per layer."""
    real_layers: tuple[int, ...]
    """The layers for which they are real, not random."""


class Column(tp.NamedTuple):
    """A column of the table."""

    title: str
    cell: tp.Callable[[Line], str]


class Source(tp.NamedTuple):
    """Where the numbers of some layers come from."""

    layers: list[int]
    words: str


class Choice(tp.NamedTuple):
    """How a repo's checkpoints were chosen."""

    n_compared: int
    pinned: list[Line]
    off_frontier: list[Line]
    """Pinned runs that are not on the frontier."""
    excluded: list[Line]


def text(
    repo: catalog.Repo, rows: list[Line], account: list[Line], check: Check
) -> str:
    """The text of README.md.

    Args:
        repo: The catalog's entry.
        rows: The lines to publish, in the table's order.
        account: Every candidate with its fate; [] if unknown, to leave them out of the card.
        check: The contents of check.npz.

    Raises:
        UserError: The catalog's recipe can't be filled in.
    """
    last = [row for row in rows if row["layer"] == rows[-1]["layer"]]
    example = last[len(last) // 2]
    env = templating.environment(keep_trailing_newline=True)
    return str(
        env.get_template("card.md").render(
            repo=repo,
            rows=rows,
            example=example,
            example_l0=round(example["l0"], 1),
            recipe=recipe(repo, example),
            pipeline_tag=PIPELINE_TAGS.get(repo.tokens or "", "feature-extraction"),
            base_model=_base_model(repo.base_model),
            tags=tags(repo),
            objective=OBJECTIVES[repo.objective],
            activations=[ACTIVATIONS[name].title for name in repo.activation],
            n_checkpoints=len(rows),
            n_bytes=sum(row["bytes"] for row in rows),
            columns=columns(repo, rows),
            sources=sources(repo, rows),
            choice=choice(account) if account else None,
            check={"n_tokens": check.n_tokens, "words": _check_words(rows, check)},
            install=install(rows),
            runs_words=runs_words,
            layers_words=layers_words,
            loaders=" and ".join(sorted({row["loader"] for row in rows} - {BUILTIN})),
            n_builtin=sum(row["loader"] == BUILTIN for row in rows),
        )
    )


PIPELINE_TAGS = {"patch": "image-feature-extraction"}
"""The Hub's name of a model's task, by what an activation stands for."""


def tags(repo: catalog.Repo) -> list[str]:
    always = ["sparse-autoencoder", "interpretability", repo.objective]
    return list(dict.fromkeys([*always, *repo.activation, *(repo.tags or ())]))


def recipe(repo: catalog.Repo, example: Line) -> str:
    """The catalog's Python code from an input to `acts`, filled in for this repo and a layer.

    Raises:
        UserError: It is not a valid template.
    """
    import jinja2.sandbox

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        return env.from_string(repo.recipe or "").render(
            base_model=repo.base_model, layer=example["layer"]
        )
    except jinja2.TemplateError as err:
        raise UserError(f'{repo.slug}: the catalog\'s "recipe": {err}') from None


def columns(repo: catalog.Repo, rows: list[Line]) -> list[Column]:
    """The table's columns: every card's, and others in which this card's rows differ."""
    out = [Column("Run ID", _run_cell), Column("Layer", lambda row: str(row["layer"]))]
    configs = [row["activation"] or {} for row in rows]
    if len(repo.activation) > 1:
        titles = {kind.key: kind.title for kind in ACTIVATIONS.values()}
        out.append(Column("Activation", lambda r: titles[r["activation"]["key"]]))
    if any("top_k" in config for config in configs):
        out.append(
            Column("k", lambda r: _or_dash((r["activation"] or {}).get("top_k")))
        )
    if len({row.get("aux") for row in rows}) > 1:
        out.append(
            Column("Aux", lambda r: templating.escape_markdown(_or_dash(r.get("aux"))))
        )
    out += [
        Column("L0", lambda row: l0_text(row["l0"])),
        Column("NMSE", lambda row: nmse_text(row["nmse"])),
        Column("Path", lambda row: f"`{row['path']}`"),
        Column("Size", lambda row: human(row["bytes"])),
    ]
    if any(row.get("n_dead") is not None for row in rows):
        out.append(Column("Dead", lambda row: _or_dash(row.get("n_dead"))))
    return out


def _run_cell(row: Line) -> str:
    url = web_url(row.get("wandb_url"))
    return f"[{row['run_id']}]({url})" if url else row["run_id"]


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _base_model(name: str) -> str:
    """The name, as a link if it may be a model on the Hub."""
    shown = templating.escape_markdown(name)
    if ON_THE_HUB.fullmatch(name) is None:
        return shown
    return f"[{shown}](https://huggingface.co/{name})"


def sources(repo: catalog.Repo, rows: list[Line]) -> list[Source]:
    """Where the numbers come from, in words, each with its layers."""
    layers: dict[str, set[int]] = collections.defaultdict(set)
    for row in rows:
        layers[_source_words(repo, row)].add(row["layer"])
    return [Source(sorted(of), words) for words, of in layers.items()]


def _source_words(repo: catalog.Repo, row: Line) -> str:
    kind, _, shard = (row.get("numbers") or "").partition(":")
    if kind == "measured":
        n = row.get("n_tokens")
        tokens = plural(repo.tokens or "token")
        on = f"{n:,} {tokens}" if n else tokens
        return (
            f"measured from the files in this repo, on {on} of cached activations"
            f" (shard `{shard}`)"
        )
    if kind == "disk":
        return (
            "from two sources: L0 as training logged it, NMSE from an inference run over"
            f" cached activations (shard `{shard}`)"
        )
    return "as training logged them"


def choice(account: list[Line]) -> Choice:
    """How many runs were compared, and where a person overrode the rule."""
    front = {
        (layer, run["run_id"])
        for layer, panel in by_layer(account).items()
        for run in frontier.of_account(panel)
    }
    account = sorted(account, key=lambda run: (run["layer"], run["run_id"]))
    pinned = [run for run in account if run["fate"] == PINNED]
    return Choice(
        n_compared=sum(run["fate"] != DROPPED for run in account),
        pinned=pinned,
        off_frontier=[r for r in pinned if (r["layer"], r["run_id"]) not in front],
        excluded=[run for run in account if run.get("drop") == EXCLUDED],
    )


def runs_words(runs: list[Line]) -> str:
    """Runs by name: "`a1b2c3d4` (layer 13) and `e5f6a7b8` (layer 23)"."""
    names = [f"`{run['run_id']}` (layer {run['layer']})" for run in runs[:N_NAMED]]
    if len(runs) > N_NAMED:
        names.append(f"{len(runs) - N_NAMED} more")
    return templating.listed(names)


def layers_words(layers: list[int]) -> str:
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {templating.listed([str(layer) for layer in layers])}"


def _check_words(rows: list[Line], check: Check) -> str:
    layers = sorted({row["layer"] for row in rows})
    if not check.real_layers:
        return "random, the same for all layers"
    if list(check.real_layers) == layers:
        return "real"
    return f"real for {layers_words(list(check.real_layers))}, otherwise random"


class Install(tp.NamedTuple):
    requirement: str
    python: str


def install(rows: list[Line]) -> Install | None:
    """The pip requirement of the saev that loaded every file; None if there isn't one."""
    sources = [row.get("saev") or {} for row in rows]
    requirements = {source.get("requirement") for source in sources}
    (requirement,) = requirements if len(requirements) == 1 else (None,)
    if requirement is None:
        return None
    python = sources[0].get("python") or ""
    found = re.fullmatch(r">=\s*([\d.]+)", python)
    words = f"{found[1]} or later" if found else python or "of a recent version"
    return Install(requirement, words)
