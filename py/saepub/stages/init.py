"""init: write a catalog for a lab's own sweep, filled in from the sweep and its runs.

Other keys get a placeholder that describes them; every stage refuses a catalog with placeholders
left in it, with one line for each.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import typing as tp

from .. import catalog, jsonl, settings
from ..catalog import to_write
from ..cli import UsageError, UserError, parser
from ..files import write_aside
from ..kinds import ACTIVATIONS
from ..sweep import python
from ..text import n_of, say
from ..tracking import runs as wandb_runs
from ..tracking import snapshot as wandb_snapshot

FACTS = os.path.join(settings.ROOT, "bin", "facts")


def main(argv: list[str]) -> None:
    p = parser(
        "Write a catalog for your own sweep, to be completed by hand; CATALOG names the file.",
        "WANDB_ENTITY=demo-lab WANDB_PROJECT=demo METRICS_SNAPSHOT=build/demo/snapshot.jsonl"
        " CATALOG=build/own.json bin/init"
        " build/demo/saev/contrib/trait_discovery/sweeps/vits_ade20k_inference.py run_ids\n"
        "rm build/own.json",
    )
    p.add_argument("sweep", nargs="?", help="a Python file that lists run ids")
    p.add_argument("variable", nargs="?", help="the variable that lists them")
    p.add_argument(
        "--wandb-sweep", metavar="ID", help="a W&B sweep, instead of a Python file"
    )
    args = p.parse_args(argv)
    settings.load()
    if bool(args.sweep) == bool(args.wandb_sweep):
        raise UsageError("name a sweep file and its variable, or --wandb-sweep=ID")
    fpath = pathlib.Path(settings.get("CATALOG"))
    if fpath.exists() or settings.is_demo_fpath(fpath):
        raise UsageError(f"{fpath} already exists; name a new file with CATALOG=<file>")
    if args.wandb_sweep:
        repo, facts = from_wandb(args.wandb_sweep)
    else:
        repo, facts = from_sweep(pathlib.Path(args.sweep), args.variable, fpath)
    made: dict[str, tp.Any] = {"$schema": schema_path(fpath), "lab": lab()}
    made |= {"repos": [entry(repo, facts)], "collections": []}
    with write_aside(fpath) as fd:
        fd.write(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    n_left = len(catalog.read(fpath)[1])
    say(
        f"init: wrote {fpath}: {n_of(n_left, 'key')} to fill in; then: make doctor CATALOG={fpath}"
    )


def from_sweep(
    sweep: pathlib.Path, variable: str | None, fpath: pathlib.Path
) -> tuple[dict[str, tp.Any], list[jsonl.Line]]:
    """A repo's entry from a sweep file, and the facts of its runs."""
    if variable is None:
        names = ", ".join(python.variables(sweep)) or "none that lists run ids"
        raise UsageError(f"name the variable that lists run ids; {sweep} has: {names}")
    keys = python.keys(sweep, variable)
    layer_at = place_of_layer(keys)
    found = python.read(sweep, variable, [0], layer_at).candidates
    facts = facts_of([c.run_id for c in found])
    layer_of = {line["run_id"]: line["train_layer"] for line in facts}
    known = {c.layer for c in found} if keys else set(layer_of.values()) - {None}
    layers = sorted(known)
    repo: dict[str, tp.Any] = {"slug": slug_of(sweep.stem)}
    if keys or len(layers) < 2:
        repo |= {"sweep": relative(sweep, fpath), "variable": variable}
    else:
        # A plain list has no layers but its runs have several, so the catalog lists the runs.
        repo["run_ids"] = {
            str(layer): [c.run_id for c in found if layer_of.get(c.run_id) == layer]
            for layer in layers
        }
    if layer_at is not None:
        repo["layer_at"] = layer_at
    return repo | {"layers": layers or to_write("layers")}, facts


def place_of_layer(keys: list[object]) -> int | None:
    """The layer's index in tuple keys: where the numbers are smallest."""
    tuples = [key for key in keys if isinstance(key, tuple)]
    if not tuples or len({len(key) for key in tuples}) != 1:
        return None
    most = [
        max((part if type(part) is int else 10**9) for part in parts)
        for parts in zip(*tuples, strict=True)
    ]
    return most.index(min(most))


def from_wandb(sweep: str) -> tuple[dict[str, tp.Any], list[jsonl.Line]]:
    """A repo's entry from a W&B sweep, and the facts of its runs."""
    project = settings.need("WANDB_PROJECT", "the W&B project of the sweep")
    entity = settings.need("WANDB_ENTITY", "the W&B entity of the project")
    records = wandb_runs.listed(entity, project, {"sweep": sweep})
    if not records:
        raise UserError(f"{entity}/{project}: no runs of a sweep {sweep}")
    places = collections.Counter(
        place for r in records for place in places_of_layer(r["config"])
    )
    best = places.most_common(1)[0][0] if places else "train_data.layer"
    layers = {catalog.at(r["config"], best) for r in records}
    repo = {
        "slug": slug_of(f"{project}-{sweep}"),
        "wandb": {"sweep": sweep}
        | ({} if best == "train_data.layer" else {"layer": best}),
        "layers": sorted(n for n in layers if type(n) is int) or to_write("layers"),
    }
    return repo, facts_of_records({r["name"]: r for r in records})


def places_of_layer(config: object, above: str = "") -> tp.Iterator[str]:
    """The dotted keys of a config whose value is a whole number called "layer"."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from places_of_layer(value, f"{above}{key}.")
        elif type(value) is int and re.fullmatch(r"(\w+_)?layer(_\w+)?", str(key)):
            yield f"{above}{key}"


def facts_of(run_ids: list[str]) -> list[jsonl.Line]:
    """The facts of runs from W&B, or from an export; none if it can't be read."""
    snapshot = settings.get("METRICS_SNAPSHOT")
    entity, project = settings.get("WANDB_ENTITY"), settings.get("WANDB_PROJECT")
    try:
        if snapshot:
            records = wandb_snapshot.read(snapshot, frozenset(run_ids))
        elif entity and project:
            records = wandb_runs.fetch(entity, project, run_ids)
        else:
            raise UserError("set WANDB_ENTITY and WANDB_PROJECT to read the runs too")
    except UserError as err:
        say(f"init: {err}")
        return []
    say(f"init: {n_of(len(records), 'run')} of {len(run_ids)} found")
    return facts_of_records(records)


def facts_of_records(records: dict[str, dict[str, tp.Any]]) -> list[jsonl.Line]:
    lines = [
        {"run_id": run_id, "expected": {}, "wandb": record}
        for run_id, record in records.items()
    ]
    stdin = "".join(jsonl.dumps(line) + "\n" for line in lines).encode()
    done = subprocess.run([FACTS], input=stdin, capture_output=True)
    if done.returncode != 0:
        raise UserError(done.stderr.decode(errors="replace").strip())
    return [jsonl.loads(text) for text in done.stdout.splitlines()]


def entry(repo: dict[str, tp.Any], facts: list[jsonl.Line]) -> dict[str, tp.Any]:
    """A repo's entry, with placeholders for what is unknown."""
    names = {of.key: name for name, of in ACTIVATIONS.items()}
    keys = [(line["activation"] or {}).get("key") for line in facts]
    activations = [names[key] for key in dict.fromkeys(keys) if key in names]
    texts = ("repo_id", "title", "base_model")
    numbers = {name: common(facts, name) for name in ("d_model", "d_sae")}
    made = {"slug": repo["slug"], **{name: to_write(name) for name in texts}}
    made |= {name: value for name, value in repo.items() if name not in made}
    made["objective"] = common(facts, "objective") or to_write("objective")
    one_or_all = activations[0] if len(activations) == 1 else activations
    made["activation"] = one_or_all or to_write("activation")
    made |= {name: n or to_write(name) for name, n in numbers.items()}
    if shard := common(facts, "shard"):
        made["shard"] = shard
    return made


def common(facts: list[jsonl.Line], key: str) -> tp.Any:
    """The most common value among the runs; None if no run has one."""
    values = collections.Counter(
        line[key] for line in facts if line[key] is not None
    ).most_common()
    if len(values) > 1:
        others = ", ".join(f"{n} have {value}" for value, n in values[1:4])
        say(f"init: {key}: {values[0][1]} runs have {values[0][0]}, {others}")
    return values[0][0] if values else None


def lab() -> dict[str, tp.Any]:
    """The common part: values from the settings, and placeholders."""
    given = {
        key: settings.get(name) or to_write(key)
        for key, name in (
            ("entity", "WANDB_ENTITY"),
            ("project", "WANDB_PROJECT"),
            ("runs_root", "RUNS_ROOT"),
        )
    }
    keys = ("license", "contact", "citation", "datasets", "tokens")
    return {key: to_write(key) for key in keys} | given


def slug_of(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:64] or "saes"


def relative(sweep: pathlib.Path, fpath: pathlib.Path) -> str:
    """The sweep's path relative to SAEV_DIR if it is in there, else to the catalog."""
    sweep, root = sweep.resolve(), fpath.parent.resolve()
    if saev_dir := settings.get("SAEV_DIR"):
        checkout = pathlib.Path(saev_dir).resolve()
        root = checkout if sweep.is_relative_to(checkout) else root
    return os.path.relpath(sweep, root)


def schema_path(fpath: pathlib.Path) -> str:
    schema = pathlib.Path(settings.ROOT, "catalog.schema.json")
    return os.path.relpath(schema, fpath.parent.resolve())
