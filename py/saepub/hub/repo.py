"""A model repo on the Hub: what it is, what it holds, what a push would change, and the push."""

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

NEVER_EXTRA = (".gitattributes",)
"""Files of the Hub's own making."""

N_PER_PREUPLOAD = 256
SAMPLE_BYTES = 512
"""Of preupload: files a request, and the head of each, by which the Hub tells text from data."""

END = b"\0"
"""Ends the thread that waits for signals: no signal has this number."""

Status = tp.Literal["match", "differ", "missing", "extra"]
"""What a comparison finds of a file: the Hub has it as it should be, has another, lacks it, or
has one besides."""


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
    repo_id: str = ""
    """Its name there, which is another than the one asked for where it was renamed."""
    private: bool = False
    gated: bool = False
    disabled: bool = False

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

    def by_file(self) -> tp.Iterator[tuple[File | RemoteFile, Status]]:
        """Every file of the release, and those besides, each with what was found."""
        parts: tuple[tuple[tp.Sequence[File | RemoteFile], Status], ...] = (
            (self.keep, "match"),
            (self.change, "differ"),
            (self.add, "missing"),
            (self.extra, "extra"),
        )
        found = [(file, status) for files, status in parts for file in files]
        yield from sorted(found, key=lambda pair: pair[0].path)


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
    try:
        content = (dpath / here.path).read_bytes()
    except OSError:
        return False
    is_ours = hashlib.sha256(content).hexdigest() == here.sha256
    return is_ours and there.blob_id == blob_id(content)


def blob_id(content: bytes) -> str:
    """The hash by which git knows `content`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def create(repo_id: str) -> None:
    """Make a public repo; fine if it is there by now. Raises what the client raises."""
    hub.api().create_repo(repo_id, private=False, exist_ok=True)


def not_as_named(repo_id: str, there: Remote) -> list[str]:
    """In what a repo is not the public model repo of that name; empty where it is not there."""
    if there.commit is None:
        return []
    url_ = f"{hub.endpoint()}/{there.repo_id}/settings"
    out = []
    if there.repo_id != repo_id:
        out.append(
            f"{repo_id}: is {one_line(there.repo_id)} on the Hub; put that into the catalog"
        )
    if there.private:
        out.append(f"{repo_id}: is private; make it public on {url_}")
    if there.gated:
        out.append(f"{repo_id}: is gated, not open to all; change that on {url_}")
    if there.disabled:
        out.append(f"{repo_id}: is disabled by the Hub; see {url_}")
    return out


def namesakes(repo_id: str) -> list[str]:
    """The kinds of repo besides models that have that name: "dataset", "space"."""
    found = []
    for kind in ("dataset", "space"):
        with contextlib.suppress(
            Exception
        ):  # none, most often; it is only for a warning
            hub.api().repo_info(repo_id, repo_type=kind)
            found.append(kind)
    return found


def refused_card(text: str) -> str:
    """Why the Hub would not take a README.md; "" where it would.

    It would say so in the end, when all the rest has been sent.
    """

    # The client's own ModelCard.validate asks huggingface.co, whatever HF_ENDPOINT is, in 1.x.
    body = {"repoType": "model", "content": text}
    try:
        hub.retrying("README.md", lambda: hub.post("/api/validate-yaml", body))
    except Exception as err:
        if hub.status_of(err) == 400:
            return f"README.md: the Hub refuses it: {hub.explain(err)}"
        raise UserError(
            f"README.md: can't ask the Hub about it: {hub.explain(err)}"
        ) from err
    return ""


def upload_modes(
    repo_id: str, files: list[File], dpath: pathlib.Path
) -> dict[str, str | None]:
    """How the Hub would take each file: "lfs" or "regular"; None for one that it keeps out.

    A rule of the repo's .gitignore, say, keeps files out: the client leaves them out of its
    commit and says nothing. What it does by this answer, nobody can ask it.

    Raises:
        Whatever the client raises; status 403 where the token may not write.
    """
    modes: dict[str, str | None] = dict.fromkeys(file.path for file in files)
    for i in range(0, len(files), N_PER_PREUPLOAD):
        asked = []
        for file in files[i : i + N_PER_PREUPLOAD]:
            with open(dpath / file.path, "rb") as fd:
                sample = base64.b64encode(fd.read(SAMPLE_BYTES)).decode()
            asked.append({"path": file.path, "size": file.bytes, "sample": sample})
        answer = hub.post(f"/api/models/{repo_id}/preupload/main", {"files": asked})
        for file_ in answer["files"]:
            if file_["path"] in modes and not file_.get("shouldIgnore"):
                modes[file_["path"]] = file_["uploadMode"]
    return modes


def kept_out(repo_id: str, files: list[File], dpath: pathlib.Path) -> str:
    """Which of `files` a commit would lack, and the way out; "" where it would have all.

    Raises:
        UserError: The Hub can't be asked, or does not let us write.
    """
    try:
        modes = hub.retrying(repo_id, lambda: upload_modes(repo_id, files, dpath))
    except Exception as err:
        raise UserError(f"{repo_id}: can't write to it: {hub.explain(err)}") from err
    return _left_out(repo_id, modes)


def _left_out(repo_id: str, modes: dict[str, str | None]) -> str:
    paths = [path for path, mode in modes.items() if mode is None]
    if not paths:
        return ""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (
        f"{repo_id}: the Hub would leave out {paths[0]}{more}, as a rule of the repo's"
        f" .gitignore does; change {hub.endpoint()}/{repo_id}/blob/main/.gitignore"
    )


def upload(
    repo_id: str,
    dpath: pathlib.Path,
    changes: Changes,
    parent_commit: str,
    message: str,
    *,
    description: str = "",
    prune: bool,
    hold: tp.Callable[[], None],
) -> str:
    """Send what differs, in one commit on top of `parent_commit`, or commit nothing.

    By `create_commit`, which makes one commit by contract (`upload_folder` of 2.x makes
    several of a large upload, with no option against it), takes paths as they are, where
    that takes globs, and can be told a sha256 that is known.

    Args:
        hold: Called when all is sent, before the commit; raises where the files on disk
            are no longer those of `changes`.

    Returns:
        The new commit.

    Raises:
        UserError: A file can't be part of the commit, or changed while it was sent.
        Exception: Whatever the client raises; status 412 where somebody else committed.
    """
    files = [*changes.add, *changes.change]
    modes = upload_modes(repo_id, files, dpath)
    if problem := _left_out(repo_id, modes):
        raise UserError(problem.removeprefix(f"{repo_id}: "))
    adds = [_addition(dpath, file, modes[file.path]) for file in files]
    paths = [f.path for f in changes.extra] if prune else []
    deletes = [huggingface_hub.CommitOperationDelete(p, is_folder=False) for p in paths]
    client = hub.api()
    with _interrupted_at_once():
        client.preupload_lfs_files(repo_id, adds, free_memory=False)
        for file, add in zip(files, adds, strict=True):
            info = add.upload_info
            # The Xet library has hashed what it sent, and the client has not hashed a
            # file that it left out.
            if not info.is_hashed and modes[file.path] == "lfs":
                raise UserError(f"{file.path}: the Hub's client did not send it")
            if info.sha256.hex() != file.sha256 or info.size != file.bytes:
                hold()
                raise UserError(f"{dpath / file.path}: changed while it was sent")
        hold()
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

    What git itself holds goes as bytes that have been held to their sha256. Of the others
    LFS wants the sha256 beforehand, and is told the one that we know, which spares reading
    the file twice; the Hub holds what comes to it. Xet hashes what it sends while it sends
    it, and is not told: so the hash is that of what went out.
    """
    if mode == "regular":
        content = (dpath / file.path).read_bytes()
        return huggingface_hub.CommitOperationAdd(file.path, content)
    add = huggingface_hub.CommitOperationAdd(file.path, str(dpath / file.path))
    if not hub.is_by_xet():
        add.upload_info.sha256 = bytes.fromhex(file.sha256)
    return add


def commit_after(repo_id: str, parent: str | None) -> str | None:
    """The commit of main that was made on top of `parent`; None where there is none."""
    commits = hub.retrying(repo_id, lambda: list(hub.api().list_repo_commits(repo_id)))
    ids = [commit.commit_id for commit in commits]  # newest first
    i = ids.index(parent) if parent in ids else 0
    return ids[i - 1] if i > 0 else None


@contextlib.contextmanager
def _interrupted_at_once() -> tp.Iterator[None]:
    """Have Ctrl-C end the process, where the client would send all of its queue first.

    An upload that was killed is resumed by the next run. The signal is seen by a thread of
    its own: this one may be deep in the Xet library.
    """
    ours, wakeup = os.pipe()
    os.set_blocking(wakeup, False)

    def end_on_signal() -> None:
        # Any signal that Python handles writes its number (a resized terminal, say).
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


def download(repo_id: str, path: str, revision: str, cache_dpath: str) -> str:
    """Fetch one file as a user of the repo would; its path on disk.

    Raises:
        UserError: The Hub does not give it.
    """

    def fetch() -> str:
        return hub.api().hf_hub_download(
            repo_id, path, revision=revision, cache_dir=cache_dpath
        )

    try:
        return hub.retrying(f"{repo_id}: {path}", fetch)
    except Exception as err:
        raise UserError(f"can't download it: {hub.explain(err)}") from err
