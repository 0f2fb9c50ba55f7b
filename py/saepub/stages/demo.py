"""demo: create sweeps, checkpoints and metrics to try everything on, without a cluster.

demo/table.py lists its contents, demo/train.py trains and measures its SAEs, and demo/sweeps.py
writes its sweep files.
"""

import datetime
import json
import math
import os
import pathlib
import shutil
import time
import typing as tp

from .. import jsonl, places, settings
from ..cli import parser
from ..demo.table import REPOS, Repo, Run, all_runs, catalog, runs_of
from ..files import lock
from ..text import n_of, say

DOCS = """# Inference

## Download a Checkpoint

In saev's docs, `make docs` writes a section here on what was released.

## Compute Features
"""
"""A page like saev's, for `make rehearse DO=docs`."""

if tp.TYPE_CHECKING:
    from ..demo.train import Activations

N_HOURS = 7
"""How long a run pretends to have trained: the time from its start to its checkpoint."""


def main(argv: list[str]) -> None:
    p = parser(
        "Create the demo under build/demo: sweep files, small real SAEs, their metrics.",
        "bin/demo\nbin/extract-ids vits-relu | head -n 3",
    )
    p.add_argument("--force", action="store_true", help="recreate it")
    args = p.parse_args(argv)
    settings.load()
    settings.claim("BUILD")
    root = settings.build_dpath() / "demo"
    with lock(root.with_name(".demo.lock"), math.inf):
        if not args.force and is_complete(root):
            say(f"demo: {root} already exists; --force recreates it")
            return
        start = time.monotonic()
        say(f"demo: creating {root}: training small SAEs, once")
        aside = root.with_name(".demo.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            build(aside)
            # Only a complete demo gets the name. A directory can't be renamed over another.
            shutil.rmtree(root, ignore_errors=True)
            os.rename(aside, root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    n_saes = sum(run.has_checkpoint for run in all_runs())
    seconds = time.monotonic() - start
    say(f"demo: created {root}: {n_of(n_saes, 'SAE')} in {seconds:.0f} s")


def is_complete(root: pathlib.Path) -> bool:
    """Whether every file of the demo exists, and its catalog is up to date."""
    catalog_fpath = root / "catalog.json"
    if not catalog_fpath.is_file() or catalog_fpath.read_text() != _catalog_text():
        return False
    fpaths = [root / "snapshot.jsonl", root / "saev" / places.DOCS_PAGE]
    fpaths += [sweep_fpath(root, repo) for repo in REPOS]
    fpaths += [
        shard_dpath(root, repo) / name
        for repo in REPOS
        for name in ("metadata.json", "shards.json")
    ]
    fpaths += [
        checkpoint_fpath(root, run.run_id) for run in all_runs() if run.has_checkpoint
    ]
    return all(fpath.is_file() for fpath in fpaths)


def _catalog_text() -> str:
    return json.dumps(catalog(), indent=2) + "\n"


def sweep_fpath(root: pathlib.Path, repo: Repo) -> pathlib.Path:
    return root / "saev" / repo.sweep


def shard_dpath(root: pathlib.Path, repo: Repo) -> pathlib.Path:
    return root / "shards" / repo.shard


def checkpoint_fpath(root: pathlib.Path, run_id: str) -> pathlib.Path:
    return root / "runs" / run_id / "checkpoint" / "sae.pt"


def build(root: pathlib.Path) -> None:
    """Create the whole demo in the directory `root`, which must not exist yet."""
    from ..demo import sweeps as demo_sweeps
    from ..demo import train as demo_train  # torch: slow to import

    root.mkdir(parents=True)
    (root / "catalog.json").write_text(_catalog_text())
    for repo in REPOS:
        fpath = sweep_fpath(root, repo)
        fpath.parent.mkdir(parents=True, exist_ok=True)
        fpath.write_text(demo_sweeps.text(repo, runs_of(repo)))
    docs_fpath = root / "saev" / places.DOCS_PAGE
    docs_fpath.parent.mkdir(parents=True)
    docs_fpath.write_text(DOCS)
    snapshot = []
    for repo in REPOS:
        held_out = {}
        for layer in (panel.layer for panel in repo.panels):
            n_runs = n_of(len(runs_of(repo, layer)), "run")
            say(f"demo: {repo.slug} layer {layer}: {n_runs}")
            x = demo_train.activations(repo.slug, layer, repo.d_model)
            snapshot += build_panel(root, repo, layer, x)
            held_out[layer] = x.held_out
        demo_train.dump_shard(shard_dpath(root, repo), repo, held_out)
    with open(root / "snapshot.jsonl", "w") as fd:
        fd.writelines(jsonl.dumps(line) + "\n" for line in snapshot)


def build_panel(
    root: pathlib.Path, repo: Repo, layer: int, x: "Activations"
) -> list[jsonl.Line]:
    """Train, write and measure the runs of one (repo, layer).

    Returns:
        A line of the snapshot for each run that W&B is to know.
    """
    from ..demo import train as demo_train

    snapshot = []
    for run in runs_of(repo, layer):
        if run.misfit == "absent":
            continue
        summary = {}
        if run.has_checkpoint:
            fpath = checkpoint_fpath(root, run.run_id)
            sae = demo_train.train_and_dump(run, x.train, fpath)
            summary = demo_train.measure(sae, x.held_out, run.n_prefixes)
            _finish(run, fpath)
        snapshot.append(_snapshot(run, summary))
    return snapshot


def _finish(run: Run, fpath: pathlib.Path) -> None:
    """Write the run's config, and set its checkpoint's mtime to the end of the run."""
    config = json.dumps(run.config, indent=2) + "\n"
    fpath.with_name("config.json").write_text(config)
    ended_at = run.created_at + datetime.timedelta(hours=N_HOURS)
    os.utime(fpath, (ended_at.timestamp(), ended_at.timestamp()))


def _snapshot(run: Run, summary: dict[str, tp.Any]) -> jsonl.Line:
    """A run's W&B record."""
    if run.misfit == "old":
        del summary["eval/normalized_mse"]
    return {
        "name": run.run_id,
        "state": "running" if run.misfit == "running" else "finished",
        "createdAt": run.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config": run.config,
        "summary": summary,
    }
