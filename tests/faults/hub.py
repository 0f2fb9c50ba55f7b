"""Faults: a Hub that is not, or answers not, as a release needs it; and a Hub out of reach."""

import dataclasses
import http.server
import os
import subprocess
import threading
import typing as tp

from faults.machine import a_hub
from faults.rows import Row
from kits.hub import Fault
from kits.lab import Lab, Labs
from kits.programs import Done

REPO_ID = "lab/tiny"
Spoil = tp.Callable[[tp.Any], object]


def push(lab: Lab, **env: object) -> Done:
    """The stage that a whole release depends on, without the programs around it."""
    stdin = (lab.build / "tiny/rendered.jsonl").read_text()
    return lab.program("bin/push", stdin=stdin, **env)


def release(lab: Lab, **env: object) -> Done:
    return lab.make("release", **env)


def no_release(spoil: Spoil, *faults: Fault, how=push):
    """A release to a Hub that has the repo already, after `spoil(hub)`."""

    def bring(labs: Labs) -> Done:
        lab = labs.copy()
        with a_hub(lab, *faults) as (hub, env):
            hub.add_repo(REPO_ID)
            spoil(hub)
            before = {id_: len(r.commits) for id_, r in hub.store.repos.items()}
            seen = how(lab, **env)
            after = {id_: len(r.commits) for id_, r in hub.store.repos.items()}
            assert before == after, "something was committed"
            assert not any(c["items"] for c in hub.collections()), "it was collected"
        assert not list((lab.records_dpath).rglob("*.json")), "it was recorded"
        return seen

    return bring


def put(hub, path: str, content: bytes) -> None:
    repo = hub.store.repos[REPO_ID]
    files = repo.head["files"] | {path: repo.add_regular(content)}
    repo.add_commit(files, "Somebody else's", "", "eve")


def having(**facts: object) -> Spoil:
    def spoil(hub) -> None:
        for name, value in facts.items():
            setattr(hub.store.repos[REPO_ID], name, value)

    return spoil


def lost_answer(labs: Labs) -> Done:
    """The commit lands, and the Hub says each time that it did not."""
    lab, fault = labs.copy(), Fault("commit", status=500, times=9)
    fault.before, fault.after = fault.after, fault.before
    with a_hub(lab, fault) as (hub, env):
        seen = lab.make("release", **env)
        assert len(hub.commits(REPO_ID)) == 2, "not one commit of ours"
    return seen


def rate_limited(labs: Labs) -> Done:
    lab = labs.copy()
    fault = Fault("whoami", status=429, headers={"RateLimit": '"api";r=0;t=3'})
    with a_hub(lab, fault) as (_, env):
        seen = push(lab, **env)
    assert "trying again in 3 s" in seen.err, "it did not wait as asked"
    return seen


def told_to_wait_for_hours(labs: Labs) -> Done:
    lab = labs.copy()
    fault = Fault("whoami", status=429, headers={"Retry-After": "7200"}, times=9)
    with a_hub(lab, fault) as (_, env):
        return push(lab, **env)


def with_setting(goal: str, **env: object):
    def bring(labs: Labs) -> Done:
        lab = labs.copy()
        with a_hub(lab) as (_, of_hub):
            return lab.make(goal, **of_hub | env)

    return bring


def rehearsal_behind_a_proxy(labs: Labs) -> Done:
    """A network's settings don't affect a Hub on this machine."""
    env = {"ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    env |= {"SSL_CERT_FILE": "/gone", "HF_TOKEN": ""}
    lab = labs.copy()
    seen = lab.make("rehearse", **env)
    looked = lab.make("rehearse", "DO=verify", **env)
    assert looked.code == 0 and "verified" in looked.err, (
        "its record can't be looked at"
    )
    return seen


class Login(http.server.BaseHTTPRequestHandler):
    """A network that answers every request with its own page."""

    def do_GET(self) -> None:
        page = b"<html>Welcome to the campus. Please log in.</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


def network_that_asks_for_a_login(labs: Labs) -> Done:
    with http.server.HTTPServer(("127.0.0.1", 0), Login) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        seen = push(labs.copy(), HF_ENDPOINT=address, HF_TOKEN="hf_x")
        server.shutdown()
    return seen


def home_that_is_read_only(labs: Labs) -> Done:
    """The Xet library can't log to a file there, and would log to stdout."""
    lab = labs.copy()
    with a_hub(lab) as (_, env):
        seen = push(lab, **env | {"HF_HOME": "/proc/none"})
    assert len(seen.rows) == 3, "something else is among the data"
    return dataclasses.replace(seen, out="")


def killed_while_rendering(labs: Labs) -> Done:
    """What render leaves in the stage when it is killed while it writes."""
    lab = labs.copy()
    (lab.stage_dpath / f".pareto.png.{dead_writer()}.tmp").write_bytes(
        b"half a picture"
    )
    with a_hub(lab) as (hub, env):
        seen = push(lab, **env)
        held = hub.files(REPO_ID)
    assert not any(path.endswith(".tmp") for path in held), "it was published"
    assert not list(lab.stage_dpath.glob(".*.tmp")), "it was left there"
    return seen


def dead_writer() -> str:
    process = subprocess.Popen(["true"])
    process.wait()
    return f"{os.uname().nodename}-{process.pid}"


def record_by_hand(labs: Labs) -> Done:
    """A record without a checkpoint in it, or without what a checkpoint loads by."""
    lab = labs.copy()
    with a_hub(lab) as (_, env):
        assert lab.make("release", **env).code == 0
        (fpath,) = (lab.records_dpath).rglob("release.json")
        fpath.write_text(fpath.read_text().replace('"loader"', '"lodaer"'))
        return lab.make("verify", **env)


ROWS = [
    Row(
        "repo renamed on the Hub",
        "lab/tiny: is named lab/large on the Hub; change it in the catalog",
        no_release(lambda hub: hub.rename_repo(REPO_ID, "lab/large")),
    ),
    Row(
        "repo is private",
        "lab/tiny: is private; make it public on",
        no_release(having(private=True), how=release),
        2,
    ),
    Row(
        "repo is gated",
        "lab/tiny: is gated; open it to everyone",
        no_release(having(gated="auto")),
    ),
    Row(
        "repo is disabled",
        "lab/tiny: is disabled by the Hub",
        no_release(having(disabled=True)),
    ),
    Row(
        "a .gitignore in the repo keeps checkpoints out",
        "lab/tiny: the Hub would ignore layer_6/run",
        no_release(lambda hub: put(hub, ".gitignore", b"*.pt\n")),
    ),
    Row(
        "a .gitignore for one document",
        "lab/tiny: the Hub would ignore manifest.jsonl, probably",
        no_release(lambda hub: put(hub, ".gitignore", b"# ours\nmanifest.jsonl\n")),
    ),
    Row(
        "a .gitignore for one checkpoint of three",
        "lab/tiny: the Hub would ignore layer_6/run1/sae.pt, probably",
        no_release(lambda hub: put(hub, ".gitignore", b"layer_6/run1/sae.pt\n")),
    ),
    Row(
        "the Hub rejects the card",
        "README.md: the Hub rejects it",
        no_release(lambda _: None, Fault("validate_yaml", status=400, times=9)),
    ),
    Row(
        "the token may not write to that very repo",
        "lab/tiny: can't write to it: a fault of the test (403)",
        no_release(lambda _: None, Fault("preupload", status=403, times=9)),
    ),
    Row("a commit lands and its answers are lost", "verified", lost_answer, 0),
    Row("a rate limit without Retry-After", "sending 8 files", rate_limited, 0),
    Row(
        "the Hub asks to wait for hours",
        "asks us to wait for 7200 s (429); run the same command after that",
        told_to_wait_for_hours,
    ),
    Row(
        "a SOCKS proxy",
        "ALL_PROXY: can't be used to reach",
        with_setting("release", ALL_PROXY="socks5://127.0.0.1:9"),
        2,
    ),
    Row(
        "certificates that are not there",
        "SSL_CERT_FILE: can't be used to reach",
        with_setting("release", SSL_CERT_FILE="/gone"),
        2,
    ),
    Row(
        "a timeout with a unit",
        "HF_HUB_DOWNLOAD_TIMEOUT is '10s'",
        with_setting("release", HF_HUB_DOWNLOAD_TIMEOUT="10s"),
        2,
    ),
    Row(
        "proxies and certificates, in a rehearsal",
        "verified",
        rehearsal_behind_a_proxy,
        0,
    ),
    Row(
        "a network that asks for a login",
        "doesn't answer as a Hub does",
        network_that_asks_for_a_login,
    ),
    Row("a home that is read-only", "sending 8 files", home_that_is_read_only, 0),
    Row("killed while it renders", "sending 8 files", killed_while_rendering, 0),
    Row(
        "a record by hand", "release.json: not a record of a release", record_by_hand, 2
    ),
]
