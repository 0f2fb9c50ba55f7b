"""stage: lay the checked checkpoints out as the model repo will have them.

Each `layer_<N>/<run_id>/sae.pt` is a hard link to the run's own file, or a symlink where
that lies on another file system: no byte is copied. So there is nothing to share out; lines
may be split between repos, but not within one, whose tree is made anew each time.
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
    """Make `dpath` hold exactly the checkpoints of `rows`.

    The tree is built aside and takes the old one's place when it is whole, so nothing of
    an older selection stays and a killed run leaves either tree, never a mixture.

    Raises:
        UserError: Two lines want one path, or a file is not as preflight saw it.
    """
    aside, old = (dpath.with_name(name) for name in (".stage.tmp", ".stage.old"))
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
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
    """Hard link `target` to `source`; a symlink where the file system won't have that."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, a file of somebody else's, too many links
        target.symlink_to(source)
