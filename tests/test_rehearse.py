"""`make rehearse`: the same release against a Hub that the toolkit itself starts and stops."""

import json
import os
import pathlib
import re
import shutil
import urllib.request

import pytest

from kits.programs import ROOT, run_program
from kits.release import SAE_V, SLUG
from kits.tree import fresh
from saepub import catalog
from saepub.cli import UserError
from saepub.stages import rehearse

pytestmark = pytest.mark.long

CANARY = "hf_canary0123456789abcdef"


# No saev at hand has loaded the second one's checkpoints, which the demo allows.
@pytest.mark.parametrize(
    ("transport", "slug", "name"),
    [("xet", SLUG, "B"), ("lfs", "vitl-topk", "TopK_L")],
)
def test_a_rehearsal_is_a_release_that_stays_here(
    tmp_path, demo, transport, slug, name
):
    repo_id = f"demo-lab/SAE_toy_{name}"
    tree = fresh(tmp_path / "tree", demo)
    env = {"HOME": tmp_path / "home", "N": 2, "HF_TOKEN": CANARY}
    # Neither a cluster's proxy nor its offline mode is in the way.
    env |= dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    env |= {"HF_HUB_OFFLINE": "1"}
    if transport == "lfs":
        env["HF_HUB_DISABLE_XET"] = "1"
    done = tree.make("rehearse", f"REPO={slug}", **env)
    endpoint = re.search(r"rehearsing against (http://127\.0\.0\.1:\d+), ", done.err)
    pattern = rf"{endpoint[1]}/{repo_id}/tree/\w+  9 files, \S+ kB, \S+ s, verified\n"
    assert re.fullmatch(pattern, done.out)
    assert "rehearsed; what the Hub would have is under build/hub/models" in done.err

    # To look at: the repo as it would be, and the collections.
    main = tree.dpath / "build/hub/models" / repo_id / "main"
    stage = tree.dpath / f"build/{slug}/stage"
    files = {p.relative_to(stage) for p in stage.rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(main)
        for p in main.rglob("*")
        if p.is_file() and p.name != ".gitattributes"
    }
    assert all((main / f).read_bytes() == (stage / f).read_bytes() for f in files)
    collections = json.loads((tree.dpath / "build/hub/collections.json").read_text())
    assert [[item["id"] for item in c["items"]] for c in collections] == [[repo_id]] * 2

    # No trace of it where a release leaves its own, and no token anywhere.
    assert not (tree.dpath / f"records/{slug}/release.json").exists()
    assert (tree.dpath / f"build/hub/records/{slug}/release.json").exists()
    assert not (tmp_path / "home/.cache/huggingface").exists()
    assert run_program("grep", "-rqF", CANARY, tmp_path).code == 1
    assert is_gone(endpoint[1])

    if transport == "lfs":
        return
    before = tree.times()
    again = tree.make("rehearse", f"REPO={slug}", **env)
    assert tree.times() == before, "it settled on numbers again, by other records"
    assert f"{repo_id}: nothing to do" in again.err
    assert again.err.count(": has all") == 2
    page_fpath = tree.dpath / "build/demo/saev/docs/src/users/inference.md"
    page = page_fpath.read_text()
    shown = tree.make("rehearse", f"REPO={slug}", "DO=docs", **env).out
    assert f"+| [`{repo_id}`](https://huggingface.co/{repo_id}) " in shown
    assert page_fpath.read_text() == page, "docs of what is only rehearsed"


def is_gone(endpoint: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(endpoint, timeout=5)
    except OSError:
        return True
    return False


@pytest.fixture
def go(tmp_path, demo):
    """Run bin/rehearse on a command, over an empty build directory."""
    settings = {"BUILD": tmp_path / "build"}
    settings |= {"CATALOG": tmp_path / "catalog.json"}
    shutil.copy(demo / "catalog.json", settings["CATALOG"])

    def go(*argv: str, **env: object):
        return run_program(ROOT / "bin/rehearse", *argv, **settings | env)

    return go


def test_the_commands_exit_code_is_passed_on(go):
    assert go("true").code == 0
    done = go("sh", "-c", "exit 3")
    assert (done.code, "rehearsed" in done.err) == (3, False)


def test_without_a_command_it_is_wrong_usage(go):
    done = go()
    assert done.code == 2
    assert done.err == "rehearse: name a command to run\n"


def test_the_command_sees_the_hub_and_its_token_alone(go):
    done = go("env", HF_TOKEN=CANARY)
    env = dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)
    assert env["HF_ENDPOINT"].startswith("http://127.0.0.1:")
    assert env["HF_TOKEN"] == rehearse.TOKEN
    assert CANARY not in done.out
    assert not pathlib.Path(env["HF_HOME"]).exists()
    assert is_gone(env["HF_ENDPOINT"])


def test_the_existing_collection_is_there_once(go, tmp_path):
    fpath = tmp_path / "catalog.json"
    entry = json.loads(fpath.read_text())
    entry["collections"] = [{"slug": f"demo-lab/sae-v-{SAE_V}"}]
    fpath.write_text(json.dumps(entry))
    for _ in range(2):
        assert go("true").code == 0
        (made,) = json.loads((tmp_path / "build/hub/collections.json").read_text())
        assert (made["title"], made["id"]) == ("sae-v", SAE_V)


def test_two_rehearsals_at_once_are_told_apart(go, tmp_path):
    inner = [str(ROOT / "bin/rehearse"), "true"]
    done = go(*inner)
    assert done.code == 1
    assert "another loopback Hub runs on this directory" in done.err


def test_a_disk_without_room_is_told_before_anything(tmp_path, demo, monkeypatch):
    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path))
    monkeypatch.setenv("CATALOG", str(demo / "catalog.json"))
    cat = catalog.load()
    for slug in (SLUG, "vits-relu"):
        (tmp_path / slug / "stage").mkdir(parents=True)
        (tmp_path / slug / "stage" / "a").write_bytes(b"x" * 1000)
    hub = tmp_path / "hub"
    usage = shutil.disk_usage(tmp_path)._replace(free=2500)
    monkeypatch.setattr(shutil, "disk_usage", lambda dpath: usage)
    with pytest.raises(UserError, match="up to 4 kB for copies, but 2.5 kB are free"):
        rehearse.check_room(cat, hub)
    monkeypatch.setenv("REPO", SLUG)
    rehearse.check_room(cat, hub)
    monkeypatch.delenv("REPO")
    # What is there already needs no room, however many links it has.
    (hub / "objects").mkdir(parents=True)
    (hub / "objects" / "a").write_bytes(b"x" * 2000)
    os.link(hub / "objects" / "a", hub / "b")
    rehearse.check_room(cat, hub)
