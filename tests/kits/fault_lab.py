"""A small lab to break things in: a catalog, a sweep, runs with real checkpoints, an export of
W&B, a saev that loads every schema, and a copy of the tree to run over them."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing as tp

from kits import checkpoints as util
from kits.programs import ROOT, bare_env

CREATED_AT = "2026-01-10T00:00:00Z"
MTIME = 1768003200 + 3600
"""An hour after CREATED_AT, in seconds since the epoch."""

SELECTION = (
    *("extract-ids", "fetch-metrics", "facts", "classify", "settle", "select"),
)
"""The stages up to the choice."""

PARTS = ("Makefile", "bin", "jq", "py", "templates", "catalog.json")
PARTS += ("requirements.txt", "constraints.txt")

SECONDS, N_KBYTES = 5, 1_000_000
"""Within which a hostile file must be refused: CPU time, which does not depend on what else
the machine is doing, and the memory of all that runs. What hangs meets a timeout."""

MEASURE = """
import os, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as fd:
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=fd)
sys.exit(code)
"""
"""Runs a command from a process so small that it does not count as the command's memory."""


@dataclasses.dataclass
class Seen:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    n_kbytes: int = 0

    @property
    def lines(self) -> list[dict]:
        return [json.loads(text) for text in self.out.splitlines()]


class NotHere(Exception):
    """Why a fault can't be brought about on this machine."""


class Row(tp.NamedTuple):
    """A fault, and what must be seen when it is brought about."""

    fault: str
    says: str
    """Stands in a line of stderr, or of the dry run's report where `code` is 0."""
    bring: tp.Callable[["World"], Seen]
    """Raises AssertionError where something else is not as it must be, and NotHere."""
    code: int = 1
    is_file: bool = False
    """A hostile file: refused within SECONDS and N_KBYTES, in one line that names it."""


def copy_tree(dpath: pathlib.Path) -> pathlib.Path:
    """The toolkit as a fresh checkout has it: no .env, no build."""
    for name in PARTS:
        source, target = ROOT / name, dpath / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return dpath


def record(run_id: str, layer: int = 6, l0: object = 3.5, nmse: object = 0.25) -> dict:
    """A run as W&B's export has it, at one with `Lab.run`'s defaults."""
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

    Call `run` for each run, change `records`, `entries` and files as you like, then any of
    `program`, `stages` or `make`.
    """

    def __init__(self, dpath: pathlib.Path, tree_dpath: pathlib.Path):
        self.dpath, self.tree_dpath = dpath, tree_dpath
        self.build = dpath / "build"
        self.stage = self.build / "tiny" / "stage"
        self.runs_root = dpath / "runs"
        self.saev_dir = dpath / "saev"
        self.mark = dpath / "ran"
        """Made by any hostile text or file that gets itself run."""
        self.sweep = {}
        """Run ids by layer."""
        self.records = {}
        """W&B's, by run id."""
        self.entry = {
            "slug": "tiny",
            "repo_id": "lab/tiny",
            "title": "Tiny SAEs",
            "base_model": "lab/vit",
            "sweep": "sweep.py",
            "variable": "run_ids",
            "objective": "matryoshka",
            "activation": "relu",
            "layers": [],
            "d_model": 8,
            "d_sae": 32,
        }
        self.runs_root.mkdir(parents=True)
        util.write_saev(self.saev_dir)

    def run(self, run_id: str = "aaaaaaaa", layer: int = 6, **metrics: object) -> dict:
        """Add a run with a good checkpoint; its record, which may be changed."""
        self.sweep.setdefault(layer, []).append(run_id)
        self.records[run_id] = record(run_id, layer, **metrics)
        util.write(self.fpath(run_id), seed=len(self.records))
        self.touch(run_id)
        return self.records[run_id]

    def fpath(self, run_id: str = "aaaaaaaa") -> pathlib.Path:
        return util.run_dir(self.runs_root, run_id)

    def touch(self, run_id: str, seconds: float = MTIME) -> None:
        os.utime(self.fpath(run_id), (seconds, seconds))

    def write(self) -> None:
        """Sweep, export and catalog as files, dated before anything made from them."""
        files = {
            "saev/sweep.py": f"run_ids = {self.sweep!r}\n",
            "snapshot.jsonl": "".join(
                json.dumps(r) + "\n" for r in self.records.values()
            ),
            "catalog.json": json.dumps(
                {"repos": [self.entry | {"layers": sorted(self.sweep)}]}
            ),
        }
        for name, text in files.items():
            fpath = self.dpath / name
            if not fpath.exists() or fpath.read_text() != text:
                fpath.write_text(text)
                os.utime(fpath, (MTIME, MTIME))

    @property
    def settings(self) -> dict[str, object]:
        return {
            "BUILD": self.build,
            "RECORDS": self.dpath / "records",
            "CATALOG": self.dpath / "catalog.json",
            "METRICS_SNAPSHOT": self.dpath / "snapshot.jsonl",
            "RUNS_ROOT": self.runs_root,
            "SAEV_DIR": self.saev_dir,
            "VENV": sys.prefix,
        }

    def command(
        self, *argv: object, stdin: str = "", measure: bool = False, **env: object
    ) -> Seen:
        """Run a command in the tree."""
        argv, said = list(map(str, argv)), self.dpath / "measured"
        if measure:
            argv = [sys.executable, "-S", "-c", MEASURE, str(said), *argv]
        done = subprocess.run(
            argv,
            input=stdin.encode(),
            capture_output=True,
            cwd=self.tree_dpath,
            env=bare_env(**self.settings | env),
            timeout=120,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        seen = Seen(done.returncode, out, err)
        if measure:
            seconds, n_kbytes = said.read_text().split()
            seen.seconds, seen.n_kbytes = float(seconds), int(n_kbytes)
            said.unlink()
        return seen

    def stages(self, *names: str, stdin: str = "", **env: object) -> Seen:
        """Run stages as a pipe does, each on what the one before wrote; the first that fails."""
        self.write()
        told = ""
        for name in names:
            argv = ["tiny"] if name == "extract-ids" else []
            seen = self.command(f"bin/{name}", *argv, stdin=stdin, **env)
            told, stdin = told + seen.err, seen.out
            if seen.code != 0:
                break
        return dataclasses.replace(seen, err=told)

    def selected(self) -> str:
        """The lines that preflight gets."""
        seen = self.stages(*SELECTION)
        assert seen.code == 0, seen.err
        return seen.out

    def make(self, *goals: str, **env: object) -> Seen:
        self.write()
        return self.command("make", *goals, **env)

    def left(self) -> dict[str, tuple]:
        """Every file outside of build/, with what would show a change."""
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


class World:
    """The labs that several tests share, each made when first asked for."""

    def __init__(self, dpath: pathlib.Path):
        self.dpath = dpath
        self.tree_dpath = copy_tree(dpath / "tree")
        self.n_labs = 0

    def lab(self) -> Lab:
        self.n_labs += 1
        return Lab(self.dpath / f"lab{self.n_labs}", self.tree_dpath)

    @functools.cached_property
    def made(self) -> Lab:
        """Three runs of one layer, after `make dry-run`. Not to be changed."""
        lab = self.lab()
        for i in range(3):
            lab.run(f"run{i}", l0=2.0**i, nmse=0.5 / 2**i)
        seen = lab.make("dry-run")
        assert seen.code == 0, seen.err
        return lab

    def copy(self) -> Lab:
        """A lab as `made` is, to change: make sees nothing to do there."""
        made, lab = self.made, self.lab()
        lab.sweep, lab.records = dict(made.sweep), dict(made.records)
        shutil.rmtree(lab.dpath)
        shutil.copytree(made.dpath, lab.dpath, symlinks=True)
        for fpath in (*lab.build.rglob("*.jsonl"), *lab.build.glob(".settings/*")):
            info = fpath.stat()
            fpath.write_text(fpath.read_text().replace(str(made.dpath), str(lab.dpath)))
            os.utime(fpath, ns=(info.st_atime_ns, info.st_mtime_ns))
        return lab
