"""What a missing shard must contain, and the saev command that recreates it."""

import base64
import pickletools
import re
import shlex
import typing as tp

from ..text import layers_text

METADATA = "shard_metadata"
"""The key of a line with saev's metadata of the evaluation shard, or else of the training shard,
which is of the same model."""

SPLITS = {"train": "validation", "training": "validation"}
"""The split to evaluate on, by the split that was trained on."""


def instructions(
    where: str, layers: tp.Iterable[int], metadata: dict[str, tp.Any]
) -> str:
    """What a missing shard must contain, and the command that recreates it.

    Args:
        where: Its directory.
        layers: The layers to measure.
        metadata: From W&B, see `METADATA`; {} if W&B has none.
    """
    needed = sorted(layers)
    held = metadata.get("layers")
    has_all = isinstance(held, list) and set(needed) <= set(held)
    text = (
        f"{where}: no such shard. It must have {layers_text(needed)} of {_model(metadata)}"
        f" on {_dataset(metadata)}"
    )
    if not metadata.get("family"):
        return f"{text}; to recreate it with saev: launch.py shards (see --help)"
    command = ["launch.py", "shards", "--shards-root", where.rpartition("/")[0]]
    command += ["--family", str(metadata["family"])]
    command += ["--ckpt", str(metadata.get("ckpt"))]
    command += ["--d-model", str(metadata.get("d_model")), "--layers"]
    command += map(str, held if has_all and held else needed)
    for key, option in (
        ("content_tokens_per_example", "--content-tokens-per-example"),
        ("max_tokens_per_shard", "--max-tokens-per-shard"),
    ):
        if type(metadata.get(key)) is int:
            command += [option, str(metadata[key])]
    if metadata.get("cls_token") is False:
        command.append("--no-cls-token")
    command += _data(metadata)
    return f"{text}; to recreate it, in a saev checkout: uv run {shlex.join(command)}"


def _model(metadata: dict[str, tp.Any]) -> str:
    if not metadata.get("family"):
        return "a model that W&B doesn't name"
    return f"{metadata['family']} {metadata.get('ckpt')}"


def _dataset(metadata: dict[str, tp.Any]) -> str:
    dataset = metadata.get("dataset")
    if not dataset:
        return "a dataset that W&B doesn't name"
    if metadata.get("of") == "val_data":
        return str(dataset)
    return f"the validation split of {dataset} (W&B names only the training data)"


def _data(metadata: dict[str, tp.Any]) -> list[str]:
    """The options of saev's command that name the dataset, as far as known."""
    is_own = metadata.get("of") == "val_data"
    root = str(metadata.get("dataset") or "")
    words = pickled_words(metadata.get("data"))
    kind = next((w for w in words if re.fullmatch(r"[A-Z][A-Za-z0-9]+", w)), "")
    split = dict(zip(words, words[1:], strict=False)).get("split", "")
    if not kind:
        kind = "ImgFolder" if root.startswith("/") else "Imagenet"
        split = "" if kind == "ImgFolder" else "validation"
    slug = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind).lower()
    args = [f"data:{slug}"]
    if root.startswith("/"):
        args += ["--data.root", root if is_own or split else "<validation images>"]
    if split:
        args += ["--data.split", split if is_own else SPLITS.get(split, split)]
    return args


def pickled_words(text: object) -> list[str]:
    """The words in saev's pickle of a dataset's configuration, in order.

    The pickle is disassembled, never loaded, so nothing in it runs.
    """
    words: list[str] = []
    try:
        data = base64.b64decode(text, validate=True)  # type: ignore[arg-type]
        for opcode, arg, _ in pickletools.genops(data):
            if isinstance(arg, str):
                words += arg.split() if opcode.name == "GLOBAL" else [arg]
    except (TypeError, ValueError):
        return []
    return words
