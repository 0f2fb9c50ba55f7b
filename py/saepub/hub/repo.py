"""A model repo on the Hub: what it holds, what a push would change, and the push itself."""

import contextlib
import hashlib
import os
import pathlib
import re
import signal
import sys
import threading
import typing as tp

from ..cli import UserError
from ..text import human, n_of
from . import client as hub
from .client import RepoFile, errors, huggingface_hub

NEVER_EXTRA = (".gitattributes",)
"""Files of the Hub's own making."""


class File(tp.NamedTuple):
    """A file as it should be in a repo."""

    path: str
    bytes: int
    sha256: str


class RemoteFile(tp.NamedTuple):
    path: str
    bytes: int
    sha256: str | None
    """Of a large file; None for one that git holds itself."""
    blob_id: str
    """git's hash of the blob."""


class Remote(tp.NamedTuple):
    """A repo as it is on the Hub. `commit` is None where there is no such repo."""

    commit: str | None
    files: dict[str, RemoteFile]

    @property
    def is_fresh(self) -> bool:
        """Whether nobody has put a file into it yet."""
        return not self.files.keys() - set(NEVER_EXTRA)


class Changes(tp.NamedTuple):
    """What a push would do to a repo."""

    add: list[File]
    change: list[File]
    keep: list[File]
    extra: list[RemoteFile]

    def is_done(self, prune: bool) -> bool:
        """Whether a push would have nothing to do."""
        return not self.add and not self.change and not (prune and self.extra)


def total(files: tp.Sequence[File | RemoteFile]) -> str:
    """How many files and bytes, as people read it."""
    return f"{n_of(len(files), 'file')}, {human(sum(f.bytes for f in files))}"


def url(repo_id: str, commit: str) -> str:
    return f"{hub.endpoint()}/{repo_id}/tree/{commit}"


def remote(repo_id: str, revision: str | None = None) -> Remote:
    """A repo's files at a revision (default: the head of main), without a download.

    Raises:
        UserError: The Hub can't be asked, or has no such revision.
    """

    def ask() -> Remote:
        client = hub.api()
        try:
            commit = client.repo_info(repo_id, revision=revision).sha
        except errors.RepositoryNotFoundError:
            return Remote(None, {})
        files = {}
        for entry in client.list_repo_tree(repo_id, revision=commit, recursive=True):
            if isinstance(entry, RepoFile):
                sha256 = entry.lfs.sha256 if entry.lfs else None
                files[entry.path] = RemoteFile(
                    entry.path, entry.size, sha256, entry.blob_id
                )
        return Remote(commit, files)

    try:
        return hub.retrying(repo_id, ask)
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo_id}: the Hub has no commit {revision}") from None
    except Exception as err:
        raise UserError(f"{repo_id}: can't ask the Hub: {hub.tell(err)}") from err


def compare(there: Remote, here: dict[str, File], dpath: pathlib.Path) -> Changes:
    """What a push of the stage `dpath`, which holds `here`, would do to a repo."""
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
    """Whether the Hub's file is ours: by sha256, or by git's hash of a small file."""
    if there.bytes != here.bytes:
        return False
    if there.sha256 is not None:
        return there.sha256 == here.sha256
    fpath = dpath / here.path
    return fpath.is_file() and there.blob_id == blob_id(fpath.read_bytes())


def blob_id(content: bytes) -> str:
    """The hash by which git knows `content`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def create(repo_id: str) -> None:
    """Make a public repo; fine if it is there by now. Raises what the client raises."""
    hub.api().create_repo(repo_id, private=False, exist_ok=True)


def upload(
    repo_id: str,
    dpath: pathlib.Path,
    changes: Changes,
    parent_commit: str,
    message: str,
    *,
    prune: bool,
) -> str:
    """Send what differs, in one commit on top of `parent_commit`.

    Returns:
        The new commit.

    Raises:
        Whatever the client raises; status 412 where somebody else committed in between.
    """
    # Unchanged files would be hashed again, gigabytes of them.
    send = [_literally(f.path) for f in (*changes.add, *changes.change)]
    delete = [_literally(f.path) for f in changes.extra] if prune else None
    with _interrupted_at_once():
        info = hub.api().upload_folder(
            repo_id=repo_id,
            folder_path=dpath,
            commit_message=message,
            parent_commit=parent_commit,
            allow_patterns=send,
            ignore_patterns=None if send else ["*"],
            delete_patterns=delete,
        )
    return info.oid


@contextlib.contextmanager
def _interrupted_at_once() -> tp.Iterator[None]:
    """Have Ctrl-C end the process, where the client would send all of its queue first.

    Killed at any moment, an upload is gone on with by the next one. The signal is seen by
    a thread of its own: this one may be deep in the Xet library.
    """
    ours, wakeup = os.pipe()
    os.set_blocking(wakeup, False)

    def end_on_signal() -> None:
        if os.read(ours, 1) == bytes([signal.SIGINT]):
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
        os.write(wakeup, b"\0")
        thread.join()
        os.close(ours)
        os.close(wakeup)


def _literally(path: str) -> str:
    """A glob pattern that matches just `path`."""
    return re.sub(r"([*?[])", r"[\1]", path)


def download(repo_id: str, path: str, revision: str, cache_dpath: str) -> str:
    """Fetch one file as a user of the repo would; its path on disk.

    Raises:
        UserError: The Hub does not give it.
    """

    def fetch() -> str:
        return huggingface_hub.hf_hub_download(
            repo_id,
            path,
            revision=revision,
            cache_dir=cache_dpath,
            token=hub.token() or False,
        )

    try:
        return hub.retrying(f"{repo_id}: {path}", fetch)
    except Exception as err:
        raise UserError(f"can't download it: {hub.tell(err)}") from err
