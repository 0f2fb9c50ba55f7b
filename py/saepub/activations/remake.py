"""What a shard that is not there must hold, and saev's command that makes it again."""

import base64
import pickletools
import re
import shlex
import typing as tp

METADATA = "shard_metadata"
"""The key of a line that has what saev noted of a shard: its own, or training's, which is of
the same model."""

SPLITS = {"train": "validation", "training": "validation"}
"""By the split that was trained on, the one to evaluate on."""


def lacking(where: str, layers: tp.Iterable[int], metadata: dict[str, tp.Any]) -> str:
    """What to tell of a shard that is not there: one sentence, and the command.

    Args:
        where: Its directory.
        layers: Those that are to be measured.
        metadata: What W&B has of it, see `METADATA`; {} where it has nothing.
    """
    needed = sorted(layers)
    held = metadata.get("layers")
    has_all = isinstance(held, list) and set(needed) <= set(held)
    told = (
        f"{where}: no such shard. It must hold {_layers(needed)} of {_model(metadata)}"
    )
    told += f" on {_dataset(metadata)}"
    if not metadata.get("family"):
        return f"{told}; saev makes it again by: launch.py shards (--help)"
    command = ["launch.py", "shards", "--shards-root", where.rpartition("/")[0]]
    command += [
        "--family",
        str(metadata["family"]),
        "--ckpt",
        str(metadata.get("ckpt")),
    ]
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
    told += f"; in a saev checkout, this makes it again: uv run {shlex.join(command)}"
    return told


def _layers(layers: list[int]) -> str:
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {', '.join(map(str, layers))}"


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
    return f"the validation split of {dataset} (W&B names only what was trained on)"


def _data(metadata: dict[str, tp.Any]) -> list[str]:
    """The part of saev's command that names the dataset, as far as it is known."""
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

    The pickle is listed, never loaded: nothing in it is run.
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
