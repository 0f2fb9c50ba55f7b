"""verify: compare the Hub with what was staged, or with the record of a release.

Every file is compared by its hash in the Hub's listing, and the card and the manifest byte for
byte. One checkpoint per repo, or each, is downloaded and loaded: its tensors are compared bit
for bit, and what it computes with the repo's check.npz.
"""

import contextlib
import datetime
import hashlib
import pathlib
import threading
import time
import typing as tp

from .. import catalog, jsonl, settings
from ..cli import UsageError, UserError, fail_on, parser
from ..files import scratch
from ..hub import client as hub
from ..hub import repo as hub_repo
from ..hub.files import NEVER_EXTRA, Compared, Remote, Status
from ..release import record as release
from ..release import staged
from ..release.record import Release
from ..text import n_of, one_line, say

CHECK = "check.npz"
KEYS = (*staged.KEYS, "l0", "commit", "seconds", "loader")


class Found(tp.NamedTuple):
    """The result of checking a repo."""

    problems: list[str]
    files: list[Compared]
    verified: dict[str, tp.Any]
    """What was checked besides hashes, for the record."""


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
        threading.Thread(target=prepare).start()
        repos = staged.by_repo(jsonl.read(*KEYS, is_chosen=True))
        check_pushed(cat, repos, args.files, args.download)


def prepare() -> None:
    """Do what loading a checkpoint needs and takes seconds, while push is still sending."""
    with contextlib.suppress(ImportError):  # reported when it is needed
        from ..checkpoint import check as preflight_check

        preflight_check.prepare()


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


def where_of(released: Release) -> tuple[str, str]:
    return released.repo_id, released.commit


def check(released: Release, there: Remote, download: bool = False) -> Found:
    """Compare a repo with a release.

    Args:
        released: What should be there.
        there: What is there, at some commit.
        download: Compare every byte of every file, and load every checkpoint.
    """
    if there.commit is None:
        missing: list[Compared] = [(f, "missing") for f in released.files.values()]
        text = f"{released.repo_id}: no such repo, or this token has no access to it"
        return Found([text], missing, {})
    where = f"{released.repo_id} at {there.commit[:12]}"
    problems = hub_repo.access_problems(released.repo_id, there)
    wrong = dict(differences(released, there))
    extra = [
        file
        for path, file in sorted(there.files.items())
        if path not in released.files and path not in NEVER_EXTRA
    ]
    for file in extra:
        say(f"{where}: {one_line(file.path)}: extra, not part of this release")
    chosen = pick(released, datetime.datetime.now(datetime.UTC).date())
    to_fetch = [
        path
        for path in released.files
        if path not in wrong
        # The listing has no sha256 for files in git, and people read these two.
        and (
            download
            or there.files[path].sha256 is None
            or path in ("README.md", "manifest.jsonl")
            or (path == chosen and not wrong)
        )
    ]
    for path in to_fetch:
        try:
            problem = check_download(released, path, there.commit)
        except UserError as err:
            problems.append(f"{where}: {path}: {err}")
            break  # the next file would probably fail in the same way
        if problem:
            wrong[path] = problem
    problems += [f"{where}: {path}: {text}" for path, text in wrong.items()]
    files: list[Compared]
    files = [(f, status(p, there, wrong)) for p, f in released.files.items()]
    files += [(file, "extra") for file in extra]
    verified = {
        "loaded": chosen,
        "loader": released.loaders[chosen],
        "extra": [file.path for file in extra],
    }
    if not problems:
        by = "byte for byte" if download else "by hash"
        loaded = n_of(len(released.loaders), "checkpoint") if download else chosen
        n_files = n_of(len(released.files), "file")
        say(f"{where}: verified {n_files} {by} and {loaded} by loading it")
    return Found(problems, sorted(files, key=lambda pair: pair[0].path), verified)


def differences(released: Release, there: Remote) -> tp.Iterator[tuple[str, str]]:
    """The files that differ from the release according to the Hub's listing, and how."""
    for path, file in released.files.items():
        found = there.files.get(path)
        if found is None:
            yield path, f"missing; expected sha256 {file.sha256}"
        elif found.bytes != file.bytes:
            yield path, f"expected {file.bytes} bytes, found {found.bytes}"
        elif found.sha256 is not None and found.sha256 != file.sha256:
            yield path, f"expected sha256 {file.sha256}, found {found.sha256}"


def status(path: str, there: Remote, wrong: dict[str, str]) -> Status:
    if path not in there.files:
        return "missing"
    return "differ" if path in wrong else "match"


def pick(released: Release, day: datetime.date) -> str:
    """The checkpoint to download: a different one each day, the same for everyone."""
    paths = sorted(released.loaders)
    return paths[(int(released.commit, 16) + day.toordinal()) % len(paths)]


def check_download(released: Release, path: str, commit: str) -> str:
    """How a file, downloaded into an empty cache, differs from the release; "" if it doesn't.

    Raises:
        UserError: It can't be downloaded.
    """
    with scratch("verify") as cache_dpath:
        fpath, difference = fetch(released, path, commit, cache_dpath)
        if difference or path not in released.loaders:
            return difference
        check_fpath = None
        if CHECK in released.files:
            check_fpath, difference = fetch(released, CHECK, commit, cache_dpath)
            if difference:
                return f"can't be compared with {CHECK}: {difference}"
        return load_problem(fpath, released.loaders[path], check_fpath, path)


def fetch(
    released: Release, path: str, commit: str, cache_dpath: pathlib.Path
) -> tuple[pathlib.Path, str]:
    """Download a file; return its path, and how it differs from the release ("" if not).

    Raises:
        UserError: It can't be downloaded.
    """
    fpath = hub_repo.download(released.repo_id, path, commit, cache_dpath)
    with open(fpath, "rb") as fd:
        found = hashlib.file_digest(fd, "sha256").hexdigest()
    expected = released.files[path].sha256
    differs = f"expected sha256 {expected}, downloaded {found}"
    return fpath, differs if found != expected else ""


def load_problem(
    fpath: pathlib.Path, loader: str, check_fpath: pathlib.Path | None, path: str
) -> str:
    """What is wrong with a downloaded checkpoint, loaded as its user would; "" if nothing.

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
