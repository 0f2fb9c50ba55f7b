"""Reads cached activations, a few examples at a time: .npy files, or saev's shards.

An example is one image or text with its content tokens; in an .npy file it is one row.
"""

import json
import math
import os
import pathlib
import re
import typing as tp

import numpy as np

from ..cli import UserError

ALIASES = {
    "content_tokens_per_example": ("patches_per_ex", "n_patches_per_img"),
    "n_examples": ("n_ex", "n_imgs"),
    "d_model": ("d_vit",),
}
"""The names of fields in older versions of saev's protocol (1.0 to 2.1)."""


class Shard(tp.Protocol):
    """The activations of one layer."""

    fpath: pathlib.Path
    """The file to name in errors."""
    fpaths: list[pathlib.Path]
    """All files that it reads."""
    n_examples: int
    per_example: int
    """Content tokens per example."""
    d_model: int

    def read(self, examples: np.ndarray) -> np.ndarray:
        """Read only the content tokens of some examples from disk.

        Args:
            examples: Their indices, ascending.

        Returns:
            float32 of shape (len(examples) * per_example, d_model), C order.

        Raises:
            UserError: The file is shorter than expected.
        """
        ...


def find(dpath: pathlib.Path, slug: str, layer: int) -> Shard:
    """The activations of a repo's layer, under `dpath/slug` if they exist there, else `dpath`.

    Args:
        dpath: A directory with layer_<N>.npy files, a saev shard with metadata.json, or an
            .npy file.

    Raises:
        UserError: There are none, or they can't be read.
    """
    if dpath.is_file():
        return Npy(dpath)
    name = f"layer_{layer}.npy"
    for base in (dpath / slug, dpath):
        if (base / "metadata.json").is_file():
            return SaevShards(base, layer)
        if (base / name).is_file():
            return Npy(base / name)
    raise UserError(f"{dpath}: no {slug}/{name}, no {name}, and not a saev shard")


def sample(n_examples: int, per_example: int, n_tokens: int) -> np.ndarray:
    """Which examples to measure: whole ones, evenly spaced from the first, always the same.

    Args:
        n_examples: How many there are.
        per_example: Tokens per example.
        n_tokens: How many tokens are wanted. The sample has at least as many, unless there
            are fewer in all.

    Returns:
        Their indices, ascending.
    """
    n = min(n_examples, math.ceil(n_tokens / per_example))
    return np.arange(n, dtype=np.int64) * n_examples // max(n, 1)


def few(shard: Shard, n_tokens: int) -> np.ndarray:
    """The middle tokens of some examples, evenly spaced, always the same.

    Raises:
        UserError: The shard is shorter than it says.
    """
    examples = sample(shard.n_examples, 1, n_tokens)
    return shard.read(examples)[shard.per_example // 2 :: shard.per_example]


def batches(
    shard: Shard, examples: np.ndarray, n_tokens: int
) -> tp.Iterator[np.ndarray]:
    """The tokens of some examples in order, in batches of up to `n_tokens`, but at least one
    example each."""
    n_at_once = max(1, n_tokens // shard.per_example)
    for start in range(0, len(examples), n_at_once):
        yield shard.read(examples[start : start + n_at_once])


class Npy:
    """An .npy file of shape (n, d_model), float16, 32 or 64, in C or Fortran order."""

    per_example = 1

    def __init__(self, fpath: pathlib.Path):
        self.fpath, self.fpaths = fpath, [fpath]
        array = self._map()
        if array.ndim != 2 or array.dtype.kind != "f":
            raise UserError(
                f"{fpath}: {array.dtype} of shape {array.shape}; activations are floats"
                " of shape (n, d_model)"
            )
        self.n_examples, self.d_model = array.shape

    def _map(self) -> np.ndarray:
        try:
            array = np.load(self.fpath, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as err:
            raise UserError(
                f"{self.fpath}: not an .npy file of numbers: {err}"
            ) from None
        if not isinstance(array, np.ndarray):
            raise UserError(f"{self.fpath}: an archive, not one .npy array")
        return array

    def read(self, examples: np.ndarray) -> np.ndarray:
        # Mapped again each time, so that pages read earlier don't stay in memory.
        rows = self._map()[examples]
        with np.errstate(over="ignore"):  # reported later, as not finite
            return np.ascontiguousarray(rows, dtype=np.float32)


class SaevShards:
    """One layer of activations cached by saev, content tokens only.

    The format is specified in saev's docs/src/developers/protocol.md. Each acts*.bin is
    float32, C order, of shape (examples, layers, tokens, d_model); the first token is [CLS]
    if `cls_token` is true. The last file may be longer than shards.json says.
    """

    def __init__(self, dpath: pathlib.Path, layer: int):
        self.fpath = dpath / "metadata.json"
        meta = _json(self.fpath, dict)
        layers = meta.get("layers")
        if not isinstance(layers, list) or layer not in layers:
            raise UserError(f"{self.fpath}: layer {layer} is not one of {layers}")
        if meta.get("dtype", "float32") != "float32":
            raise UserError(f"{self.fpath}: its dtype is not float32")
        self.i_layer, self.n_layers = layers.index(layer), len(layers)
        self.n_special = int(bool(meta.get("cls_token")))
        self.per_example = _count(self.fpath, meta, "content_tokens_per_example")
        self.d_model = _count(self.fpath, meta, "d_model")
        self.files = self._files(dpath / "shards.json")
        acts_fpaths = [acts_fpath for acts_fpath, _ in self.files]
        self.fpaths = [self.fpath, dpath / "shards.json", *acts_fpaths]
        ends = np.cumsum([n for _, n in self.files], dtype=np.int64)
        self.starts = np.concatenate([[0], ends])
        """The index of each file's first example, and the number of examples."""
        self.n_examples = int(self.starts[-1])
        if self.n_examples != _count(self.fpath, meta, "n_examples"):
            raise UserError(
                f"{self.fpath}: n_examples differs from the {self.n_examples} in"
                " shards.json; is the shard incomplete?"
            )

    def _files(self, fpath: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        """Each file with examples, and their number."""
        files = []
        for entry in _json(fpath, list):
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not re.fullmatch(r"acts\d+\.bin", name):
                raise UserError(f"{fpath}: an entry without a name like acts<N>.bin")
            n_examples = _count(fpath, entry, "n_examples")
            n_bytes = self._offset(n_examples, 0, 0)
            acts_fpath = fpath.with_name(name)
            if not acts_fpath.is_file() or acts_fpath.stat().st_size < n_bytes:
                raise UserError(
                    f"{acts_fpath}: missing, or shorter than {n_bytes} bytes"
                )
            if n_examples:
                files.append((acts_fpath, n_examples))
        return files

    def _offset(self, example: int, i_layer: int, token: int) -> int:
        """The byte offset of a token in its file."""
        n_tokens = self.n_special + self.per_example
        i = (example * self.n_layers + i_layer) * n_tokens + token
        return 4 * self.d_model * i

    def read(self, examples: np.ndarray) -> np.ndarray:
        tokens = np.empty((len(examples), self.per_example, self.d_model), np.float32)
        i_files = np.searchsorted(self.starts, examples, side="right") - 1
        for i_file in np.unique(i_files):
            fpath, _ = self.files[i_file]
            with open(fpath, "rb", buffering=0) as fd:
                # Don't read ahead: other layers and examples lie between.
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(fd.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for i in np.flatnonzero(i_files == i_file):
                    example = int(examples[i] - self.starts[i_file])
                    fd.seek(self._offset(example, self.i_layer, self.n_special))
                    _read_whole(fd, memoryview(tokens[i]).cast("B"), fpath)
        return tokens.reshape(-1, self.d_model)


def _read_whole(fd: tp.BinaryIO, view: memoryview, fpath: pathlib.Path) -> None:
    n_read = 0
    while n_read < len(view):
        n_more = fd.readinto(view[n_read:])  # type: ignore[attr-defined]
        if not n_more:
            raise UserError(f"{fpath}: truncated while being read")
        n_read += n_more


def _json(fpath: pathlib.Path, kind: type) -> tp.Any:
    try:
        obj = json.loads(fpath.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise UserError(f"{fpath}: not JSON: {err}") from None
    if not isinstance(obj, kind):
        raise UserError(f"{fpath}: not a {kind.__name__}, which saev writes there")
    return obj


def _count(fpath: pathlib.Path, obj: dict[str, tp.Any], name: str) -> int:
    for key in (name, *ALIASES[name]):
        count = obj.get(key)
        if type(count) is int and count >= 0:
            return count
    raise UserError(f'{fpath}: no whole number "{name}"')
