"""The sha256 of files, cached until they change."""

import hashlib
import json
import os
import typing as tp

from . import settings
from .files import write_aside

if tp.TYPE_CHECKING:
    import pathlib


def sha256(fpath: "pathlib.Path") -> str:
    """The file's sha256, cached in the build directory.

    It is recomputed when the file's inode, size or modification time has changed.

    Raises:
        OSError: The file can't be read.
    """
    stamp = _stamp(fpath)
    kept = _recall(fpath)
    if kept.get("stamp") == stamp and isinstance(digest := kept.get("sha256"), str):
        return digest
    with open(fpath, "rb") as fd:
        digest = hashlib.file_digest(fd, "sha256").hexdigest()
    if _stamp(fpath) == stamp:  # else it changed while being read
        _keep(fpath, stamp, digest)
    return digest


def remember(fpath: "pathlib.Path", status: os.stat_result, digest: str) -> None:
    """Cache a sha256 that the caller has computed.

    Args:
        fpath: The file.
        status: The stat of the open file that was read.
        digest: Its sha256.
    """
    _keep(fpath, _stamp_of(status), digest)


def _stamp(fpath: "pathlib.Path") -> str:
    return _stamp_of(os.stat(fpath))


def _stamp_of(status: os.stat_result) -> str:
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


def _keep(fpath: "pathlib.Path", stamp: str, digest: str) -> None:
    settings.claim_new("BUILD")
    with write_aside(_kept_fpath(fpath)) as fd:
        json.dump({"path": str(fpath), "stamp": stamp, "sha256": digest}, fd)
