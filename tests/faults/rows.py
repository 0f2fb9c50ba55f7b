"""What a row of the table of faults is, and what a hostile file may cost."""

import dataclasses
import functools
import sys
import tempfile
import typing as tp

from kits.lab import Lab, Labs
from kits.programs import Done, run_program

SECONDS, N_KBYTES = 5, 1_000_000
"""Within which a hostile file must be refused: CPU time besides that of importing torch, which
differs by machine, and the memory of all that runs. What hangs meets a timeout."""

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
class Measured(Done):
    """With what it cost."""

    seconds: float = 0.0
    n_kbytes: int = 0


def measured(lab: Lab, *argv: object, stdin: str) -> Measured:
    fpath = lab.dpath / "measured"
    argv = (sys.executable, "-S", "-c", MEASURE, fpath, *argv)
    done = lab.program(*argv, stdin=stdin, VENV=sys.prefix)  # a fork wouldn't count
    seconds, n_kbytes = fpath.read_text().split()
    besides = max(0.0, float(seconds) - import_seconds())
    return Measured(done.code, done.out, done.err, besides, int(n_kbytes))


@functools.cache
def import_seconds() -> float:
    """The CPU time of importing what preflight imports for any file."""
    with tempfile.NamedTemporaryFile("r") as fd:
        python = (sys.executable, "-I", "-c", "import saev.nn")
        done = run_program(sys.executable, "-S", "-c", MEASURE, fd.name, *python)
        assert done.code == 0, done.err
        return float(fd.read().split()[0])


class NotHere(Exception):
    """Why a fault can't be brought about on this machine."""


class Row(tp.NamedTuple):
    """A fault, and what must be seen when it is brought about."""

    fault: str
    says: str
    """Found in a line of stderr, or of the dry run's report where `code` is 0."""
    bring: tp.Callable[[Labs], Done]
    """Raises NotHere, and AssertionError where something else is not as it must be."""
    code: int = 1
    is_file: bool = False
    """A hostile file: refused within SECONDS and N_KBYTES, in one line that names it."""
