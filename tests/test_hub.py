"""The Hub's client is set up so that whatever the environment says, and whatever the Hub
answers, is a line that names what to mend."""

import json
import types

import pytest

from kits.programs import ROOT, run_program
from saepub.hub import client, repo, rights
from saepub.jsonl import KEYS

ENTRY = {
    "slug": "x",
    "repo_id": "lab/x",
    "title": "X",
    "base_model": "lab/vit",
    "run_ids": {"1": ["r"]},
    "objective": "vanilla",
    "activation": "relu",
    "layers": [1],
    "d_model": 8,
    "d_sae": 32,
}
LINE = {
    "repo": "x",
    "layer": 1,
    "run_id": "r",
    "checkpoint": "c",
    "bytes": 1,
    "sha256": "0" * 64,
    "path": "layer_1/r/sae.pt",
    "documents": {},
    "mtime_ns": 1 if int in KEYS["mtime_ns"].types else "1",
}


# The environment.


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """bin/plan on a line of its own, against a Hub that is not there."""
    dpath = tmp_path_factory.mktemp("plan")
    (dpath / "catalog.json").write_text(json.dumps({"repos": [ENTRY]}))
    settings = {"CATALOG": dpath / "catalog.json", "BUILD": dpath / "build"}
    settings |= {"HF_HOME": dpath / "hf", "HF_ENDPOINT": "http://127.0.0.1:9"}

    def plan(**env: object):
        return run_program(ROOT / "bin/plan", stdin=json.dumps(LINE), **settings | env)

    return plan


FAULTS = {
    "SOCKS": (
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        "ALL_PROXY: can't be used to reach http://127.0.0.1:9 (a SOCKS proxy, which"
        " needs the package socksio); fix or unset it",
    ),
    "SOCKS in small letters": (
        {"all_proxy": "socks5h://me:secret@127.0.0.1:9"},
        "all_proxy: can't be used",
    ),
    "a proxy of no kind": ({"HTTPS_PROXY": "ftp://x"}, "HTTPS_PROXY: can't be used"),
    "a proxy's port": ({"HTTP_PROXY": "http://x:port"}, "HTTP_PROXY: can't be used"),
    "no certificates": (
        {"SSL_CERT_FILE": "/gone"},
        "SSL_CERT_FILE: can't be used to reach http://127.0.0.1:9 (no such file)",
    ),
    "two at once": (
        {"SSL_CERT_FILE": "/gone", "ALL_PROXY": "socks5://x"},
        "ALL_PROXY and SSL_CERT_FILE: can't be used",
    ),
    "a timeout with a unit": (
        {"HF_HUB_DOWNLOAD_TIMEOUT": "10s"},
        "HF_HUB_DOWNLOAD_TIMEOUT is '10s'",
    ),
    "another number": (
        {"HF_HUB_ETAG_TIMEOUT": "1.5"},
        "HF_HUB_ETAG_TIMEOUT: the Hub's",
    ),
    "no time at all": (
        {"HF_HUB_DOWNLOAD_TIMEOUT": "-1"},
        "HF_HUB_DOWNLOAD_TIMEOUT is '-1'",
    ),
    "no scheme": (
        {"HF_ENDPOINT": "huggingface.co"},
        "HF_ENDPOINT is 'huggingface.co', not an address like https://huggingface.co",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_setting_that_keeps_the_hub_away_is_named(plan, fault):
    env, says = FAULTS[fault]
    done = plan(**env)
    assert (done.out, done.err.count("\n")) == ("", 1), done.err
    assert done.code == (2 if "TIMEOUT is" in says else 1)
    assert says in done.err
    assert "internal error" not in done.err and "secret" not in done.err


def test_a_proxy_that_does_not_answer_is_named(monkeypatch):
    for name in client.NETWORK_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "endpoint", lambda: "https://hub.example")
    refused = ConnectionError("[Errno 111] Connection refused")
    assert client.explain(refused).startswith("no answer from https://hub.example: [E")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "hub.example (through the proxy of HTTPS_PROXY): [E" in client.explain(
        refused
    )
    monkeypatch.setenv("NO_PROXY", "hub.example")
    assert "proxy" not in client.explain(refused)
    monkeypatch.setenv("SSL_CERT_FILE", "/some.pem")
    unsure = ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    assert "hub.example (certificates from SSL_CERT_FILE): [S" in client.explain(unsure)


# Rights: what whoami may say.


def orgs(*pairs: tuple[str, object]) -> list[dict]:
    return [{"name": name, "roleInOrg": role} for name, role in pairs]


def me(role: object = "write", *, of=(("lab", "write"),), **more: object) -> dict:
    auth = {"accessToken": {"role": role, **more}}
    return {"name": "sam", "orgs": orgs(*of), "auth": auth}


def scoped(*scopes: object) -> dict:
    return me("fineGrained", fineGrained={"scoped": list(scopes)})


REPO = {"entity": {"type": "model", "name": "LAB/x"}, "permissions": ["repo.write"]}
ORG = {"entity": {"type": "org", "name": "lab"}, "permissions": ["repo.write"]}
NO_ENTITY = {"entity": None, "permissions": None}

MAY = {
    "a member who writes": me(),
    "an admin": me(of=(("lab", "admin"),)),
    "another case of the name": me(of=(("LAB", "write"),)),
    "its own namespace": me() | {"name": "Lab", "orgs": []},
    "fine-grained, for the organization": scoped(NO_ENTITY, ORG),
    "fine-grained, for the repo in another case": scoped(REPO),
}
DOUBTFUL = {
    "a reader, whom a resource group may let write": me(of=(("lab", "read"),)),
    "no role": me(of=(("lab", None),)),
    "a role to come": me(of=(("lab", "curator"),)),
    "no organizations told": me() | {"orgs": None},
    "an organization without a name": me() | {"orgs": [{"roleInOrg": "write"}]},
    "fine-grained, scopes untold": me("fineGrained"),
}
MAY_NOT = {
    "a read token": (me("read"), "has only read access"),
    "a stranger": (me(of=()), "who may not write to lab"),
    "fine-grained, for others": (scoped(NO_ENTITY), "lacks repo.write for lab"),
}


@pytest.fixture
def ask(monkeypatch, capsys):
    """What `rights` finds of an answer: problems, and what it warns of."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")

    def ask(answer: object) -> tuple[list[str], str]:
        api = types.SimpleNamespace(whoami=lambda: answer)
        monkeypatch.setattr(client, "api", lambda: api)
        return rights.problems(["lab/x"], []), capsys.readouterr().err

    return ask


@pytest.mark.parametrize("who", MAY)
def test_who_may_write_passes_without_a_word(ask, who):
    assert ask(MAY[who]) == ([], "")


@pytest.mark.parametrize("who", DOUBTFUL)
def test_what_is_doubtful_is_a_warning(ask, who):
    problems, told = ask(DOUBTFUL[who])
    assert problems == []
    assert told.endswith("; the Hub decides\n") and "lab" in told


@pytest.mark.parametrize("who", MAY_NOT)
def test_what_is_certain_is_refused(ask, who):
    answer, says = MAY_NOT[who]
    problems, _ = ask(answer)
    assert len(problems) == 1 and says in problems[0]


@pytest.mark.parametrize("auth", [None, {}, {"accessToken": None}, [], "x"])
def test_an_answer_of_another_shape_is_no_reason_to_refuse(ask, auth):
    assert ask(me() | {"auth": auth}) == ([], "")
    for answer in (None, [], {}, {"name": None, "orgs": "x"}):
        assert ask(answer)[0] == []


# What a repo is.


def test_what_a_repo_is_is_held_to_what_is_promised():
    there = repo.Remote("1" * 40, {}, "lab/x")
    assert repo.access_problems("lab/x", there) == []
    assert repo.access_problems("lab/x", repo.Remote(None, {})) == []
    for change, says in (
        ({"repo_id": "lab/y"}, "lab/x: is named lab/y on the Hub"),
        ({"repo_id": "Lab/x"}, "lab/x: is named Lab/x on the Hub"),
        ({"private": True}, "lab/x: is private"),
        ({"gated": True}, "lab/x: is gated"),
        ({"disabled": True}, "lab/x: is disabled"),
    ):
        (problem,) = repo.access_problems("lab/x", there._replace(**change))
        assert problem.startswith(says)
