"""A copy of the checkout with a lab of two repos, to see what make and the programs make of
settings. Nothing in it needs torch: the pipe is run as far as the candidates."""

import json
import pathlib
import subprocess

from .checkpoints import entry
from .programs import bare_env, checkout

SWEEP = 'run_ids = {{6: ["{0}aaa", "{0}bbb"]}}\n'


def catalog(*slugs: str) -> str:
    repos = [entry(slug, sweep=f"{slug}.py") for slug in slugs]
    return json.dumps({"lab": {"license": "mit"}, "repos": repos})


class Bare:
    """One such copy."""

    def __init__(self, dpath: pathlib.Path, saev_dir: pathlib.Path | None = None):
        self.dpath, self.build = dpath, dpath / "build"
        checkout(dpath)
        self.saev_dir = saev_dir or dpath / "saev"
        self.saev_dir.mkdir(parents=True)
        for slug in ("one", "two"):
            (self.saev_dir / f"{slug}.py").write_text(SWEEP.format(slug))
        self.catalog = dpath / "lab.json"
        self.catalog.write_text(catalog("one", "two"))

    def run(self, *argv: object, stdin: str = "", **env: object):
        """A command in the checkout, its settings from `env` and `.env` alone."""
        done = subprocess.run(
            [str(arg) for arg in argv],
            cwd=self.dpath,
            env=bare_env(**env),
            input=stdin,
            capture_output=True,
            text=True,
        )
        return done

    def make(self, *argv: object, code: int = 0, **env: object):
        done = self.run("make", *argv, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def dotenv(self, *lines: str) -> None:
        own = (f"SAEV_DIR='{self.saev_dir}'", f"CATALOG='{self.catalog}'")
        names = [line.split("=")[0] for line in lines]
        given = [line for line in own if line.split("=")[0] not in names]
        (self.dpath / ".env").write_text("\n".join((*given, *lines)) + "\n")

    def files(self) -> dict[str, int]:
        """Every file and directory of the copy, and when it was changed."""
        return {
            str(f.relative_to(self.dpath)): f.lstat().st_mtime_ns
            for f in self.dpath.rglob("*")
            if "__pycache__" not in f.parts and not f.is_dir()
        }
