"""Whether repos can be published: all that can be checked before the first byte is sent."""

import collections

from .. import catalog, settings
from ..cli import UserError, fail_on
from ..hub import client as hub
from ..hub import repo as hub_repo
from ..hub import rights as hub_rights
from ..hub.files import Remote
from ..jsonl import Line
from ..text import one_line
from . import staged

THE_HUB = "https://huggingface.co"


def check(cat: catalog.Catalog, repos: dict[str, list[Line]]) -> dict[str, Remote]:
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
    rows: list[Line],
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


def check_stage(slug: str, rows: list[Line]) -> list[str]:
    """Why a repo can't be published, according to this machine."""
    not_loaded = [f"{slug}: {problem}" for problem in staged.not_loaded(rows)]
    return staged.problems(slug, rows) + not_loaded


def same_files(repos: dict[str, list[Line]]) -> list[str]:
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


def is_done(rows: list[Line], there: Remote) -> bool:
    is_right = staged.changes(rows, there).is_done(settings.get("PRUNE") == "1")
    return there.commit is not None and is_right


def conflict(slug: str, there: Remote, seen: object) -> str:
    return (
        f"somebody else changed it: it is at {there.commit} and was at {one_line(seen)};"
        f" look at it with make plan REPO={slug}"
    )
