"""Running a program as its user does, with a bare environment."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


PARTS = ("Makefile", "bin", "jq", "py", "templates", "catalog.json", "requirements.txt")
PARTS += ("requirements-dev.txt", "constraints.txt")


def checkout(dpath: pathlib.Path) -> pathlib.Path:
    """The toolkit as a fresh checkout has it: no .env, no build."""
    dpath.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            # With what Python has compiled, which costs more than all the rest.
            half_written = shutil.ignore_patterns("*.pyc.*")
            shutil.copytree(ROOT / name, dpath / name, ignore=half_written)
        else:
            shutil.copy2(ROOT / name, dpath / name)
    return dpath


@dataclasses.dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict]:
        return [json.loads(text) for text in self.out.splitlines()]

    @property
    def last(self) -> str:
        """The last line told."""
        return self.err.splitlines()[-1] if self.err else ""


def text_of(lines: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def bare_env(**settings: object) -> dict[str, str]:
    """An environment without anyone's settings or secrets, plus `settings`."""
    keep = ("PATH", "HOME", "LANG", "TMPDIR", "PIP_FIND_LINKS")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    # make hands its VENV on relative to the checkout, and tests run elsewhere.
    env |= {"SAEPUB_VENV": sys.prefix}
    # The threads of several tests on few cores only get in each other's way.
    env |= {"OMP_NUM_THREADS": "1"}
    return env | in_environment(settings)


def in_environment(settings: dict[str, object]) -> dict[str, str]:
    """Settings under the names that the environment has for them; records beside BUILD."""
    if "BUILD" in settings:
        beside = pathlib.Path(str(settings["BUILD"])).absolute().with_name("records")
        settings = {"RECORDS": beside} | settings
    ours = {"BUILD": "SAEPUB_BUILD", "VENV": "SAEPUB_VENV"}
    return {ours.get(name, name): str(value) for name, value in settings.items()}


def run_program(*argv: object, stdin: str | bytes = b"", cwd=ROOT, **settings: object):
    """Run a program of bin/ (or any other) with a bare environment plus `settings`."""
    if isinstance(stdin, str):
        stdin = stdin.encode()
    done = subprocess.run(
        [str(arg) for arg in argv],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=bare_env(**settings),
    )
    done.out, done.err = done.stdout.decode(), done.stderr.decode()
    return done
