"""What this process may use: cores and memory."""

import contextlib
import ctypes
import os
import pathlib
import re
import sys
import typing as tp

from .text import human, say

PROC, CGROUP_ROOT = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")


def n_cores() -> int:
    """The number of cores that this process may use, on a cluster fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


TORCH_BYTES = 300_000_000
"""The memory of a process that has imported torch and done nothing else."""


def n_at_once(n_bytes: int, asked: int | None = None) -> int:
    """How many processes of `n_bytes` each to run at once; at least 1.

    Args:
        n_bytes: The memory of one.
        asked: How many the user wants; None for one per core.
    """
    n_free = free_bytes()
    n_most = max(1, n_free // n_bytes)
    if asked is not None and asked > n_most:
        say(
            f"{sys.argv[0]}: {asked} at once would need {human(asked * n_bytes)} of memory,"
            f" but {human(n_free)} are free; running {n_most} at once"
        )
    return min(asked or n_cores(), n_most)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt, from malloc.h."""


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for reuse in this process.

    glibc maps each large block separately and unmaps it when freed. Having the kernel clear
    the pages of the next one would take as long as the work done in them.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory(n_most: int) -> None:
    """Return what malloc keeps to the kernel, if this process has over `n_most` bytes resident.

    A block doesn't always fit into the gap that one of its size has left, so a process that
    keeps freed memory grows, by chance, up to twice what it uses.
    """
    with contextlib.suppress(AttributeError, OSError):  # another system or C library
        n_pages = int((PROC / "self/statm").read_text().split()[1])
        if n_pages * os.sysconf("SC_PAGE_SIZE") > n_most:
            ctypes.CDLL(None).malloc_trim(0)


def free_bytes() -> int:
    """The memory still available to this process: the machine's, or what its cgroup leaves."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", (PROC / "meminfo").read_text())
        assert found is not None, "no MemAvailable in /proc/meminfo"
        free = int(found[1]) * 1024
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min([free, *_cgroup_free_bytes()]))


def _cgroup_free_bytes() -> list[int]:
    """The memory left in each cgroup around this process, of version 1 and 2.

    A cgroup counts cached file pages as used, but the kernel reclaims them on demand.
    """
    try:
        text = (PROC / "self/cgroup").read_text()
    except OSError:
        return []
    free = []
    for name, kind in CGROUPS.items():
        found = re.search(kind.line, text, re.MULTILINE)
        if found is None:
            continue
        inner = CGROUP_ROOT / name / found[1].lstrip("/")
        for dpath in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # no limit here, or "max"
                limit, used = (int((dpath / file).read_text()) for file in kind.files)
                rows = (dpath / "memory.stat").read_text().splitlines()
                stat = dict(row.split() for row in rows)
                free.append(limit - used + sum(int(stat[key]) for key in kind.cache))
    return free


class Cgroup(tp.NamedTuple):
    line: str
    """Matches the process's own cgroup in /proc/self/cgroup."""
    files: tuple[str, str]
    """Its limit and its usage."""
    cache: tuple[str, str]
    """The keys of cached file pages in memory.stat."""


CGROUPS = {
    "": Cgroup(
        r"^0::(/.*)$",
        ("memory.max", "memory.current"),
        ("active_file", "inactive_file"),
    ),
    "memory": Cgroup(
        r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(/.*)$",
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("total_active_file", "total_inactive_file"),
    ),
}
"""By the directory below `CGROUP_ROOT`: version 2, and version 1."""
