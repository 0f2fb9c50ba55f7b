"""What tasks do in the tests of executors, importable by a task; and a saev that spies.

double(n, log_fpath) a function for `executor.run`, which fails for some n
spy(saev_dir)        make a saev of `checkpoints.write_saev` log its calls, and hang on demand
"""

import os
import pathlib

from saepub.cli import SetupError, UserError


def double(n: int, log_fpath: str) -> int:
    """Twice n; each call adds a line to the log."""
    with open(log_fpath, "a") as fd:
        fd.write(f"{n} {os.getppid()}\n")
    if n == 13:
        raise UserError("13 brings bad luck")
    if n == 14:
        raise RuntimeError("14 is a bug")
    if n == 15:
        raise MemoryError
    if n == 16:
        raise SetupError("16 breaks the machine")
    return 2 * n


SPY = '''

_load = load


def load(fpath, *, device="cpu"):
    """Log which file a task loads, and in which environment; hang if told to."""
    with open(fpath, "rb") as fd:
        d_sae = json.loads(fd.readline())["cfg"]["d_sae"]
    if d_sae >= 16:  # otherwise it is a test of what this saev can read
        told = json.dumps([d_sae, os.getpid(), dict(os.environ)]) + "\\n"
        with open({dpath!r} + "/loads", "a") as fd:
            fd.write(told)
        while os.path.exists({dpath!r} + f"/hang-{{d_sae}}"):
            time.sleep(0.1)
    return _load(fpath, device=device)
'''


def spy(saev_dir: pathlib.Path) -> pathlib.Path:
    with open(saev_dir / "src" / "saev" / "nn" / "__init__.py", "a") as fd:
        fd.write(SPY.format(dpath=str(saev_dir)))
    (saev_dir / "loads").touch()
    return saev_dir
