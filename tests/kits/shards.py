"""Cached activations for tests: shards as saev's own writer leaves them, and .npy files.

write(dpath, x, layers=(3, 6), ...)     activations x of the last layer, other values in the others
write_layers(dpath, {layer: x})         activations of several layers
write_npy(fpath, x)
"""

import json
import math
import pathlib

import numpy as np

PER_FILE = 4
"""Examples per file. The last file, too, has room for that many."""


def write(
    dpath: pathlib.Path,
    x: np.ndarray,
    layers=(3, 6),
    n_examples: int | None = None,
    cls_token: bool = True,
    changes: dict | None = None,
) -> pathlib.Path:
    """Activations x, (n_tokens, d_model), as the last of `layers`; by default 10 per example.

    Args:
        changes: To metadata.json; None removes a key.
    """
    decoy = np.arange(x.size, dtype=np.float32).reshape(x.shape)
    of_layers = dict.fromkeys(layers, decoy) | {max(layers): x}
    return write_layers(dpath, of_layers, n_examples, cls_token, changes)


def write_layers(
    dpath: pathlib.Path,
    x_of: dict[int, np.ndarray],
    n_examples: int | None = None,
    cls_token: bool = True,
    changes: dict | None = None,
) -> pathlib.Path:
    x = np.stack(list(x_of.values()))
    n_layers, n_tokens, d_model = x.shape
    if n_examples is None:
        n_examples = n_tokens // 10
    per_example = n_tokens // n_examples if n_examples else 10
    x = x.reshape(n_layers, n_examples, per_example, d_model).swapaxes(0, 1)
    n_files = math.ceil(n_examples / PER_FILE)
    shape = (n_files * PER_FILE, n_layers, per_example + cls_token, d_model)
    acts = np.full(shape, 1e6, np.float32)
    acts[:n_examples, :, int(cls_token) :] = x
    dpath.mkdir(parents=True, exist_ok=True)
    listed = []
    for i in range(n_files):
        start, name = i * PER_FILE, f"acts{i:06}.bin"
        (dpath / name).write_bytes(acts[start : start + PER_FILE].tobytes())
        n = min(PER_FILE, n_examples - start)
        listed.append({"name": name, "n_examples": n})
    meta = {
        "family": "dinov3",
        "ckpt": "dinov3_vits16",
        "layers": list(x_of),
        "content_tokens_per_example": per_example,
        "cls_token": cls_token,
        "d_model": d_model,
        "n_examples": n_examples,
        "max_tokens_per_shard": 500_000,
        "data": "gASVAAAA",
        "dataset": "ILSVRC/imagenet-1k",
        "dtype": "float32",
        "protocol": "2.1",
    }
    meta = {k: v for k, v in (meta | (changes or {})).items() if v is not None}
    (dpath / "metadata.json").write_text(json.dumps(meta))
    (dpath / "shards.json").write_text(json.dumps(listed))
    return dpath


def write_npy(fpath: pathlib.Path, x: np.ndarray) -> pathlib.Path:
    fpath.parent.mkdir(parents=True, exist_ok=True)
    np.save(fpath, x)
    return fpath
