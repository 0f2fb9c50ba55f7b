"""What a stage holds, by its lines: for those that build it, hold it to them, or send it."""

import argparse
import collections
import contextlib
import hashlib
import os
import pathlib
import typing as tp

from .. import files as files_
from .. import settings
from ..cli import UserError
from ..hub.repo import File, RemoteFile, Status
from ..jsonl import Line
from . import manifest

DOCUMENTS = ("README.md", "manifest.jsonl", "pareto.png", "check.npz", "config.json")
"""What a repo holds besides checkpoints."""

KEYS = (
    "repo",
    "layer",
    "run_id",
    "checkpoint",
    "bytes",
    "mtime_ns",
    "sha256",
    "path",
    "documents",
)
"""What a line must have for its stage to be held against it."""


def dpath_of(slug: str) -> pathlib.Path:
    return settings.build_dpath() / slug / "stage"


def path_of(line: Line) -> str:
    """A checkpoint's path in its model repo."""
    return f"layer_{line['layer']}/{line['run_id']}/sae.pt"


def by_repo(rows: tp.Iterable[Line]) -> dict[str, list[Line]]:
    """Lines by slug, both in the order in which they came."""
    repos = collections.defaultdict(list)
    for row in rows:
        repos[row["repo"]].append(row)
    return dict(repos)


def files(rows: list[Line]) -> dict[str, File]:
    """Every file that one repo's lines speak of, by its path in the repo."""
    found = [File(row["path"], row["bytes"], row["sha256"]) for row in rows]
    for name, is_ in rows[0]["documents"].items():
        found.append(File(name, is_["bytes"], is_["sha256"]))
    return {file.path: file for file in sorted(found)}


def add_files_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--files",
        action="store_true",
        help="write a line a file in place of the runs: repo, path, bytes, sha256, and"
        " status (match, differ, missing, extra)",
    )


def file_lines(
    slug: str, found: tp.Iterable[tuple[File | RemoteFile, Status]]
) -> list[Line]:
    """What a comparison found, a line a file: of the release as it should be, of one
    besides as it is there (`sha256` null where git itself holds it)."""
    return [
        {
            "repo": slug,
            "path": file.path,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "status": status,
        }
        for file, status in found
    ]


def document(fpath: pathlib.Path) -> dict[str, tp.Any]:
    content = fpath.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_unchanged(fpath: pathlib.Path, row: Line) -> None:
    """Raises UserError where a checkpoint has not the size and mtime that preflight noted."""
    try:
        found = os.stat(fpath)
    except OSError as err:
        raise UserError(
            f"{fpath}: {err.strerror}; it was there at preflight: make recheck REPO={row['repo']}"
        ) from None
    if (found.st_size, str(found.st_mtime_ns)) != (row["bytes"], row["mtime_ns"]):
        raise UserError(
            f"{fpath}: changed since preflight read it: make recheck REPO={row['repo']}"
        )


def problems(slug: str, rows: list[Line]) -> list[str]:
    """All that differs between a repo's stage on disk and its lines.

    Checkpoints are held to size and mtime, which spares a second read of gigabytes; the
    documents to their sha256, and the manifest to the lines themselves.
    """
    dpath = dpath_of(slug)
    again = f"make recheck REPO={slug}"
    if not dpath.is_dir():
        return [f"{dpath}: no stage; {again}"]
    expected = files(rows)
    found = {
        p.relative_to(dpath).as_posix() for p in dpath.rglob("*") if not p.is_dir()
    }
    out = [
        f"{dpath / path}: not there; {again}"
        for path in sorted(expected.keys() - found)
    ]
    out += [
        f"{dpath / path}: not ours, and everything here would be published; remove it"
        for path in sorted(found - expected.keys())
    ]
    for row in rows:
        if row["path"] != path_of(row):
            out.append(f"{row['path']}: not where {row['run_id']} belongs; {again}")
        elif row["path"] in found:
            try:
                check_unchanged(dpath / row["path"], row)
            except UserError as err:
                out.append(str(err))
    for name, is_ in rows[0]["documents"].items():
        if name in found and document(dpath / name) != is_:
            out.append(f"{dpath / name}: changed since it was rendered; {again}")
    fpath = dpath / "manifest.jsonl"
    if "manifest.jsonl" in found and fpath.read_text() != manifest.text(rows):
        out.append(f"{fpath}: does not say what the lines say; {again}")
    return out


@contextlib.contextmanager
def lock(slug: str) -> tp.Iterator[None]:
    """Hold a repo's stage against any other that would change or send it.

    What a killed stage left in it is removed.

    Raises:
        UserError: Another process goes on holding it; the message says which.
    """
    try:
        with files_.lock(settings.build_dpath() / slug / ".lock"):
            files_.remove_leftovers(dpath_of(slug), is_locked=True)
            yield
    except files_.Held as holder:
        raise UserError(
            f"{slug}: {holder} is at work on it; wait for that to end"
        ) from None
