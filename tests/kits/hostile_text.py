"""Text meant to do harm, and every place where it can come in."""

import copy
import pathlib
import typing as tp


def texts(mark: pathlib.Path) -> dict[str, str]:
    """By name. Any of them that gets itself run creates the file `mark`."""
    touch = f"touch {mark}"
    return {
        "parent": "../../../../escaped",
        "absolute": f"{mark.parent}/escaped",
        "dot": ".",
        "newline": "a\nb\r\nc",
        "pipe": "a | b | c | d | e | f",
        "backticks": f"`{touch}`",
        "shell": f"$({touch})",
        "quote": f"'; {touch} #",
        "double quote": f'"; {touch} #',
        "make": f"$(shell {touch})",
        "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "attribute": '" onmouseover="alert(1)" x="',
        "jinja": "{{ 7 * 7 }}{% if 1 %}"
        + f"{{{{ cycler.__init__.__globals__.os.system('{touch}') }}}}",
        "yaml": "x\nlicense: other\n---\n# Taken over",
        "yaml tag": f"!!python/object/apply:os.system ['{touch}']",
        "markdown": "[a](javascript:alert(1)) ![b](http://127.0.0.1:9/c.png) **d** # e",
        "math": r"$\undefined{x$ $^_",
        "escape codes": "\x1b]0;owned\x07\x1b[2J\x1b[31m",
        "C1 codes": "\x9b2J\x9d0;owned\x9c",
        "back to front": "\u202egnp.tset\u2066",
        "carriage return": "all is well\rtiny",
        "NUL": "a\0b",
        "half a character": "\ud800",
        "long": "A" * 20_000,
        "format": "%s%n{0.__class__}",
        "option": "--help",
    }


def put(obj: dict, path: tp.Sequence[str], text: str) -> dict:
    """A copy of `obj` with `text` in one place: as the value at the end of `path`, or as a key there.

    Args:
        path: Keys from the outside in; if the last one is empty, `text` becomes a key.
    """
    obj = copy.deepcopy(obj)
    inner = obj
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1] or text] = text
    return obj


RECORD_PLACES = (
    *(("state",), ("createdAt",), ("config",), ("summary",), ("",)),
    *(("config", "sae"), ("config", "sae", "activation"), ("config", "sae", "")),
    *(("config", "sae", "activation", "key"), ("config", "sae", "activation", "")),
    *(("config", "sae", "d_model"), ("config", "sae", "d_sae")),
    *(("config", "objective"), ("config", "objective", "n_prefixes")),
    *(("config", "objective", ""), ("config", "train_data"), ("config", "")),
    *(("config", "train_data", "layer"), ("summary", "eval/l0")),
    *(("summary", "eval/normalized_mse"), ("summary", "eval/n_dead"), ("summary", "")),
)
"""In a run's record in W&B."""

HEADER_PLACES = (
    *(("schema",), ("commit",), ("lib",), ("cfg",), ("",), ("cfg", "")),
    *(("cfg", "d_model"), ("cfg", "reinit_blend"), ("cfg", "normalize_w_dec")),
    *(("cfg", "activation"), ("cfg", "activation", "cls"), ("cfg", "activation", "")),
    *(("cfg", "activation", "params"), ("cfg", "activation", "params", "")),
    *(
        ("cfg", "activation", "params", "key"),
        ("cfg", "activation", "params", "sparsity"),
    ),
    ("cfg", "activation", "params", "sparsity", ""),
    ("cfg", "activation", "params", "aux"),
)
"""In a checkpoint's header."""

CATALOG_PLACES = (
    *(("slug",), ("repo_id",), ("title",), ("base_model",), ("sweep",), ("variable",)),
    *(
        ("objective",),
        ("activation",),
        ("layers",),
        ("d_model",),
        ("d_sae",),
        ("datasets",),
    ),
    *(("run_ids",), ("run_ids", ""), ("",)),
)
"""In a repo's entry in the catalog."""

SETTINGS = (
    "NMSE_SHARD",
    "N",
    "EXCLUDE",
    "WANDB_ENTITY",
    "WANDB_PROJECT",
    "WANDB_BASE_URL",
)
