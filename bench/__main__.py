"""make bench: every table, or those named: fetch preflight release measure startup scale million page noop repos."""

import os
import platform
import subprocess
import sys

from . import fetch, page, release, saes, scale, startup
from .measure import ROOT

ROWS = {
    "fetch": fetch.fetch,
    "preflight": release.preflight,
    "release": release.release,
    "measure": saes.saes,
    "startup": startup.startup,
    "scale": scale.scale,
    "million": scale.million,
    "page": page.page,
    "noop": startup.noop,
    "repos": startup.repos,
}


def main() -> None:
    wanted = sys.argv[1:] or list(ROWS)
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        sys.exit(f"bench: no row {unknown[0]}; there are: {' '.join(ROWS)}")
    # Rows work under build/.
    subprocess.run(
        [ROOT / "bin/settings", "--claim", "BUILD"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    print(
        f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    )
    for name in wanted:
        ROWS[name]()


main()
