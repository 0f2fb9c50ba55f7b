"""push: send each repo's stage to the Hub in one commit.

Everything that can be checked in advance is checked before the first byte is sent.
"""

import collections
import contextlib
import time
import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UserError, fail_on, parser
from ..hub import client as hub
from ..hub import repo as hub_repo
from ..hub import rights as hub_rights
from ..hub.files import Changes, Remote
from ..release import manifest, staged
from ..text import layers_text, n_of, one_line, say

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
    repos = staged.by_repo(jsonl.read(*KEYS, is_chosen=True))
    if not repos:
        return
    problem = ""
    with contextlib.ExitStack() as locks:
        # Held to the end, so that what is sent is what was checked.
        for slug in repos:
            cat.get(slug)
            locks.enter_context(staged.lock(slug))
        theirs = check(cat, repos)
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


def check(
    cat: catalog.Catalog, repos: dict[str, list[jsonl.Line]]
) -> dict[str, Remote]:
    """Check everything that can be checked before anything is changed on the Hub.

    Args:
        repos: Lines by slug.

    Returns:
        Each repo as it is on the Hub now, by slug.

    Raises:
        UserError: There are problems, all of which have been printed.
    """
    problems = []
    if settings.is_demo_fpath(cat.fpath) and hub.endpoint() == THE_HUB:
        problems.append(settings.NO_RELEASE_OF_DEMO)
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
            problems += check_there(repo, rows, there, is_sendable=not problems)
        except UserError as err:
            problems += [] if no_rights else [str(err)]  # probably the same problem
    fail_on(problems, f"nothing was sent; to continue: {settings.resume_command()}")
    return theirs


def check_there(
    repo: catalog.Repo,
    rows: list[jsonl.Line],
    there: Remote,
    is_sendable: bool,
) -> list[str]:
    """Why a repo can't be published, according to the Hub.

    Args:
        is_sendable: Whether there is no problem so far; if there is, some checks are skipped.
    """
    problems = hub_repo.access_problems(repo.repo_id, there)
    planned = rows[0].get("parent_commit", there.commit)
    is_taken = there.commit != planned and not (planned is None and there.is_fresh)
    if is_done(rows, there):
        return problems
    if is_taken:
        problems.append(f"{repo.repo_id}: {conflict(repo.slug, there, planned)}")
    if problems or not is_sendable:
        return problems
    dpath = staged.dpath_of(repo.slug)
    changes = staged.changes(rows, there)
    send = [*changes.add, *changes.change]
    if any(file.path == "README.md" for file in send):
        problem = hub_repo.card_problem((dpath / "README.md").read_text("utf-8"))
        problems += [f"{repo.repo_id}: {problem}"] if problem else []
    if there.commit is not None:
        problem = hub_repo.ignored_problem(repo.repo_id, send, dpath)
        problems += [problem] if problem else []
    return problems


def check_stage(slug: str, rows: list[jsonl.Line]) -> list[str]:
    """Why a repo can't be published, according to this machine."""
    not_loaded = [f"{slug}: {problem}" for problem in staged.not_loaded(rows)]
    return staged.problems(slug, rows) + not_loaded


def same_files(repos: dict[str, list[jsonl.Line]]) -> list[str]:
    """Runs whose files are identical, within a repo or across repos."""
    by_sha256 = collections.defaultdict(set)
    for rows in repos.values():
        for row in rows:
            by_sha256[row["sha256"]].add(row["run_id"])
    return [
        f"{' and '.join(sorted(ids))} have identical files"
        for ids in by_sha256.values()
        if len(ids) > 1
    ]


def is_done(rows: list[jsonl.Line], there: Remote) -> bool:
    is_right = staged.changes(rows, there).is_done(settings.get("PRUNE") == "1")
    return there.commit is not None and is_right


def conflict(slug: str, there: Remote, seen: object) -> str:
    return (
        f"somebody else changed it: it is at {there.commit} and was at {one_line(seen)};"
        f" look at it with make plan REPO={slug}"
    )


def publish(repo: catalog.Repo, rows: list[jsonl.Line], seen: Remote) -> str:
    """Make one repo match its stage; return the commit that does.

    A failed attempt may have committed if only its answer was lost, so each attempt starts
    from what the Hub has now.

    Args:
        seen: The repo as seen by `check`.

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
