"""A small lab: a catalog, a sweep, runs with real checkpoints, an export of W&B, shards, and a
saev that loads every schema; and every way to run the toolkit on it.

    lab = Lab(tmp_path)
    lab.run("aaaa")                            a run with a good checkpoint, in sweep and export
    lab.line("aaaa", "top-k")                  a line of one, its checkpoint written
    lab.call("settle", line, …)                a stage in this process, on lines
    lab.program("bin/settle", …)               a program, in a process of its own
    lab.stages(*SELECTION), lab.make("plan")   a pipe of programs, and make
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from kits import checkpoints as util
from kits import in_process, shards
from kits.programs import ROOT, Done, bare_env, checkout, run_program, text_of

CREATED_AT = "2026-01-10T00:00:00Z"
MTIME = 1768003200 + 3600
"""An hour after CREATED_AT, in seconds since the epoch."""

SELECTION = ("extract-ids", "fetch-metrics", "facts", "classify", "settle", "select")
"""The stages up to the choice."""


def record(run_id: str, layer: int = 6, l0: object = 3.5, nmse: object = 0.25) -> dict:
    """A run as in an export of W&B, with `Lab.run`'s defaults."""
    return {
        "name": run_id,
        "state": "finished",
        "createdAt": CREATED_AT,
        "config": {
            "sae": {"d_model": 8, "d_sae": 32, "activation": {"key": "relu"}},
            "objective": {"n_prefixes": 4},
            "train_data": {"layer": layer},
        },
        "summary": {"eval/l0": l0, "eval/normalized_mse": nmse, "eval/mse": 0.9},
    }


class Lab:
    """One lab, under a directory of its own.

    Call `run` for each run, change `records`, `catalog` and files as you like.
    """

    def __init__(self, dpath: pathlib.Path, tree_dpath: pathlib.Path = ROOT):
        self.dpath, self.tree_dpath = dpath, tree_dpath
        self.build, self.runs_root = dpath / "build", dpath / "runs"
        self.stage_dpath = self.build / "tiny" / "stage"
        self.records_dpath, self.shards_root = dpath / "records", dpath / "shards"
        self.catalog_fpath, self.saev_dir = dpath / "catalog.json", dpath / "saev"
        self.mark = dpath / "ran"
        """Created by any hostile text or file that gets itself run."""
        self.sweep = {}
        """Run ids by layer."""
        self.records = {}
        """W&B's, by run id."""
        self.entry = util.entry()
        self.catalog = {"repos": [self.entry]}
        self.env = {}
        """Settings besides those that say where things are."""
        self.runs_root.mkdir(parents=True)
        util.write_saev(self.saev_dir)

    def run(self, run_id: str = "aaaaaaaa", layer: int = 6, **metrics: object) -> dict:
        """Add a run with a good checkpoint; returns its record, which may be changed."""
        self.sweep.setdefault(layer, []).append(run_id)
        self.entry["layers"] = sorted(self.sweep)
        self.records[run_id] = record(run_id, layer, **metrics)
        util.write(self.fpath(run_id), seed=len(self.records))
        self.touch(run_id)
        return self.records[run_id]

    def fpath(self, run_id: str = "aaaaaaaa") -> pathlib.Path:
        return util.run_dir(self.runs_root, run_id)

    def line(
        self, run_id: str = "aaaaaaaa", activation: str = "relu", schema=5, **changes
    ) -> dict:
        """A line as select passes it on, and its checkpoint; `seed` determines the weights."""
        sizes = {key: changes[key] for key in ("d_model", "d_sae") if key in changes}
        how = sizes | {"activation": activation, "seed": changes.pop("seed", 0)}
        util.write(self.fpath(run_id), schema, **how)
        line = util.line(run_id, activation, **changes)
        return line | {"expected": line["expected"] | sizes}

    def put(self, run_id: str, content: bytes) -> pathlib.Path:
        """Write any bytes in place of a checkpoint."""
        self.fpath(run_id).parent.mkdir(parents=True, exist_ok=True)
        self.fpath(run_id).write_bytes(content)
        return self.fpath(run_id)

    def shard(self, x, shard: str = "52ec5790", **how) -> pathlib.Path:
        """Write activations, (n_tokens, d_model), as saev's shards; see `shards.write`."""
        return shards.write(self.shards_root / shard, x, **how)

    def measured(self, run_id: str, shard: str, l0=13.0, nmse=0.5, **changes) -> None:
        """Leave a record of what `measure` found for a run's very bytes."""
        record = util.measurement(self.fpath(run_id), run_id, shard, l0, nmse)
        util.measure(self.records_dpath, run_id, shard, record | changes)

    def touch(self, run_id: str, seconds: float = MTIME) -> None:
        os.utime(self.fpath(run_id), (seconds, seconds))

    def write(self) -> None:
        """Write sweep, export and catalog, dated before anything made from them."""
        for fpath, text in (
            (self.saev_dir / "sweep.py", f"run_ids = {self.sweep!r}\n"),
            (self.dpath / "snapshot.jsonl", text_of(self.records.values())),
            (self.catalog_fpath, json.dumps(self.catalog)),
        ):
            if not fpath.exists() or fpath.read_text() != text:
                fpath.write_text(text)
                os.utime(fpath, (MTIME, MTIME))

    @property
    def settings(self) -> dict[str, object]:
        return {
            "BUILD": self.build,
            "RECORDS": self.records_dpath,
            "CATALOG": self.catalog_fpath,
            "METRICS_SNAPSHOT": self.dpath / "snapshot.jsonl",
            "RUNS_ROOT": self.runs_root,
            "SAEV_DIR": self.saev_dir,
        } | self.env

    def call(
        self, name: str, *rows: dict, argv=(), code: int = 0, writes=(), **env: object
    ) -> Done:
        """Run a stage on lines in this process; it must exit with `code`.

        Args:
            writes: What it may write to besides BUILD and RECORDS.
        """
        done = in_process.run(
            name,
            *map(str, argv),
            stdin=text_of(rows),
            env=self.settings | env,
            writes=writes,
        )
        assert done.code == code, done.err
        return done

    def program(self, *argv: object, stdin: str = "", **env: object) -> Done:
        """Run a command in the tree."""
        settings = self.settings | env
        return run_program(*argv, stdin=stdin, cwd=self.tree_dpath, **settings)

    def start(self, *argv: object, stdin: str = "", **env: object) -> subprocess.Popen:
        """Start a command in the tree, in a session of its own."""
        with tempfile.TemporaryFile("w+") as fd:
            fd.write(stdin)
            fd.seek(0)
            return subprocess.Popen(
                list(map(str, argv)),
                stdin=fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.tree_dpath,
                env=bare_env(**self.settings | env),
                start_new_session=True,
                text=True,
            )

    def stages(self, *names: str, stdin: str = "", **env: object) -> Done:
        """Run stages as a pipe does, each on the output of the one before, until one fails."""
        self.write()
        told = ""
        for name in names:
            argv = ["tiny"] if name == "extract-ids" else []
            seen = self.program(f"bin/{name}", *argv, stdin=stdin, **env)
            told, stdin = told + seen.err, seen.out
            if seen.code != 0:
                break
        return dataclasses.replace(seen, err=told)

    def selected(self) -> str:
        """The lines that preflight reads."""
        seen = self.stages(*SELECTION)
        assert seen.code == 0, seen.err
        return seen.out

    def make(self, *goals: str, **env: object) -> Done:
        self.write()
        return self.program("make", *goals, **env)

    def left(self) -> dict[str, tuple]:
        """Every file outside build/, with what a change would show in."""
        found = {}
        for root in (self.dpath, self.tree_dpath):
            for fpath in root.rglob("*"):
                if "__pycache__" in fpath.parts or self.build in fpath.parents:
                    continue
                if fpath.is_dir():
                    continue
                info = fpath.lstat()
                found[str(fpath)] = info.st_mode, info.st_size, info.st_mtime_ns
        return found


class Labs:
    """Labs in one checkout, and one that several tests share."""

    def __init__(self, dpath: pathlib.Path):
        self.dpath = dpath
        self.tree_dpath = checkout(dpath / "tree")
        self.n_labs = 0

    def new(self) -> Lab:
        self.n_labs += 1
        return Lab(self.dpath / f"lab{self.n_labs}", self.tree_dpath)

    @functools.cached_property
    def made(self) -> Lab:
        """Three runs of one layer, after `make dry-run`. Not to be changed."""
        lab = self.new()
        for i in range(3):
            lab.run(f"run{i}", l0=2.0**i, nmse=0.5 / 2**i)
        seen = lab.make("dry-run")
        assert seen.code == 0, seen.err
        return lab

    def copy(self) -> Lab:
        """A copy of `made`, to be changed; make finds nothing to do in it."""
        made, lab = self.made, self.new()
        lab.sweep, lab.records = dict(made.sweep), dict(made.records)
        lab.entry |= made.entry
        shutil.rmtree(lab.dpath)
        shutil.copytree(made.dpath, lab.dpath, symlinks=True)
        for fpath in (*lab.build.rglob("*.jsonl"), *lab.build.glob(".settings/*")):
            info = fpath.stat()
            fpath.write_text(fpath.read_text().replace(str(made.dpath), str(lab.dpath)))
            os.utime(fpath, ns=(info.st_atime_ns, info.st_mtime_ns))
        return lab
