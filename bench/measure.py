"""What a command costs: time, memory, bytes read and written."""

import json
import os
import pathlib
import subprocess
import sys
import typing as tp

ROOT = pathlib.Path(__file__).resolve().parents[1]
MB = 10**6


class Cost(tp.NamedTuple):
    """What a command and all its children cost.

    `rchar` and `wchar` are the kernel's counts of bytes passed by read- and write-like calls
    (proc(5), /proc/pid/io), be it from a disk, a cache or memory. `rss` is the largest resident
    set of any one process, in bytes.
    """

    wall: float
    cpu: float
    rss: int
    rchar: int
    wchar: int
    code: int


# Runs in a process of its own: the kernel adds a child's counts to its parent's when it is
# waited for, so at the end they are those of the command and its children.
COUNTER = """
import json, resource, subprocess, sys, time
t = time.perf_counter()
code = subprocess.run(sys.argv[2:]).returncode
wall = time.perf_counter() - t
used = resource.getrusage(resource.RUSAGE_CHILDREN)
io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
cost = [wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024,
        int(io["rchar"]), int(io["wchar"]), code]
open(sys.argv[1], "w").write(json.dumps(cost))
"""


def measure(argv: tp.Sequence[object], stdin=None, stdout=None, **env: object) -> Cost:
    """The cost of one run of a command.

    Raises:
        RuntimeError: It failed.
    """
    out_fpath = f"/tmp/saepub-bench-{os.getpid()}.json"
    done = subprocess.run(
        [sys.executable, "-S", "-c", COUNTER, out_fpath, *map(str, argv)],
        stdin=stdin or subprocess.DEVNULL,
        stdout=stdout or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {k: str(v) for k, v in env.items()},
        cwd=ROOT,
    )
    cost = Cost(*json.loads(pathlib.Path(out_fpath).read_text()))
    os.unlink(out_fpath)
    if cost.code != 0:
        raise RuntimeError(f"{argv}: {done.stderr.decode()[-2000:]}")
    return cost


def best(argv: tp.Sequence[object], n: int = 10, **env: object) -> float:
    """The shortest wall time of `n` runs, in seconds: that of the least disturbed one."""
    return min(measure(argv, **env).wall for _ in range(n))


def table(title: str, rows: list[tuple], head: tuple) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.flush()
