"""clean: remove what can be rebuilt, in directories with our mark only."""

import os
import shutil

from .. import settings
from ..cli import UserError, parser


def main(argv: list[str]) -> None:
    p = parser("Empty BUILD, except for the demo.", "bin/clean")
    p.add_argument("--all", action="store_true", help="remove all of BUILD and VENV")
    args = p.parse_args(argv)
    settings.load()
    paths = {
        name: settings.get(name) for name in (settings.MADE if args.all else ("BUILD",))
    }
    for name, path in paths.items():
        settings.check_made(name, path)
        if args.all and os.path.islink(path):
            raise UserError(
                f"{name} is {path}, a link, which saepub didn't create; remove it yourself"
            )
    for path in filter(settings.is_ours, paths.values()):
        empty(path, () if args.all else ("demo",))
        if args.all:
            os.unlink(os.path.join(path, settings.MARK))
            os.rmdir(path)


def empty(path: str, kept: tuple[str, ...]) -> None:
    """Empty a directory except for the mark, so that an interrupted run can be repeated."""
    for entry in os.scandir(path):
        if entry.name in (*kept, settings.MARK):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
