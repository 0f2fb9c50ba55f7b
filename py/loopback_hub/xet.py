"""The chunk store that a Xet client writes to when the write token names `local://<dir>`.

The client cuts a file into chunks, packs them into xorbs, and writes a shard (`*.mdb`) that
says which chunks make up the file with which Xet hash. A shard is a 48-byte header and then
48-byte records: for each file one record (hash, flags, number of entries), its entries, as
many verification records if the flags' top bit is set, and one more record that begins with
the file's sha256 if the next bit is set. A record whose hash is all ones ends the list.
"""

import contextlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import typing as tp

RECORD = 48
END = b"\xff" * 32
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


class Pair(tp.NamedTuple):
    """A file as the store knows it."""

    sha256: str
    xet_hash: str
    size: int


def _hex(words: bytes) -> str:
    """A hash as text: every eight bytes are a little-endian number."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))


def read_shard(fpath: pathlib.Path) -> list[Pair]:
    """The files of a shard for which it has a sha256.

    Raises:
        struct.error: The shard is cut short.
    """
    data, at = fpath.read_bytes(), RECORD
    pairs: list[Pair] = []
    while True:
        file_hash, flags, n_entries = struct.unpack_from("<32sII", data, at)
        if file_hash == END:
            return pairs
        at += RECORD
        size = 0
        for _ in range(n_entries):
            size += struct.unpack_from("<I", data, at + 36)[0]
            at += RECORD
        if flags & HAS_VERIFICATION:
            at += RECORD * n_entries
        if flags & HAS_SHA256:
            (sha256,) = struct.unpack_from("<32s", data, at)
            pairs.append(Pair(_hex(sha256), _hex(file_hash), size))
            at += RECORD


class ChunkStore:
    """One repo's chunks. The client's library locks the directory while it uploads."""

    def __init__(self, dpath: pathlib.Path):
        self.dpath = dpath
        self._pairs: dict[str, Pair] = {}
        self._seen: set[pathlib.Path] = set()

    def find(self, sha256: str) -> Pair | None:
        """What the shards say about a file."""
        for fpath in sorted(self.dpath.rglob("shards/*.mdb")):
            if fpath in self._seen:
                continue
            try:
                pairs = read_shard(fpath)
            except struct.error:
                continue  # Not complete yet, or never will be: its client was killed.
            self._pairs |= {pair.sha256: pair for pair in pairs}
            self._seen.add(fpath)
        return self._pairs.get(sha256)

    def n_bytes(self) -> int:
        """Bytes of chunks in the store, as they are packed."""
        return sum(
            fpath.stat().st_size for fpath in self.dpath.rglob("xorbs/default.*")
        )

    def view(self, dpath: pathlib.Path) -> None:
        """Lay out the store under another directory, for one reader.

        The library allows one process at a time in a directory, and the client still uses
        the store's own while it waits for its commit. Chunks never change, so they are
        linked; the library's index (`*.redb`) does, so it is copied.
        """

        def link(source: str, target: str) -> None:
            if source.endswith(".redb"):
                shutil.copyfile(source, target)
            else:
                with contextlib.suppress(FileNotFoundError):  # It was temporary.
                    os.link(source, target)

        shutil.copytree(self.dpath, dpath, copy_function=link)

    def read_back(
        self, pairs: list[Pair], fpaths: list[pathlib.Path], view_dpath: pathlib.Path
    ) -> list[str | None]:
        """Write the files that the chunks make up to `fpaths`.

        In a child process, to keep the library's buffers and crashes out of the server.

        Returns:
            The sha256 of each; None where the chunks do not make up a file.
        """
        files = [
            {"xet_hash": pair.xet_hash, "size": pair.size, "fpath": str(fpath)}
            for pair, fpath in zip(pairs, fpaths, strict=True)
        ]
        self.view(view_dpath)
        try:
            done = subprocess.run(
                [sys.executable, "-I", pathlib.Path(__file__).with_name("xet_read.py")],
                input=json.dumps({"dpath": str(view_dpath), "files": files}).encode(),
                capture_output=True,
                check=False,
                env={"HF_XET_CACHE": str(view_dpath / "cache")},
            )
        finally:
            shutil.rmtree(view_dpath, ignore_errors=True)
        if done.returncode != 0:
            raise RuntimeError(f"reading Xet chunks: {done.stderr.decode().strip()}")
        found: list[str | None] = json.loads(done.stdout)
        return found
