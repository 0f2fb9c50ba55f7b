"""How time and memory of the stages grow with the number of candidates."""

import json
import math
import os
import pathlib
import random
import tempfile

from .measure import MB, ROOT, measure, table

SIZES = (1_000, 10_000, 100_000)
LAYERS = range(6, 12)
SHA256 = "0" * 64
MAX_RENDERED = 1_000
"""More than any repo publishes; render reads a probe of each."""
EXPECTED = {"objective": "matryoshka", "activation": "relu", "d_model": 8, "d_sae": 32}


def scale() -> None:
    costs: dict[str, list] = {}
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        dpath = pathlib.Path(name)
        for n in SIZES:
            for stage, cost in _pipe(dpath / str(n), n):
                costs.setdefault(stage, []).append(cost)
    rows = []
    for stage, of_stage in costs.items():
        walls = [f"{c.wall:.2f} s, {c.rss / MB:.0f} MB" for c in of_stage]
        walls += [""] * (len(SIZES) - len(walls))
        exponent = ""
        if len(of_stage) > 1:
            exponent = f"{math.log10(of_stage[-1].cpu / of_stage[-2].cpu):.2f}"
        rows.append((stage, *walls, exponent))
    head = ("stage", *(f"{n:,}" for n in SIZES), "exponent of the last step")
    table("Candidates", rows, head)


def million() -> None:
    n = 1_000_000
    rows = []
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        dpath = pathlib.Path(name) / str(n)
        for stage, cost in _selection(dpath, n):
            cpu, rss = f"{cost.cpu:.1f} s", f"{cost.rss / MB:.0f} MB"
            rows.append((stage, f"{cost.wall:.1f} s", cpu, rss))
        size = (dpath / "settle.jsonl").stat().st_size
    title = f"{n:,} candidates, which are {size / MB:.0f} MB for select"
    table(title, rows, ("stage", "wall", "CPU", "memory"))


def _stage(dpath: pathlib.Path, name: str, stdin: str | None, *argv: object):
    """A stage's cost on a file of lines in `dpath`."""
    env = {
        "SAEPUB_BUILD": dpath / "build",
        "RECORDS": dpath / "records",
        "CATALOG": dpath / "catalog.json",
        "SAEV_DIR": dpath,
    }
    fpath = dpath / stdin if stdin else os.devnull
    with open(fpath) as fd_in, open(dpath / f"{name}.jsonl", "w") as fd_out:
        return measure([ROOT / "bin" / name, *argv], stdin=fd_in, stdout=fd_out, **env)


def _selection(dpath: pathlib.Path, n: int):
    """The cost of each stage up to select on `n` candidates, one after the other."""
    dpath.mkdir()
    repo = {
        "slug": "vits-relu",
        "repo_id": "lab/SAE",
        "title": "SAE",
        "base_model": "lab/vit",
        "sweep": "sweep.py",
        "variable": "run_ids",
        "layers": list(LAYERS),
        **EXPECTED,
    }
    (dpath / "catalog.json").write_text(json.dumps({"repos": [repo]}))
    with open(dpath / "sweep.py", "w") as fd:
        fd.write("run_ids = {\n")
        for layer in LAYERS:
            fd.write(f"    {layer}: [\n")
            for i in range(layer - LAYERS[0], n, len(LAYERS)):
                fd.write(f'        {"# " if i % 3 else ""}"run{i:07d}",\n')
            fd.write("    ],\n")
        fd.write("}\n")

    yield "extract-ids", _stage(dpath, "extract-ids", None, "vits-relu")
    rnd = random.Random(0)
    _write(dpath / "runs.jsonl", (_with_record(_line(i, rnd)) for i in range(n)))
    yield "facts", _stage(dpath, "facts", "runs.jsonl")
    yield "classify", _stage(dpath, "classify", "facts.jsonl")
    yield "settle", _stage(dpath, "settle", "classify.jsonl")
    yield "select", _stage(dpath, "select", "settle.jsonl")
    argv = ("--account", dpath / "account")
    yield "select --account", _stage(dpath, "select", "settle.jsonl", *argv)


def _pipe(dpath: pathlib.Path, n: int):
    yield from _selection(dpath, n)
    # What staging and rendering would take if all of them were chosen.
    rnd = random.Random(0)
    _write_probe(dpath / "probe.npz")
    _write(dpath / "checked.jsonl", (_checked(dpath, i, rnd) for i in range(n)))
    yield "stage", _stage(dpath, "stage", "checked.jsonl")
    if n <= MAX_RENDERED:
        yield "render", _stage(dpath, "render", "stage.jsonl")


def _write_probe(fpath: pathlib.Path) -> None:
    """The one probe of all checkpoints, which have one sha256."""
    import numpy as np

    from saepub.checkpoint import probe

    x = probe.random_inputs(EXPECTED["d_model"])
    features = np.tile(np.arange(8, dtype=np.int32), (len(x), 1))
    margin = np.ones(len(x), np.float32)
    of_all = probe.Probe(x, features, features.astype(np.float32), x, margin)
    probe.write(of_all, SHA256, fpath)


def _write(fpath: pathlib.Path, rows) -> None:
    with open(fpath, "w") as fd:
        fd.writelines(json.dumps(row) + "\n" for row in rows)


def _line(i: int, rnd: random.Random) -> dict:
    layer = LAYERS[i % len(LAYERS)]
    return {
        "repo": "vits-relu",
        "layer": layer,
        "run_id": f"run{i:07d}",
        "commented": bool(i % 3),
        "source": f"contrib/trait_discovery/sweeps/vits_ade20k_inference.py:{i}",
        "expected": EXPECTED,
        "l0": rnd.lognormvariate(4, 1),
        "nmse": rnd.random(),
        "numbers": "wandb",
        "objective": "matryoshka",
        "n_prefixes": 10,
        "activation": {"key": "relu"},
        "d_model": 8,
        "d_sae": 32,
        "train_layer": layer,
        "state": "finished",
        "created_at": "2025-12-01T00:00:00Z",
        "wandb_url": f"https://wandb.ai/samuelstevens/saev/runs/run{i:07d}",
        "n_dead": 0,
    }


def _with_record(line: dict) -> dict:
    """A line as fetch-metrics passes it on."""
    keys = ("repo", "layer", "run_id", "commented", "source", "expected")
    config = {
        "sae": {"d_model": 8, "d_sae": 32, "activation": {"key": "relu"}},
        "objective": {"n_prefixes": 10},
        "train_data": {"layer": line["layer"]},
        "val_data": {"shards": "/scratch/shards/52ec5790"},
    }
    summary = {"eval/l0": line["l0"], "eval/normalized_mse": line["nmse"]}
    record = {"state": "finished", "createdAt": line["created_at"], "url": None}
    record |= {"config": config, "summary": summary | {"eval/n_dead": 0}}
    return {key: line[key] for key in keys} | {"wandb": record}


def _checked(dpath: pathlib.Path, i: int, rnd: random.Random) -> dict:
    fpath = dpath / "runs" / f"run{i:07d}.pt"
    fpath.parent.mkdir(exist_ok=True)
    fpath.write_bytes(b"sae")
    return _line(i, rnd) | {
        "drop": None,
        "checkpoint": str(fpath),
        "bytes": 3,
        "mtime_ns": str(fpath.stat().st_mtime_ns),
        "sha256": SHA256,
        "probe": str(dpath / "probe.npz"),
        "schema": 5,
        "activation_config": {},
        "loader": "builtin",
        "warnings": [],
    }
