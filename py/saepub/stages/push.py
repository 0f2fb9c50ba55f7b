"""push: send each repo's stage to the Hub, all of it in one commit.

Everything that can be known to be wrong is told before the first byte is sent.
"""

import collections
import contextlib
import time

from .. import catalog, jsonl, settings
from ..cli import UserError, again, parser, report
from ..hub import client as hub
from ..hub import repo as hub_repo
from ..hub import rights as hub_rights
from ..release import manifest, staged
from ..text import n_of, one_line, say

KEYS = (*staged.KEYS, *manifest.NEEDS, "loader")

THE_HUB = "https://huggingface.co"


def main(argv: list[str]) -> None:
    p = parser(
        "Send each repo's stage to the Hub in one commit.",
        "make rehearse REPO=vitl-topk   # or, for real: bin/plan <"
        " build/vitl-topk/rendered.jsonl | bin/push | bin/verify",
    )
    p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    repos = staged.by_repo(jsonl.read(*KEYS))
    if not repos:
        return
    with contextlib.ExitStack() as locks:
        # Held to the end, so that what was checked is what is sent.
        for slug in repos:
            cat.get(slug)
            locks.enter_context(staged.lock(slug))
        theirs = check(cat, repos)
        done: list[str] = []
        out = []
        for slug, rows in repos.items():
            repo = cat.get(slug)
            started = time.monotonic()
            try:
                commit = publish(repo, rows, theirs[slug])
            except UserError as err:
                have = f"; already there: {', '.join(done)}" if done else ""
                raise UserError(
                    f"{repo.repo_id}: {err}{have}; to go on: {again()}"
                ) from err
            seconds = round(time.monotonic() - started, 1)
            done.append(repo.repo_id)
            out += [row | {"commit": commit, "seconds": seconds} for row in rows]
    for row in out:
        jsonl.write(row)


def check(
    cat: catalog.Catalog, repos: dict[str, list[jsonl.Line]]
) -> dict[str, hub_repo.Remote]:
    """Hold every repo to what can be known before anything is changed on the Hub.

    Args:
        repos: Lines by slug.

    Returns:
        Each repo as it is there now, by slug.

    Raises:
        UserError: Something is wrong; all of it has been told.
    """
    problems = []
    if settings.is_demo_fpath(cat.fpath) and hub.endpoint() == THE_HUB:
        problems.append(
            "these are the demo's; name your own data (SAEV_DIR, RUNS_ROOT), or: make rehearse"
        )
    for slug, rows in repos.items():
        problems += check_stage(slug, rows)
    problems += same_files(repos)
    no_rights = hub_rights.problems(
        [cat.get(slug).repo_id for slug in repos],
        [collection.namespace for collection in cat.collections],
    )
    problems += no_rights
    theirs = {}
    for slug, rows in repos.items():
        repo = cat.get(slug)
        try:
            theirs[slug] = there = hub_repo.remote(repo.repo_id)
        except UserError as err:
            problems += [] if no_rights else [str(err)]  # else it has been told
            continue
        planned = rows[0].get("parent_commit", there.commit)
        is_taken = there.commit != planned and not (planned is None and there.is_fresh)
        if is_taken and not is_done(slug, rows, there):
            problems.append(f"{repo.repo_id}: {conflict(slug, there, planned)}")
    report(problems, f"nothing was sent; to go on: {again()}")
    return theirs


def check_stage(slug: str, rows: list[jsonl.Line]) -> list[str]:
    """What stands against publishing a repo, as far as this machine knows."""
    problems = staged.problems(slug, rows)
    n_builtin = sum(row["loader"] == "builtin" for row in rows)
    if n_builtin and settings.get("LOADER") != "builtin":
        problems.append(
            f"{slug}: no saev has loaded {n_of(n_builtin, 'checkpoint')} of it;"
            f" set SAEV_DIR to a saev that can, or LOADER=builtin to publish as is"
        )
    return problems


def same_files(repos: dict[str, list[jsonl.Line]]) -> list[str]:
    """The runs that are one file, of one repo or of several."""
    by_sha256 = collections.defaultdict(set)
    for rows in repos.values():
        for row in rows:
            by_sha256[row["sha256"]].add(row["run_id"])
    return [
        f"{' and '.join(sorted(ids))} are one and the same file"
        for ids in by_sha256.values()
        if len(ids) > 1
    ]


def is_done(slug: str, rows: list[jsonl.Line], there: hub_repo.Remote) -> bool:
    changes = hub_repo.compare(there, staged.files(rows), staged.dpath_of(slug))
    return there.commit is not None and changes.is_done(settings.get("PRUNE") == "1")


def conflict(slug: str, there: hub_repo.Remote, seen: object) -> str:
    return (
        f"somebody changed it meanwhile, it is at {there.commit} and was at"
        f" {one_line(seen)}; look at it with make plan REPO={slug}"
    )


def publish(repo: catalog.Repo, rows: list[jsonl.Line], there: hub_repo.Remote) -> str:
    """Bring one repo to what its stage holds; the commit that holds it.

    A try that failed may have committed all the same, its answer lost on the way; so each
    try begins with what the Hub has now.

    Args:
        there: The repo as the plan saw it.

    Raises:
        UserError: The Hub refuses, keeps failing, or somebody else committed meanwhile.
    """
    parent = there.commit
    dpath, prune = staged.dpath_of(repo.slug), settings.get("PRUNE") == "1"
    told = ""
    for i in range(1, hub.N_TRIES + 1):
        if is_done(repo.slug, rows, there):
            assert there.commit is not None, "a repo that is not there is never done"
            return there.commit
        try:
            if there.commit is None and parent is None:
                hub_repo.create(repo.repo_id)
                there = hub_repo.remote(repo.repo_id)
            if parent is None and there.is_fresh:
                parent = there.commit
            if there.commit is None or there.commit != parent:
                raise UserError(conflict(repo.slug, there, parent))
            changes = hub_repo.compare(there, staged.files(rows), dpath)
            message = describe(changes, rows, prune)
            if message != told:
                size = hub_repo.total([*changes.add, *changes.change])
                say(f"{repo.repo_id}: {message}; sending {size}")
                told = message
            commit = hub_repo.upload(
                repo.repo_id, dpath, changes, there.commit, message, prune=prune
            )
        except UserError:
            raise
        except Exception as err:
            is_conflict = hub.status_of(err) == 412
            if i == hub.N_TRIES or not (is_conflict or hub.is_passing(err)):
                raise UserError(hub.tell(err)) from err
            hub.pause(repo.repo_id, err, i)
            there = hub_repo.remote(repo.repo_id)
            continue
        check_sent(repo, rows, commit)
        return commit
    raise AssertionError("unreachable: the last try returns or raises")


def check_sent(repo: catalog.Repo, rows: list[jsonl.Line], commit: str) -> None:
    """Raises UserError where a file changed on this disk while it was sent."""
    there = hub_repo.remote(repo.repo_id, commit)
    left = hub_repo.compare(there, staged.files(rows), staged.dpath_of(repo.slug))
    if left.add or left.change:
        paths = ", ".join(file.path for file in (*left.add, *left.change))
        raise UserError(
            f"commit {commit} does not hold {paths} as preflight saw it; changed while it"
            f" was sent? make recheck REPO={repo.slug}"
        )


def describe(changes: hub_repo.Changes, rows: list[jsonl.Line], prune: bool) -> str:
    """The commit's message."""
    layers = sorted({row["layer"] for row in rows})
    noun = "layer" if len(layers) == 1 else "layers"
    what = (
        f"{n_of(len(rows), 'SAE checkpoint')} of {noun} {', '.join(map(str, layers))}"
    )
    if not changes.change and not changes.keep and not (prune and changes.extra):
        return f"Release {what}"
    counts = {"added": changes.add, "changed": changes.change}
    counts |= {"deleted": changes.extra} if prune else {}
    parts = [f"{n_of(len(f), 'file')} {how}" for how, f in counts.items() if f]
    return f"Update to {what}: {', '.join(parts)}"
