"""Running a program as its user does, with a bare environment."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import typing as tp

from kits.forks import OPTIONS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("bin", "jq", "py", "templates", "docs", "Makefile", "README.md")
PARTS += (".env.example", "catalog.json", "catalog.schema.json")
PARTS += ("requirements.txt", "requirements-dev.txt", "constraints.txt")


FORKS = "SAEPUB_TESTS_VENV"
"""What names the environment of kits.forks, if there is one."""


@functools.cache
def _pristine() -> tempfile.TemporaryDirectory:
    """The toolkit, in source/, and what Python has compiled of it, in compiled/."""
    made = tempfile.TemporaryDirectory(prefix="checkout")
    for name in PARTS:
        if (ROOT / name).is_dir():
            bare = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, f"{made.name}/source/{name}", ignore=bare)
        else:
            shutil.copy2(ROOT / name, f"{made.name}/source")
    for fpath in (ROOT / "py").rglob("*.pyc"):
        target = pathlib.Path(made.name, "compiled", fpath.relative_to(ROOT))
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # just being replaced
            shutil.copy2(fpath, target)
    return made


def checkout(dpath: pathlib.Path) -> pathlib.Path:
    """The toolkit as a fresh checkout has it: no .env, no build. It includes what Python has
    compiled, as links: compiling it costs more than all the rest, and Python replaces such a
    file, but never writes into it."""
    dpath.mkdir(parents=True, exist_ok=True)
    made = _pristine().name
    # A fifth of copytree's time, hundreds of times.
    subprocess.run(["cp", "-a", f"{made}/source/.", dpath], check=True)
    subprocess.run(["cp", "-al", f"{made}/compiled/.", dpath], check=True)
    return dpath


@dataclasses.dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict]:
        return rows_of(self.out)

    @property
    def told(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return self.told[-1] if self.err else ""


def rows_of(text: str) -> list[dict]:
    """Lines of JSON; other line ends than "\\n" may stand within a value."""
    return [json.loads(line) for line in text.split("\n") if line]


def text_of(rows: tp.Iterable[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def git(dpath: pathlib.Path, *argv: object) -> str:
    """Run git there, as somebody; what it printed."""
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@lab.example")
    done = run_program("git", "-C", dpath, *identity, *argv)
    assert done.code == 0, done.err
    return done.out.strip()


def commit_all(dpath: pathlib.Path) -> str:
    """Make a directory a git repo with one commit, on main; its id."""
    git(dpath, "init", "-q", "-b", "main")
    git(dpath, "add", ".")
    git(dpath, "commit", "-qm", "one")
    return git(dpath, "rev-parse", "HEAD")


def bare_env(**settings: object) -> dict[str, str]:
    """An environment without anyone's settings or secrets, plus `settings`."""
    keep = ("PATH", "HOME", "LANG", "TMPDIR", "PIP_FIND_LINKS")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    # make passes on its VENV relative to the checkout, and tests run elsewhere.
    env |= {"SAEPUB_VENV": sys.prefix}
    # The threads of several tests on few cores only get in each other's way.
    env |= {"OMP_NUM_THREADS": "1"}
    return env | in_environment(settings)


def in_environment(settings: dict[str, object]) -> dict[str, str]:
    """Settings under their names in the environment; records beside BUILD unless given."""
    if "BUILD" in settings:
        beside = pathlib.Path(str(settings["BUILD"])).absolute().with_name("records")
        settings = {"RECORDS": beside} | settings
    ours = {"BUILD": "SAEPUB_BUILD", "VENV": "SAEPUB_VENV"}
    return {ours.get(name, name): str(value) for name, value in settings.items()}


def _with_venv(settings: dict[str, object]) -> dict[str, object]:
    return {"VENV": os.environ.get(FORKS, sys.prefix)} | settings


def run_program(
    *argv: object, stdin: str | bytes = b"", cwd=ROOT, **settings: object
) -> Done:
    """Run a program of bin/ (or any other) with a bare environment plus `settings`.

    Stages are forks (see kits.forks), except with a VENV of the test's own.
    """
    settings = _with_venv(settings)
    done = subprocess.run(
        [str(arg) for arg in argv],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        cwd=cwd,
        env=bare_env(**settings),
        timeout=900,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_code(
    code: str, *argv: object, py_dpath: pathlib.Path = ROOT / "py", **settings: object
) -> Done:
    """Run Python code that imports our package, as a stage is run."""
    settings = _with_venv(settings)
    argv = (
        *python_argv(settings["VENV"], "sys.path.insert(0, sys.argv.pop(1))\n" + code),
        py_dpath,
        *argv,
    )
    return run_program(*argv, **settings)


def python_argv(venv: object, code: str) -> list[str]:
    """The command that runs Python code with the options of a stage, after `site.main`."""
    start = "import site, sys; site.main(); "
    return [f"{venv}/bin/python", *OPTIONS, "-c", start + code]
