"""Shared by all tests: the package on the path, and the demo."""

import fcntl
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "py"))

from kits.programs import ROOT, run_program


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> pathlib.Path:
    """The demo, made once for all tests and workers. Not to be changed: copy it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with open(shared / "demo.lock", "w") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not (shared / "demo").exists():
            done = run_program(ROOT / "bin/demo", BUILD=shared)
            assert done.returncode == 0, done.err
    return shared / "demo"
