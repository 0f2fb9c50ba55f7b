"""Activations on disk, a batch at a time: .npy files, or the shards that saev caches.

A batch is mapped, copied out and unmapped again, so that a shard of any size takes no more
memory than its batch.
"""

import json
import math
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
"""What older versions of saev's protocol (1.0 to 2.1) call a field."""


class Shard(tp.Protocol):
    """The activations of one layer."""

    fpath: pathlib.Path
    fpaths: list[pathlib.Path]
    """All files that it reads."""
    n_tokens: int
    d_model: int

    def n_batches(self, n_most: int) -> int: ...

    def batches(self, n_most: int) -> tp.Iterator[np.ndarray]:
        """All tokens in order, up to `n_most` at a time, float32 of shape (n, d_model)."""
        ...


def find(dpath: pathlib.Path, slug: str, layer: int) -> Shard:
    """The activations of a repo's layer: under `dpath/slug` where that is there, else `dpath`.

    Args:
        dpath: Holds layer_<N>.npy files, or is a directory of saev's with metadata.json.
        slug: The repo.
        layer: The layer.

    Raises:
        UserError: There are none, or they can't be read.
    """
    name = f"layer_{layer}.npy"
    for base in (dpath / slug, dpath):
        if (base / "metadata.json").is_file():
            return SaevShards(base, layer)
        if (base / name).is_file():
            return Npy(base / name)
    raise UserError(f"{dpath}: no {slug}/{name}, no {name}, and no shards of saev's")


class Npy:
    """An .npy file of shape (n, d_model), float16, 32 or 64, in C or Fortran order."""

    def __init__(self, fpath: pathlib.Path):
        self.fpath, self.fpaths = fpath, [fpath]
        array = self._map()
        if array.ndim != 2 or array.dtype.kind != "f":
            raise UserError(
                f"{fpath}: {array.dtype} of shape {array.shape}; activations are floats"
                " of shape (n, d_model)"
            )
        self.n_tokens, self.d_model = array.shape

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

    def n_batches(self, n_most: int) -> int:
        return math.ceil(self.n_tokens / n_most)

    def batches(self, n_most: int) -> tp.Iterator[np.ndarray]:
        for start in range(0, self.n_tokens, n_most):
            rows = self._map()[start : start + n_most]
            with np.errstate(over="ignore"):  # told later, as not finite
                batch = np.array(rows, dtype=np.float32, order="C")
            yield batch


class SaevShards:
    """One layer of the activations that saev cached, content tokens only.

    Source: docs/src/developers/protocol.md in saev. Each acts*.bin is float32, C order, of
    shape (examples, layers, tokens, d_model); the first token is [CLS] where `cls_token`
    is true. The last file has room for more examples than shards.json says it holds.
    """

    def __init__(self, dpath: pathlib.Path, layer: int):
        self.fpath = dpath / "metadata.json"
        meta = _json(self.fpath, dict)
        layers = meta.get("layers")
        if not isinstance(layers, list) or layer not in layers:
            raise UserError(f"{self.fpath}: its layers are {layers}, without {layer}")
        if meta.get("dtype", "float32") != "float32":
            raise UserError(f"{self.fpath}: its dtype is not float32")
        self.i_layer, self.n_layers = layers.index(layer), len(layers)
        self.n_special = int(bool(meta.get("cls_token")))
        self.n_content = _count(self.fpath, meta, "content_tokens_per_example")
        self.d_model = _count(self.fpath, meta, "d_model")
        self.files = self._files(dpath / "shards.json")
        self.fpaths = [self.fpath, *(fpath for fpath, _ in self.files)]
        n_examples = sum(n for _, n in self.files)
        if n_examples != _count(self.fpath, meta, "n_examples"):
            raise UserError(
                f"{self.fpath}: promises another number of examples than the"
                f" {n_examples} that shards.json lists; was it written to the end?"
            )
        self.n_tokens = n_examples * self.n_content

    def _files(self, fpath: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        """Each file that holds examples, and how many."""
        files = []
        for entry in _json(fpath, list):
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not re.fullmatch(r"acts\d+\.bin", name):
                raise UserError(f"{fpath}: an entry that names no acts<N>.bin")
            n_examples = _count(fpath, entry, "n_examples")
            n_bytes = 4 * math.prod(self._shape(n_examples))
            acts_fpath = fpath.with_name(name)
            if not acts_fpath.is_file() or acts_fpath.stat().st_size < n_bytes:
                raise UserError(
                    f"{acts_fpath}: not there, or less than {n_bytes} bytes"
                )
            if n_examples:
                files.append((acts_fpath, n_examples))
        return files

    def _shape(self, n_examples: int) -> tuple[int, int, int, int]:
        n_tokens = self.n_special + self.n_content
        return n_examples, self.n_layers, n_tokens, self.d_model

    def _n_at_once(self, n_most: int) -> int:
        """Examples a batch: one at least, however many tokens that is."""
        return max(1, n_most // self.n_content)

    def n_batches(self, n_most: int) -> int:
        return sum(math.ceil(n / self._n_at_once(n_most)) for _, n in self.files)

    def batches(self, n_most: int) -> tp.Iterator[np.ndarray]:
        n_at_once = self._n_at_once(n_most)
        for fpath, n_examples in self.files:
            for start in range(0, n_examples, n_at_once):
                acts = np.memmap(fpath, np.float32, "r", shape=self._shape(n_examples))
                end = start + n_at_once
                tokens = np.array(acts[start:end, self.i_layer, self.n_special :])
                yield tokens.reshape(-1, self.d_model)


def _json(fpath: pathlib.Path, kind: type) -> tp.Any:
    try:
        obj = json.loads(fpath.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise UserError(f"{fpath}: not JSON: {err}") from None
    if not isinstance(obj, kind):
        raise UserError(f"{fpath}: not what saev writes there")
    return obj


def _count(fpath: pathlib.Path, obj: dict, name: str) -> int:
    for key in (name, *ALIASES[name]):
        if type(obj.get(key)) is int and obj[key] >= 0:
            return obj[key]
    raise UserError(f'{fpath}: no count "{name}"')
