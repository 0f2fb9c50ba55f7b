"""The whole `make release` over a Hub on this machine, on the demo."""

import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import pytest

from kits.hub import Fault
from kits.programs import Done, bare_env, run_program
from kits.release import LAB, SCOPED, SLUG, TOKENS, WRITER, Hold, Hub, files_of
from kits.tree import SLUGS, Tree, fresh

pytestmark = pytest.mark.long

REPO_ID = f"{LAB}/SAE_toy_B"
CANARY = "hf_canary0123456789abcdef"


@pytest.fixture(scope="module")
def built(tmp_path_factory, demo):
    """A tree with one repo staged, two checkpoints per layer. Not to be changed."""
    tree = fresh(tmp_path_factory.mktemp("built"), demo)
    tree.make("dry-run", f"REPO={SLUG}", "N=2")
    return tree


@pytest.fixture
def hub(tmp_path):
    tokens = TOKENS | {CANARY: TOKENS[WRITER]}
    with Hub(tmp_path / "hub", tokens=tokens) as hub:
        hub.add_collection(LAB, "sae-v", collection_id="67ab8c4fdf179d117db28195")
        yield hub
    assert hub.errors == []


class Release(Tree):
    """A tree of a test's own, and its Hub."""

    def __init__(self, dpath: pathlib.Path, hub: Hub):
        super().__init__(dpath)
        self.hub = hub
        self.env = {
            "HOME": dpath.parent / "home",
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": WRITER,
        }

    def go(self, goal: str, *argv: str, code: int = 0, **env: object) -> Done:
        argv = (f"REPO={SLUG}", *(argv or ("N=2",)))
        return self.make(goal, *argv, code=code, **self.env | env)

    def staged(self, slug: str = SLUG) -> dict[str, tuple[int, str]]:
        return files_of(self.read(f"{slug}/rendered.jsonl"))

    def held(self, repo_id: str = REPO_ID) -> dict[str, tuple[int, str]]:
        return self.hub.held(repo_id)


@pytest.fixture
def tree(built, tmp_path, hub):
    dpath = tmp_path / "tree"
    subprocess.run(["cp", "-a", built.dpath, dpath], check=True)
    return Release(dpath, hub)


def announced(done) -> list[tuple[str, ...]]:
    """From each repo's line: URL, commit, files, bytes, seconds."""
    pattern = r"(\S+)/tree/(\w{40})  (\d+) files, (\S+ \wB), ([\d.]+) s, verified"
    return [re.fullmatch(pattern, line).groups() for line in done.out.splitlines()]


@pytest.mark.usefixtures("really")
def test_first_second_and_changed_release_by_xet(tree):
    hub = tree.hub
    first = tree.go("release")
    assert "xet_token" in {kind for _, kind in hub.requests}
    commit = hub.commits(REPO_ID)[0]["id"]
    ((url, announced_commit, n_files, n_bytes, _),) = announced(first)
    assert (url, announced_commit) == (f"{hub.endpoint}/{REPO_ID}", commit)
    size = sum(n for n, _ in tree.staged().values())
    shown = {f"{round(size / 1000, 1):g} kB", f"{round(size / 1e6, 1):g} MB"}
    assert n_files == "9" and n_bytes in shown
    assert tree.held() == tree.staged()
    assert len(hub.commits(REPO_ID)) == 2
    links = re.findall(r"^(http\S+/collections/\S+): (\w+)", first.err, re.M)
    assert [how for _, how in links] == ["created", "gained"]
    record = json.loads(
        (tree.dpath / f"build/demo/records/{SLUG}/release.json").read_text()
    )
    assert record["commit"] == commit

    # Without a token: what a release would do, and whether it is still as released.
    plan = tree.go("plan", HF_TOKEN="")
    assert f"{REPO_ID}: nothing to do" in plan.err
    later = tree.go("verify", HF_TOKEN="")
    assert f"{REPO_ID} at" in later.err and "verified 9 files" in later.err

    n_received = hub.bytes_received
    second = tree.go("release")
    assert announced(second)[0][1] == commit
    assert (hub.bytes_received, len(hub.commits(REPO_ID))) == (n_received, 2)

    # An earlier record is not announced when a release fails.
    hub.faults.append(Fault("info", status=403, times=10**6))
    assert tree.go("release", code=2).out == ""
    hub.faults.clear()

    before = tree.held()
    changed = tree.go("release", "N=3", "PRUNE=1")
    assert tree.held() == tree.staged()
    assert len(hub.commits(REPO_ID)) == 3
    assert announced(changed)[0][1] == hub.commits(REPO_ID)[0]["id"]
    new = {p: of for p, of in tree.held().items() if before.get(p) != of}
    n_new = sum(n for n, _ in new.values())
    assert hub.bytes_received - n_received < n_new + 20_000
    for collection in hub.collections():
        assert [item["id"] for item in collection["items"]] == [REPO_ID]


def test_killed_during_the_upload_and_run_again_by_lfs(tree):
    tree.env["HF_HUB_DISABLE_XET"] = "1"
    hold = Hold("commit")
    tree.hub.faults.append(hold)
    make = subprocess.Popen(
        ["make", "release", f"REPO={SLUG}", "N=2"],
        cwd=tree.dpath,
        env=bare_env(**tree.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert hold.reached.wait(60)
    os.killpg(make.pid, signal.SIGKILL)
    make.wait()
    hold.release.set()
    tree.hub.faults.clear()
    tree.go("release")
    assert "lfs_put" in {kind for _, kind in tree.hub.requests}
    assert tree.held() == tree.staged()
    titles = ["Release 4 SAE checkpoints of layers 10, 11", "initial commit"]
    assert [c["title"] for c in tree.hub.commits(REPO_ID)] == titles
    n_received = tree.hub.bytes_received
    tree.go("release")
    assert (tree.hub.bytes_received, len(tree.hub.commits(REPO_ID))) == (n_received, 2)


def test_without_a_token_nothing_is_sent(tree):
    done = tree.go("release", code=2, HF_TOKEN="")
    assert "*** HF_TOKEN is not set; create a token with write access" in done.err
    assert tree.hub.requests == []
    assert done.out == ""
    assert tree.hub.store.repos == {}


def test_what_stands_is_announced_where_a_collection_fails(tree):
    done = tree.go("release", code=2, HF_TOKEN=SCOPED)
    assert len(announced(done)) == 1
    assert "collect: 2 problems; the repos are released and verified" in done.err


def test_the_clients_own_settings_may_be_in_dotenv(tree):
    lines = (tree.build / SLUG / "rendered.jsonl").read_text()
    (tree.dpath / ".env").write_text(f"HF_ENDPOINT={tree.hub.endpoint}\n")
    done = tree.run("bin/plan", stdin=lines)
    assert done.code == 0, done.err
    assert f"{REPO_ID}: would be created" in done.err
    assert ("GET", "info") in tree.hub.requests


# The one command, and the token.


class CommandLines(threading.Thread):
    """Looks for the canary in every process's command line, all the time."""

    def __init__(self):
        super().__init__()
        self.n_looks, self.found, self.is_over = 0, [], False

    def run(self) -> None:
        own = str(os.getpid())
        while not self.is_over:
            for dpath in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    text = (dpath / "cmdline").read_bytes()
                except OSError:  # it has ended
                    continue
                if CANARY.encode() in text and dpath.name != own:
                    self.found.append(text)
            self.n_looks += 1
            time.sleep(0.01)


def test_push_dinov3_releases_all_and_the_token_is_nowhere(tree, tmp_path):
    env = {"HF_TOKEN": CANARY, "REPO": "x"}
    refused = push_dinov3(tree, **env)
    assert refused.code == 1
    assert (
        "push: vitl-topk: saev has not loaded 4 checkpoints; set SAEV_DIR to a saev"
        " that can, or set LOADER=builtin to publish them as they are (nothing was sent; to continue: "
    ) in refused.err
    assert tree.hub.store.repos == {}

    watch = CommandLines()
    watch.start()
    done = push_dinov3(tree, LOADER="builtin", **env)
    watch.is_over = True
    watch.join()
    assert done.code == 0, done.err
    catalog = json.loads((tree.dpath / "build/demo/catalog.json").read_text())
    repo_ids = {repo["slug"]: repo["repo_id"] for repo in catalog["repos"]}
    assert len(announced(done)) == 4
    for slug in SLUGS:
        assert tree.held(repo_ids[slug]) == tree.staged(slug)
    for collection in tree.hub.collections():
        assert {i["id"] for i in collection["items"]} == set(repo_ids.values())
    card = tree.hub.read(repo_ids["vitl-topk"], "README.md").decode()
    assert "saev 0.1.0" not in card

    # In the stages' output, command lines, and everything that they and the Hub left behind.
    assert CANARY not in refused.out + refused.err + done.out + done.err
    assert watch.n_looks > 10 and watch.found == []
    left = run_program("grep", "-rlF", CANARY, tmp_path)
    assert (left.code, left.out) == (1, "")


def test_the_token_is_in_no_error_text(tree):
    tree.hub.tokens.pop(CANARY)
    done = tree.go("release", code=2, HF_TOKEN=f" {CANARY} ")
    assert "HF_TOKEN is wrong or expired (401)" in done.err
    assert CANARY not in done.out + done.err


def push_dinov3(tree, *argv: str, **env: object) -> Done:
    program = tree.dpath / "bin/push-dinov3"
    return run_program(program, *argv, **{"N": 2} | tree.env | env)


def test_push_dinov3_fails_with_1_and_the_command_that_continues(tree):
    # One repo is enough to be refused.
    catalog = json.loads((tree.dpath / "build/demo/catalog.json").read_text())
    catalog["repos"] = [r for r in catalog["repos"] if r["slug"] == SLUG]
    (tree.dpath / "build/demo/catalog.json").write_text(json.dumps(catalog))
    done = push_dinov3(tree, HF_TOKEN="hf_wrong")
    assert done.code == 1
    assert re.search(r"HF_TOKEN is wrong.*to continue: .*bin/push-dinov3", done.err)
    assert tree.hub.requests[-1][0] == "GET"
    done = push_dinov3(tree, "--dry-run", HF_TOKEN="")
    assert done.code == 0 and REPO_ID in done.out
    assert tree.hub.store.repos == {}


def test_push_dinov3_wrong_usage_is_exit_2_and_help_is_help(tree):
    for argv in (["--wet-run"], ["--dry-run", "x"]):
        done = push_dinov3(tree, *argv)
        assert (done.code, done.out) == (2, "")
        assert done.err == "usage: bin/push-dinov3 [--dry-run]\n"
    done = push_dinov3(tree, "--help")
    assert (done.code, done.err) == (0, "")
    assert "usage: bin/push-dinov3 [--dry-run]\n" in done.out
