"""verify: hold what the Hub has against what was staged, or against the record of a release.

Every file by its hash, from the Hub's own listing; the card and the manifest byte for byte;
and one checkpoint a repo by downloading and loading it.
"""

import datetime
import hashlib
import tempfile
import time

from .. import catalog, jsonl, settings
from ..cli import UsageError, UserError, again, parser, report
from ..hub import repo as hub_repo
from ..release import record as release
from ..release import staged
from ..release.record import Release
from ..text import n_of, one_line, say

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
        help="check the releases on record, as main is now, in place of lines",
    )
    args = p.parse_args(argv)
    settings.load()
    cat = catalog.load()
    if args.released:
        check_records([cat.get(slug).slug for slug in args.released])
    else:
        check_pushed(cat, staged.by_repo(jsonl.read(*KEYS)))


def check_pushed(cat: catalog.Catalog, repos: dict[str, list[jsonl.Line]]) -> None:
    """Verify what push sent; with all of it verified, keep the records and pass lines on."""
    problems, records = [], []
    for slug, rows in repos.items():
        if len({row["commit"] for row in rows}) != 1:
            raise UsageError(
                f"{slug}: lines of different commits; pass one push's lines"
            )
        started = time.monotonic()
        released = release.from_lines(cat.get(slug).repo_id, rows)
        try:
            found, verified = check(released)
        except UserError as err:
            found, verified = [str(err)], {}
        problems += found
        seconds = round(rows[0]["seconds"] + time.monotonic() - started, 1)
        records.append((released, verified, seconds))
    report(
        problems,
        f"pushed, not verified; no collection was touched; to go on: {again()}",
    )
    for released, verified, seconds in records:
        release.write(released, verified, seconds)
        url = hub_repo.url(released.repo_id, released.commit)
        for row in repos[released.slug]:
            jsonl.write(row | {"seconds": seconds, "url": url})


def check_records(slugs: list[str]) -> None:
    """Hold the Hub as it is now, and at each release's commit, against the records.

    Raises:
        UserError: Something differs, or there is no record; all of it has been told.
    """
    problems = []
    for slug in slugs:
        try:
            problems += check_record(release.read(slug))
        except UserError as err:
            problems.append(str(err))
    report(problems, "not as released")


def check(released: Release, revision: str | None = None) -> tuple[list[str], dict]:
    """Hold a repo at `revision` (default: the release's commit) against the release.

    Args:
        released: What should be there.
        revision: A commit or branch.

    Returns:
        All that differs, and what was looked at besides hashes.
    """
    there = hub_repo.remote(released.repo_id, revision or released.commit)
    if there.commit is None:
        return [f"{released.repo_id}: no such repo, or not for this token"], {}
    where = f"{released.repo_id} at {there.commit[:12]}"
    problems = []
    for path, file in released.files.items():
        if path not in there.files:
            problems.append(f"{where}: {path}: missing; expected sha256 {file.sha256}")
            continue
        found = there.files[path]
        if found.bytes != file.bytes:
            problems.append(
                f"{where}: {path}: expected {file.bytes} bytes, found {found.bytes}"
            )
        elif found.sha256 is not None and found.sha256 != file.sha256:
            problems.append(
                f"{where}: {path}: expected sha256 {file.sha256}, found {found.sha256}"
            )
    extra = [
        p
        for p in there.files
        if p not in released.files and p not in hub_repo.NEVER_EXTRA
    ]
    for path in extra:
        say(f"{where}: {one_line(path)}: there besides, not of this release")
    if problems:
        return problems, {}
    # git's own files have no sha256 in a listing, and these two are read by people.
    fetch = [
        path
        for path in released.files
        if there.files[path].sha256 is None or path in ("README.md", "manifest.jsonl")
    ]
    chosen = pick(released, datetime.datetime.now(datetime.UTC).date())
    for path in (*fetch, chosen):
        try:
            problems += check_download(released, path, there.commit, where)
        except UserError as err:
            # Each of the others would wait as long.
            problems.append(f"{where}: {path}: {err}")
            break
    verified = {"loaded": chosen, "loader": released.loaders[chosen], "extra": extra}
    if not problems:
        say(
            f"{where}: verified {n_of(len(released.files), 'file')}"
            f" by hash and {chosen} by loading it"
        )
    return problems, verified


def pick(released: Release, day: datetime.date) -> str:
    """The checkpoint to download: another each day, the same for all who ask that day."""
    paths = sorted(released.loaders)
    return paths[(int(released.commit, 16) + day.toordinal()) % len(paths)]


def check_download(released: Release, path: str, commit: str, where: str) -> list[str]:
    """Fetch one file into an empty cache and hold it against the release.

    Raises:
        UserError: The Hub does not give it.
    """
    with tempfile.TemporaryDirectory(prefix="saepub-verify-") as cache_dpath:
        fpath = hub_repo.download(released.repo_id, path, commit, cache_dpath)
        with open(fpath, "rb") as fd:
            found = hashlib.file_digest(fd, "sha256").hexdigest()
        expected = released.files[path].sha256
        if found != expected:
            return [f"{where}: {path}: expected sha256 {expected}, downloaded {found}"]
        if path in released.loaders:
            return check_loads(fpath, released.loaders[path], f"{where}: {path}")
    return []


def check_loads(fpath: str, loader: str, where: str) -> list[str]:
    """Load a downloaded checkpoint as its user would, and compare every tensor's bits."""
    from ..checkpoint import check as preflight_check

    try:
        preflight_check.check_file(fpath, loader)
    except UserError as err:
        return [f"{where}: {str(err).removeprefix(f'{fpath}: ')}"]
    return []


def check_record(released: Release) -> list[str]:
    """All in which the Hub differs from a record, at the release's commit and now."""
    head = hub_repo.remote(released.repo_id)
    problems, _ = check(released)
    if head.commit not in (None, released.commit):
        say(
            f"{released.repo_id}: main has moved on from {released.commit} to {head.commit}"
        )
        problems += check(released, "main")[0]
    return problems
