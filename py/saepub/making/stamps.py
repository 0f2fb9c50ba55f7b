"""Files that are rewritten when a setting or the catalog changes, as prerequisites in make.

Each setting that a target depends on has a file under BUILD/.settings. If a setting names a
file, that file's size and time are part of the value. So make never sees a user's path.
"""

import json
import os
import shlex
import typing as tp

from .. import settings
from ..files import write_aside

STAMPED = (
    *("SAEV_DIR", "RUNS_ROOT", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_BASE_URL"),
    *("NMSE_SHARD", "EXCLUDE", "PIN", "N", "REPO", "LOADER"),
)
"""The settings that targets depend on by their value."""

WORDS = {"title", "base_model", "license", "links", "contact", "citation", "tags"}
WORDS |= {"datasets", "tokens", "recipe"}
"""The keys of a catalog that only the card shows: changing them rebuilds only the card."""


class Stamps:
    """One file per setting, rewritten when its value changes, as a prerequisite in make."""

    def __init__(self, build: str, changes_nothing: bool):
        self._dpath = os.path.join(build, ".settings")
        self._changes_nothing = changes_nothing
        self.changed: list[str] = []

    def is_current(self, name: str, value: str) -> bool:
        """Whether a value is the same as at the last call."""
        try:
            with open(os.path.join(self._dpath, name), encoding="utf-8") as fd:
                return fd.read() == value
        except (OSError, ValueError):
            return False

    def update(self, name: str, value: str) -> None:
        if self.is_current(name, value):
            return
        fpath = os.path.join(self._dpath, name)
        self.changed.append(fpath)
        if not self._changes_nothing:
            with write_aside(fpath) as fd:
                fd.write(value)

    def update_all(self, repos: dict[str, tp.Any]) -> None:
        """Update the files of the settings, and of each repo's entry in the catalog.

        Args:
            repos: As from `of_catalog`.
        """
        for name in STAMPED:
            self.update(name, settings.get(name))
        measured = os.path.join(settings.get("RECORDS"), "measured")
        self.update("RECORDS", with_time(measured))
        for name in ("CATALOG", "METRICS_SNAPSHOT"):
            self.update(name, with_time(settings.get(name)))
        for slug, entry in repos.items():
            self.update(f"entry.{slug}", json.dumps(entry))
            self.update(f"expected.{slug}", json.dumps(without_words(entry)))
            self.update(f"sources.{slug}", "".join(map(with_time, files_of(entry))))


def of_catalog(stamps: Stamps) -> dict[str, tp.Any]:
    """By slug, each repo's entry and the catalog's common part.

    A valid catalog is not checked again until it changes: that would take longer than the rest
    of a make that has nothing to do.

    Raises:
        UserError: The catalog has errors.
    """
    fpath = settings.get("CATALOG")
    if not stamps.is_current("CATALOG", with_time(fpath)):
        from .. import catalog  # slow to import

        catalog.load()
    with open(fpath, encoding="utf-8-sig") as fd:
        whole = json.load(fd)
    rest = {
        key: what for key, what in whole.items() if key not in ("repos", "collections")
    }
    return {entry["slug"]: [entry, rest] for entry in whole["repos"]}


def without_words(entry: tp.Any) -> tp.Any:
    """An entry without the keys that only the card shows."""
    repo, rest = entry
    lab = rest.get("lab") or {}
    return [{k: v for k, v in node.items() if k not in WORDS} for node in (repo, lab)]


def own_facts(entry: tp.Any) -> str:
    """The command of a lab's own facts filter; "" if it has none."""
    repo, rest = entry
    name = repo.get("facts") or rest.get("lab", {}).get("facts")
    if not name:
        return ""
    fpath = os.path.join(os.path.dirname(settings.get("CATALOG")), name)
    return f"HOME=/dev/null jq -cf {shlex.quote(fpath)}"


def files_of(entry: object) -> list[str]:
    """Every existing file that an entry names, under SAEV_DIR or beside the catalog."""
    if isinstance(entry, str):
        roots = (settings.get("SAEV_DIR"), os.path.dirname(settings.get("CATALOG")))
        paths = [os.path.join(root, entry) for root in roots if entry]
        return [path for path in paths if os.path.isfile(path)]
    if isinstance(entry, dict):
        entry = list(entry.values())
    parts = entry if isinstance(entry, list) else []
    return [path for part in parts for path in files_of(part)]


def with_time(path: str) -> str:
    """A path with its file's size and modification time."""
    try:
        stat = os.stat(path)
    except OSError:
        return path
    return f"{path} {stat.st_size} {stat.st_mtime_ns}\n"
