"""rehearse: run a command against a Hub on this machine instead of the real one."""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

from loopback_hub import InUse, LoopbackHub

from .. import catalog, settings
from ..cli import UsageError, UserError, parser
from ..files import scratch
from ..release import staged
from ..text import human, say

TOKEN = "hf_rehearsal"
"""Valid only on the loopback Hub, so it may be in the code."""


def main(argv: list[str]) -> int:
    p = parser(
        "Run a command against a Hub on 127.0.0.1 instead of the real one.",
        "bin/rehearse make release REPO=vitl-relu",
    )
    p.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND…")
    args = p.parse_args(argv)
    if not args.command:
        raise UsageError("name a command to run")
    settings.load()
    cat = catalog.load()
    settings.claim("BUILD")
    dpath = settings.build_dpath() / "hub"
    check_room(cat, dpath)
    namespaces = sorted(
        {repo.repo_id.split("/")[0] for repo in cat.repos}
        | {collection.namespace for collection in cat.collections}
    )
    tokens = {TOKEN: {"name": "rehearsal", "orgs": namespaces, "role": "write"}}
    try:
        loopback = LoopbackHub(dpath, tokens=tokens)
    except InUse as err:
        raise UserError(str(err)) from None
    records_dpath = dpath / "records"
    with loopback as hub, scratch("rehearse") as home:
        for wanted in cat.collections:
            if wanted.slug:
                add_collection(hub, wanted)
        env = {k: v for k, v in os.environ.items() if not is_of_network(k)} | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            # Even without *_proxy, a system proxy may be set, which can't reach this address.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            # What was measured stays where it is, and with it the numbers.
            "RELEASES": str(records_dpath),
            # saev's docs are the user's: they don't mention what was only rehearsed.
            "DRY_RUN": "1",
        }
        say(f"rehearsing against {hub.endpoint}, which stores everything under {dpath}")
        code = run(args.command, env)
    if hub.errors:
        raise UserError(f"the loopback Hub itself failed: {hub.errors[0]}")
    if code == 0:
        say(
            f"rehearsed; what the Hub would have is under {dpath / 'models'}, the records"
            f" under {records_dpath}; to inspect them: make rehearse with DO=verify, DO=plan"
            " or DO=docs"
        )
    return code


def run(command: list[str], env: dict[str, str]) -> int:
    """The command's exit code; for a signal, the code that a shell would return."""
    try:
        code = subprocess.run(command, env=env, stdout=sys.stdout).returncode
    except OSError as err:
        raise UserError(f"{command[0]}: {err.strerror}") from None
    return code if code >= 0 else 128 - code


def is_of_network(name: str) -> bool:
    """Whether a variable is for connections to other machines, and may break ours."""
    return name.lower().endswith("_proxy") or name.startswith("SSL_CERT_")


def add_collection(hub: LoopbackHub, wanted: catalog.Collection) -> None:
    """Create a collection that the catalog names by its slug, unless it exists."""
    name, _, collection_id = wanted.slug.partition("/")[2].rpartition("-")
    if all(c["id"] != collection_id for c in hub.collections()):
        hub.add_collection(wanted.namespace, name, collection_id=collection_id)


def check_room(cat: catalog.Catalog, dpath: pathlib.Path) -> None:
    """Raise UserError unless the disk has room for what a rehearsal adds.

    The Hub stores each file once as it is and, with Xet, once in chunks.
    """
    chosen = settings.split(settings.get("REPO"))
    slugs = [repo.slug for repo in cat.repos if not chosen or repo.slug in chosen]
    n_staged = sum(n_bytes(staged.dpath_of(slug)) for slug in slugs)
    dpath.mkdir(parents=True, exist_ok=True)
    needed = max(2 * n_staged - n_bytes(dpath), 0)
    free = shutil.disk_usage(dpath).free
    if needed > free:
        raise UserError(
            f"{dpath}: a rehearsal needs up to {human(needed)} for copies, but {human(free)}"
            " are free; rehearse one repo (REPO=), or set BUILD to a larger disk"
        )


def n_bytes(dpath: pathlib.Path) -> int:
    """The size of the files under a directory, each counted once even with several links."""
    stats = [f.stat() for f in dpath.rglob("*") if f.is_file()]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in stats}.values())
