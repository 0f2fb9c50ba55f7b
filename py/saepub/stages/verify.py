"""verify: compare the Hub with what was staged, or with the record of a release.

Every file is compared by its hash in the Hub's listing, and the card and the manifest byte for
byte. One checkpoint per repo, or each, is downloaded and loaded: its tensors are compared bit
for bit, and what it computes with the repo's check.npz.
"""

import contextlib
import functools
import pathlib
import select
import threading
import time
import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UsageError, UserError, fail_on, parser
from ..hub import client as hub
from ..hub import repo as hub_repo
from ..release import compare, staged
from ..release import record as release
from ..release.compare import Found
from ..release.record import Release
from ..text import say

KEYS = (*staged.KEYS, "l0", "commit", "seconds", "loader")


def main(argv: list[str]) -> None:
    p = parser(
        "Check that the Hub holds exactly what was released; write release.json.",
        "bin/verify --released vitl-topk",
    )
    p.add_argument(
        "--released",
        nargs="+",
        metavar="SLUG",
        help="instead of lines, compare main as it is now with the records of releases",
    )
    p.add_argument(
        "--download",
        action="store_true",
        help="download every file and compare every byte; load every checkpoint",
    )
    staged.add_files_option(p)
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    if args.released:
        slugs = [cat.get(slug).slug for slug in args.released]
        check_records(slugs, args.files, args.download)
    else:
        if not select.select([0], [], [], 0)[0]:  # stdin: push is still sending
            threading.Thread(target=prepare).start()
        repos = staged.by_repo(jsonl.read(*KEYS, is_chosen=True))
        check_pushed(cat, repos, args.files, args.download)


def prepare() -> None:
    """Do what loading a checkpoint needs and takes seconds."""
    with contextlib.suppress(ImportError):  # reported when it is needed
        from ..checkpoint import check as preflight_check

        preflight_check.prepare()


def load_problem(
    fpath: pathlib.Path, path: str, loader: str, check_fpath: pathlib.Path | None
) -> str:
    """What is wrong with a downloaded checkpoint, as `compare.Load`.

    Compares every tensor's bits, and what it computes with the repo's check.npz.
    """
    from ..checkpoint import bundle
    from ..checkpoint import check as preflight_check

    layer, run_id, _ = path.split("/")
    try:
        probe = None
        if check_fpath:
            probe = bundle.read(check_fpath, int(layer.removeprefix("layer_")), run_id)
        preflight_check.check_file(fpath, loader, probe)
    except UserError as err:
        return str(err).removeprefix(f"{fpath}: ")
    return ""


check = functools.partial(compare.check, load=load_problem)


def check_pushed(
    cat: catalog.Catalog,
    repos: dict[str, list[jsonl.Line]],
    with_files: bool,
    download: bool,
) -> None:
    """Verify what push sent. Write a record of each repo that is right, and pass lines on with
    `url`, which is null for a repo that is wrong."""
    problems: list[str] = []
    urls: dict[str, dict[str, tp.Any]] = {}
    out: list[jsonl.Line] = []
    for slug, rows in repos.items():
        urls[slug] = {"url": None}
        commits = {row["commit"] for row in rows}
        if len(commits) != 1:
            raise UsageError(
                f"{slug}: lines from different commits; pass the lines of one push"
            )
        if commits == {None}:
            continue  # push has printed why
        started = time.monotonic()
        released = release.from_lines(cat.get(slug).repo_id, rows)
        try:
            found = check(released, hub_repo.remote(*where_of(released)), download)
        except UserError as err:
            found = Found([str(err)], [], {})
        problems += found.problems
        out += staged.file_lines(slug, found.files)
        if not found.problems:
            seconds = round(rows[0]["seconds"] + time.monotonic() - started, 1)
            release.write(released, found.verified, seconds, hub.endpoint())
            urls[slug] = {"seconds": seconds, "url": hub_repo.url(*where_of(released))}
    if not with_files:
        is_any_right = any(of["url"] for of in urls.values())
        passed_on = repos.items() if is_any_right else ()
        out = [row | urls[slug] for slug, rows in passed_on for row in rows]
    for line in out:
        jsonl.write(line)
    fail_on(
        problems,
        "pushed but not verified; no collection was changed; to continue:"
        f" {settings.resume_command()}",
    )


def check_records(slugs: list[str], with_files: bool, download: bool) -> None:
    """Compare the Hub as it is now, and at each release's commit, with the records.

    Raises:
        UserError: Something differs or a record is missing, all of which has been printed.
    """
    problems: list[str] = []
    for slug in slugs:
        try:
            found = check_record(release.read(slug), download)
            problems += found.problems
            for line in staged.file_lines(slug, found.files) if with_files else ():
                jsonl.write(line)
        except UserError as err:
            problems.append(str(err))
    fail_on(problems, "not as released")


def check_record(released: Release, download: bool) -> Found:
    """Compare the Hub with a record, at the release's commit and now."""
    head = hub_repo.remote(released.repo_id)
    if head.commit in (None, released.commit):
        return check(released, head, download)
    say(
        f"{released.repo_id}: main has moved on from {released.commit} to {head.commit}"
    )
    then = check(released, hub_repo.remote(*where_of(released)), download)
    now = check(released, head)
    return now._replace(problems=list(dict.fromkeys(then.problems + now.problems)))


def where_of(released: Release) -> tuple[str, str]:
    return released.repo_id, released.commit
