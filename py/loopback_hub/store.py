"""What the Hub holds, on disk.

    models/<namespace>/<name>/repo.json         its id, when it was created, its head commit
                             /commits/<id>.json each commit's manifest
                             /objects/<sha256>  each distinct content once, read-only
                             /xet/              the chunk store that Xet clients write to
                             /main/             main as a readable tree, for people
    tmp/                                        what is being written; emptied at start

A file is written under tmp/ and then renamed: objects before the manifest that names them,
and repo.json last, so that a kill at any moment leaves the old state or the new one.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import threading
import typing as tp
import uuid

from . import xet
from .wire import HubError, Json

FIRST_PATTERNS = """7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz
onnx ot parquet pb pickle pkl pt pth rar safetensors tar.* tar tflite tgz wasm xz zip zst"""

GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in (
        *(f"*.{suffix}" for suffix in FIRST_PATTERNS.split()),
        "saved_model/**/*",
        "*tfevents*",
    )
)
"""The one file in a new model repo's initial commit: which names the Hub stores as LFS."""


def now() -> str:
    """The current time as the Hub writes it."""
    moment = datetime.datetime.now(datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git holds in place of an LFS file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode()


class InUse(Exception):
    """Another process uses the directory."""


class Store:
    """All repos under a directory, which only one process at a time may use.

    Raises:
        InUse: Another process uses the directory.
    """

    def __init__(self, dpath: pathlib.Path):
        self.dpath = dpath
        dpath.mkdir(parents=True, exist_ok=True)
        self._lock_fd = open(dpath / ".lock", "w")  # noqa: SIM115 (open as long as we are)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_fd.close()
            raise InUse(
                f"{dpath}: another loopback Hub runs on this directory; stop it first"
            ) from None
        self.tmp_dpath = dpath / "tmp"
        shutil.rmtree(self.tmp_dpath, ignore_errors=True)
        self.tmp_dpath.mkdir()
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        """New names by old ones, since the start."""
        self.lock = threading.RLock()
        for fpath in sorted(dpath.glob("models/*/*/repo.json")):
            repo = Repo(self, f"{fpath.parts[-3]}/{fpath.parts[-2]}")
            repo.load()
            self.repos[repo.id] = repo

    def close(self) -> None:
        shutil.rmtree(self.tmp_dpath, ignore_errors=True)
        self._lock_fd.close()

    def aside(self) -> pathlib.Path:
        """A new path under tmp/."""
        return self.tmp_dpath / uuid.uuid4().hex

    def write_json(self, fpath: pathlib.Path, data: object) -> None:
        aside = self.aside()
        aside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        fpath.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, fpath)

    def known_as(self, repo_id: str) -> str | None:
        """The name of a repo that was renamed, or is asked for with its letters in another case."""
        names = {name.casefold(): name for name in self.repos}
        names |= {old.casefold(): new for old, new in self.moved.items()}
        return names.get(repo_id.casefold())

    def rename(self, repo_id: str, new_id: str) -> None:
        with self.lock:
            repo = self.repos.pop(repo_id)
            target = self.dpath / "models" / new_id
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(repo.dpath, target)
            repo.id, repo.dpath = new_id, target
            repo.xet = xet.ChunkStore(target / "xet")
            self.repos[new_id], self.moved[repo_id] = repo, new_id

    def create(self, repo_id: str, author: str, *, private: bool = False) -> "Repo":
        """Create a repo, with the Hub's initial commit."""
        with self.lock:
            assert repo_id not in self.repos, f"{repo_id} is there already"
            repo = Repo(self, repo_id)
            repo.private, repo.created_at = private, now()
            content = GITATTRIBUTES.encode()
            files = {".gitattributes": repo.add_regular(content)}
            repo.add_commit(files, "initial commit", "", author)
            self.repos[repo_id] = repo
            return repo


class Repo:
    """One repo: its commits, oldest first, as in their manifests.

    A manifest's `files` maps a path to {"size", "sha256", "blob_id", "lfs", "xet_hash"}.
    """

    def __init__(self, store: Store, repo_id: str):
        self.store, self.id = store, repo_id
        self.dpath = store.dpath / "models" / repo_id
        self.xet = xet.ChunkStore(self.dpath / "xet")
        self.private, self.created_at = False, ""
        self.gated: bool | str = False
        self.disabled = False
        self.commits: list[Json] = []
        self.lock = threading.RLock()

    @property
    def head(self) -> Json:
        return self.commits[-1]

    def load(self) -> None:
        meta = json.loads((self.dpath / "repo.json").read_text(encoding="utf-8"))
        self.private, self.created_at = meta["private"], meta["created_at"]
        commit_id = meta["head"]
        while commit_id is not None:
            text = (self.dpath / "commits" / f"{commit_id}.json").read_text("utf-8")
            self.commits.insert(0, json.loads(text))
            commit_id = self.commits[0]["parent"]
        self.show_main()

    def at(self, revision: str) -> Json:
        """The commit that a revision names: main, or a whole commit id."""
        if revision in ("main", "refs/heads/main"):
            return self.head
        for commit in self.commits:
            if commit["id"] == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def object_fpath(self, sha256: str) -> pathlib.Path:
        return self.dpath / "objects" / sha256

    def has_object(self, sha256: str, size: int) -> bool:
        try:
            return self.object_fpath(sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def take_object(self, fpath: pathlib.Path, sha256: str) -> None:
        """Move a file, whose sha256 has been computed, to the objects."""
        os.chmod(fpath, 0o444)
        target = self.object_fpath(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fpath, target)

    def receive(self, chunks: tp.Iterable[memoryview], sha256: str) -> None:
        """Write an upload to the objects, and hash it on the way.

        Raises:
            HubError: The content is not what was announced.
        """
        aside, digest = self.store.aside(), hashlib.sha256()
        try:
            with open(aside, "wb") as fd:
                for chunk in chunks:
                    digest.update(chunk)
                    fd.write(chunk)
            if digest.hexdigest() != sha256:
                raise HubError(400, f"The content's sha256 is not {sha256}")
            self.take_object(aside, sha256)
        finally:
            aside.unlink(missing_ok=True)

    def add_regular(self, content: bytes) -> Json:
        """Store a file that git itself holds; its entry for a manifest."""
        sha256, blob_id = hashlib.sha256(content).hexdigest(), git_blob_id(content)
        self.receive([memoryview(content)], sha256)
        return _entry(len(content), sha256, blob_id, lfs=False)

    def lfs_entries(self, sizes: dict[str, int]) -> dict[str, Json]:
        """Manifest entries of LFS files by sha256; a file that no transport brought has none.

        A Xet upload is read back from its chunks here, so that no entry rests on the
        client's word alone.

        Args:
            sizes: The files' sizes in bytes by sha256, as the client announces them.
        """
        xet_hashes = self._verified_xet_hashes()
        pairs = [
            pair for sha256 in sizes if (pair := self.xet.find(sha256)) is not None
        ]
        pairs = [
            pair
            for pair in pairs
            if pair.sha256 not in xet_hashes and pair.size == sizes[pair.sha256]
        ]
        if pairs:
            asides = [self.store.aside() for _ in pairs]
            found = self.xet.read_back(pairs, asides, self.store.aside())
            for pair, aside, sha256 in zip(pairs, asides, found, strict=True):
                if sha256 == pair.sha256:
                    self.take_object(aside, sha256)
                    xet_hashes[sha256] = pair.xet_hash
                aside.unlink(missing_ok=True)
        entries = {}
        for sha256, size in sizes.items():
            if self.has_object(sha256, size):
                blob_id, xet_hash = (
                    git_blob_id(lfs_pointer(sha256, size)),
                    xet_hashes.get(sha256),
                )
                entries[sha256] = _entry(
                    size, sha256, blob_id, lfs=True, xet_hash=xet_hash
                )
        return entries

    def _verified_xet_hashes(self) -> dict[str, str]:
        """Xet hashes by sha256 of all files that earlier commits have read back."""
        return {
            entry["sha256"]: entry["xet_hash"]
            for commit in self.commits
            for entry in commit["files"].values()
            if entry["xet_hash"] is not None
        }

    def add_commit(
        self, files: dict[str, Json], title: str, message: str, author: str
    ) -> Json:
        """Make `files`, a complete tree, the new head."""
        commit = {
            "parent": self.head["id"] if self.commits else None,
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
            "files": dict(sorted(files.items())),
        }
        text = json.dumps(commit, sort_keys=True)
        commit = {"id": hashlib.sha1(text.encode()).hexdigest()} | commit
        fpath = self.dpath / "commits" / f"{commit['id']}.json"
        self.store.write_json(fpath, commit)
        meta = {
            "id": self.id,
            "private": self.private,
            "created_at": self.created_at,
            "head": commit["id"],
        }
        self.store.write_json(self.dpath / "repo.json", meta)
        self.commits.append(commit)
        self.show_main()
        return commit

    def show_main(self) -> None:
        """Lay out the head's files under main/, which only people read."""
        new, old, main = self.store.aside(), self.store.aside(), self.dpath / "main"
        for path, entry in self.head["files"].items():
            fpath = new / path
            fpath.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.object_fpath(entry["sha256"]), fpath)
        with contextlib.suppress(FileNotFoundError):
            os.rename(main, old)
        os.rename(new, main)
        shutil.rmtree(old, ignore_errors=True)


def _entry(
    size: int, sha256: str, blob_id: str, *, lfs: bool, xet_hash: str | None = None
) -> Json:
    return {
        "size": size,
        "sha256": sha256,
        "blob_id": blob_id,
        "lfs": lfs,
        "xet_hash": xet_hash,
    }
