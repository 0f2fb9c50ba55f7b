"""Whether a repo on the Hub is what was released: by the Hub's listing, and by download."""

import datetime
import hashlib
import pathlib
import typing as tp

from ..cli import UserError
from ..files import scratch
from ..hub import repo as hub_repo
from ..hub.files import NEVER_EXTRA, Compared, Remote, Status
from ..text import n_of, one_line, say
from .record import Release

CHECK = "check.npz"

Load = tp.Callable[[pathlib.Path, str, str, pathlib.Path | None], str]
"""What is wrong with a downloaded checkpoint once it is loaded; "" if nothing. Called with its
path on disk, its path in the repo, what loaded it before the release, and check.npz, if the
release has that."""


class Found(tp.NamedTuple):
    """The result of checking a repo."""

    problems: list[str]
    files: list[Compared]
    verified: dict[str, tp.Any]
    """What was checked besides hashes, for the record."""


def check(
    released: Release, there: Remote, download: bool = False, *, load: Load
) -> Found:
    """Compare a repo with a release.

    Args:
        released: What should be there.
        there: What is there, at some commit.
        download: Compare every byte of every file, and load every checkpoint.
        load: Loads a downloaded checkpoint as its user would.
    """
    if there.commit is None:
        missing: list[Compared] = [(f, "missing") for f in released.files.values()]
        text = f"{released.repo_id}: no such repo, or this token has no access to it"
        return Found([text], missing, {})
    where = f"{released.repo_id} at {there.commit[:12]}"
    problems = hub_repo.access_problems(released.repo_id, there)
    wrong = dict(differences(released, there))
    extra = [
        file
        for path, file in sorted(there.files.items())
        if path not in released.files and path not in NEVER_EXTRA
    ]
    for file in extra:
        say(f"{where}: {one_line(file.path)}: extra, not part of this release")
    chosen = pick(released, datetime.datetime.now(datetime.UTC).date())
    to_fetch = [
        path
        for path in released.files
        if path not in wrong
        # The listing has no sha256 for files in git, and people read these two.
        and (
            download
            or there.files[path].sha256 is None
            or path in ("README.md", "manifest.jsonl")
            or (path == chosen and not wrong)
        )
    ]
    for path in to_fetch:
        try:
            problem = check_download(released, path, there.commit, load)
        except UserError as err:
            problems.append(f"{where}: {path}: {err}")
            break  # the next file would probably fail in the same way
        if problem:
            wrong[path] = problem
    problems += [f"{where}: {path}: {text}" for path, text in wrong.items()]
    files: list[Compared]
    files = [(f, status(p, there, wrong)) for p, f in released.files.items()]
    files += [(file, "extra") for file in extra]
    verified = {
        "loaded": chosen,
        "loader": released.loaders[chosen],
        "extra": [file.path for file in extra],
    }
    if not problems:
        by = "byte for byte" if download else "by hash"
        loaded = n_of(len(released.loaders), "checkpoint") if download else chosen
        n_files = n_of(len(released.files), "file")
        say(f"{where}: verified {n_files} {by} and {loaded} by loading it")
    return Found(problems, sorted(files, key=lambda pair: pair[0].path), verified)


def differences(released: Release, there: Remote) -> tp.Iterator[tuple[str, str]]:
    """The files that differ from the release according to the Hub's listing, and how."""
    for path, file in released.files.items():
        found = there.files.get(path)
        if found is None:
            yield path, f"missing; expected sha256 {file.sha256}"
        elif found.bytes != file.bytes:
            yield path, f"expected {file.bytes} bytes, found {found.bytes}"
        elif found.sha256 is not None and found.sha256 != file.sha256:
            yield path, f"expected sha256 {file.sha256}, found {found.sha256}"


def status(path: str, there: Remote, wrong: dict[str, str]) -> Status:
    if path not in there.files:
        return "missing"
    return "differ" if path in wrong else "match"


def pick(released: Release, day: datetime.date) -> str:
    """The checkpoint to download: a different one each day, the same for everyone."""
    paths = sorted(released.loaders)
    return paths[(int(released.commit, 16) + day.toordinal()) % len(paths)]


def check_download(released: Release, path: str, commit: str, load: Load) -> str:
    """How a file, downloaded into an empty cache, differs from the release; "" if it doesn't.

    Raises:
        UserError: It can't be downloaded.
    """
    with scratch("verify") as cache_dpath:
        fpath, difference = fetch(released, path, commit, cache_dpath)
        if difference or path not in released.loaders:
            return difference
        check_fpath = None
        if CHECK in released.files:
            check_fpath, difference = fetch(released, CHECK, commit, cache_dpath)
            if difference:
                return f"can't be compared with {CHECK}: {difference}"
        return load(fpath, path, released.loaders[path], check_fpath)


def fetch(
    released: Release, path: str, commit: str, cache_dpath: pathlib.Path
) -> tuple[pathlib.Path, str]:
    """Download a file; return its path, and how it differs from the release ("" if not).

    Raises:
        UserError: It can't be downloaded.
    """
    fpath = hub_repo.download(released.repo_id, path, commit, cache_dpath)
    with open(fpath, "rb") as fd:
        found = hashlib.file_digest(fd, "sha256").hexdigest()
    expected = released.files[path].sha256
    differs = f"expected sha256 {expected}, downloaded {found}"
    return fpath, differs if found != expected else ""
