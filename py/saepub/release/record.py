"""release.json: what was published, for a later audit or a paper's appendix."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import typing as tp

from .. import __version__, jsonl, settings
from ..cli import UserError
from ..files import write_aside
from . import staged
from .staged import File


class Release(tp.NamedTuple):
    """One repo as it was released."""

    slug: str
    repo_id: str
    commit: str
    files: dict[str, File]
    loaders: dict[str, str]
    """By a checkpoint's path, what loaded it: "saev <version or commit>" or "builtin"."""
    l0s: dict[str, float] = {}
    """By a checkpoint's path, its L0."""


def fpath_of(slug: str) -> pathlib.Path:
    return settings.records_dpath() / slug / "release.json"


def from_lines(repo_id: str, rows: list[jsonl.Line]) -> Release:
    loaders = {row["path"]: row["loader"] for row in rows}
    l0s = {row["path"]: row["l0"] for row in rows}
    slug, commit = rows[0]["repo"], rows[0]["commit"]
    return Release(slug, repo_id, commit, staged.files(rows), loaders, l0s)


def write(release: Release, verified: dict[str, tp.Any], seconds: float) -> None:
    """Keep a record of a verified release.

    Args:
        release: What was released.
        verified: What verification found: the checkpoint that was loaded, extra files.
        seconds: How long push and verification took.
    """
    obj = {
        "repo": release.slug,
        "repo_id": release.repo_id,
        "commit": release.commit,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "endpoint": settings.get("HF_ENDPOINT") or "https://huggingface.co",
        "tools": {
            "saepub": __version__,
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("huggingface_hub", "torch")
            },
        },
        "verified": verified,
        "n_files": len(release.files),
        "n_bytes": sum(file.bytes for file in release.files.values()),
        "files": [
            file._asdict()
            | {
                key: by_path[path]
                for key, by_path in (("loader", release.loaders), ("l0", release.l0s))
                if path in by_path
            }
            for path, file in release.files.items()
        ],
    }
    with write_aside(fpath_of(release.slug)) as fd:
        json.dump(obj, fd, indent=2)
        fd.write("\n")


def read(slug: str) -> Release:
    """The record of a repo's last verified release.

    Raises:
        UserError: There is none, or it isn't one.
    """
    fpath = fpath_of(slug)
    try:
        obj = json.loads(fpath.read_text(encoding="utf-8"))
        _check(obj, str(fpath))
        files = {
            f["path"]: File(f["path"], f["bytes"], f["sha256"]) for f in obj["files"]
        }
        loaders = {f["path"]: f["loader"] for f in obj["files"] if "loader" in f}
        l0s = {f["path"]: f["l0"] for f in obj["files"] if "l0" in f}
        return Release(obj["repo"], obj["repo_id"], obj["commit"], files, loaders, l0s)
    except FileNotFoundError:
        raise UserError(
            f"{fpath}: no record of a release; make release REPO={slug}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise UserError(f"{fpath}: not a record of a release: {err!r}") from None


def _check(obj: tp.Any, where: str) -> None:
    """Raises UserError, KeyError or TypeError where a record holds something else."""
    jsonl.check(obj, ("repo", "commit"), where)
    for f in obj["files"]:
        if type(f["path"]) is not str:
            raise TypeError("a path that is not text")
        keys = ["bytes", "sha256", *(key for key in ("loader", "l0") if key in f)]
        jsonl.check(f, keys, f"{where}: {f['path']}")
