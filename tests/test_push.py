"""push sends a stage in one commit, or says in one line why not and changes nothing."""

import datetime
import email.utils
import os
import pathlib
import re
import shutil
import signal

import pytest

from kits.hub import Fault
from kits.programs import ROOT, Done, rows_of, run_program, text_of
from kits.release import (
    LAB,
    NARROW,
    OTHER,
    READER,
    SCOPED,
    SLUG,
    STRANGER,
    WRITER,
    WRITES,
    Answer,
    Headers,
    Hold,
    Meanwhile,
    scoped,
)
from kits.terminal import Terminal
from loopback_hub import Drop, HubError
from saepub.hub import client as hub
from saepub.text import human

pytest_plugins = ["kits.release_fixtures"]

READS = {"whoami", "info", "tree"}
INITIAL = "initial commit"


def nothing_was_sent(world, done, *says: str) -> None:
    assert done.code == 1
    assert done.out == ""
    for words in says:
        assert words in done.err
    assert "nothing was sent; to continue: make release" in done.last
    assert not set(world.kinds()) & set(WRITES)


def size_of(files: dict[str, tuple[int, str]]) -> str:
    return human(sum(n_bytes for n_bytes, _ in files.values()))


def only_checkpoints(files: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    return {path: of for path, of in files.items() if path.endswith("sae.pt")}


# One commit, and only what differs.


def test_all_files_land_in_one_commit(either):
    done = either.push()
    assert done.code == 0, done.err
    title = "Release 4 SAE checkpoints of layers 10, 11"
    assert either.titles() == [title, INITIAL]
    assert either.held() == either.expected()
    assert {row["commit"] for row in done.rows} == {
        either.hub.commits(either.repo_id)[0]["id"]
    }
    kinds = either.kinds()
    assert kinds.count("commit") == kinds.count("create_repo") == 1
    by_xet = "xet_token" in kinds, "lfs_put" not in kinds
    assert by_xet == (either.transport == "xet",) * 2


def test_lines_pass_with_commit_and_seconds_and_every_other_key(world):
    world.rows[SLUG][0]["mine"] = [1]
    done = world.push()
    assert [row["run_id"] for row in done.rows] == [
        row["run_id"] for row in world.rows[SLUG]
    ]
    assert done.rows[0]["mine"] == [1]
    assert all(row["seconds"] > 0 for row in done.rows)


def test_second_push_sends_0_bytes_and_makes_no_commit(either):
    first = either.push()
    n_bytes = either.hub.bytes_received
    either.kinds()
    second = either.push()
    assert (second.code, second.err) == (0, "")
    assert either.hub.bytes_received == n_bytes
    assert set(either.kinds()) <= READS | {"collection_list", "collection_get"}
    assert len(either.titles()) == 2
    assert second.rows[0]["commit"] == first.rows[0]["commit"]


def test_of_a_changed_selection_only_what_changed_goes_up(either):
    either.push()
    before, n_bytes = either.held(), either.hub.bytes_received
    either.use("more")
    assert either.push().code == 0
    assert either.held() == either.expected()
    new = {p: of for p, of in either.held().items() if before.get(p) != of}
    assert len(only_checkpoints(new)) == 4
    n_new = sum(n for n, _ in new.values())
    # A commit names its files, and holds small ones in base64; chunks are compressed.
    assert either.hub.bytes_received - n_bytes < n_new + 20_000
    assert either.titles()[0] == (
        "Update to 8 SAE checkpoints of layers 10, 11: 4 files added, 5 files changed"
    )


def test_what_is_no_longer_chosen_is_told_and_left(world):
    world.use("more")
    world.push()
    before = only_checkpoints(world.expected())
    world.use("few")
    gone = {p: of for p, of in before.items() if p not in world.expected()}
    plan, push = world.pipe("plan", "push")
    assert push.code == 0, push.err
    assert world.held() == world.expected() | gone
    assert f"leave     4 files, {size_of(gone)} (not part of this release" in plan.err
    assert all(path in plan.err for path in gone)


def test_prune_deletes_in_the_same_commit_and_never_gitattributes(either):
    either.use("more")
    either.push()
    before = only_checkpoints(either.expected())
    either.use("few")
    gone = {p: of for p, of in before.items() if p not in either.expected()}
    plan, push = either.pipe("plan", "push", PRUNE=1)
    assert push.code == 0, push.err
    assert f"delete    4 files, {size_of(gone)} (PRUNE=1)" in plan.err
    assert either.held() == either.expected()
    assert ".gitattributes" in either.hub.files(either.repo_id)
    assert len(either.titles()) == 3
    assert either.titles()[0].endswith(": 5 files changed, 4 files deleted")


def test_prune_alone_is_a_commit_and_then_nothing_is_left_to_do(either):
    either.push()
    either.commit_elsewhere({"notes.txt": b"mine"})
    assert either.push().err == ""
    assert "notes.txt" in either.held()
    assert either.push(PRUNE=1).code == 0
    assert either.titles()[0].endswith(": 1 file deleted")
    assert either.push(PRUNE=1).err == ""
    assert either.held() == either.expected()


def test_names_with_glob_characters_are_pruned_literally(world):
    world.push()
    odd = ["*", "layer_*", "[a-z]*.md", "note[1].txt", "a b?.md", "été.md"]
    world.commit_elsewhere(dict.fromkeys(odd, b"x"))
    before = world.held()
    assert world.push(PRUNE=1).code == 0
    assert set(before) - set(world.held()) == set(odd)


def test_a_folder_of_many_files_is_one_commit_however_often_it_fails(either):
    """The client's 2.x splits uploads of more than twenty files, in one of its ways to upload."""
    either.use("many")
    assert len(either.expected(OTHER)) > 20
    fault = Fault("commit", status=503, times=len(hub.PAUSES))
    either.hub.faults.append(fault)
    done = either.push(OTHER)
    assert (done.code, fault.times < 0) == (0, True), done.err
    assert len(either.titles(OTHER)) == 2
    assert either.held(OTHER) == either.expected(OTHER)


def test_symlinks_upload_what_they_point_to(either, tmp_path):
    stage = either.stage()
    for i, row in enumerate(either.rows[SLUG]):
        source = tmp_path / f"source{i}.pt"
        (stage / row["path"]).rename(source)
        (stage / row["path"]).symlink_to(source)
    assert either.push().code == 0
    assert either.held() == either.expected()


def test_two_repos_are_two_commits_and_nobody_elses(world):
    world.use("other")
    done = world.push(SLUG, OTHER)
    assert done.code == 0, done.err
    for slug in (SLUG, OTHER):
        assert world.held(slug) == world.expected(slug)
        assert len(world.titles(slug)) == 2
    assert len({row["commit"] for row in done.rows}) == 2


# What plan tells.


def test_plan_tells_adds_changes_and_what_is_unchanged_with_bytes(world):
    done = world.run("plan", stdin=world.lines())
    assert f"{world.repo_id}: would be created, public" in done.err
    assert f"  add       9 files, {size_of(world.expected())}\n" in done.err
    world.push()
    world.use("more")
    done = world.run("plan", stdin=world.lines())
    commit = world.hub.commits(world.repo_id)[0]["id"]
    assert f"{world.repo_id}: at {commit[:12]}" in done.err
    held = only_checkpoints(world.held())
    new = {
        p: of for p, of in only_checkpoints(world.expected()).items() if p not in held
    }
    assert f"  add       4 files, {size_of(new)}\n" in done.err
    assert "  change    5 files, " in done.err
    assert f"  unchanged 4 files, {size_of(held)}\n" in done.err
    for path, (n_bytes, _) in new.items():
        assert f"    {path}  {human(n_bytes)}\n" in done.err


def test_plan_only_reads_and_says_when_there_is_nothing_to_do(world):
    world.release()
    world.kinds()
    done = world.run("plan", stdin=world.lines())
    told = done.err.splitlines()
    assert told[0].startswith(f"{world.repo_id}: nothing to do, at ")
    assert told[1].startswith("  unchanged 9 files, ")
    assert [line.endswith(": nothing to do") for line in told[2:]] == [True, True]
    assert all(method == "GET" for method, _ in world.hub.requests)
    assert done.rows == [
        row | {"parent_commit": world.hub.commits(world.repo_id)[0]["id"]}
        for row in world.rows[SLUG]
    ]


def test_plan_works_without_a_token(world):
    world.push()
    note = Headers()
    world.hub.faults.append(note)
    done = world.run("plan", stdin=world.lines(), HF_TOKEN="")
    assert done.code == 0, done.err
    assert "nothing to do" in done.err
    assert set(note.seen) == {None}


# Tokens.


def test_a_stored_login_is_never_used(world, tmp_path):
    home = tmp_path / "hf_home"
    home.mkdir()
    (home / "token").write_text(WRITER)
    note = Headers()
    world.hub.faults.append(note)
    env = {"HF_TOKEN": "", "HF_HOME": home, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    plan, push = world.pipe("plan", "push", **env)
    nothing_was_sent(world, push, "push: HF_TOKEN is not set; create a token with")
    assert set(note.seen) == {None}


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "HF_TOKEN is not set"),
        ("  ", "HF_TOKEN is not set"),
        ("hf_wrong", "HF_TOKEN is wrong or expired (401)"),
        (READER, "HF_TOKEN has only read access"),
        (STRANGER, "HF_TOKEN is eve's, who may not write to demo-lab"),
        (NARROW, "HF_TOKEN is fine-grained and lacks repo.write for demo-lab"),
        ("hf_two words", "HF_TOKEN contains a space, a quote or another"),
        ("hf_line\nfeed", "HF_TOKEN contains a space, a quote or another"),
        ("hf_né", "HF_TOKEN contains a space, a quote or another"),
        ('"hf_quoted"', "HF_TOKEN contains a space, a quote or another"),
    ],
)
def test_a_token_that_may_not_write_stops_it_before_anything(world, token, says):
    lines = world.run("plan", stdin=world.lines()).out
    world.kinds()
    done = world.run("push", stdin=lines, HF_TOKEN=token)
    nothing_was_sent(world, done, says)
    if token.strip():
        assert token not in done.err and "hf_" not in done.err


def test_a_wrong_token_stops_plan_in_one_line(world):
    done = world.run("plan", stdin=world.lines(), HF_TOKEN="hf_wrong")
    assert done.code == 1
    assert done.err == (
        f"plan: {world.repo_id}: can't ask the Hub: HF_TOKEN is wrong or expired (401);"
        " nothing was changed; to continue: make release\n"
    )


def test_white_space_around_the_token_is_no_part_of_it(world):
    assert world.push(HF_TOKEN=f" {WRITER}\n").code == 0


def test_a_fine_grained_token_may_push_and_is_told_what_it_lacks(world):
    done = world.push(HF_TOKEN=SCOPED)
    assert done.code == 0, done.err
    assert "HF_TOKEN lacks collection.write for demo-lab, so its collec" in done.err
    assert world.held() == world.expected()


def test_a_token_scoped_to_the_repo_alone_may_push(world):
    world.push()
    permissions = {world.repo_id: ["repo.write"], "elsewhere": []}
    world.hub.tokens[SCOPED] = scoped(**permissions)
    done = world.push(HF_TOKEN=SCOPED)
    assert done.code == 0, done.err


# What is on this disk.


def replace_same_size(fpath: pathlib.Path) -> None:
    content = fpath.read_bytes()
    fpath.write_bytes(content[::-1])


def spoil_manifest(world) -> None:
    """A stage of whole files, whose manifest has other numbers than the lines."""
    fpath = world.stage() / "manifest.jsonl"
    rows = rows_of(fpath.read_text())
    rows[0]["l0"] += 1
    fpath.write_text(text_of(rows))
    import hashlib

    content = fpath.read_bytes()
    of = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for row in world.rows[SLUG]:
        row["documents"] |= {"manifest.jsonl": of}


def first(world) -> pathlib.Path:
    return world.stage() / world.rows[SLUG][0]["path"]


SPOILED = {
    "a checkpoint is gone": (lambda w: first(w).unlink(), "sae.pt: missing"),
    "a checkpoint is cut": (lambda w: os.truncate(first(w), 9), "changed since"),
    "a checkpoint is changed": (lambda w: replace_same_size(first(w)), "changed since"),
    "a checkpoint dangles": (
        lambda w: (first(w).unlink(), first(w).symlink_to("/nothing")),
        "No such file or directory, though preflight read it",
    ),
    "a stranger": (
        lambda w: (w.stage() / "x.txt").touch(),
        "x.txt: not part of the release",
    ),
    "a hidden stranger": (
        lambda w: (w.stage() / ".x").touch(),
        ".x: not part of the release",
    ),
    "an edited card": (
        lambda w: (w.stage() / "README.md").write_text("mine"),
        "README.md: changed since it was rendered",
    ),
    "no plot": (lambda w: (w.stage() / "pareto.png").unlink(), "pareto.png: missing"),
    "another manifest": (spoil_manifest, "doesn't match the lines"),
    "no stage": (lambda w: shutil.rmtree(w.stage()), "stage: no stage"),
    "the same file twice": (
        lambda w: w.rows[SLUG][1].update(sha256=w.rows[SLUG][0]["sha256"]),
        "have identical files",
    ),
    "no saev has loaded it": (
        lambda w: w.rows[SLUG][0].update(loader="builtin"),
        "set SAEV_DIR to a saev that can, or set LOADER=builtin to publish",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_stage_that_is_not_what_was_preflighted_is_not_sent(world, how):
    spoil, says = SPOILED[how]
    spoil(world)
    done = world.run("push", stdin=world.lines())
    nothing_was_sent(world, done, says)


def test_loader_builtin_is_published_where_it_is_asked_for(world):
    world.rows[SLUG][0]["loader"] = "builtin"
    assert world.push(LOADER="builtin").code == 0


def test_all_that_is_wrong_is_told_at_once(world):
    world.use("other")
    first(world).unlink()
    (world.stage(OTHER) / "x.txt").touch()
    done = world.run("push", stdin=world.lines(SLUG, OTHER), HF_TOKEN=READER)
    nothing_was_sent(
        world, done, "missing", "x.txt: not part of the release", "has only read access"
    )
    assert done.last.startswith("push: 3 problems; nothing was sent")
    assert len(done.err.splitlines()) == 4


@pytest.mark.parametrize("kind", ["preupload", "send"])
def test_a_file_that_changes_while_it_is_sent_is_told_and_nothing_committed(
    either, kind
):
    fpath = first(either)
    kinds = {"xet": "xet_token", "lfs": "lfs_batch"}
    kind = kinds[either.transport] if kind == "send" else kind
    either.hub.faults.append(Meanwhile(kind, lambda: replace_same_size(fpath)))
    done = either.push()
    assert (done.code, done.out) == (1, "")
    assert f"{fpath}: changed since preflight; make recheck" in done.last
    assert either.titles() == [INITIAL]


def test_a_file_that_changes_when_it_has_been_sent_is_not_committed(either):
    """The card is sent with the commit itself; a file rewritten meanwhile would be half old."""
    fpath = first(either)
    kind = {"xet": "xet_token", "lfs": "lfs_put"}[either.transport]
    either.hub.faults.append(
        Meanwhile(
            kind, lambda: (either.stage() / "README.md").write_text("mine"), "after"
        )
    )
    done = either.push()
    assert (done.code, done.out) == (1, "")
    assert "README.md: changed since it was rendered" in done.last
    assert either.titles() == [INITIAL] and fpath.exists()


def test_the_demo_is_not_for_the_real_hub(world, demo):
    # A proxy that nobody runs, so that nothing gets out.
    env = {"HF_ENDPOINT": "", "HTTPS_PROXY": "http://127.0.0.1:9"}
    env |= {"CATALOG": world.build / "demo" / "catalog.json"}
    shutil.copytree(demo, world.build / "demo", ignore=shutil.ignore_patterns("runs"))
    done = world.run("push", stdin=world.lines(), **env)
    assert done.code == 1
    assert "push: this is the demo; set SAEV_DIR and RUNS_ROOT" in done.err


# Others at work on the same repo.


def test_a_commit_since_the_plan_stops_it(world):
    world.push()
    world.use("more")
    plan = world.run("plan", stdin=world.lines())
    seen = world.hub.commits(world.repo_id)[0]["id"]
    theirs = world.commit_elsewhere({"README.md": b"theirs"})
    world.kinds()
    done = world.run("push", stdin=plan.out)
    nothing_was_sent(world, done, f"it is at {theirs} and was at {seen}")
    assert world.hub.read(world.repo_id, "README.md") == b"theirs"


def test_a_commit_during_the_upload_stops_it(either):
    either.push()
    either.use("more")
    theirs = []
    either.hub.faults.append(
        Meanwhile(
            "commit", lambda: theirs.append(either.commit_elsewhere({"a": b"theirs"}))
        )
    )
    done = either.push()
    assert done.code == 1
    assert f"somebody else changed it: it is at {theirs[0]} and was" in done.last
    assert (
        "look at it with make plan REPO=vitb-relu; to continue: make release"
        in done.err
    )
    assert either.titles()[0] == "Somebody else's"
    assert len(either.titles()) == 3


def test_a_repo_made_and_filled_since_the_plan_stops_it(world):
    plan = world.run("plan", stdin=world.lines())
    world.hub.add_repo(world.repo_id)
    theirs = world.commit_elsewhere({"README.md": b"theirs"})
    done = world.run("push", stdin=plan.out)
    nothing_was_sent(world, done, f"it is at {theirs} and was at None")


def test_a_repo_made_and_filled_by_somebody_faster_stops_it(world):
    def fill():
        world.hub.add_repo(world.repo_id)
        world.commit_elsewhere({"README.md": b"theirs"})

    world.hub.faults.append(Meanwhile("create_repo", fill))
    done = world.push()
    assert done.code == 1
    assert "somebody else changed it" in done.last
    assert set(world.held()) == {"README.md"}


def test_a_repo_removed_since_the_plan_is_not_made_anew(world):
    world.push()
    world.use("more")
    plan = world.run("plan", stdin=world.lines())
    world.hub.store.repos.clear()
    world.kinds()
    done = world.run("push", stdin=plan.out)
    nothing_was_sent(world, done, "it is at None and was at")


@pytest.mark.parametrize("kind", ["whoami", "create_repo"])
def test_an_empty_repo_made_by_somebody_faster_is_taken(world, kind):
    do = Meanwhile(kind, lambda: world.hub.add_repo(world.repo_id))
    world.hub.faults.append(do)
    assert world.push().code == 0
    assert world.held() == world.expected()
    assert len(world.titles()) == 2


def test_of_two_at_once_the_second_says_who_is_at_work(world):
    lines = world.run("plan", stdin=world.lines()).out
    hold = Hold("preupload")
    world.hub.faults.append(hold)
    one = world.start("push", stdin=lines)
    assert hold.reached.wait(60)
    two = world.run("push", stdin=lines)
    hold.release.set()
    assert one.wait().code == 0
    assert (two.code, two.out) == (1, "")
    assert f"push: {SLUG}: process {one.pid} on " in two.err
    assert "is working on it" in two.err
    assert len(world.titles()) == 2


# What the repo is, and what the Hub would do with what is sent.


def made_public(world) -> None:
    world.hub.add_repo(world.repo_id)


NOT_AS_NAMED = {
    "renamed": (
        lambda w: w.hub.rename_repo(w.repo_id, f"{LAB}/another"),
        f"is named {LAB}/another on the Hub; change it in the catalog",
    ),
    "another owner": (
        lambda w: w.hub.rename_repo(w.repo_id, "else/where"),
        "is named else/where on the Hub",
    ),
    "another case": (
        lambda w: w.hub.rename_repo(w.repo_id, w.repo_id.upper()),
        f"is named {LAB.upper()}/SAE_TOY_B on the Hub",
    ),
    "private": (lambda w: there(w, private=True), "is private; make it public on"),
    "gated": (lambda w: there(w, gated="manual"), "is gated; open it to everyone"),
    "disabled": (lambda w: there(w, disabled=True), "is disabled by the Hub"),
}


def there(world, **facts: object) -> None:
    for name, value in facts.items():
        setattr(world.hub.store.repos[world.repo_id], name, value)


@pytest.mark.parametrize("how", NOT_AS_NAMED)
def test_a_repo_that_is_not_the_public_one_of_that_name_is_told_and_let_be(world, how):
    change, says = NOT_AS_NAMED[how]
    made_public(world)
    lines = world.run("plan", stdin=world.lines()).out
    change(world)
    plan = world.run("plan", stdin=world.lines())
    assert (plan.code, plan.out) == (1, "")
    assert f"plan: {world.repo_id}: {says}" in plan.last
    world.kinds()
    nothing_was_sent(world, world.run("push", stdin=lines), says)


def test_a_whole_repo_that_became_private_is_not_called_released(world):
    world.push()
    there(world, private=True)
    plan, push = world.pipe("plan", "push")
    assert (plan.code, push.out) == (1, "")


def test_a_repo_that_the_hub_makes_private_gets_nothing(world):
    """As an organization may have it for all new repos."""
    world.hub.faults.append(
        Meanwhile("create_repo", lambda: there(world, private=True), "after")
    )
    done = world.push()
    assert (done.code, done.out) == (1, "")
    assert "is private; make it public on" in done.last
    assert not {"preupload", "commit"} & set(world.kinds())


def test_a_namesake_of_another_kind_is_told(world):
    other = f"{LAB}/data"
    world.hub.add_repo(other)
    serve = world.hub._serve

    def with_dataset(request):
        if "/api/datasets/" in request.path:
            request.path = request.url_path = f"/api/models/{other}"
        return serve(request)

    world.hub._serve = with_dataset
    try:
        done = world.run("plan", stdin=world.lines())
    finally:
        del world.hub._serve
    assert done.code == 0
    assert "  beside an existing dataset of that name\n" in done.err


IGNORED = {
    "*.pt": "layer_10/",
    "sae.pt": "layer_10/",
    "layer_10/": "layer_10/",
    "/layer_11/**": "layer_11/",
    "*\n!*.md": "check.npz",
    "*.png": "pareto.png",
    "manifest.jsonl": "manifest.jsonl",
}


@pytest.mark.parametrize("rules", IGNORED)
def test_a_file_that_the_hub_would_leave_out_stops_it(world, rules):
    made_public(world)
    world.commit_elsewhere({".gitignore": f"# ours\n{rules}\n".encode()})
    plan = world.run("plan", stdin=world.lines())
    assert "  has a .gitignore; push checks first whether it excludes files" in plan.err
    world.kinds()
    done = world.run("push", stdin=plan.out)
    assert (done.code, done.out) == (1, "")
    assert f"the Hub would ignore {IGNORED[rules]}" in done.last
    assert f"/{world.repo_id}/blob/main/.gitignore" in done.last
    assert "nothing was sent; to continue: make release" in done.last
    assert set(world.kinds()) & set(WRITES) == {"preupload"}
    assert world.titles() == ["Somebody else's", INITIAL]


@pytest.mark.parametrize("rules", ["", "*.tmp", "*.pt\n!*.pt", "build/", "sae"])
def test_a_gitignore_that_leaves_nothing_out_is_no_matter(either, rules):
    made_public(either)
    either.commit_elsewhere({".gitignore": rules.encode()})
    assert either.push().code == 0
    assert either.held() == either.expected() | {
        ".gitignore": either.held()[".gitignore"]
    }


def test_a_new_repo_that_would_leave_a_file_out_gets_none(either):
    """Whatever the reason: the Hub's answer counts, not a rule that we know."""

    def ignore_one(answer):
        answer.data["files"][1]["shouldIgnore"] = True

    either.hub.faults.append(Answer("preupload", ignore_one))
    done = either.push()
    assert (done.code, done.out) == (1, "")
    assert "the Hub would ignore " in done.last
    assert either.titles() == [INITIAL]
    assert not {"lfs_put", "xet_token", "commit"} & set(either.kinds())


def test_a_card_that_the_hub_refuses_stops_it_before_anything(world):
    world.hub.faults.append(Fault("validate_yaml", status=400, times=9))
    lines = world.run("plan", stdin=world.lines()).out
    world.kinds()
    nothing_was_sent(
        world, world.run("push", stdin=lines), "README.md: the Hub rejects"
    )


def test_a_token_that_may_not_write_to_that_very_repo_is_told_before_anything(world):
    made_public(world)
    lines = world.run("plan", stdin=world.lines()).out
    world.hub.faults.append(Fault("preupload", status=403, times=9))
    world.kinds()
    done = world.run("push", stdin=lines)
    assert (done.code, done.out) == (1, "")
    assert (
        "can't write to it: a fault of the test (403) (nothing was sent;" in done.last
    )
    assert "commit" not in world.kinds()


# Commits whose answer is lost.


@pytest.mark.parametrize("status", [412, 500, 504])
@pytest.mark.parametrize("times", [1, 2, 9])
def test_a_commit_of_our_own_is_never_somebody_elses(either, status, times):
    """It landed each time, and the Hub said that it had not."""
    fault = Fault("commit", status=status, times=times)
    fault.before, fault.after = fault.after, fault.before
    either.hub.faults.append(fault)
    done = either.push()
    assert done.code == 0, done.err
    assert "somebody" not in done.err
    assert either.titles() == ["Release 4 SAE checkpoints of layers 10, 11", INITIAL]


def test_a_412_though_nobody_committed_is_told_as_it_is(either):
    either.hub.faults.append(Fault("commit", status=412, times=99))
    done = either.push()
    assert (done.code, done.out) == (1, "")
    assert "a fault of the test (412); to continue: make release" in done.last
    assert "somebody" not in done.err


def test_ours_is_found_below_somebody_elses(either):
    """The answer to our commit was lost, and somebody committed on top of it before we looked."""

    def lost():
        either.commit_elsewhere({"README.md": b"theirs"})
        raise Drop

    either.hub.faults.append(Meanwhile("commit", lost, "after"))
    done = either.push()
    assert done.code == 0, done.err
    ours = either.hub.commits(either.repo_id)[1]
    assert {row["commit"] for row in done.rows} == {ours["id"]}
    assert len(either.titles()) == 3


def test_a_token_that_expires_in_the_middle_is_told(either):
    either.hub.faults.append(Meanwhile("create_repo", either.hub.tokens.clear, "after"))
    done = either.push()
    assert (done.code, done.out) == (1, "")
    assert "HF_TOKEN is wrong or expired (401)" in done.last


def test_what_is_left_of_earlier_releases_is_named_by_the_commit(world):
    world.use("more")
    world.push()
    before = only_checkpoints(world.expected())
    world.use("few")
    gone = sorted(p for p in before if p not in world.expected())
    assert world.push().code == 0
    said = world.hub.commits(world.repo_id)[0]["message"]
    assert said.startswith("Left from earlier commits, not part of this release:\n")
    assert [line[2:] for line in said.splitlines()[2:]] == gone


# Killed at any moment.


MOMENTS = [
    ("xet", "create_repo", "before"),
    ("xet", "create_repo", "after"),
    ("xet", "preupload", "before"),
    ("xet", "xet_token", "after"),
    ("xet", "commit", "before"),
    ("xet", "commit", "after"),
    ("lfs", "lfs_batch", "before"),
    ("lfs", "lfs_put", "before"),
    ("lfs", "lfs_put", "after"),
    ("lfs", "lfs_verify", "before"),
    ("lfs", "commit", "after"),
]


def ended(world, hold: Hold, how: signal.Signals) -> Done:
    """A push that is sent a signal while the Hub holds one of its requests."""
    lines = world.run("plan", stdin=world.lines()).out
    world.hub.faults.append(hold)
    victim = world.start("push", stdin=lines)
    assert hold.reached.wait(60)
    os.kill(victim.pid, how)
    done = victim.wait()
    assert not hold.release.is_set()
    hold.release.set()
    world.hub.faults.clear()
    return done


@pytest.mark.parametrize(("transport", "kind", "when"), MOMENTS)
def test_killed_and_run_again_the_repo_is_as_if_never_killed(
    world, transport, kind, when
):
    done = ended(world.over(transport), Hold(kind, when), signal.SIGKILL)
    assert done.code == -signal.SIGKILL
    assert world.push().code == 0
    assert world.held() == world.expected()
    assert world.titles() == ["Release 4 SAE checkpoints of layers 10, 11", INITIAL]


@pytest.mark.parametrize(
    ("transport", "kind"), [("xet", "xet_token"), ("lfs", "lfs_put")]
)
def test_ctrl_c_ends_it_at_once_in_one_line_and_the_next_continues(
    world, transport, kind
):
    done = ended(world.over(transport), Hold(kind), signal.SIGINT)
    assert (done.code, done.out, done.last) == (130, "", "push: interrupted")
    assert world.push().code == 0
    assert world.held() == world.expected()
    assert len(world.titles()) == 2


# Faults.


FAULTS = {
    "429, 503": ({"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503}),
    "dropped before, after": ({"drop": "before"}, {"drop": "after"}),
    "dropped half-way, stalled": ({"drop": "half"}, {"stall": True}),
}
KINDS = {
    "xet": "whoami info tree create_repo validate_yaml preupload xet_token commit",
    "lfs": "lfs_batch lfs_put lfs_verify",
}
TABLE = [(t, kind) for t, kinds in KINDS.items() for kind in kinds.split()]
PATIENCE = {"HF_HUB_DOWNLOAD_TIMEOUT": 1, "HF_XET_CLIENT_READ_TIMEOUT": "1s"}


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(("transport", "kind"), TABLE)
def test_a_passing_fault_is_outlasted(world, transport, kind, faults):
    world.over(transport)
    lines = world.run("plan", stdin=world.lines()).out
    world.hub.faults += [Fault(kind, **fault) for fault in FAULTS[faults]]
    patience = (
        PATIENCE if "stalled" in faults else {}
    )  # it has to import the client anew
    done = world.run("push", stdin=lines, **patience)
    assert done.code == 0, done.err
    assert all(fault.times <= 0 for fault in world.hub.faults)
    for fault in world.hub.faults:
        fault.release.set()
    assert world.held() == world.expected()
    assert len(world.titles()) == 2


# Once its object is there, an upload by LFS is not verified again.
@pytest.mark.parametrize(("transport", "kind"), TABLE[:-1])
def test_a_lasting_fault_ends_in_one_line_with_the_command_that_continues(
    world, transport, kind
):
    world.over(transport)
    lines = world.run("plan", stdin=world.lines()).out
    world.hub.faults.append(Fault(kind, status=503, times=10**6))
    done = world.run("push", stdin=lines)
    assert (done.code, done.out) == (1, "")
    assert "503" in done.last
    assert "; to continue: make release" in done.last
    assert done.last.startswith("push: ")
    assert "trying again in 2 s" in done.err and "trying again in 4 s" in done.err
    world.hub.faults.clear()
    assert world.push().code == 0
    assert len(world.titles()) == 2


def test_the_xet_library_retries_little_since_it_does_so_without_a_word(world):
    lines = world.run("plan", stdin=world.lines()).out
    world.hub.faults.append(Fault("xet_token", status=503, times=10**6))
    assert world.run("push", stdin=lines).code == 1
    n_attempts, n_requests = 5, world.kinds().count("xet_token")
    assert n_attempts < n_requests <= 4 * n_attempts


def test_a_wait_is_as_long_as_the_hub_asks_for(world):
    lines = world.run("plan", stdin=world.lines()).out
    for after in ("7", "999", "soon"):
        fault = Fault("whoami", status=429, headers={"Retry-After": after})
        world.hub.faults.append(fault)
    done = world.run("push", stdin=lines)
    told = [line for line in done.err.splitlines() if "trying again" in line]
    assert [line.rpartition(" in ")[2] for line in told] == ["7 s"]
    assert "asks us to wait for 999 s (429); run make release after that" in done.err


LIMITS = {
    "used up": ({"RateLimit": '"api";r=0;t=12'}, 12),
    "not used up": ({"RateLimit": '"api";r=3;t=99'}, 2),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_rate_limit_is_waited_for(world, limit):
    headers, seconds = LIMITS[limit]
    lines = world.run("plan", stdin=world.lines()).out
    world.hub.faults.append(Fault("whoami", status=429, headers=headers))
    done = world.run("push", stdin=lines)
    assert done.code == 0, done.err
    assert f"whoami: a fault of the test (429); trying again in {seconds} s" in done.err


def test_a_date_to_wait_for_is_understood(world):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=5)
    headers = {"Retry-After": email.utils.format_datetime(soon, usegmt=True)}
    world.hub.faults.append(Fault("info", status=503, headers=headers))
    done = world.run("plan", stdin=world.lines())
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert re.search(r"asks us to wait for 1(79\d\d|8000) s", done.last)


def test_a_signed_url_is_never_told(world):
    class Wordless(Fault):
        def before(self, kind, request):
            if kind == self.kind:
                raise HubError(self.status, "")

    world.hub.faults.append(Wordless("lfs_put", status=503))
    done = world.push(HF_HUB_DISABLE_XET="1")
    assert (done.code, "503" in done.last) == (1, True)
    assert "/lfs/demo-lab/" in done.err and "signature" not in done.err
    err = ConnectionError("PUT 'https://s3/x?X-Amz-Signature=abc' failed")
    assert hub.explain(err).endswith(": PUT 'https://s3/x' failed")


def test_what_is_done_already_is_told_and_continues_to_be_verified(world):
    world.use("other")
    lines = world.run("plan", stdin=world.lines(SLUG, OTHER)).out

    def fail():
        world.hub.faults.append(Fault("preupload", status=403, times=9))

    world.hub.faults.append(Meanwhile("commit", fail, "after"))
    done = world.run("push", stdin=lines)
    assert done.code == 1
    assert done.last == (
        f"push: {world.repo_ids[OTHER]}: a fault of the test (403); already pushed:"
        f" {world.repo_id}; to continue: make release"
    )
    commits = {(row["repo"], row["commit"]) for row in done.rows}
    assert commits == {(SLUG, world.hub.commits(world.repo_id)[0]["id"]), (OTHER, None)}
    world.hub.faults.clear()
    verify, collect = world.pipe("verify", "collect", stdin=done.out)
    assert verify.code == 0, verify.err
    assert (world.records / SLUG / "release.json").exists()
    assert not (world.records / OTHER / "release.json").exists()
    assert collect.last == f"no collection was changed: {OTHER} must be released first"
    assert all(not c["items"] for c in world.hub.collections())
    said = run_program(ROOT / "bin/announce", stdin=collect.out, AGAIN="make release")
    assert said.code == 1
    assert said.out.startswith(f"{world.hub.endpoint}/{world.repo_id}/tree/")
    assert said.err == f"announce: not released: {OTHER}; to continue: make release\n"


def test_a_hub_that_is_not_there_is_one_line(world):
    lines = world.run("plan", stdin=world.lines()).out
    env = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    plan = world.run("plan", stdin=world.lines(), **env)
    assert plan.code == 1
    assert plan.last == (
        f"plan: {world.repo_id}: can't ask the Hub: no answer from http://127.0.0.1:9:"
        " [Errno 111] Connection refused; nothing was changed; to continue: make release"
    )
    push = world.run("push", stdin=lines, **env)
    assert push.code == 1
    assert "nothing was sent; to continue: make release" in push.last


def test_a_stalled_hub_is_given_up(world):
    faults = [Fault(kind, stall=True, times=10**6) for kind in ("info", "tree")]
    world.hub.faults.append(faults[0])
    done = world.run("plan", stdin=world.lines(), HF_HUB_DOWNLOAD_TIMEOUT=1)
    assert (done.code, "no answer from" in done.last) == (1, True)
    for fault in faults:
        fault.release.set()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_is_told_at_once(world, name):
    # The helper keeps a client whose HF_ settings are the same; this one it must import anew.
    done = world.run("plan", stdin=world.lines(), HF_DEBUG=0, **{name: 1})
    assert done.code == 1
    assert f"{name} is set, so the Hub's client stays offline; unset it" in done.last
    assert "trying again" not in done.err


# Progress.


@pytest.mark.parametrize("transport", ["xet", "lfs"])
def test_progress_shows_on_a_terminal_only(world, transport):
    world.over(transport)
    lines = world.run("plan", stdin=world.lines()).out
    with Terminal() as terminal:
        assert world.run("push", stdin=lines, TTY=terminal.name).code == 0
    assert "█" in terminal.shown
    world.use("more")
    done = world.push()
    assert done.code == 0
    assert "█" not in done.err and "%" not in done.err
