"""The sha256 of values, and of files, cached until they change."""

import hashlib
import json
import os
import typing as tp

from . import settings
from .files import write_aside

if tp.TYPE_CHECKING:
    import pathlib


def of_json(value: tp.Any) -> str:
    """The sha256 of a value, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(fpath: "pathlib.Path") -> str:
    """The file's sha256, cached in the build directory.

    It is recomputed when the file's inode, size or modification time has changed.

    Raises:
        OSError: The file can't be read.
    """
    status = os.stat(fpath)
    kept = _recall(fpath)
    digest = kept.get("sha256")
    if kept.get("stamp") == _stamp(status) and isinstance(digest, str):
        return digest
    with open(fpath, "rb") as fd:
        digest = hashlib.file_digest(fd, "sha256").hexdigest()
    if _stamp(os.stat(fpath)) == _stamp(status):  # else it changed while being read
        remember(fpath, status, digest)
    return digest


def is_of(fpath: "pathlib.Path", n_bytes: int, digest: str) -> bool:
    """Whether a file has this size and sha256. Raises as `sha256` does."""
    return fpath.stat().st_size == n_bytes and sha256(fpath) == digest


def remember(fpath: "pathlib.Path", status: os.stat_result, digest: str) -> None:
    """Cache a file's sha256.

    Args:
        status: The stat of the open file that was read.
        digest: Its sha256.
    """
    kept = {"path": str(fpath), "stamp": _stamp(status), "sha256": digest}
    settings.claim_new("BUILD")
    with write_aside(_kept_fpath(fpath)) as fd:
        json.dump(kept, fd)


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _kept_fpath(fpath: "pathlib.Path") -> "pathlib.Path":
    name = hashlib.sha256(os.fsencode(os.path.abspath(fpath))).hexdigest()
    return settings.build_dpath() / "digests" / f"{name}.json"


def _recall(fpath: "pathlib.Path") -> dict[str, tp.Any]:
    try:
        found = json.loads(_kept_fpath(fpath).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
