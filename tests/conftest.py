"""Shared by all tests: the package on the path, and the demo."""

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import signal
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "py"))

from kits import forks
from kits.once import once
from kits.programs import FORKS, ROOT, run_program

# Otherwise every process compiles all tests anew, for several seconds.
sys.dont_write_bytecode = False

# Behind a shell without job control, programs ignore the Ctrl-C that some tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if FORKS not in os.environ:  # else xdist's workers have it from their parent
        venv = contextlib.ExitStack()
        os.environ[FORKS] = str(venv.enter_context(forks.venv()))
        config.add_cleanup(venv.close)


@pytest.fixture(scope="session", autouse=True)
def tidy(request, tmp_path_factory):
    """Remove what tests leave, unless one fails, and not before the end: for a minute, ext4
    doesn't reuse a freed inode, and searches long for another. That took a third of the time."""
    yield
    if not request.session.testsfailed:
        shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)


@pytest.fixture
def really(monkeypatch):
    """Programs are started for real, not forked (see kits.forks)."""
    monkeypatch.delenv(FORKS)


ONE_NODE = ROOT / "tests" / "slurm" / "one-node"


@pytest.fixture(scope="session")
def kept_dpath() -> pathlib.Path:
    """A directory for what is slow to make, kept from one run of the tests to the next."""
    return ROOT / ".pytest_cache/d/saepub"


@pytest.fixture(scope="session")
def demo(kept_dpath) -> pathlib.Path:
    """The demo, made anew when the code that makes it has changed. Don't change it: copy it."""
    fpaths = [*(ROOT / "py/saepub").rglob("*.py"), ROOT / "requirements.txt"]
    fpaths.append(pathlib.Path(__file__))
    makes = ("demo", "checkpoint", "requirements.txt", "catalog.py", "conftest.py")
    digest = hashlib.sha256(platform.python_version().encode())
    for fpath in sorted(
        f for f in fpaths if any(m in f.relative_to(ROOT).as_posix() for m in makes)
    ):
        digest.update(fpath.read_bytes())
    name = f"demo-{digest.hexdigest()[:16]}"

    def make(dpath: pathlib.Path) -> None:
        for old in kept_dpath.glob("demo-*"):
            if old.is_dir():
                shutil.rmtree(old)
        done = run_program(ROOT / "bin/demo", BUILD=dpath)
        assert done.code == 0, done.err
        (dpath / "told.txt").write_text(done.err)

    return once(kept_dpath / name, make) / "demo"


NEEDS = {
    "browser": "browser",
    "slurm_conf": "slurm",
    "demo": "programs",
    "world": "programs",
    "labs": "programs",
}
"""By fixture, the mark of what takes long. `make test-fast` leaves these out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        for fixture, mark in NEEDS.items():
            if fixture in item.fixturenames:
                item.add_marker(mark)
        if hasattr(item, "callspec") and "slurm" in item.callspec.params.values():
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def slurm_conf(request):
    """A one-node Slurm on this machine; tests are skipped where it can't start.

    The output says which of the two it is, however quiet pytest is.
    """

    def tell(text):
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\nEXECUTOR=local is tested here, and {text}", file=sys.stderr)

    # Not pytest's directory: the path of a socket may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="slurm") as dpath:
        done = run_program(ONE_NODE, "start", dpath)
        if done.code:
            tell(f"EXECUTOR=slurm is not: {done.err.strip()}")
            pytest.skip(done.err.strip())
        conf_fpath = os.path.join(dpath, "slurm.conf")
        version = run_program("sbatch", "--version", SLURM_CONF=conf_fpath).out.strip()
        tell(f"EXECUTOR=slurm on a one-node {version}")
        yield conf_fpath
        run_program(ONE_NODE, "stop", dpath)
