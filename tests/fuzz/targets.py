"""What is fuzzed: each stage that reads what others wrote, and each thing that it reads."""

import json
import os
import pathlib
import random
import subprocess
import typing as tp

import numpy as np

from fuzz import mutate
from kits.in_process import Finding, judge, run
from kits.lab import Labs
from kits.programs import ROOT
from saepub import settings
from saepub.cli import UserError
from saepub.release import plot

Mutate = tp.Callable[[bytes, random.Random], bytes]

SWEEPS = (
    b"run_ids = {6: ['run0', 'run1', 'run2']}\n",
    b"""
def make_cfgs():
    run_ids: dict[int, list[str]] = {
        6: [
            "run0",  # the best
            "run1", "run2",
            # "run3", "run4",
        ],  # "run5" too
        # 7: ["run6"],
    }
    return [{"run_id": i} for ids in run_ids.values() for i in ids]
""",
)


class Target(tp.NamedTuple):
    seeds: list[bytes]
    mutate: Mutate
    feed: tp.Callable[[bytes], None]
    """Raises Finding, or whatever a mistake of ours raises."""
    is_slow: bool = False
    """Each case starts a program."""


def targets(labs: Labs, hub_env: dict[str, object]) -> dict[str, Target]:
    """All targets by name.

    Args:
        hub_env: Settings with which stages reach a Hub that will take what they send.
    """
    lab = labs.copy()
    env = lab.settings | hub_env
    # Drawing takes 50 times as long as all the rest of render.
    plot.pareto = lambda fpath, *_: fpath.write_bytes(b"plot")

    def joint(name: str) -> list[bytes]:
        return [(labs.made.build / "tiny" / f"{name}.jsonl").read_bytes()]

    def of_stdin(name: str, seeds: list[bytes], *argv: object) -> Target:
        def feed(data: bytes) -> None:
            run(name, *map(str, argv), stdin=data, env=env)

        return Target(seeds, mutate.of_lines, feed)

    def of_file(
        fpath: pathlib.Path,
        seeds: list[bytes],
        mutator: Mutate,
        name: str,
        *argv: object,
        stdin: bytes = b"",
        **more: object,
    ) -> Target:
        """A stage that reads a file besides stdin, with stdin unchanged."""

        def feed(data: bytes) -> None:
            before = fpath.read_bytes() if fpath.exists() else None
            fpath.write_bytes(data)
            try:
                run(name, *map(str, argv), stdin=stdin, env=env | more)
            finally:
                fpath.write_bytes(before) if before is not None else fpath.unlink()

        return Target(seeds, mutator, feed)

    candidates, selected, rendered = (
        joint(name)[0] for name in ("candidates", "selected", "rendered")
    )
    account = lab.build / "tiny/account.jsonl"
    catalog, snapshot = lab.dpath / "catalog.json", lab.dpath / "snapshot.jsonl"
    metrics = lab.runs_root / "run0/inference/val/metrics.json"
    metrics.parent.mkdir(parents=True)
    without_nmse = [json.loads(text) for text in joint("classified")[0].splitlines()]
    for row in without_nmse:
        if row["run_id"] == "run0":
            row["nmse"] = None
    old = "".join(json.dumps(row) + "\n" for row in without_nmse).encode()
    shards = lab.dpath / "shards"
    shards.mkdir()
    rows = np.random.default_rng(0).standard_normal((16, 8), dtype="float32")
    np.save(shards / "layer_6.npy", rows)
    one = selected.splitlines(keepends=True)[0]
    page = lab.saev_dir / "docs/src/users/inference.md"
    page.parent.mkdir(parents=True)
    page.write_text("# Inference\n\n## Download a Checkpoint\n\nText.\n")
    record = lab.build.with_name("records") / "tiny/release.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(released(rendered)))
    sweep = lab.saev_dir / "sweep.py"
    found = {
        "extract-ids": of_file(sweep, list(SWEEPS), mutate.of_python, "extract-ids", "tiny"),
        "catalog": of_file(
            catalog, [catalog.read_bytes()], mutate.of_json, "extract-ids", "--all"
        ),
        "fetch-metrics": of_stdin("fetch-metrics", joint("candidates")),
        "snapshot": of_file(
            snapshot, [snapshot.read_bytes()], mutate.of_lines, "fetch-metrics", stdin=candidates
        ),
        "nmse": of_file(
            metrics,
            [b'{"normalized_mse": 0.25, "sse_recon": 1.0, "sse_baseline": 4.0}'],
            mutate.of_json,
            "settle",
            stdin=old,
            NMSE_SHARD="val",
        ),
        "settle": of_stdin("settle", joint("classified")),
        "select": of_stdin("select", joint("settled"), "--account", account),
        "preflight": of_stdin("preflight", joint("selected"), "--jobs", 1),
        "checkpoint": of_file(
            lab.fpath("run0"),
            [lab.fpath("run0").read_bytes()],
            mutate.of_checkpoint,
            "preflight",
            stdin=one,
        ),
        "measure": of_stdin("measure", joint("checked"), "--shards", shards, "--jobs", 1),
        "stage": of_stdin("stage", joint("checked")),
        "render": of_stdin("render", joint("staged")),
        "summary": of_stdin("summary", joint("rendered"), "--account", account),
        "account": of_file(
            account, joint("account"), mutate.of_lines, "summary", "--account", account,
            stdin=rendered,
        ),
        "report": of_file(account, joint("account"), mutate.of_lines, "report", "tiny"),
        "docs": of_file(page, [page.read_bytes()], mutate.of_bytes, "docs", "--dry-run"),
        "record": of_file(record, [record.read_bytes()], mutate.of_json, "docs", "--dry-run"),
        "plan": of_stdin("plan", joint("rendered")),
        "push": of_stdin("push", joint("rendered")),
        "dotenv": Target(
            [b"# mine\nN=3\nexport SAEV_DIR='/a b'  # there\n"],
            mutate.of_bytes,
            lambda data: feed_dotenv(lab.dpath / ".env", data),
        ),
    }  # fmt: skip
    for name, seeds in JQ.items():
        found[name] = of_jq(name, joint(seeds))
    told = [b"".join(pushed(rendered))]
    for name in ("verify", "collect"):
        found[name] = of_stdin(name, told)
    found["announce"] = of_jq("announce", told)
    return found


JQ = {"facts": "runs", "classify": "metrics"}


def of_jq(name: str, seeds: list[bytes], mutator: Mutate = mutate.of_lines) -> Target:
    env = {"PATH": os.environ["PATH"], "EXCLUDE": "run2"}
    # CPU time, since how long it waits for a busy machine says nothing.
    argv = ["sh", "-c", 'ulimit -t 20 && exec "$0"', ROOT / "bin" / name]

    def feed(data: bytes) -> None:
        done = subprocess.run(
            argv, input=data, capture_output=True, env=env, timeout=300
        )
        told = done.stderr.decode("utf-8", "replace")
        judge(name, done.returncode, done.stdout, told, 0)

    return Target(seeds, mutator, feed, is_slow=True)


def feed_dotenv(fpath: pathlib.Path, data: bytes) -> None:
    fpath.write_bytes(data)
    try:
        found = settings.dotenv(str(fpath))
    except UserError:
        return
    if set(found) - set(settings.BY_NAME):
        raise Finding("dotenv: what is no setting")


def pushed(rendered: bytes) -> tp.Iterator[bytes]:
    """Lines as push passes them on."""
    for text in rendered.splitlines():
        line = json.loads(text) | {"commit": "0" * 40, "seconds": 1.5}
        yield json.dumps(line).encode() + b"\n"


def released(rendered: bytes) -> dict[str, tp.Any]:
    """A record of a release, as verify leaves it."""
    rows = [json.loads(text) for text in rendered.splitlines()]
    keys = ("path", "bytes", "sha256", "loader", "l0")
    files = [{key: row[key] for key in keys} for row in rows]
    about = {"repo": "tiny", "repo_id": "lab/tiny", "commit": "0" * 40}
    loaded = {"loaded": files[0]["path"], "loader": files[0]["loader"], "extra": []}
    return about | {
        "time": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "endpoint": "http://127.0.0.1:9",
        "tools": {},
        "verified": loaded,
        "n_files": len(files),
        "n_bytes": sum(file["bytes"] for file in files),
        "files": files,
    }
