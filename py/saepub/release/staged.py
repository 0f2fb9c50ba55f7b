"""The staged tree of a repo as its lines describe it: paths, files, checks and the lock."""

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
from ..hub.files import Changes, Compared, File, Remote
from ..jsonl import BUILTIN, Line
from ..text import n_of
from . import manifest

DOCUMENTS = ("README.md", "manifest.jsonl", "pareto.png", "check.npz", "config.json")
"""The files of a repo besides checkpoints."""

KEYS = (
    *("repo", "layer", "run_id", "checkpoint", "bytes", "mtime_ns", "sha256"),
    *("path", "documents"),
)
"""The keys that a line must have to check its stage against it."""


def dpath_of(slug: str) -> pathlib.Path:
    return settings.build_dpath() / slug / "stage"


def path_of(line: Line) -> str:
    """A checkpoint's path in its model repo."""
    return f"layer_{line['layer']}/{line['run_id']}/sae.pt"


def by_repo(rows: tp.Iterable[Line]) -> dict[str, list[Line]]:
    """Lines by slug, in the order of the input."""
    repos = collections.defaultdict(list)
    for row in rows:
        repos[row["repo"]].append(row)
    return dict(repos)


def files(rows: list[Line]) -> dict[str, File]:
    """Every file of a repo, from its lines, by its path in the repo."""
    found = [File(row["path"], row["bytes"], row["sha256"]) for row in rows]
    for name, its in rows[0]["documents"].items():
        found.append(File(name, its["bytes"], its["sha256"]))
    return {file.path: file for file in sorted(found)}


def changes(rows: list[Line], there: Remote) -> Changes:
    """What a push of a repo's stage would do to the repo on the Hub."""
    from ..hub import repo as hub_repo  # slow to import

    return hub_repo.compare(there, files(rows), dpath_of(rows[0]["repo"]))


def add_files_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--files",
        action="store_true",
        help="write one line per file instead of the runs: repo, path, bytes, sha256 and"
        " status (match, differ, missing, extra)",
    )


def file_lines(slug: str, found: list[Compared]) -> list[Line]:
    """The result of a comparison, one line per file: size and sha256 as released, or for an
    extra file as on the Hub (`sha256` null if it is stored in git)."""
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
    """Raise UserError unless a checkpoint has the size and mtime that preflight recorded."""
    try:
        found = os.stat(fpath)
    except OSError as err:
        raise UserError(
            f"{fpath}: {err.strerror}, though preflight read it; make recheck REPO={row['repo']}"
        ) from None
    if (found.st_size, str(found.st_mtime_ns)) != (row["bytes"], row["mtime_ns"]):
        raise UserError(
            f"{fpath}: changed since preflight; make recheck REPO={row['repo']}"
        )


def problems(slug: str, rows: list[Line]) -> list[str]:
    """Every difference between a repo's stage on disk and its lines.

    Checkpoints are compared by size and mtime, to avoid rereading gigabytes; documents by
    sha256, and the manifest also with the lines themselves.
    """
    dpath = dpath_of(slug)
    advice = f"make recheck REPO={slug}"
    if not dpath.is_dir():
        return [f"{dpath}: no stage; {advice}"]
    expected = files(rows)
    found = {
        p.relative_to(dpath).as_posix() for p in dpath.rglob("*") if not p.is_dir()
    }
    out = [
        f"{dpath / path}: missing; {advice}" for path in sorted(expected.keys() - found)
    ]
    out += [
        f"{dpath / path}: not part of the release, but would be published; remove it"
        for path in sorted(found - expected.keys())
    ]
    for row in rows:
        if row["path"] != path_of(row):
            out.append(f"{row['path']}: the wrong path for {row['run_id']}; {advice}")
        elif row["path"] in found:
            try:
                check_unchanged(dpath / row["path"], row)
            except UserError as err:
                out.append(str(err))
    for name, its in rows[0]["documents"].items():
        if name in found and document(dpath / name) != its:
            out.append(f"{dpath / name}: changed since it was rendered; {advice}")
    fpath = dpath / "manifest.jsonl"
    if "manifest.jsonl" in found and fpath.read_text() != manifest.text(rows):
        out.append(f"{fpath}: doesn't match the lines; {advice}")
    return out


def not_loaded(rows: list[Line]) -> list[str]:
    """Why checkpoints that saev has not loaded can't be published, unless LOADER=builtin."""
    n_builtin = sum(row["loader"] == BUILTIN for row in rows)
    if not n_builtin or settings.get("LOADER") == BUILTIN:
        return []
    return [
        f"saev has not loaded {n_of(n_builtin, 'checkpoint')}; set SAEV_DIR to a saev that"
        " can, or set LOADER=builtin to publish them as they are"
    ]


@contextlib.contextmanager
def lock(slug: str) -> tp.Iterator[None]:
    """Lock a repo's stage against processes that would change or send it.

    Removes what killed processes left in it.

    Raises:
        UserError: Another process holds it; the message names it.
    """
    try:
        with files_.lock(settings.build_dpath() / slug / ".lock"):
            files_.remove_leftovers(dpath_of(slug), is_locked=True)
            yield
    except files_.Held as holder:
        raise UserError(
            f"{slug}: {holder} is working on it; wait until that ends"
        ) from None
