"""A stage that tests run as a fork (kits.forks) sees what it would see if it were started."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from kits import forks
from kits.programs import FORKS, ROOT, bare_env, run_program

CLI = """
import __main__, atexit, json, locale, os, resource, signal, sys, threading, time

STREAM = ("name", "mode", "encoding", "errors", "line_buffering", "write_through", "newlines")

def program(name):
    names = ("stdin", "__stdin__", "stdout", "__stdout__", "stderr", "__stderr__")
    streams = [getattr(sys, name) for name in names]
    seen = {{
        "name": name,
        "argv": sys.argv,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": os.umask(0),
        "fds": sorted(os.listdir("/proc/self/fd"))[:-1],
        "files": [os.fstat(fd).st_mode for fd in range(1, 3)],
        "stdin": sys.stdin and sys.stdin.read(),
        "streams": [[getattr(stream, key, None) for key in STREAM] for stream in streams],
        "is a terminal": [os.isatty(fd) for fd in range(1, 3)],
        "signals": [str(signal.getsignal(n)) for n in signal.valid_signals()],
        "blocked": [*signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "limits": [resource.getrlimit(n) for n in range(10)],
        "flags": [list(sys.flags), sys._xoptions, sys.path, sys.excepthook is sys.__excepthook__],
        "python": [sys.executable, sys.prefix, sys.exec_prefix, sys.base_prefix],
        "main": [__main__.__name__, threading.active_count()],
        "time and text": [time.tzname, locale.setlocale(locale.LC_CTYPE)],
    }}
    print(json.dumps(seen), flush=True)
    {end}
"""
"""In place of our saepub/cli.py."""

ENDS = {
    "nothing": "pass",
    "a code": "sys.exit(3)",
    "a text": "sys.exit('no such thing')",
    "a bug": "1 / 0",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "at once": "os._exit(9)",
    "at exit": "atexit.register(lambda: print('bye')); sys.exit(1)",
    "a thread": "threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()",
}

SHELLS = {
    "as usual": 'exec "$@"',
    "in the background": """trap '' HUP INT; umask 027; exec "$@" """,
    "with a limit": 'ulimit -n 99; exec "$@"',
    "without stdin": 'exec "$@" <&-',
}


@pytest.fixture
def start(tmp_path):
    """Start a stage that tells what it sees, as a fork and for real."""
    for name in ("bin", "py/saepub", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("bin/select", "py/launch.sh", "py/about.sh"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "bin/select").chmod(0o755)
    (tmp_path / "py/saepub/__init__.py").touch()

    def start(end="pass", shell=SHELLS["as usual"], **env):
        (tmp_path / "py/saepub/cli.py").write_text(CLI.format(end=end))
        argv = [
            "sh",
            "-c",
            shell,
            "sh",
            tmp_path / "bin/select",
            "a b",
            "-x",
            "é\udcff",
        ]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        for venv in (os.environ[FORKS], sys.prefix):
            env = bare_env(**env | {"VENV": venv})
            yield subprocess.Popen(argv, cwd=tmp_path / "elsewhere", env=env, **pipes)

    return start


def ended(process):
    """What it printed, and its code; the same whichever Python ran it."""
    out, err = process.communicate(b"some text", timeout=60)
    texts = [
        text.decode().replace(os.environ[FORKS], sys.prefix) for text in (out, err)
    ]
    return process.returncode, *texts


@pytest.mark.parametrize("env", [{}, {"TZ": "Asia/Tokyo", "LC_ALL": "C", "MINE": "é"}])
@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_arguments_environment_streams_and_signals_are_the_same(start, shell, env):
    fork, real = map(ended, start(shell=shell, **env))
    assert json.loads(fork[1]) == json.loads(real[1])
    assert fork == real


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_it_ends_in_the_same_way(start, end):
    fork, real = map(ended, start(end))
    assert fork == real


READS = """
import os
seen = set()
get = os._Environ.__getitem__
os._Environ.__getitem__ = lambda self, name: (seen.add(name), get(self, name))[1]
import wandb.apis.public
print(*seen)
"""


def test_what_wandb_reads_while_it_is_imported_is_known():
    done = run_program(sys.executable, "-c", READS)
    found = {name for name in done.out.split() if name.startswith("WANDB_")}
    assert found == {*forks.READ_BY_WANDB}


@pytest.mark.parametrize("n", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_it(start, n):
    end = "signal.signal(2, lambda n, _: sys.exit(7)); print('ready', flush=True); time.sleep(60)"
    codes = []
    for process in start(end, 'exec "$@" < /dev/null'):
        assert process.stdout.readline() and process.stdout.readline() == b"ready\n"
        process.send_signal(n)
        # Its end of the pipe is closed, so it has ended itself.
        assert process.stdout.read() == b""
        codes.append(process.wait())
        process.communicate()
    assert codes[0] == codes[1] == (7 if n == signal.SIGINT else -n)


@pytest.mark.parametrize("venv", [sys.prefix, os.environ[FORKS]])
def test_for_anything_else_its_python_is_the_real_one(venv):
    code = "import sys, pytest; print(sys.executable, sys.prefix, pytest.__file__, sys.argv)"
    done = run_program(f"{venv}/bin/python", "-c", code, "é", VENV=venv)
    package = pathlib.Path(pytest.__file__).relative_to(sys.prefix)
    assert done.out.split()[:3] == [f"{venv}/bin/python", venv, f"{venv}/{package}"]
    assert done.out.endswith("['-c', 'é']\n")
