"""Atomic writes, scratch directories, locks, and the cleanup of what killed processes left;
and size and mtime, to detect that a file has changed."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
import typing as tp

from .cli import UserError
from .text import say

if tp.TYPE_CHECKING:
    import pathlib

PATIENCE_S = 5.0
"""How long to wait for a lock. Staging holds it for less, an upload for much longer."""

SCRATCH = "saepub"

IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The error numbers of a full disk, an exhausted quota or a file over the size limit."""


@contextlib.contextmanager
def write_aside(
    fpath: str | os.PathLike[str], mode: str = "w"
) -> tp.Iterator[tp.IO[tp.Any]]:
    """Open a file for writing that appears under its name only when complete.

    It is written under a temporary name in the same directory, then renamed. On an error the
    previous file stays. Temporary files of killed processes are removed.
    """
    dpath, name = os.path.split(os.path.abspath(fpath))
    aside = os.path.join(dpath, f".{name}.{_owner()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    os.makedirs(dpath, exist_ok=True)
    remove_leftovers(dpath, name)
    try:
        with open(aside, mode, encoding=encoding) as fd:
            yield fd
        os.replace(aside, fpath)
    except OSError as err:
        if err.errno in IS_FULL:  # the system's error doesn't name the file
            err.filename = os.fspath(fpath)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def facts(fpaths: tp.Iterable[str | os.PathLike[str]]) -> list[tuple[str, int, int]]:
    """Path, size and mtime (ns) of each file; zeros for one that doesn't exist."""
    found = []
    for fpath in fpaths:
        try:
            info = os.stat(fpath)
            found.append((os.fspath(fpath), info.st_size, info.st_mtime_ns))
        except OSError:
            found.append((os.fspath(fpath), 0, 0))
    return found


def package() -> "list[pathlib.Path]":
    """Every module of this package: results of other code are not reused."""
    import pathlib

    return sorted(pathlib.Path(__file__).parent.rglob("*.py"))


@contextlib.contextmanager
def scratch(what: str) -> "tp.Iterator[pathlib.Path]":
    """A temporary directory under TMPDIR. Those of killed processes are removed."""
    import pathlib
    import tempfile  # slow to import, and the light stages don't need it

    root = tempfile.gettempdir()
    pattern = rf"{SCRATCH}-{re.escape(what)}-(?P<owner>.+)-[^-]+"
    for entry in _ours(root, pattern):
        shutil.rmtree(entry.path, ignore_errors=True)
    prefix = f"{SCRATCH}-{what}-{_owner()}-"
    with tempfile.TemporaryDirectory(
        prefix=prefix, suffix="_", ignore_cleanup_errors=True
    ) as name:
        yield pathlib.Path(name)


def remove_leftovers(
    dpath: str | os.PathLike[str], name: str | None = None, *, is_locked: bool = False
) -> None:
    """Remove the temporary files that killed processes left in a directory.

    Args:
        name: The name of the file being written; every file's by default.
        is_locked: Nobody else can be writing there, so every temporary file is a leftover.
    """
    pattern = re.escape(name) if name is not None else ".+"
    for entry in _ours(dpath, rf"\.{pattern}\.(?P<owner>[^/]+-\d+)\.tmp", is_locked):
        with contextlib.suppress(OSError):
            os.unlink(entry.path)


def _owner() -> str:
    """A name for this process that is unique across machines."""
    return f"{os.uname().nodename}-{os.getpid()}"


def _ours(
    dpath: str | os.PathLike[str], pattern: str, is_locked: bool = False
) -> list[os.DirEntry[str]]:
    """This user's entries in a directory that match the pattern and whose process is dead.

    Whether a process on another machine is alive can't be known, so its entries are kept.
    """
    node, found = os.uname().nodename, []
    with contextlib.suppress(OSError), os.scandir(os.fspath(dpath)) as entries:
        for entry in entries:
            match = re.fullmatch(pattern, entry.name)
            if match is None:
                continue
            host, _, pid = match["owner"].rpartition("-")
            is_dead = host == node and pid.isdecimal() and not _is_alive(int(pid))
            if not (is_locked or is_dead):
                continue
            if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                found.append(entry)
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextlib.contextmanager
def lock(fpath: "pathlib.Path", patience: float = PATIENCE_S) -> tp.Iterator[None]:
    """Hold an exclusive lock on a file.

    Raises:
        Held: Another process still holds it after `patience` seconds; the message names it.
        UserError: The file's disk has no locks.
    """
    fpath.parent.mkdir(parents=True, exist_ok=True)
    with open(fpath, "a+") as fd:
        deadline = time.monotonic() + patience
        while not _is_locked(fd):
            if time.monotonic() > deadline:
                fd.seek(0)
                raise Held(fd.read().strip() or "another process")
            time.sleep(0.1)
        with contextlib.suppress(OSError):  # a full disk is no reason not to have it
            fd.truncate(0)
            holder = f"process {os.getpid()} on {os.uname().nodename}"
            os.write(fd.fileno(), holder.encode())
        yield


@contextlib.contextmanager
def turn(fpath: "pathlib.Path", told: str = "") -> tp.Iterator[bool]:
    """Take turns with other processes that lock the same file, if its disk has locks.

    Args:
        told: A message to print before waiting for our turn; without one we don't wait.

    Yields:
        Whether it is our turn.
    """
    fpath.parent.mkdir(parents=True, exist_ok=True)
    with open(fpath, "w") as fd:
        is_ours = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_ours = bool(told)
            if told:
                say(told)
                fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:  # no locks, so several may work at once
            pass
        yield is_ours


class Held(Exception):
    """Another process holds the lock; the message names it."""


def _is_locked(fd: tp.IO[str]) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:  # Lustre and NFS can be mounted without them
        raise UserError(
            f"{fd.name}: {err.strerror}; set BUILD to a disk with file locks"
        ) from None
    return True
