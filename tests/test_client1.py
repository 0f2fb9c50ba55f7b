"""The last 1.x of huggingface_hub does everything that the pinned 2.x does."""

import json
import pathlib
import sys

import pytest

from kits.hub import Fault
from kits.once import once, pip_install
from kits.release import OTHER, SLUG, TRANSPORTS, Stages, World, client_settings

pytestmark = pytest.mark.long

pytest_plugins = ["kits.release_fixtures"]

VERSION = "1.33.0"


@pytest.fixture(scope="module")
def client1(kept_dpath) -> pathlib.Path:
    """A directory with the client and what it needs."""

    def make(dpath: pathlib.Path) -> None:
        pip_install(sys.executable, "--target", dpath, f"huggingface_hub=={VERSION}")

    return once(kept_dpath / f"huggingface_hub-{VERSION}", make)


@pytest.fixture(scope="module")
def stages1(one_hub, client1):
    stages = Stages(client_settings(one_hub), client1)
    yield stages
    stages.close()


@pytest.fixture(params=TRANSPORTS)
def world1(request, tmp_path, made, demo, stages1, hub):
    """A world over the 1.x client."""
    return World(tmp_path, made, demo, stages1, hub).over(request.param)


def test_push_and_collect_once_and_again(world1):
    for _ in range(2):
        plan, push, collect = world1.pipe("plan", "push", "collect")
        for done in (plan, push, collect):
            assert done.code == 0, done.err
        assert world1.held() == world1.expected()
        assert len(world1.titles()) == 2
        kinds = world1.kinds()
    assert not {"commit", "create_repo", "preupload", "collection_add"} & set(kinds)
    assert "nothing to do" in plan.err and collect.err.count("has all") == 2
    world1.use("more")
    push = world1.pipe("plan", "push", PRUNE=1)[-1]
    assert push.code == 0, push.err
    assert world1.held() == world1.expected()


def test_many_files_are_one_commit_though_it_fails_at_first(world1):
    world1.use("many")
    faults = [Fault("commit", status=429, headers={"Retry-After": "0"}, times=2)]
    faults.append(Fault("info", status=503, headers={"Retry-After": "0"}))
    world1.hub.faults += faults
    push = world1.pipe("plan", "push", stdin=world1.lines(OTHER))[-1]
    assert push.code == 0, push.err
    assert all(fault.times <= 0 for fault in faults)
    assert len(world1.titles(OTHER)) == 2
    assert world1.held(OTHER) == world1.expected(OTHER)


def test_its_errors_are_told_in_the_same_words(world1):
    plan = world1.run("plan", stdin=world1.lines())
    for env, says in (
        ({"HF_TOKEN": "hf_wrong"}, "HF_TOKEN is wrong or expired (401)"),
        ({"HF_TOKEN": ""}, "HF_TOKEN is not set"),
    ):
        done = world1.run("push", stdin=plan.out, **env)
        assert (done.code, says in done.err) == (1, True)


@pytest.mark.parametrize("world1", ["xet"], indirect=True)
def test_a_stalled_hub_is_given_up(world1):
    world1.hub.faults.append(Fault("info", stall=True, times=99))
    done = world1.run("plan", stdin=world1.lines(), HF_HUB_DOWNLOAD_TIMEOUT=1)
    assert (done.code, "no answer from http://127.0.0.1:" in done.err) == (1, True)


def test_a_pushed_repo_is_verified_and_the_record_names_the_client(world1):
    done = world1.pipe("plan", "push", "verify")[-1]
    assert done.code == 0, done.err
    assert "verified 9 files by hash" in done.err
    record = json.loads((world1.records / SLUG / "release.json").read_text())
    assert record["tools"]["huggingface_hub"] == VERSION
