"""Settings, from the environment or from `.env` in the checkout; the environment wins.

With no data of a lab's own named, every setting points at the demo under build/demo.
"""

import os
import re
import typing as tp

from .cli import UserError

if tp.TYPE_CHECKING:
    import pathlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The checkout."""

DEFAULTS = {
    "WANDB_ENTITY": "samuelstevens",
    "WANDB_PROJECT": "saev",
    "CATALOG": os.path.join(ROOT, "catalog.json"),
    "N": "6",
}

OWN_DATA = ("SAEV_DIR", "RUNS_ROOT", "CATALOG", "METRICS_SNAPSHOT", "NMSE_SHARD")
"""Any of these set means that a lab's own data is meant, not the demo."""

ENVIRONMENT_ONLY = ("HF_TOKEN",)
"""Never read from a file: a token for publishing should not lie about on a disk."""


def dotenv(fpath: str) -> dict[str, str]:
    """The settings in an `.env` file: NAME=value lines, comments, optional quotes.

    Raises:
        UserError: A line is something else.
    """
    settings = {}
    try:
        with open(fpath, encoding="utf-8") as fd:
            raw_lines = fd.read().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{fpath}: not text (UTF-8)") from None
    for i, raw in enumerate(raw_lines, start=1):
        text = raw.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", text)
        if match is None:
            raise UserError(f"{fpath}:{i}: not NAME=value")
        name, value = match.groups()
        if name in ENVIRONMENT_ONLY:
            raise UserError(
                f"{fpath}:{i}: {name} is read from the environment only;"
                f" delete this line and export it in your shell"
            )
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        else:
            value = re.sub(r"\s+#.*", "", value)
        settings[name] = value
    return settings


def load() -> None:
    """Put the settings of `.env` and, where none names data, the demo's into `os.environ`."""
    load_dotenv()
    if is_demo():
        os.environ.update(demo())


def load_dotenv() -> None:
    """Put the settings of `.env` into `os.environ`; what is there already wins."""
    fpath = os.path.join(ROOT, ".env")
    if os.path.isfile(fpath):
        for name, value in dotenv(fpath).items():
            os.environ.setdefault(name, value)


def is_demo() -> bool:
    return not any(os.environ.get(name) for name in OWN_DATA)


def demo() -> dict[str, str]:
    """The settings that make every stage work on the demo."""
    names = {
        "CATALOG": "catalog.json",
        "SAEV_DIR": "saev",
        "RUNS_ROOT": "runs",
        "METRICS_SNAPSHOT": "snapshot.jsonl",
    }
    return {k: os.path.join(_build(), "demo", name) for k, name in names.items()}


def is_demo_fpath(fpath: "pathlib.Path") -> bool:
    return build_dpath() / "demo" in fpath.parents


def get(name: str) -> str:
    """The setting's value; "" where it is not set and has no default."""
    return os.environ.get(name) or DEFAULTS.get(name, "")


def need(name: str, why: str) -> str:
    """The setting's value.

    Raises:
        UserError: It is not set.
    """
    value = get(name)
    if not value:
        raise UserError(f"{name} is not set ({why}); export it or write it in .env")
    return value


def build_dpath() -> "pathlib.Path":
    """Where everything that the toolkit makes lies."""
    import pathlib  # slow to import, and the light stages don't need it

    return pathlib.Path(_build())


def records_dpath() -> "pathlib.Path":
    """The lab's memory: what was measured and released. Nothing of ours deletes there."""
    import pathlib

    return pathlib.Path(os.environ.get("RECORDS") or os.path.join(ROOT, "records"))


def _build() -> str:
    return os.environ.get("BUILD") or os.path.join(ROOT, "build")
