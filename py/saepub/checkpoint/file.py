"""The built-in reader of checkpoints, for every format that saev has written, without saev.

A file is read from disk once, into memory that has a path, so that a loader that takes a path
sees the very bytes that were hashed and checked.
"""

import contextlib
import ctypes
import hashlib
import io
import math
import mmap
import os
import stat
import tempfile
import typing as tp

from ..cli import UserError
from ..text import human, one_line
from . import archive as checkpoint_zip
from . import header as checkpoint_header
from . import pickle as checkpoint_pickle
from .header import Header, Refused
from .sae import Sae

MAX_HEADER_BYTES = 1 << 20
MAX_ARCHIVE_OVERHEAD_BYTES = 1 << 20
"""The most that the zip format may add to the values; torch adds a few kB."""
CHUNK_BYTES = 1 << 22


def load(fpath: str | os.PathLike[str]) -> Sae:
    """Read and check a checkpoint.

    Raises:
        UserError: It can't be read, is damaged, or was not written by saev.
    """
    with File(fpath) as file:
        file.read()
        return file.sae()


class NotFinite(UserError):
    """An intact checkpoint of a run that diverged."""


class File:
    """An open checkpoint. Its header is read at once, the rest by `read`.

    Raises:
        UserError: Here and in every method: one line with the file and what is wrong with it.
    """

    def __init__(self, fpath: str | os.PathLike[str]):
        self.fpath = os.fspath(fpath)
        self.n_bytes = self.mtime_ns = 0
        self.sha256 = ""
        self.stored: dict[str, checkpoint_pickle.Stored] = {}
        self._members: dict[str, memoryview] = {}
        self._memory: Memory | None = None
        self._held = contextlib.ExitStack()
        with self._naming():
            self._fd = self._held.enter_context(_open(self.fpath))
            self._note_stat()
            self._head = self._read_head()
            self.n_header_bytes = self._head.find(b"\n") + 1
            if self.n_header_bytes == 0:
                raise Refused(
                    "no header line; saev writes a line of JSON first"
                    if self.n_bytes
                    else "an empty file"
                )
            head = self._head[: self.n_header_bytes]
            self.header: Header = checkpoint_header.parse(head)

    def __enter__(self) -> tp.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._members, self._memory = {}, None
        self._held.close()

    def read(self) -> None:
        """Read the rest, set `sha256`, and check the archive, its CRCs and its contents.

        Afterwards every value is known to be finite.
        """
        with self._naming():
            memory = self._read_into_memory()
            archive = memory.view(self.n_bytes)[self.n_header_bytes :]
            self._members = checkpoint_zip.members(archive)
            self.stored = checkpoint_pickle.tensors(self._members)
            self._check_stored()
            self._check_finite()

    def sae(self) -> Sae:
        """The SAE, with copies of the tensors. Needs `read` first."""
        import torch

        tensors = {}
        for name, stored in self.stored.items():
            # Values may start at any offset but floats must be aligned, so copy as bytes.
            flat = torch.frombuffer(self._members[stored.member], dtype=torch.uint8)
            tensor = flat.clone().view(torch.float32)
            tensors[name] = tensor.as_strided(stored.shape, stored.strides)
        return Sae(self.header, tensors)

    def difference(self, name: str, tensor: tp.Any) -> str:
        """How a tensor differs from the file's, bit for bit; "" if it doesn't.

        Args:
            name: One of `stored`.
            tensor: A torch tensor with any strides.
        """
        import torch

        stored = self.stored[name]
        if tensor.dtype != torch.float32:
            return f"{name} became {tensor.dtype}"
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device}"
        if tuple(tensor.shape) != stored.shape:
            return f"{name} became {tuple(tensor.shape)}, not {stored.shape}"
        dims = range(len(stored.shape))
        outer_first = sorted(dims, key=lambda dim: -stored.strides[dim])
        # Copies only if the loader laid the values out in another order.
        values = tensor.detach().permute(outer_first).contiguous()
        own = torch.frombuffer(self._members[stored.member], dtype=torch.uint8)
        if _memcmp(values.data_ptr(), own.data_ptr(), len(own)) == 0:
            return ""
        found = values.reshape(-1).view(torch.uint8)
        n_off = int((found != own).view(-1, 4).any(dim=1).sum())
        return f"{name} differs in {n_off} of {values.numel()} values"

    def loader_fpath(self) -> str:
        """A path at which this process can open the bytes that were read."""
        assert self._memory is not None, "read() comes first"
        self._memory.fd.seek(0)  # on some systems, /dev/fd shares the position
        return f"/dev/fd/{self._memory.fd.fileno()}"

    def _note_stat(self) -> None:
        info = os.fstat(self._fd.fileno())
        self.n_bytes, self.mtime_ns = info.st_size, info.st_mtime_ns

    def _read_head(self) -> bytes:
        """The file up to the end of its first line, and a little more."""
        head = b""
        while b"\n" not in head[-(1 << 16) :]:
            if len(head) > MAX_HEADER_BYTES:
                raise Refused(f"no header line in the first {MAX_HEADER_BYTES} bytes")
            text = self._fd.read(1 << 16)
            if not text:
                break
            head += text
        return head

    def _read_into_memory(self) -> "Memory":
        n_values = sum(map(math.prod, self.header.shapes.values()))
        n_most = self.n_header_bytes + 4 * n_values + MAX_ARCHIVE_OVERHEAD_BYTES
        if self.n_bytes > n_most:
            raise Refused(
                f"{human(self.n_bytes)}, but an SAE of {self.header.d_model} by"
                f" {self.header.d_sae} has {human(4 * n_values)}"
            )
        self._memory = memory = Memory.take(self.n_bytes)
        self._held.callback(memory.give_back)
        n_read, digest = len(self._head), hashlib.sha256(self._head)
        before = self.n_bytes, self.mtime_ns
        with memory.view(self.n_bytes) as view:
            view[:n_read] = self._head
            while n_read < self.n_bytes:
                with view[n_read : n_read + CHUNK_BYTES] as chunk:
                    n_more = self._fd.readinto(chunk)
                    digest.update(chunk[:n_more])
                if not n_more:
                    break
                n_read += n_more
        self._note_stat()
        if n_read != self.n_bytes or before != (self.n_bytes, self.mtime_ns):
            raise Refused("it changed while being read; is the run still writing?")
        self.sha256 = digest.hexdigest()
        return memory

    def _check_stored(self) -> None:
        shapes = self.header.shapes
        if "activation.threshold" in shapes.keys() - self.stored.keys():
            raise Refused(
                "no activation.threshold: a BatchTopK SAE from before saev saved one, so"
                " which features fire is unknown; saev refuses it too"
            )
        for name in shapes.keys() ^ self.stored.keys():
            what = "no" if name in shapes else "an unknown tensor"
            raise Refused(f"{what} {one_line(name)[:60]} in its weights")
        for name, stored in self.stored.items():
            if stored.shape != shapes[name]:
                raise Refused(
                    f"{name} has shape {stored.shape}, but the header says {shapes[name]}"
                )
            checkpoint_pickle.check_fills(name, stored, self._members)
        used = {stored.member for stored in self.stored.values()}
        for name in self._members:
            if name.startswith("data/") and name not in used:
                raise Refused(f"its archive has {name}, which no tensor uses")

    def _check_finite(self) -> None:
        import torch

        for name, stored in self.stored.items():
            values = self._members[stored.member]
            # The extremes are NaN if any value is.
            extremes = torch.aminmax(torch.frombuffer(values, dtype=torch.float32))
            if not torch.isfinite(torch.stack(extremes)).all():
                raise NotFinite(f"{self.fpath}: {name} has NaN or infinite values")

    @contextlib.contextmanager
    def _naming(self) -> tp.Iterator[None]:
        """Turn errors raised inside into UserErrors that name the file."""
        try:
            yield
        except (Refused, OSError) as err:
            self.close()
            why = getattr(err, "strerror", None) or err
            raise UserError(f"{self.fpath}: {why}") from None


class Memory:
    """A file in memory and its mapping, reused for one checkpoint after another.

    Having the kernel clear new pages takes longer than filling them.
    """

    _idle: tp.ClassVar[list["Memory"]] = []

    def __init__(self) -> None:
        self.fd = open_memory()
        self._map: mmap.mmap | None = None

    @classmethod
    def take(cls, n_bytes: int) -> "Memory":
        """An unused one, whose file has `n_bytes`."""
        try:
            self = cls._idle.pop()  # one step, since threads may read several at once
        except IndexError:
            self = cls()
        os.truncate(self.fd.fileno(), n_bytes)
        if self._map is None or len(self._map) < n_bytes:
            self._map = mmap.mmap(self.fd.fileno(), n_bytes)
        return self

    def view(self, n_bytes: int) -> memoryview:
        """Its first `n_bytes`. Don't use the view after `give_back`."""
        assert self._map is not None, "take() comes first"
        return memoryview(self._map)[:n_bytes]

    def give_back(self) -> None:
        """Make it available to the next checkpoint; tensors are never views of it."""
        self._idle.append(self)


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def open_memory() -> tp.BinaryIO:
    """A file in memory, with a path only under /dev/fd.

    On systems without memfd_create, an unlinked temporary file.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("sae.pt", os.MFD_CLOEXEC)
        return open(fd, "w+b", buffering=0)
    return tp.cast(tp.BinaryIO, tempfile.TemporaryFile(buffering=0))


def _open(fpath: str) -> io.FileIO:
    """Open a regular file; refuse anything that could block or never end."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(fpath, flags)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "directory" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise Refused(f"a {kind}, not a file")
    return io.FileIO(fd, "rb")
