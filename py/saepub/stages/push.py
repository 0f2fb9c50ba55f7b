"""push: send each repo's stage to the Hub in one commit.

Everything that can be checked in advance is checked before the first byte is sent, in
release/publishable.py.
"""

import contextlib
import time
import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UserError, parser
from ..hub import client as hub
from ..hub import repo as hub_repo
from ..hub.files import Changes, Remote
from ..release import manifest, publishable, staged
from ..release.publishable import conflict, is_done
from ..text import layers_text, n_of, one_line, say

KEYS = (*staged.KEYS, *manifest.NEEDS, "loader")


def main(argv: list[str]) -> None:
    p = parser(
        "Send each repo's stage to the Hub in one commit.",
        "make rehearse REPO=vitl-topk   # or, for real: bin/plan <"
        " build/vitl-topk/rendered.jsonl | bin/push | bin/verify",
    )
    p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    repos = staged.by_repo(jsonl.read(*KEYS, is_chosen=True))
    if not repos:
        return
    problem = ""
    with contextlib.ExitStack() as locks:
        # Held to the end, so that what is sent is what was checked.
        for slug in repos:
            cat.get(slug)
            locks.enter_context(staged.lock(slug))
        theirs = publishable.check(cat, repos)
        done: dict[str, dict[str, tp.Any]] = {}
        for slug, rows in repos.items():
            repo = cat.get(slug)
            started = time.monotonic()
            try:
                commit = publish(repo, rows, theirs[slug])
            except UserError as err:
                problem = f"{repo.repo_id}: {err}"
                break  # the next repo would probably fail in the same way
            seconds = round(time.monotonic() - started, 1)
            done[slug] = {"commit": commit, "seconds": seconds}
    # Even if some repos failed, the others are verified and recorded.
    for slug, rows in repos.items() if done else ():
        for row in rows:
            jsonl.write(row | done.get(slug, {"commit": None, "seconds": 0}))
    if problem:
        pushed = ", ".join(cat.get(slug).repo_id for slug in done)
        pushed = f"; already pushed: {pushed}" if pushed else ""
        raise UserError(f"{problem}{pushed}; to continue: {settings.resume_command()}")


def publish(repo: catalog.Repo, rows: list[jsonl.Line], seen: Remote) -> str:
    """Make one repo match its stage; return the commit that does.

    A failed attempt may have committed if only its answer was lost, so each attempt starts
    from what the Hub has now.

    Args:
        seen: The repo as seen by `publishable.check`.

    Raises:
        UserError: The Hub refuses, keeps failing, or somebody else committed meanwhile.
    """
    parent = seen.commit
    dpath, prune = staged.dpath_of(repo.slug), settings.get("PRUNE") == "1"
    announced = ""

    def found() -> tuple[Remote, str | None]:
        """The repo now, and our commit in it, from this run or an earlier one."""
        there = hub_repo.remote(repo.repo_id)
        if is_done(rows, there):
            return there, there.commit
        if announced and there.commit != parent:
            # Our commit may have succeeded, with somebody else's on top of it.
            after = hub_repo.commit_after(repo.repo_id, parent)
            if after and is_done(rows, hub_repo.remote(repo.repo_id, after)):
                return there, after
        return there, None

    def attempt() -> str:
        nonlocal parent, announced
        there, commit = found()
        if commit is not None:
            return commit
        if there.commit is None and parent is None:
            hub_repo.create(repo.repo_id)
            there = hub_repo.remote(repo.repo_id)
        if parent is None and there.is_fresh:
            parent = there.commit
        if there.commit is None or there.commit != parent:
            raise UserError(conflict(repo.slug, there, parent))
        for problem in hub_repo.access_problems(repo.repo_id, there):
            raise UserError(problem.removeprefix(f"{repo.repo_id}: "))
        changes = staged.changes(rows, there)
        message = describe(changes, rows, prune)
        if message != announced:
            size = hub_repo.total([*changes.add, *changes.change])
            say(f"{repo.repo_id}: {message}; sending {size}")
            announced = message
        return hub_repo.upload(
            repo.repo_id,
            dpath,
            changes,
            there.commit,
            message,
            description=leftovers(changes, prune),
            prune=prune,
            check=lambda: check_stage_unchanged(repo.slug, rows),
        )

    def may_pass(err: Exception) -> bool:
        # After a commit whose answer was lost, a retry gets 412, since main has moved on.
        return hub.is_transient(err) or hub.status_of(err) == 412

    try:
        commit = hub.retrying(repo.repo_id, attempt, may_pass)
    except UserError:
        raise
    except Exception as err:
        there, ours = found() if may_pass(err) else (seen, None)
        if ours is None and there.commit != parent and may_pass(err):
            raise UserError(conflict(repo.slug, there, parent)) from err
        if ours is None:
            check_stage_unchanged(repo.slug, rows)
            raise UserError(hub.explain(err)) from err
        commit = ours
    check_sent(repo, rows, commit)
    return commit


def check_stage_unchanged(slug: str, rows: list[jsonl.Line]) -> None:
    """Raise UserError if the stage is no longer what was checked."""
    if problems := staged.problems(slug, rows):
        raise UserError(
            f"nothing was committed, because of a change while sending: {problems[0]}"
        )


def leftovers(changes: Changes, prune: bool) -> str:
    """The commit's description: which files in the repo are not part of this release."""
    if prune or not changes.extra:
        return ""
    paths = "".join(f"\n- {one_line(file.path)}" for file in changes.extra)
    return f"Left from earlier commits, not part of this release:\n{paths}"


def check_sent(repo: catalog.Repo, rows: list[jsonl.Line], commit: str) -> None:
    """Raise UserError unless a commit has what was sent."""
    there = hub_repo.remote(repo.repo_id, commit)
    left = staged.changes(rows, there)
    if left.add or left.change:
        paths = ", ".join(file.path for file in (*left.add, *left.change))
        raise UserError(
            f"commit {commit} is public, but its {paths} differ from what preflight checked;"
            f" make recheck REPO={repo.slug}"
        )


def describe(changes: Changes, rows: list[jsonl.Line], prune: bool) -> str:
    """The commit's message."""
    layers = layers_text({row["layer"] for row in rows})
    what = f"{n_of(len(rows), 'SAE checkpoint')} of {layers}"
    if not changes.change and not changes.keep and not (prune and changes.extra):
        return f"Release {what}"
    counts = {"added": len(changes.add), "changed": len(changes.change)}
    counts |= {"deleted": len(changes.extra)} if prune else {}
    parts = [f"{n_of(n, 'file')} {how}" for how, n in counts.items() if n]
    return f"Update to {what}: {', '.join(parts)}"
