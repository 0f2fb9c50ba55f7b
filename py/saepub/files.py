"""Files written aside and renamed, and how to tell that one has changed."""

import contextlib
import os
import typing as tp


@contextlib.contextmanager
def write_aside(fpath: str | os.PathLike, mode: str = "w") -> tp.Iterator[tp.IO]:
    """Open a file that appears under its name only when it is whole.

    It is written under another name in the same directory, then renamed. On an error the
    file that was there before stands.
    """
    dpath, name = os.path.split(os.path.abspath(fpath))
    aside = os.path.join(dpath, f".{name}.{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    os.makedirs(dpath, exist_ok=True)
    try:
        with open(aside, mode, encoding=encoding) as fd:
            yield fd
        os.replace(aside, fpath)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def facts(fpaths: tp.Iterable[str | os.PathLike]) -> list[tuple[str, int, int]]:
    """Path, size and mtime (ns) of each; zeros where there is no such file."""
    found = []
    for fpath in fpaths:
        try:
            info = os.stat(fpath)
            found.append((os.fspath(fpath), info.st_size, info.st_mtime_ns))
        except OSError:
            found.append((os.fspath(fpath), 0, 0))
    return found
