"""Copies of the checkout, and commands run in them: `fresh` makes one with the demo, `Bare` one
with a lab that needs no torch."""

import json
import pathlib
import re
import shutil

from .checkpoints import entry
from .programs import Done, checkout, rows_of, run_program

SLUGS = ("vits-relu", "vitb-relu", "vitl-relu", "vitl-topk")
JOINTS = ("candidates", "runs", "metrics", "classified", "settled", "selected")
JOINTS += ("account", "checked", "staged", "rendered")
SWEEP = 'run_ids = {{6: ["{0}aaa", "{0}bbb"]}}\n'


class Tree:
    """A copy of the checkout that exists already."""

    def __init__(self, dpath: pathlib.Path):
        self.dpath, self.build = dpath, dpath / "build"

    def run(self, *argv: object, stdin: str = "", **env: object) -> Done:
        """Run a command there, with settings from `env` and `.env` alone."""
        return run_program(*argv, stdin=stdin, cwd=self.dpath, **env)

    def make(self, *argv: object, code: int | None = 0, **env: object) -> Done:
        """Run make there; it must exit with `code`, if that is not None."""
        done = self.run("make", *argv, **env)
        assert code is None or done.code == code, done.out + done.err
        return done

    def read(self, name: str) -> list[dict]:
        return rows_of((self.build / name).read_text())

    def times(self) -> dict[str, int]:
        return {
            str(f.relative_to(self.build)): f.stat().st_mtime_ns
            for f in sorted(self.build.glob("*/*.*"))
            if f.parent.name in SLUGS and not f.name.startswith(".")
        }

    def redone(self, *argv: str, **env: object) -> set[str]:
        """The joints that a run of make wrote anew, as slug/joint."""
        before = self.times()
        self.make(*argv, **env)
        after = self.times()
        return {re.sub(r"\.\w+$", "", f) for f in after if after[f] != before.get(f)}


def fresh(dpath: pathlib.Path, demo: pathlib.Path | None, *goals: str) -> Tree:
    """A copy with the demo, after making `goals`; `out` is what the last one printed."""
    tree = Tree(checkout(dpath))
    if demo is not None:
        shutil.copytree(demo, tree.build / "demo", copy_function=shutil.copy2)
        (tree.build / ".saepub").touch()
    for goal in goals:
        tree.out = tree.make(goal).out
    return tree


def catalog(*slugs: str) -> str:
    repos = [entry(slug, sweep=f"{slug}.py") for slug in slugs]
    return json.dumps({"lab": {"license": "mit"}, "repos": repos})


class Bare(Tree):
    """A copy with a lab of two repos, whose pipe runs as far as the candidates."""

    def __init__(self, dpath: pathlib.Path, saev_dir: pathlib.Path | None = None):
        super().__init__(checkout(dpath))
        self.saev_dir = saev_dir or dpath / "saev"
        self.saev_dir.mkdir(parents=True)
        for slug in ("one", "two"):
            (self.saev_dir / f"{slug}.py").write_text(SWEEP.format(slug))
        self.catalog = dpath / "lab.json"
        self.catalog.write_text(catalog("one", "two"))

    def dotenv(self, *lines: str) -> None:
        own = (f"SAEV_DIR='{self.saev_dir}'", f"CATALOG='{self.catalog}'")
        names = [line.split("=")[0] for line in lines]
        given = [line for line in own if line.split("=")[0] not in names]
        (self.dpath / ".env").write_text("\n".join((*given, *lines)) + "\n")

    def files(self) -> dict[str, int]:
        """Every file of the copy, and when it was changed."""
        return {
            str(f.relative_to(self.dpath)): f.lstat().st_mtime_ns
            for f in self.dpath.rglob("*")
            if "__pycache__" not in f.parts and not f.is_dir()
        }
