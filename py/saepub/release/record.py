"""release.json: a record of what was published, for later audits or a paper's appendix."""

import datetime
import importlib.metadata
import pathlib
import platform
import re
import typing as tp

import pydantic

from .. import __version__, catalog, jsonl, settings
from ..cli import UserError
from ..files import write_aside
from ..hub.files import File
from ..measured import CHECKED, Count, Id, Sha256, Text, explain
from . import staged

RepoId = tp.Annotated[str, pydantic.Field(pattern=f"^{catalog.REPO_ID.pattern}$")]
Commit = tp.Annotated[str, pydantic.Field(pattern=f"^{jsonl.COMMIT.pattern}$")]

DOCUMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class FileRecord(pydantic.BaseModel):
    """One file of a release."""

    model_config = CHECKED

    path: str
    bytes: Count
    sha256: Sha256
    loader: Text | None = None
    """What loaded a checkpoint: "saev <version or commit>" or "builtin"."""
    l0: float | None = None
    """A checkpoint's L0."""

    @pydantic.model_validator(mode="after")
    def _is_whole(self) -> tp.Self:
        if jsonl.IN_REPO.fullmatch(self.path):
            if self.loader is None or self.l0 is None:
                raise ValueError(f"{self.path} has no loader, or no l0")
            if self.bytes == 0:
                raise ValueError(f"{self.path} has 0 bytes")
        elif not DOCUMENT.fullmatch(self.path):
            raise ValueError(f"{self.path} is not a path of a release")
        return self


class Verified(pydantic.BaseModel):
    """What verification checked besides hashes."""

    model_config = CHECKED

    loaded: Text
    """The checkpoint that was downloaded and loaded."""
    loader: Text
    extra: list[str]
    """Files in the repo that are not part of the release."""


class Record(pydantic.BaseModel):
    """The contents of release.json."""

    model_config = CHECKED

    repo: Id
    repo_id: RepoId
    commit: Commit
    time: Text
    seconds: tp.Annotated[float, pydantic.Field(ge=0)]
    endpoint: Text
    tools: dict[str, str]
    verified: Verified
    n_files: Count
    n_bytes: Count
    files: list[FileRecord]

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> tp.Self:
        paths = [file.path for file in self.files]
        if not any(jsonl.IN_REPO.fullmatch(path) for path in paths):
            raise ValueError("files has no checkpoint")
        if len(set(paths)) != len(paths):
            raise ValueError("files has a path twice")
        if self.n_files != len(paths):
            raise ValueError("n_files is not the number of files")
        if self.n_bytes != sum(file.bytes for file in self.files):
            raise ValueError("n_bytes is not the sum of the files' bytes")
        return self


class Release(tp.NamedTuple):
    """One repo as it was released."""

    slug: str
    repo_id: str
    commit: str
    files: dict[str, File]
    loaders: dict[str, str]
    """What loaded each checkpoint, by its path: "saev <version or commit>" or "builtin"."""
    l0s: dict[str, float] = {}
    """Each checkpoint's L0, by its path."""


def fpath_of(slug: str) -> pathlib.Path:
    """The path of a repo's record. A rehearsal has its own RELEASES."""
    return settings.releases_dpath() / slug / "release.json"


def from_lines(repo_id: str, rows: list[jsonl.Line]) -> Release:
    loaders = {row["path"]: row["loader"] for row in rows}
    l0s = {row["path"]: row["l0"] for row in rows}
    slug, commit = rows[0]["repo"], rows[0]["commit"]
    return Release(slug, repo_id, commit, staged.files(rows), loaders, l0s)


def write(
    release: Release, verified: dict[str, tp.Any], seconds: float, endpoint: str
) -> None:
    """Write the record of a verified release.

    Args:
        release: What was released.
        verified: The fields of `Verified`.
        seconds: How long push and verification took.
        endpoint: The Hub's address.
    """
    files = [
        FileRecord(
            **file._asdict(),
            loader=release.loaders.get(path),
            l0=release.l0s.get(path),
        )
        for path, file in release.files.items()
    ]
    versions = {n: importlib.metadata.version(n) for n in ("huggingface_hub", "torch")}
    record = Record(
        repo=release.slug,
        repo_id=release.repo_id,
        commit=release.commit,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        endpoint=endpoint,
        tools={
            "saepub": __version__,
            "python": platform.python_version(),
            **versions,
        },
        verified=Verified(**verified),
        n_files=len(files),
        n_bytes=sum(file.bytes for file in files),
        files=files,
    )
    with write_aside(fpath_of(release.slug)) as fd:
        fd.write(record.model_dump_json(indent=2, exclude_none=True) + "\n")


def read(slug: str) -> Release:
    """The record of a repo's last verified release.

    Raises:
        UserError: There is none, or it is invalid. The message names the file, the key and
            the fault.
    """
    fpath = fpath_of(slug)
    try:
        record = Record.model_validate_json(fpath.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{fpath}: no record of a release; make release REPO={slug}"
        ) from None
    except pydantic.ValidationError as err:
        raise UserError(f"{fpath}: not a record of a release: {explain(err)}") from None
    if record.repo != slug:
        raise UserError(f"{fpath}: is the record of {record.repo}, not {slug}")
    files = {f.path: File(f.path, f.bytes, f.sha256) for f in record.files}
    loaders = {f.path: f.loader for f in record.files if f.loader is not None}
    l0s = {f.path: f.l0 for f in record.files if f.l0 is not None}
    return Release(slug, record.repo_id, record.commit, files, loaders, l0s)
