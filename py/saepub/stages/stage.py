"""stage: lay the checked checkpoints out as the model repo will have them.

Each `layer_<N>/<run_id>/sae.pt` is a hard link to the run's file, or a symlink if that is on
another file system: no byte is copied. All lines of a repo must come at once, since its tree is
rebuilt each time.
"""

import os
import pathlib
import shutil

from .. import jsonl, settings
from ..cli import UserError, parser
from ..release import staged


def main(argv: list[str]) -> None:
    p = parser(
        "Build each repo's tree under build/<slug>/stage, from all its lines at once.",
        "bin/stage < build/vitl-topk/checked.jsonl | jq -r .path",
    )
    p.parse_args(argv)
    settings.load()
    settings.claim("BUILD")
    keys = ("repo", "layer", "run_id", "checkpoint", "bytes", "mtime_ns", "sha256")
    rows = [row | {"path": staged.path_of(row)} for row in jsonl.read(*keys)]
    for slug, of_repo in staged.by_repo(rows).items():
        with staged.lock(slug):
            build(staged.dpath_of(slug), of_repo)
    for row in rows:
        jsonl.write(row)


def build(dpath: pathlib.Path, rows: list[jsonl.Line]) -> None:
    """Make `dpath` contain exactly the checkpoints of `rows`.

    The tree is built under a temporary name and then replaces the old one, so nothing of an
    older selection stays, and a killed run leaves either tree, never a mixture.

    Raises:
        UserError: Two lines have the same path, or a file has changed since preflight.
    """
    aside, old = (dpath.with_name(name) for name in (".stage.tmp", ".stage.old"))
    for leftover in (aside, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    for row in rows:
        source = pathlib.Path(row["checkpoint"])
        staged.check_unchanged(source, row)
        target = aside / row["path"]
        if target.exists():
            raise UserError(f"{row['path']} is on two lines; pass each run once")
        target.parent.mkdir(parents=True, exist_ok=True)
        link(source, target)
    if dpath.exists():
        os.rename(dpath, old)
    os.rename(aside, dpath)
    shutil.rmtree(old, ignore_errors=True)


def link(source: pathlib.Path, target: pathlib.Path) -> None:
    """Hard link `target` to `source`, or symlink it if that fails.

    Raises:
        UserError: The target's disk takes neither.
    """
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, another user's file, too many links
        try:
            target.symlink_to(source)
        except OSError as err:
            raise UserError(
                f"{target}: can't be a link to {source}: {err.strerror}; set BUILD to a disk"
                " that can have links"
            ) from None
