"""A model repo on the Hub: its state and files, what a push would change, and the push."""

import base64
import contextlib
import hashlib
import os
import pathlib
import signal
import sys
import threading
import typing as tp

from ..cli import UserError
from ..text import human, n_of, one_line
from . import client as hub
from .client import RepoFile, errors, huggingface_hub
from .files import NEVER_EXTRA, Changes, File, Remote, RemoteFile

N_PER_PREUPLOAD = 256
SAMPLE_BYTES = 512
"""Of a preupload request: how many files, and how much of each file's start, from which the Hub
tells text from data."""

END = b"\0"
"""Ends the thread that waits for signals: no signal has this number."""


def total(files: tp.Sequence[File | RemoteFile]) -> str:
    """The number of files and bytes, as text."""
    return f"{n_of(len(files), 'file')}, {human(sum(f.bytes for f in files))}"


def url(repo_id: str, commit: str) -> str:
    return f"{hub.endpoint()}/{repo_id}/tree/{commit}"


def remote(repo_id: str, revision: str | None = None) -> Remote:
    """A repo's state and file list at a revision (default: the head of main).

    Raises:
        UserError: The Hub can't be reached, or has no such revision.
    """

    def ask() -> Remote:
        client = hub.api()
        try:
            info = client.model_info(repo_id, revision=revision)
        except errors.RepositoryNotFoundError:
            return Remote(None, {})
        commit = info.sha
        files = {}
        for entry in client.list_repo_tree(repo_id, revision=commit, recursive=True):
            if isinstance(entry, RepoFile):
                sha256 = entry.lfs.sha256 if entry.lfs else None
                files[entry.path] = RemoteFile(
                    entry.path, entry.size, sha256, entry.blob_id
                )
        flags = map(bool, (info.private, info.gated, info.disabled))
        return Remote(commit, files, info.id, *flags)

    try:
        return hub.retrying(repo_id, ask)
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo_id}: the Hub has no commit {revision}") from None
    except Exception as err:
        raise UserError(f"{repo_id}: can't ask the Hub: {hub.explain(err)}") from err


def compare(there: Remote, here: dict[str, File], dpath: pathlib.Path) -> Changes:
    """What a push of the stage `dpath`, with the files `here`, would do to a repo."""
    add, change, keep = [], [], []
    for path, file in here.items():
        if path not in there.files:
            add.append(file)
        elif is_same(there.files[path], file, dpath):
            keep.append(file)
        else:
            change.append(file)
    extra = [
        f for p, f in there.files.items() if p not in here and p not in NEVER_EXTRA
    ]
    return Changes(add, change, keep, extra)


def is_same(there: RemoteFile, here: File, dpath: pathlib.Path) -> bool:
    """Whether the Hub's file is ours, by sha256, or by git's hash for a small file."""
    if there.bytes != here.bytes:
        return False
    if there.sha256 is not None:
        return there.sha256 == here.sha256
    try:
        content = (dpath / here.path).read_bytes()
    except OSError:
        return False
    is_ours = hashlib.sha256(content).hexdigest() == here.sha256
    return is_ours and there.blob_id == blob_id(content)


def blob_id(content: bytes) -> str:
    """git's hash of `content` as a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def create(repo_id: str) -> None:
    """Create a public repo unless it exists. Raises the client's errors."""
    hub.api().create_repo(repo_id, private=False, exist_ok=True)


def access_problems(repo_id: str, there: Remote) -> list[str]:
    """Why a repo is not open to everyone under that name; empty if it doesn't exist."""
    if there.commit is None:
        return []
    settings_url = f"{hub.endpoint()}/{there.repo_id}/settings"
    out = []
    if there.repo_id != repo_id:
        out.append(
            f"{repo_id}: is named {one_line(there.repo_id)} on the Hub; change it in the catalog"
        )
    if there.private:
        out.append(f"{repo_id}: is private; make it public on {settings_url}")
    if there.gated:
        out.append(f"{repo_id}: is gated; open it to everyone on {settings_url}")
    if there.disabled:
        out.append(f"{repo_id}: is disabled by the Hub; see {settings_url}")
    return out


def namesakes(repo_id: str) -> list[str]:
    """The other kinds of repo that exist under that name: "dataset", "space"."""
    found = []
    for kind in ("dataset", "space"):
        # Usually there is none, and it is only for a warning.
        with contextlib.suppress(Exception):
            hub.api().repo_info(repo_id, repo_type=kind)
            found.append(kind)
    return found


def card_problem(text: str) -> str:
    """Why the Hub would reject a README.md; "" if it would accept it.

    Otherwise the Hub would only say so after everything else has been sent.
    """

    # In 1.x, the client's ModelCard.validate asks huggingface.co whatever HF_ENDPOINT is.
    body = {"repoType": "model", "content": text}
    try:
        hub.retrying("README.md", lambda: hub.post("/api/validate-yaml", body))
    except Exception as err:
        if hub.status_of(err) == 400:
            return f"README.md: the Hub rejects it: {hub.explain(err)}"
        raise UserError(
            f"README.md: can't ask the Hub about it: {hub.explain(err)}"
        ) from err
    return ""


def upload_modes(
    repo_id: str, files: list[File], dpath: pathlib.Path
) -> dict[str, str | None]:
    """How the Hub would store each file, "lfs" or "regular"; None for one that it ignores.

    The Hub ignores files by the repo's .gitignore, for example, and the client silently leaves
    them out of its commit. The client has no method that shows this.

    Raises:
        The client's errors; status 403 if the token may not write.
    """
    modes: dict[str, str | None] = dict.fromkeys(file.path for file in files)
    for i in range(0, len(files), N_PER_PREUPLOAD):
        entries = []
        for file in files[i : i + N_PER_PREUPLOAD]:
            with open(dpath / file.path, "rb") as fd:
                sample = base64.b64encode(fd.read(SAMPLE_BYTES)).decode()
            entries.append({"path": file.path, "size": file.bytes, "sample": sample})
        answer = hub.post(f"/api/models/{repo_id}/preupload/main", {"files": entries})
        for entry in answer["files"]:
            if entry["path"] in modes and not entry.get("shouldIgnore"):
                modes[entry["path"]] = entry["uploadMode"]
    return modes


def ignored_problem(repo_id: str, files: list[File], dpath: pathlib.Path) -> str:
    """Which of `files` a commit would lack, and what to do; "" if it would have all.

    Raises:
        UserError: The Hub can't be reached, or doesn't let us write.
    """
    try:
        modes = hub.retrying(repo_id, lambda: upload_modes(repo_id, files, dpath))
    except Exception as err:
        raise UserError(f"{repo_id}: can't write to it: {hub.explain(err)}") from err
    return _describe_ignored(repo_id, modes)


def _describe_ignored(repo_id: str, modes: dict[str, str | None]) -> str:
    paths = [path for path, mode in modes.items() if mode is None]
    if not paths:
        return ""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (
        f"{repo_id}: the Hub would ignore {paths[0]}{more}, probably because of the repo's"
        f" .gitignore; change {hub.endpoint()}/{repo_id}/blob/main/.gitignore"
    )


def upload(
    repo_id: str,
    dpath: pathlib.Path,
    changes: Changes,
    parent_commit: str,
    message: str,
    *,
    description: str,
    prune: bool,
    check: tp.Callable[[], None],
) -> str:
    """Send what differs, in one commit on top of `parent_commit`, or commit nothing.

    Uses `create_commit`, which always makes one commit, takes literal paths and accepts a known
    sha256. `upload_folder` of 2.x splits a large upload into several commits and takes globs.

    Args:
        check: Called after sending everything, before the commit; raises if the files on disk
            are no longer those of `changes`.

    Returns:
        The new commit.

    Raises:
        UserError: A file can't be part of the commit, or changed while being sent.
        Exception: The client's errors; status 412 if somebody else committed.
    """
    files = [*changes.add, *changes.change]
    modes = upload_modes(repo_id, files, dpath)
    if problem := _describe_ignored(repo_id, modes):
        raise UserError(problem.removeprefix(f"{repo_id}: "))
    adds = [_addition(dpath, file, modes[file.path]) for file in files]
    paths = [f.path for f in changes.extra] if prune else []
    deletes = [huggingface_hub.CommitOperationDelete(p, is_folder=False) for p in paths]
    client = hub.api()
    with _interrupted_at_once():
        client.preupload_lfs_files(repo_id, adds, free_memory=False)
        for file, add in zip(files, adds, strict=True):
            info = add.upload_info
            # The Xet library hashes what it sends. A file without a hash was left out.
            if not info.is_hashed and modes[file.path] == "lfs":
                raise UserError(f"{file.path}: the Hub's client did not send it")
            if info.sha256.hex() != file.sha256 or info.size != file.bytes:
                check()
                raise UserError(f"{dpath / file.path}: changed while being sent")
        check()
        done = client.create_commit(
            repo_id,
            [*adds, *deletes],
            commit_message=message,
            commit_description=description,
            parent_commit=parent_commit,
        )
    return done.oid


def _addition(
    dpath: pathlib.Path, file: File, mode: str | None
) -> huggingface_hub.CommitOperationAdd:
    """A file for the client to add.

    A small file, stored in git, is passed as bytes. For LFS, which needs the sha256 in advance,
    we pass the known one, which saves a second read; the Hub checks what arrives against it.
    Xet gets no sha256 and hashes what it sends, so that the hash is of what was really sent.
    """
    if mode == "regular":
        content = (dpath / file.path).read_bytes()
        return huggingface_hub.CommitOperationAdd(file.path, content)
    add = huggingface_hub.CommitOperationAdd(file.path, str(dpath / file.path))
    if not hub.is_by_xet():
        add.upload_info.sha256 = bytes.fromhex(file.sha256)
    return add


def commit_after(repo_id: str, parent: str | None) -> str | None:
    """The commit on main that follows `parent`; None if there is none."""
    commits = hub.retrying(repo_id, lambda: list(hub.api().list_repo_commits(repo_id)))
    ids = [commit.commit_id for commit in commits]  # newest first
    i = ids.index(parent) if parent in ids else 0
    return ids[i - 1] if i > 0 else None


@contextlib.contextmanager
def _interrupted_at_once() -> tp.Iterator[None]:
    """Make Ctrl-C end the process at once; the client would send its whole queue first.

    The next run resumes the upload. A separate thread handles the signal, because this one
    may be inside the Xet library.
    """
    ours, wakeup = os.pipe()
    os.set_blocking(wakeup, False)

    def end_on_signal() -> None:
        # Any signal that Python handles writes its number, a resized terminal for example.
        while (number := os.read(ours, 1)) != END:
            if number == bytes([signal.SIGINT]):
                print(f"{sys.argv[0]}: interrupted", file=sys.stderr, flush=True)
                os._exit(130)

    before = signal.signal(signal.SIGINT, lambda *_: None)
    wakeup_before = signal.set_wakeup_fd(wakeup)
    thread = threading.Thread(target=end_on_signal, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGINT, before)
        os.write(wakeup, END)
        thread.join()
        os.close(ours)
        os.close(wakeup)


def download(
    repo_id: str, path: str, revision: str, cache_dpath: pathlib.Path
) -> pathlib.Path:
    """Download one file as a user of the repo would; return its path on disk.

    Raises:
        UserError: It can't be downloaded.
    """

    def fetch() -> str:
        return hub.api().hf_hub_download(
            repo_id, path, revision=revision, cache_dir=cache_dpath
        )

    try:
        return pathlib.Path(hub.retrying(f"{repo_id}: {path}", fetch))
    except Exception as err:
        raise UserError(f"can't download it: {hub.explain(err)}") from err
