"""Sums of a pass that is under way, kept so that one that is killed costs little.

They lie under BUILD, a small file a run, and are removed when its record is written. Each
names all that it depends on; where any of that has changed, it is removed unread.
"""

import contextlib
import hashlib
import json
import pathlib
import time
import typing as tp
import zipfile

import numpy as np

from .. import files, settings
from .measure import Partial

KEEP_S = 30.0
"""How much of a pass, in seconds, a kill may cost. To keep one run's sums takes 1 ms."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class Kept:
    """The sums of one pass, a file for each run.

    Args:
        names: Of the runs, each with its shard; parts of file names.
        depends_on: For each of them, what its sums depend on besides this package; JSON.
    """

    def __init__(self, names: list[str], depends_on: list[tp.Any]):
        dpath = settings.build_dpath() / ".measure"
        self.fpaths = [dpath / f"{name}.npz" for name in names]
        self.keys = [_key(facts) for facts in depends_on]
        self.last = time.monotonic()

    def read(self) -> list[Partial | None]:
        """Where each run got to; None for one that begins anew."""
        return [_read(*of_one) for of_one in zip(self.fpaths, self.keys, strict=True)]

    def keep(self, partials: tp.Callable[[], list[Partial | None]]) -> None:
        """Keep what there is, if `KEEP_S` have gone by. A disk that is full stops nothing."""
        if time.monotonic() - self.last < KEEP_S:
            return
        for fpath, key, sums in zip(self.fpaths, self.keys, partials(), strict=True):
            if sums is None:
                continue
            with contextlib.suppress(OSError), files.write_aside(fpath, "wb") as fd:
                np.savez(fd, key=key, **sums._asdict())
        self.last = time.monotonic()

    def remove(self) -> None:
        for fpath in self.fpaths:
            fpath.unlink(missing_ok=True)


def _key(facts: tp.Any) -> str:
    text = json.dumps([facts, files.facts(files.package())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(fpath: pathlib.Path, key: str) -> Partial | None:
    with contextlib.suppress(*UNREADABLE), np.load(fpath, allow_pickle=False) as kept:
        if kept["key"] == key:
            return Partial(*(kept[name] for name in Partial._fields))
    fpath.unlink(missing_ok=True)
    return None
