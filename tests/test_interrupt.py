"""Ctrl-C ends a program without a traceback, even while it is starting."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from kits.programs import ROOT, run_program
from saepub.hub import repo

KILL = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"


@pytest.fixture
def venv(tmp_path) -> pathlib.Path:
    """The site-packages of an environment of its own."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(os.path.realpath(sys.executable))
    home = pathlib.Path(os.path.realpath(sys.executable)).parent
    (tmp_path / "pyvenv.cfg").write_text(f"home = {home}\n")
    return packages


@pytest.mark.parametrize(
    ("program", "name"),
    [("select", "early.pth"), ("plan", "early.pth"), ("plan", "pydantic.py")],
)
def test_while_it_starts(venv, program, name):
    """While Python itself starts, and while a stage imports what it needs."""
    (venv / name).write_text(KILL)
    done = run_program(ROOT / "bin" / program, VENV=venv.parents[2])
    assert (done.code, done.err, done.out) == (-signal.SIGINT, "", "")


def test_in_pythons_own_start_it_waits(venv):
    """Where `env` can block a signal: before Python has started, it would end in a traceback."""
    python = venv.parents[2] / "bin/python"
    python.rename(python.with_name("real"))
    python.write_text(
        f"""#!/bin/sh
        kill -INT $$ && touch '{venv}/waited' && exec '{python.with_name("real")}' "$@" """
    )
    python.chmod(0o755)
    done = run_program(ROOT / "bin/select", VENV=venv.parents[2])
    assert (done.code, done.err, done.out) == (-signal.SIGINT, "", "")
    holds = subprocess.run(["env", "--block-signal=INT", "true"], capture_output=True)
    assert (venv / "waited").exists() == (holds.returncode == 0)


FORKS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from saepub.doctor.run import Check, examine
from saepub.slurm import pool
from saepub.slurm.work import Part
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
def nothing(): pass
print([outcome.reason for outcome in pool.each(nothing, [Part((), [])], 1)])
print([finding.text for finding in examine([Check("x", nothing, silent="silent")])])
"""


def test_in_a_process_that_was_just_forked():
    done = run_program(sys.executable, "-c", FORKS, ROOT / "py")
    assert done.err == ""
    assert done.out.splitlines() == [
        "['the process that checked it died; was it out of memory?']",
        "['silent']",
    ]


def test_an_upload_hears_it_after_other_signals(tmp_path):
    """A terminal that is resized writes into the same pipe."""
    ready, others = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open(tmp_path / "err", os.O_CREAT | os.O_WRONLY), 2)
            sys.stderr = os.fdopen(2, "w")
            sys.argv = ["push"]
            signal.signal(signal.SIGWINCH, lambda *_: None)
            with repo._interrupted_at_once():
                os.kill(os.getpid(), signal.SIGWINCH)
                os.write(others, b"x")
                signal.sigtimedwait([signal.SIGUSR1], 60)
        finally:
            os._exit(code)
    os.read(ready, 1)
    os.kill(pid, signal.SIGINT)
    _, status = os.waitpid(pid, 0)
    os.close(ready)
    os.close(others)
    assert os.waitstatus_to_exitcode(status) == 130
    assert (tmp_path / "err").read_text() == "push: interrupted\n"
