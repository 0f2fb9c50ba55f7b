"""What is slow to make, and made once for all tests and workers."""

import fcntl
import pathlib
import shutil
import subprocess
import typing as tp

import pytest


def once(dpath: pathlib.Path, make: tp.Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`dpath`, made unless it exists: `make` fills another directory, which is then renamed."""
    dpath.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{dpath}.lock", "w") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not dpath.exists():
            aside = dpath.with_name(f"{dpath.name}.making")
            shutil.rmtree(aside, ignore_errors=True)
            make(aside)
            aside.rename(dpath)
    return dpath


def pip_install(python: object, *argv: object) -> None:
    """Install packages. Skips the test where pip can't."""
    command = [python, "-m", "pip", "install", "--quiet", *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"pip can't install {argv[-1]}: {last}")
