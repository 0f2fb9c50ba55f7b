"""The sums of an unfinished pass, saved so that little is lost if it is killed.

They are under BUILD, a small file per run, and are removed when its record is written. Each has
a hash of everything that it depends on; if any of that has changed, it is discarded.
"""

import contextlib
import pathlib
import time
import typing as tp
import zipfile

import numpy as np

from .. import digests, files, settings
from .measure import Partial

KEEP_S = 30.0
"""How many seconds of work a kill may cost. Saving one run's sums takes 1 ms."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class Kept:
    """The saved sums of one pass, a file per run.

    Args:
        names: For each run, a file name from its id and shard.
        depends_on: For each run, what its sums depend on besides this package; JSON.
    """

    def __init__(self, names: list[str], depends_on: list[tp.Any]):
        dpath = settings.build_dpath() / ".measure"
        self.fpaths = [dpath / f"{name}.npz" for name in names]
        package = files.facts(files.package())
        self.keys = [digests.of_json([facts, package]) for facts in depends_on]
        self.last = time.monotonic()

    def read(self) -> list[Partial | None]:
        """Each run's sums; None for one that starts from the beginning."""
        return [_read(*one) for one in zip(self.fpaths, self.keys, strict=True)]

    def keep(self, partials: tp.Callable[[], list[Partial | None]]) -> None:
        """Save the sums if `KEEP_S` have passed. A full disk is not an error."""
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


def _read(fpath: pathlib.Path, key: str) -> Partial | None:
    with contextlib.suppress(*UNREADABLE), np.load(fpath, allow_pickle=False) as kept:
        if kept["key"] == key:
            return Partial(*(kept[name] for name in Partial._fields))
    fpath.unlink(missing_ok=True)
    return None
