"""known-ids: fail if PIN or EXCLUDE names a run that is no candidate of any repo.

They may name runs of any repo, so that one `.env` works for all; any other id is a typo.
"""

import json
import os
import subprocess

from .. import catalog, jsonl, settings
from ..cli import UserError, parser
from ..text import say


def main(argv: list[str]) -> None:
    p = parser(
        "Fail if PIN or EXCLUDE names a run that is no candidate of any repo.",
        "bin/extract-ids vitl-topk | bin/known-ids",
    )
    p.parse_args(argv)
    settings.load()
    wanted = {
        run_id: name for name in ("PIN", "EXCLUDE") for run_id in settings.ids(name)
    }
    seen = set()
    for line in jsonl.read("repo", "run_id"):
        seen.add(line["repo"])
        wanted.pop(line["run_id"], None)
    if not wanted:
        return
    others = [repo.slug for repo in catalog.load().repos if repo.slug not in seen]
    known = run_ids(others)
    if known is None:
        say(
            f"known-ids: not checking {' '.join(wanted)}, which may belong to {' '.join(others)}"
        )
        return
    for run_id, name in wanted.items():
        if run_id not in known:
            raise UserError(f"{name} {run_id}: not a candidate of any repo")


def run_ids(slugs: list[str]) -> set[str] | None:
    """The candidates of other repos; None if their sources can't be read."""
    if not slugs:
        return set()
    program = os.path.join(settings.ROOT, "bin/extract-ids")
    done = subprocess.run([program, *slugs], stdout=subprocess.PIPE)
    if done.returncode:
        return None
    return {json.loads(text)["run_id"] for text in done.stdout.splitlines()}
