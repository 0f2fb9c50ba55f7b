"""verify catches a wrong byte wherever it is, and leaves a record of what it found right."""

import datetime
import hashlib
import importlib.metadata
import json
import sys

import numpy as np
import pytest

from kits import checkpoints as util
from kits.hub import Fault, corrupt
from kits.programs import ROOT, rows_of, run_code, run_program, text_of
from kits.release import LAB, OTHER, SLUG, Headers, World
from saepub.cli import UserError
from saepub.release import compare, staged
from saepub.release import record as release
from saepub.release.staged import File

pytest_plugins = ["kits.release_fixtures"]

DOCUMENTS = ("README.md", "manifest.jsonl", "pareto.png")


def pushed(world: World, *slugs: str) -> str:
    """Push; returns the lines for verify."""
    done = world.push(*slugs)
    assert done.code == 0, done.err
    world.kinds()
    return done.out


def released(world: World, *slugs: str) -> str:
    done = world.run("verify", stdin=pushed(world, *slugs))
    assert done.code == 0, done.err
    return done.out


def later(world: World, *slugs: str, **env: object):
    """`make verify`, some time later."""
    return world.run("verify", "--released", *(slugs or (SLUG,)), **env)


def record(world: World, slug: str = SLUG) -> dict:
    return json.loads((world.records / slug / "release.json").read_text())


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def picked(world: World) -> str:
    """The checkpoint that a verification downloads today."""
    commit = world.hub.commits(world.repo_id)[0]["id"]
    loaders = {row["path"]: row["loader"] for row in world.rows[SLUG]}
    of = release.Release(SLUG, world.repo_id, commit, {}, loaders)
    return compare.pick(of, today())


def another(world: World) -> str:
    return next(r["path"] for r in world.rows[SLUG] if r["path"] != picked(world))


def is_refused(world: World, done, *says: str) -> None:
    assert (done.code, done.out) == (1, "")
    for words in (world.repo_id, *says):
        assert words in done.last
    assert "no collection was changed" in done.last
    assert not (world.records / SLUG / "release.json").exists()


# What passes.


def test_what_was_pushed_is_verified_and_loaded(either):
    done = either.run("verify", stdin=pushed(either))
    assert done.code == 0, done.err
    commit = either.hub.commits(either.repo_id)[0]["id"]
    assert done.err == (
        f"{either.repo_id} at {commit[:12]}: verified 9 files by hash and"
        f" {picked(either)} by loading it\n"
    )
    kinds = either.kinds()
    by_xet = "xet_token" in kinds
    assert by_xet == (either.transport == "xet")
    assert kinds.count("tree") == 1 and "resolve" in kinds
    assert not list((either.dpath / "tmp").iterdir())


def test_lines_pass_on_with_the_url_and_the_seconds_of_both(world):
    lines = pushed(world)
    rows = world.run("verify", stdin=lines).rows
    commit = world.hub.commits(world.repo_id)[0]["id"]
    assert rows[0]["url"] == f"{world.hub.endpoint}/{world.repo_id}/tree/{commit}"
    before = [json.loads(line)["seconds"] for line in lines.splitlines()]
    assert [row["seconds"] for row in rows] >= before
    assert [row["run_id"] for row in rows] == [r["run_id"] for r in world.rows[SLUG]]


def test_release_json_is_what_an_audit_needs(world):
    released(world)
    found = record(world)
    commit = world.hub.commits(world.repo_id)[0]["id"]
    assert found["repo"] == SLUG
    assert (found["repo_id"], found["commit"]) == (world.repo_id, commit)
    assert found["endpoint"] == world.hub.endpoint
    time = datetime.datetime.fromisoformat(found["time"])
    assert abs(datetime.datetime.now(datetime.UTC) - time).total_seconds() < 100
    for name in ("huggingface_hub", "torch"):
        assert found["tools"][name] == importlib.metadata.version(name)
    assert found["verified"]["loaded"] == picked(world)
    files = {f["path"]: (f["bytes"], f["sha256"]) for f in found["files"]}
    assert files == world.expected()
    for path, (n_bytes, sha256) in files.items():
        content = (world.stage() / path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (n_bytes, sha256)
    loaders = {f["path"]: f["loader"] for f in found["files"] if "loader" in f}
    assert set(loaders.values()) == {"saev 0.1.0"} and len(loaders) == 4
    assert found["n_files"] == 9
    assert found["n_bytes"] == sum(n for n, _ in files.values())


def test_nothing_is_read_from_an_earlier_download(world):
    lines = pushed(world)
    for _ in range(2):
        assert world.run("verify", stdin=lines).code == 0
        assert world.kinds().count("xet_token") >= 1


def test_of_a_builtin_loader_no_more_is_asked_later(world):
    for row in world.rows[SLUG]:
        row["loader"] = "builtin"
    done = world.pipe("plan", "push", "verify", LOADER="builtin")[-1]
    assert done.code == 0, done.err
    assert record(world)["verified"]["loader"] == "builtin"


def test_every_checkpoint_has_its_day_and_all_agree_on_it():
    paths = [f"layer_{i}/x/sae.pt" for i in range(5)]
    loaders = dict.fromkeys(paths, "builtin")
    releases = [
        release.Release(SLUG, "a/b", f"{i:040x}", {}, loaders) for i in range(5)
    ]
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(i) for i in range(5)]
    for of in releases:
        assert {compare.pick(of, day) for day in days} == set(paths)
        assert compare.pick(of, days[0]) == compare.pick(of, days[0])
    assert {compare.pick(of, days[0]) for of in releases} == set(paths)


# What does not.


def test_a_wrong_byte_in_the_checkpoint_of_the_day_is_caught(world):
    lines, path = pushed(world), picked(world)
    corrupt(world.hub, world.repo_id, path)
    found = hashlib.sha256(world.hub.read(world.repo_id, path)).hexdigest()
    done = world.run("verify", stdin=lines)
    expected = world.expected()[path][1]
    is_refused(world, done, f"{path}: expected sha256 {expected}, downloaded {found}")


@pytest.mark.parametrize("path", DOCUMENTS[:2])
def test_a_wrong_byte_in_a_document_is_caught(world, path):
    lines = pushed(world)
    corrupt(world.hub, world.repo_id, path)
    done = world.run("verify", stdin=lines)
    expected = world.expected()[path][1]
    is_refused(world, done, f"{path}: expected sha256 {expected}, downloaded ")


def swap(world: World, path: str, sha256: str) -> None:
    """Make the Hub's tree name other content of the same size."""
    repo = world.hub.store.repos[world.repo_id]
    repo.head["files"][path] = repo.head["files"][path] | {"sha256": sha256}


def test_a_tree_that_names_another_hash_is_caught_without_a_checkpoints_download(world):
    lines, path = pushed(world), another(world)
    swap(world, path, "0" * 64)
    done = world.run("verify", stdin=lines)
    expected = world.expected()[path][1]
    is_refused(world, done, f"{path}: expected sha256 {expected}, found {'0' * 64}")
    assert "xet_token" not in world.kinds()


def test_a_size_or_a_missing_file_is_caught(world):
    lines, path = pushed(world), another(world)
    repo = world.hub.store.repos[world.repo_id]
    entry = repo.head["files"][path]
    repo.head["files"][path] = entry | {"size": 9}
    done = world.run("verify", stdin=lines)
    is_refused(world, done, f"{path}: expected {entry['size']} bytes, found 9")
    del repo.head["files"][path]
    done = world.run("verify", stdin=lines)
    is_refused(world, done, f"{path}: missing; expected sha256 {entry['sha256']}")


def test_files_besides_are_told_and_let_be(world):
    world.push()
    world.commit_elsewhere({"notes.txt": b"mine"})
    done = world.run("verify", stdin=pushed(world))
    assert done.code == 0
    assert "notes.txt: extra, not part of this release" in done.err
    assert record(world)["verified"]["extra"] == ["notes.txt"]


def test_a_checkpoint_that_computes_other_than_check_npz_says_is_caught(world):
    fpath = world.stage() / "check.npz"
    with np.load(fpath) as arrays:
        spoilt = {
            name: array * 1.1 if name.endswith("/x_hat") else array
            for name, array in arrays.items()
        }
    np.savez(fpath, **spoilt)
    for row in world.rows[SLUG]:
        row["documents"]["check.npz"] = staged.document(fpath)
    done = world.run("verify", stdin=pushed(world))
    is_refused(
        world, done, f"{picked(world)}: it computes different reconstructions than"
    )


def test_a_saev_that_loads_other_values_is_caught(world, tmp_path):
    saev_dir = util.write_saev(tmp_path / "saev", "tied")
    done = world.run("verify", stdin=pushed(world), SAEV_DIR=saev_dir)
    is_refused(
        world, done, f"{picked(world)}: saev (commit unknown) loads other values: W_dec"
    )


def test_one_bad_repo_keeps_all_from_the_collections_and_the_other_is_recorded(world):
    world.use("other")
    lines = pushed(world, SLUG, OTHER)
    corrupt(world.hub, world.repo_id, "README.md")
    done = world.run("verify", stdin=lines)
    assert done.code == 1
    assert f"{world.repo_id} at " in done.last and "README.md: expected" in done.last
    assert not (world.records / SLUG / "release.json").exists()
    assert record(world, OTHER)["repo"] == OTHER
    assert {row["repo"]: row["url"] is None for row in done.rows} == {
        SLUG: True,
        OTHER: False,
    }
    collect = world.run("collect", stdin=done.out)
    assert collect.last == f"no collection was changed: {SLUG} must be released first"
    assert "collection_add" not in world.kinds()
    said = run_program(ROOT / "bin/announce", stdin=collect.out, AGAIN="make release")
    assert said.err == (
        f"announce: public but not verified: {SLUG}; to continue: make release\n"
    )


def test_lines_of_two_pushes_are_wrong_usage(world):
    rows = rows_of(pushed(world))
    rows[0]["commit"] = "0" * 40
    done = world.run("verify", stdin=text_of(rows))
    assert done.code == 2
    assert "lines from different commits" in done.last


def test_a_commit_that_is_not_there_is_one_line(world):
    rows = rows_of(pushed(world))
    lines = text_of([row | {"commit": "0" * 40} for row in rows])
    done = world.run("verify", stdin=lines)
    is_refused(world, done, f"the Hub has no commit {'0' * 40}")


# Faults.


TABLE = [
    *(("xet", kind) for kind in ("info", "tree", "resolve", "xet_token")),
    ("lfs", "resolve"),
]


@pytest.mark.parametrize(("transport", "kind"), TABLE)
def test_a_passing_fault_is_outlasted(world, transport, kind):
    world.over(transport)
    lines = pushed(world)
    for pair in (
        ({"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503}),
        ({"drop": "before"}, {"drop": "after"}),
        ({"stall": True},),
    ):
        faults = [Fault(kind, **fault) for fault in pair]
        world.hub.faults[:] = faults
        env = {"HF_HUB_DOWNLOAD_TIMEOUT": 1, "HF_HUB_ETAG_TIMEOUT": 1}
        env |= {"HF_XET_CLIENT_READ_TIMEOUT": "1s"}
        done = world.run("verify", stdin=lines, **env)
        assert done.code == 0, done.err
        assert all(fault.times <= 0 for fault in faults)
        for fault in faults:
            fault.release.set()


@pytest.mark.parametrize(("transport", "kind"), TABLE)
def test_a_lasting_fault_is_one_line_with_the_command_that_continues(
    world, transport, kind
):
    world.over(transport)
    lines = pushed(world)
    world.hub.faults.append(Fault(kind, status=503, times=10**6))
    done = world.run("verify", stdin=lines)
    assert (done.code, done.out) == (1, "")
    assert "503" in done.err
    assert (
        "pushed but not verified; no collection was changed; to continue: make rel"
        in (done.last)
    )
    assert done.err.count("verify: ") == 1


# Later.


def test_what_did_not_change_is_verified_again_without_a_token(world):
    released(world)
    world.kinds()
    note = Headers()
    world.hub.faults.append(note)
    done = later(world, HF_TOKEN="")
    assert (done.code, done.out) == (0, "")
    assert "verified 9 files by hash" in done.err
    assert set(note.seen) == {None}


def test_it_is_told_that_main_has_moved_on(world):
    released(world)
    before = record(world)
    theirs = world.commit_elsewhere({"notes.txt": b"mine"})
    done = later(world)
    assert done.code == 0
    assert f"main has moved on from {before['commit']} to {theirs}" in done.err
    assert "notes.txt: extra, not part of this release" in done.err
    assert record(world) == before


def test_a_file_changed_since_is_told_with_what_was_expected(world):
    released(world)
    path = another(world)
    world.commit_elsewhere({path: b"changed", "README.md": b"edited"})
    done = later(world)
    assert done.code == 1
    head = world.hub.commits(world.repo_id)[0]["id"][:12]
    n_bytes, _ = world.expected()[path]
    assert (
        f"verify: {world.repo_id} at {head}: {path}: expected {n_bytes} bytes, found 7\n"
        in done.err
    )
    assert f"at {head}: README.md: expected" in done.err
    assert done.last == "verify: 2 problems; not as released"


def test_a_wrong_byte_since_is_told(world):
    released(world)
    corrupt(world.hub, world.repo_id, "manifest.jsonl")
    done = later(world)
    assert done.code == 1
    assert "manifest.jsonl: expected sha256" in done.last


def test_a_rewritten_history_is_told(world):
    released(world)
    repo = world.hub.store.repos[world.repo_id]
    commit = record(world)["commit"]
    world.commit_elsewhere({})
    repo.commits.pop(-2)
    done = later(world)
    assert (done.code, f"the Hub has no commit {commit}" in done.last) == (1, True)


def test_a_repo_that_is_gone_is_told(world):
    released(world)
    world.hub.store.repos.clear()
    done = later(world)
    assert (done.code, f"{world.repo_id}: no such repo" in done.last) == (1, True)


def test_without_a_record_it_says_so_and_checks_the_others(world):
    released(world)
    done = later(world, OTHER, SLUG)
    assert done.code == 1
    assert "verified 9 files" in done.err
    assert f"no record of a release; make release REPO={OTHER}" in done.last


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": [1]}', "\xff"])
def test_a_record_that_is_none_is_one_line(world, content):
    fpath = world.records / SLUG / "release.json"
    fpath.parent.mkdir(parents=True)
    fpath.write_text(content)
    done = later(world)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"verify: {fpath}: ") and done.err.count("\n") == 1


PATH = "layer_1/run/sae.pt"
FILES = {
    "README.md": File("README.md", 1, "0" * 64),
    PATH: File(PATH, 2, "1" * 64),
}
OF = release.Release(SLUG, "lab/x", "1" * 40, FILES, {PATH: "builtin"}, {PATH: 3.5})
VERIFIED = {"loaded": PATH, "loader": "builtin", "extra": []}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A record, as release.json has it, and its path."""
    monkeypatch.setenv("RECORDS", str(tmp_path))
    release.write(OF, VERIFIED, 1.0, "https://hub")
    fpath = tmp_path / SLUG / "release.json"
    return json.loads(fpath.read_text()), fpath


def test_a_record_keeps_what_it_says(kept):
    assert release.read(SLUG) == OF


BY_HAND = {
    'no "commit"': lambda r: r.pop("commit"),
    'no "verified"': lambda r: r.pop("verified"),
    'no "files.0.sha256"': lambda r: r["files"][0].pop("sha256"),
    "has no loader, or no l0": lambda r: r["files"][1].pop("loader"),
    '"files.1.l0"': lambda r: r["files"][1].update(l0="3"),
    '"files.0.bytes" is -1': lambda r: r["files"][0].update(bytes=-1),
    f"{PATH} has 0 bytes": lambda r: r["files"][1].update(bytes=0),
    "files has no checkpoint": lambda r: r["files"].pop(),
    "files has a path twice": lambda r: r["files"].append(r["files"][0]),
    "not a path of a release": lambda r: r["files"][0].update(path="../x"),
    "n_files is not": lambda r: r.update(n_files=9),
    "n_bytes is not": lambda r: r.update(n_bytes=9),
    '"note"': lambda r: r.update(note="mine"),
    '"commit" is "main"': lambda r: r.update(commit="main"),
    "is the record of other": lambda r: r.update(repo="other"),
    '"seconds" is null': lambda r: r.update(seconds=None),
}


@pytest.mark.parametrize("says", BY_HAND)
def test_a_record_by_hand_is_held_to_its_schema(kept, says):
    record, fpath = kept
    BY_HAND[says](record)
    fpath.write_text(json.dumps(record))
    with pytest.raises(UserError) as err:
        release.read(SLUG)
    assert str(fpath) in str(err.value) and says in str(err.value)


# For scripts.


def statuses(done) -> dict[str, str]:
    assert all(
        list(row) == ["repo", "path", "bytes", "sha256", "status"] for row in done.rows
    )
    return {row["path"]: row["status"] for row in done.rows}


def test_files_tell_of_each_file_in_a_word(world):
    lines = pushed(world)
    done = world.run("verify", "--files", stdin=lines)
    assert done.code == 0, done.err
    assert statuses(done) == dict.fromkeys(sorted(world.expected()), "match")
    assert {row["path"]: (row["bytes"], row["sha256"]) for row in done.rows} == (
        world.expected()
    )
    path, gone = another(world), picked(world)
    theirs = {path: b"changed", "README.md": b"edited", "notes.txt": b"x", gone: None}
    world.commit_elsewhere(theirs)
    for name, argv, stdin in (
        ("verify", ["--released", SLUG, "--files"], ""),
        ("plan", ["--files"], world.lines()),
    ):
        done = world.run(name, *argv, stdin=stdin)
        found = {"README.md": "differ", path: "differ", "notes.txt": "extra"}
        found |= {gone: "missing"}
        assert statuses(done) == dict.fromkeys(world.expected(), "match") | found
        assert done.code == (1 if name == "verify" else 0)


def test_a_card_edited_to_the_same_size_is_told_to_differ(world):
    released(world)
    content = (world.stage() / "README.md").read_bytes()
    world.commit_elsewhere({"README.md": content[:-1] + b"?"})
    done = later(world, SLUG)
    assert "README.md: expected sha256" in done.last
    done = world.run("verify", "--released", SLUG, "--files")
    assert statuses(done)["README.md"] == "differ"


def test_of_a_repo_that_is_not_there_every_file_is_missing(world):
    done = world.run("plan", "--files", stdin=world.lines())
    assert done.code == 0
    assert statuses(done) == dict.fromkeys(sorted(world.expected()), "missing")


def test_download_holds_every_byte_and_loads_every_checkpoint(world):
    lines, path = pushed(world), another(world)
    done = world.run("verify", "--download", stdin=lines)
    assert done.code == 0, done.err
    assert "verified 9 files byte for byte and 4 checkpoints by loading it" in done.err
    corrupt(world.hub, world.repo_id, path)
    assert world.run("verify", stdin=lines).code == 0
    done = world.run("verify", "--download", "--files", stdin=lines)
    assert (done.code, statuses(done)[path]) == (1, "differ")
    assert f"{path}: expected sha256" in done.last


# What the repo is.


def test_a_repo_that_is_no_longer_public_is_told(world):
    released(world)
    repo = world.hub.store.repos[world.repo_id]
    for name, says in (("private", "is private"), ("gated", "is gated")):
        setattr(repo, name, True)
        done = later(world)
        assert (done.code, f"{world.repo_id}: {says}" in done.last) == (1, True)
        setattr(repo, name, False)


def test_a_renamed_repo_is_told(world):
    released(world)
    world.hub.rename_repo(world.repo_id, f"{LAB}/renamed")
    done = later(world)
    assert done.code == 1
    assert f"{world.repo_id}: is named {LAB}/renamed on the Hub" in done.last


WITHOUT_LINES = """
import sys, threading
from saepub.stages import verify
verify.main([])
print(threading.active_count(), "torch" in sys.modules)
"""


def test_without_lines_it_imports_no_torch(world):
    """It does so only while push is still sending."""
    env = {"CATALOG": world.env["CATALOG"], "VENV": sys.prefix}  # not a fork
    assert run_code(WITHOUT_LINES, **env).out == "1 False\n"
