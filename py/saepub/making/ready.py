"""What has to be there before make can read on: VENV, the demo, and a BUILD without leftovers."""

import contextlib
import glob
import os
import subprocess
import sys
import time

from .. import settings
from ..cli import UserError
from ..files import remove_leftovers
from ..text import say


def make_ready(is_demo: bool, changes_nothing: bool) -> None:
    """Set up VENV, and create the demo if that is what CATALOG names and it doesn't exist.

    Raises:
        UserError: BUILD is not ours, or one of the two is missing and nothing may change.
    """
    lacks_demo = is_demo and not os.path.exists(settings.get("CATALOG"))
    if changes_nothing and (not is_set_up() or lacks_demo):
        raise UserError("nothing is set up yet; run: make setup demo")
    settings.check_made("BUILD", settings.get("BUILD"))
    set_up()
    if lacks_demo:
        run("bin/demo")


def is_set_up() -> bool:
    """Whether VENV exists and its packages are up to date."""
    venv = settings.get("VENV")
    files = [
        os.path.join(settings.ROOT, name)
        for name in ("requirements.txt", "constraints.txt")
    ]
    try:
        ready = os.stat(os.path.join(venv, ".ready")).st_mtime_ns
    except OSError:
        return False
    return os.access(os.path.join(venv, "bin/python"), os.X_OK) and all(
        os.stat(fpath).st_mtime_ns <= ready for fpath in files
    )


def set_up() -> None:
    """Set up VENV if necessary, and restart in it."""
    venv = settings.get("VENV")
    if not is_set_up():
        run("bin/setup")
    if os.path.realpath(sys.prefix) != os.path.realpath(venv):
        program = os.path.join(settings.ROOT, "bin/settings")
        os.dup2(sys.stdout.fileno(), 1)
        os.execv(program, [program, *sys.argv[1:]])


def run(program: str) -> None:
    """Run a program of ours. Raises UserError if it fails; it has printed why."""
    done = subprocess.run([os.path.join(settings.ROOT, program)], stdout=sys.stderr)
    if done.returncode:
        raise UserError(f"{program} failed")


def tidy() -> None:
    """Remove what killed programs left, and have files dated in the future rebuilt.

    After the clock was set back, such a file would look newer than everything it depends on.
    """
    build, soon = glob.escape(settings.get("BUILD")), time.time() + 60
    for dpath in glob.glob(os.path.join(build, "*/")):
        remove_leftovers(dpath)
    names = ("*/*.jsonl", "known-ids", "*/summary.txt", "*.html", ".settings/*")
    for fpath in (f for name in names for f in glob.glob(os.path.join(build, name))):
        # Another make may be removing it right now.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(fpath).st_mtime > soon:
                say(f"make: {fpath} is dated in the future; rebuilding it")
                os.utime(fpath, None if ".settings" in fpath else (0, 0))
    for fpath in glob.glob(os.path.join(build, "*/staged.jsonl")):
        manifest = os.path.join(os.path.dirname(fpath), "stage/manifest.jsonl")
        if not os.path.exists(manifest):
            os.utime(fpath, (0, 0))  # the stage was removed by hand
