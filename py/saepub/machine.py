"""What this process may use: cores and memory."""

import contextlib
import ctypes
import os
import pathlib
import re


def n_cores() -> int:
    """The cores that it may run on, which on a cluster are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


TORCH_BYTES = 300_000_000
"""What a process that has imported torch takes before it has done anything."""


def n_fit(n_bytes: int) -> int:
    """How many processes of `n_bytes` there are cores and memory for; 1 at least."""
    return max(1, min(n_cores(), free_bytes() // n_bytes))


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt, from its malloc.h."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next block of that size.

    glibc maps large blocks one by one and gives each back when it is freed. To have the
    kernel clear every page of the next one anew takes as long as all that is done with it.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def free_bytes() -> int:
    """The memory that it may still take: the machine's, or what a job's cgroup leaves."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"))
        assert found is not None, "no MemAvailable in /proc/meminfo"
        free = int(found[1]) * 1024
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([free, *_cgroup_free_bytes()])


def _cgroup_free_bytes() -> list[int]:
    """What is left of the limit of each cgroup (version 2) around this process."""
    try:
        found = re.search(r"^0::(/.*)$", _text("/proc/self/cgroup"), re.MULTILINE)
    except OSError:
        return []
    if found is None:
        return []
    inner = pathlib.Path("/sys/fs/cgroup") / found[1].lstrip("/")
    free = []
    for dpath in (inner, *inner.parents):
        try:
            limit = int(_text(dpath / "memory.max"))
            free.append(limit - int(_text(dpath / "memory.current")))
        except (OSError, ValueError):  # none here, or "max"
            continue
    return free


def _text(fpath: str | pathlib.Path) -> str:
    return pathlib.Path(fpath).read_text()
