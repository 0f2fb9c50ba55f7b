"""push: send each repo's stage to the Hub, all of it in one commit.

Everything that can be known to be wrong is told before the first byte is sent.
"""

import collections
import contextlib
import time
import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UserError, fail_on, parser, resume_command
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
    repos = staged.by_repo(jsonl.read(*KEYS, is_chosen=True))
    if not repos:
        return
    problem = ""
    with contextlib.ExitStack() as locks:
        # Held to the end, so that what was checked is what is sent.
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
                break  # whatever it is, the next would wait for it as long
            seconds = round(time.monotonic() - started, 1)
            done[slug] = {"commit": commit, "seconds": seconds}
    # What is done is verified and recorded, though the rest failed.
    for slug, rows in repos.items() if done else ():
        for row in rows:
            jsonl.write(row | done.get(slug, {"commit": None, "seconds": 0}))
    if problem:
        have = ", ".join(cat.get(slug).repo_id for slug in done)
        have = f"; already there: {have}" if have else ""
        raise UserError(f"{problem}{have}; to continue: {resume_command()}")


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
            problems += check_there(repo, rows, there, is_sendable=not problems)
        except UserError as err:
            problems += [] if no_rights else [str(err)]  # else it has been told
    fail_on(problems, f"nothing was sent; to continue: {resume_command()}")
    return theirs


def check_there(
    repo: catalog.Repo,
    rows: list[jsonl.Line],
    there: hub_repo.Remote,
    is_sendable: bool,
) -> list[str]:
    """What stands against publishing a repo, as the Hub knows it.

    Args:
        is_sendable: Whether nothing is wrong so far; what depends on it is asked only then.
    """
    problems = hub_repo.not_as_named(repo.repo_id, there)
    planned = rows[0].get("parent_commit", there.commit)
    is_taken = there.commit != planned and not (planned is None and there.is_fresh)
    if is_done(repo.slug, rows, there):
        return problems
    if is_taken:
        problems.append(f"{repo.repo_id}: {conflict(repo.slug, there, planned)}")
    if problems or not is_sendable:
        return problems
    dpath = staged.dpath_of(repo.slug)
    changes = hub_repo.compare(there, staged.files(rows), dpath)
    send = [*changes.add, *changes.change]
    if any(file.path == "README.md" for file in send):
        problem = hub_repo.refused_card((dpath / "README.md").read_text("utf-8"))
        problems += [f"{repo.repo_id}: {problem}"] if problem else []
    if there.commit is not None:
        problem = hub_repo.kept_out(repo.repo_id, send, dpath)
        problems += [problem] if problem else []
    return problems


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


def publish(repo: catalog.Repo, rows: list[jsonl.Line], seen: hub_repo.Remote) -> str:
    """Bring one repo to what its stage holds; the commit that holds it.

    A try that failed may have committed all the same, its answer lost on the way; so each
    try begins with what the Hub has now.

    Args:
        seen: The repo as the plan saw it.

    Raises:
        UserError: The Hub refuses, keeps failing, or somebody else committed meanwhile.
    """
    parent = seen.commit
    dpath, prune = staged.dpath_of(repo.slug), settings.get("PRUNE") == "1"
    told = ""

    def found() -> tuple[hub_repo.Remote, str | None]:
        """The repo now, and the commit in it that is ours, from this run or another."""
        there = hub_repo.remote(repo.repo_id)
        if is_done(repo.slug, rows, there):
            return there, there.commit
        if told and there.commit != parent:
            # Ours may have landed, and somebody else's on top of it.
            after = hub_repo.commit_after(repo.repo_id, parent)
            if after and is_done(repo.slug, rows, hub_repo.remote(repo.repo_id, after)):
                return there, after
        return there, None

    def attempt() -> str:
        nonlocal parent, told
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
        for problem in hub_repo.not_as_named(repo.repo_id, there):
            raise UserError(problem.removeprefix(f"{repo.repo_id}: "))
        changes = hub_repo.compare(there, staged.files(rows), dpath)
        message = describe(changes, rows, prune)
        if message != told:
            size = hub_repo.total([*changes.add, *changes.change])
            say(f"{repo.repo_id}: {message}; sending {size}")
            told = message
        return hub_repo.upload(
            repo.repo_id,
            dpath,
            changes,
            there.commit,
            message,
            description=besides(changes, prune),
            prune=prune,
            hold=lambda: hold(repo.slug, rows),
        )

    def may_pass(err: Exception) -> bool:
        # Of a commit whose answer was lost, a second try is told that main has moved on.
        return hub.is_passing(err) or hub.status_of(err) == 412

    try:
        commit = hub.retrying(repo.repo_id, attempt, may_pass)
    except UserError:
        raise
    except Exception as err:
        there, ours = found() if may_pass(err) else (seen, None)
        if ours is None and there.commit != parent and may_pass(err):
            raise UserError(conflict(repo.slug, there, parent)) from err
        if ours is None:
            hold(repo.slug, rows)
            raise UserError(hub.explain(err)) from err
        commit = ours
    check_sent(repo, rows, commit)
    return commit


def hold(slug: str, rows: list[jsonl.Line]) -> None:
    """Raises UserError where the stage is no longer what was checked."""
    if problems := staged.problems(slug, rows):
        raise UserError(f"nothing was committed, for while it was sent, {problems[0]}")


def besides(changes: hub_repo.Changes, prune: bool) -> str:
    """The commit's description: which files of the repo are not of this release."""
    if prune or not changes.extra:
        return ""
    paths = "".join(f"\n- {one_line(file.path)}" for file in changes.extra)
    return f"Left from earlier commits, and not of this release:\n{paths}"


def check_sent(repo: catalog.Repo, rows: list[jsonl.Line], commit: str) -> None:
    """Raises UserError where a commit does not hold what was sent for it."""
    there = hub_repo.remote(repo.repo_id, commit)
    left = hub_repo.compare(there, staged.files(rows), staged.dpath_of(repo.slug))
    if left.add or left.change:
        paths = ", ".join(file.path for file in (*left.add, *left.change))
        raise UserError(
            f"commit {commit} is public and does not hold {paths} as preflight saw it;"
            f" make recheck REPO={repo.slug}"
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
    counts = {"added": len(changes.add), "changed": len(changes.change)}
    counts |= {"deleted": len(changes.extra)} if prune else {}
    parts = [f"{n_of(n, 'file')} {how}" for how, n in counts.items() if n]
    return f"Update to {what}: {', '.join(parts)}"
