"""A fresh copy of the tree, and make to run there."""

import json
import pathlib
import re
import shutil
import subprocess

from .programs import ROOT, bare_env

SLUGS = ("vits-relu", "vitb-relu", "vitl-relu", "vitl-topk")
JOINTS = [
    "candidates",
    "runs",
    "metrics",
    "classified",
    "settled",
    "selected",
    "account",
    "checked",
    "staged",
    "rendered",
]


class Tree:
    """A copy of the tree with the demo in it, and make to run there."""

    def __init__(self, dpath: pathlib.Path):
        self.dpath = dpath

    def make(self, *argv: str, code: int | None = 0, **env: object):
        done = subprocess.run(
            ["make", *argv],
            cwd=self.dpath,
            env=bare_env(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def read(self, name: str) -> list[dict]:
        text = (self.dpath / "build" / name).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def times(self) -> dict[str, int]:
        fpaths = sorted((self.dpath / "build").glob("*/*.*"))
        return {
            str(f.relative_to(self.dpath / "build")): f.stat().st_mtime_ns
            for f in fpaths
            if f.parent.name in SLUGS and not f.name.startswith(".")
        }

    def redone(self, *argv: str, **env: object) -> set[str]:
        """The joints that a run of make wrote anew, as slug/joint."""
        before = self.times()
        self.make(*argv, **env)
        after = self.times()
        return {re.sub(r"\.\w+$", "", f) for f in after if after[f] != before.get(f)}


def fresh(dpath: pathlib.Path, demo: pathlib.Path | None, *goals: str) -> Tree:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if name.startswith("tests/") or not (ROOT / name).exists():
            continue
        (dpath / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, dpath / name)
    for compiled in (ROOT / "py").rglob("*.pyc"):  # it costs more than all the rest
        target = dpath / compiled.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(compiled, target)
    if demo is not None:
        shutil.copytree(demo, dpath / "build/demo", copy_function=shutil.copy2)
        (dpath / "build/.saepub").touch()
    tree = Tree(dpath)
    for goal in goals:
        tree.out = tree.make(goal).stdout
    return tree
