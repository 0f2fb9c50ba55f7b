"""Files written aside and renamed, scratch directories, locks, and what a kill leaves of
them; and how to tell that a file has changed."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
import typing as tp

if tp.TYPE_CHECKING:
    import pathlib

PATIENCE_S = 5.0
"""How long to wait for a lock. Staging holds it for less; an upload for as long as it takes."""

SCRATCH = "saepub"

IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk without room for what is written, by the system's error numbers."""


@contextlib.contextmanager
def write_aside(
    fpath: str | os.PathLike[str], mode: str = "w"
) -> tp.Iterator[tp.IO[tp.Any]]:
    """Open a file that appears under its name only when it is whole.

    It is written under another name in the same directory, then renamed. On an error the
    file that was there before stands. What a killed process left there is removed.
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
        if err.errno in IS_FULL:  # which the system says of no file
            err.filename = os.fspath(fpath)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def facts(fpaths: tp.Iterable[str | os.PathLike[str]]) -> list[tuple[str, int, int]]:
    """Path, size and mtime (ns) of each; zeros where there is no such file."""
    found = []
    for fpath in fpaths:
        try:
            info = os.stat(fpath)
            found.append((os.fspath(fpath), info.st_size, info.st_mtime_ns))
        except OSError:
            found.append((os.fspath(fpath), 0, 0))
    return found


def package() -> "list[pathlib.Path]":
    """Every module of this package: what other code computed is not gone on with."""
    import pathlib

    return sorted(pathlib.Path(__file__).parent.rglob("*.py"))


@contextlib.contextmanager
def scratch(what: str) -> "tp.Iterator[pathlib.Path]":
    """A directory under TMPDIR for the time being. What killed processes left is removed."""
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
    """Remove what killed processes left in a directory beside files that they wrote.

    Args:
        name: Of the file; every file's by default.
        is_locked: Nobody else can be writing there, so what is there is left over.
    """
    pattern = re.escape(name) if name is not None else ".+"
    for entry in _ours(dpath, rf"\.{pattern}\.(?P<owner>[^/]+-\d+)\.tmp", is_locked):
        with contextlib.suppress(OSError):
            os.unlink(entry.path)


def _owner() -> str:
    """This process, by a name that no other on any machine has."""
    return f"{os.uname().nodename}-{os.getpid()}"


def _ours(
    dpath: str | os.PathLike[str], pattern: str, is_locked: bool = False
) -> list[os.DirEntry[str]]:
    """Entries of that form in a directory, by this user, whose process is no more.

    Of a process on another machine nobody here can tell, so it is let be.
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
    except OSError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def lock(fpath: "pathlib.Path", patience: float = PATIENCE_S) -> tp.Iterator[None]:
    """Hold a file against every other process that would.

    Raises:
        Held: Another process goes on holding it; the message says which.
    """
    fpath.parent.mkdir(parents=True, exist_ok=True)
    with open(fpath, "a+") as fd:
        deadline = time.monotonic() + patience
        while not _is_locked(fd):
            if time.monotonic() > deadline:
                fd.seek(0)
                raise Held(fd.read().strip() or "another process")
            time.sleep(0.1)
        fd.truncate(0)
        fd.write(f"process {os.getpid()} on {os.uname().nodename}")
        fd.flush()
        yield


class Held(Exception):
    """Somebody else has the lock: who."""


def _is_locked(fd: tp.IO[str]) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
