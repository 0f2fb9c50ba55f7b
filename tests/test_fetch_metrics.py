"""fetch-metrics adds what W&B knows: through its real clients, or from an export of it."""

import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys

import pytest

from kits.once import once, pip_install
from kits.programs import ROOT, bare_env, rows_of, run_code, run_program
from kits.terminal import Terminal
from loopback_wandb import DROP, HANG, KEY, LoopbackWandb, Status

pytestmark = pytest.mark.programs

PROGRAM = ROOT / "bin/fetch-metrics"
EXPECTED = {
    "entity": "samuelstevens",
    "project": "saev",
    "objective": "matryoshka",
    "activation": "relu",
    "d_model": 8,
    "d_sae": 32,
}
CONFIG = {
    "sae": {"d_model": 8, "d_sae": 32, "activation": {"key": "relu"}},
    "objective": {"n_prefixes": 10},
    "train_data": {"layer": 6},
    "lr": 1e-3,
}
SUMMARY = {
    "eval/l0": 12.5,
    "eval/normalized_mse": 0.25,
    "eval/mse": 0.75,
    "eval/n_dead": 3,
}


def run(name: str, **changes) -> dict:
    """A run's record, good except for `changes`."""
    date = "2025-12-01T10:00:00Z"
    base = {"name": name, "state": "finished", "createdAt": date}
    return base | {"config": CONFIG, "summary": SUMMARY} | changes


def recorded(name: str, url: str | None = None, **changes) -> dict:
    """What the line of that run gains."""
    record = run(name, url=url, **changes)
    return {"wandb": {key: record[key] for key in record if key != "name"}}


def candidate(run_id: str, **changes) -> dict:
    base = {"repo": "vits-relu", "layer": 6, "run_id": run_id, "expected": EXPECTED}
    return base | changes


def l0_of(row: dict) -> float:
    return row["wandb"]["summary"]["eval/l0"]


def as_jsonl(rows) -> str:
    return "".join(
        row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows
    )


@pytest.fixture
def fetch(tmp_path):
    """Run the program on candidates or their ids, in an empty directory, which stays so."""
    cwd, tmp = tmp_path / "cwd", tmp_path / "tmp"
    cwd.mkdir()
    tmp.mkdir()

    def go(candidates, *argv, **env):
        rows = [candidate(c) if isinstance(c, str) else c for c in candidates]
        env = {"HOME": tmp_path, "TMPDIR": tmp, "RUNS_ROOT": tmp_path} | env
        done = run_program(PROGRAM, *argv, stdin=as_jsonl(rows), cwd=cwd, **env)
        assert [*cwd.iterdir(), *tmp.iterdir()] == []
        return done

    return go


@pytest.fixture
def fetch_from(fetch, tmp_path):
    """Run the program on candidates and an export that holds these runs."""

    def go(runs, candidates=None, *argv, **env):
        fpath = tmp_path / "export.jsonl"
        fpath.write_text(as_jsonl(runs))
        if candidates is None:
            candidates = [r["name"] for r in runs]
        return fetch(candidates, *argv, METRICS_SNAPSHOT=fpath, **env)

    return go


# ---- the clients -----------------------------------------------------------------------------


VERSION = "0.22.0"
"""Of wandb, as saev pins it."""
SAEVS = pytest.param(VERSION, marks=pytest.mark.long)


def make_saevs_venv(venv: pathlib.Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    tqdm = f"tqdm=={importlib.metadata.version('tqdm')}"
    pip_install(venv / "bin/python", tqdm, f"wandb=={VERSION}")


@pytest.fixture(params=["newest", SAEVS])
def client(request, kept_dpath) -> dict[str, object]:
    """Settings that pick a client, with few retries of its own so that ours show."""
    few = {"WANDB_X_GRAPHQL_RETRY_MAX": 1}
    if request.param == "newest":
        return few
    return few | {"VENV": once(kept_dpath / f"wandb-{VERSION}", make_saevs_venv)}


@pytest.fixture
def fetch_impatiently(tmp_path, client):
    """Run the program with other waiting times."""
    code = (
        "import json, os; from saepub import cli; from saepub.tracking import runs;"
        " runs.LOGIN_TIMEOUT, runs.PAUSES = json.loads(os.environ['WAITS']);"
        " cli.main('fetch-metrics')"
    )

    def go(run_id, patience: int, pauses: list[int], **env):
        waits = json.dumps([patience, pauses])
        env = {"HOME": tmp_path, "RUNS_ROOT": tmp_path, "WAITS": waits} | client | env
        return run_code(code, stdin=as_jsonl([candidate(run_id)]), cwd=tmp_path, **env)

    return go


def login(server: LoopbackWandb) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}


def test_a_line_gains_what_wandb_knows_and_nulls_where_it_knows_none(fetch, client):
    with LoopbackWandb([run("aaaa1111")]) as server:
        done = fetch(
            [candidate("aaaa1111", own={"kept": [1]})], **login(server), **client
        )
    assert (done.code, done.err) == (0, "")
    url = f"{server.url}/samuelstevens/saev/runs/aaaa1111"
    line = candidate("aaaa1111", own={"kept": [1]}) | recorded("aaaa1111", url)
    assert done.rows == [line]
    assert fetch([]).rows == []


def test_many_runs_come_in_few_requests(fetch, client):
    ids = [f"run{i:05}" for i in range(223)]
    strangers = [run(f"other{i}") for i in range(50)]
    with LoopbackWandb([*map(run, ids), *strangers]) as server:
        done = fetch(ids[::-1], **login(server), **client)
    assert [row["run_id"] for row in done.rows] == ids[::-1]
    assert all(l0_of(row) == 12.5 for row in done.rows)
    assert server.n_requests["Run"] == 0
    assert server.n_requests["Runs"] <= math.ceil(223 / 100)
    handshake = server.n_total - server.n_requests["Runs"]
    assert handshake <= (6 if "VENV" in client else 4)


def test_runs_beyond_a_page_come_from_the_next(fetch):
    ids = [f"run{i:05}" for i in range(1203)]
    with LoopbackWandb(map(run, ids)) as server:
        done = fetch(ids, **login(server))
    assert [row["run_id"] for row in done.rows if l0_of(row) == 12.5] == ids
    assert server.n_requests["Runs"] <= math.ceil(1203 / 100)
    assert max(n for n, _ in server.pages) <= 1000


def test_429_500_and_a_dropped_connection_pass(fetch, client):
    with LoopbackWandb([run("aaaa1111")]) as server:
        server.faults["Runs"] = [Status(429, retry_after=1), Status(500), DROP]
        done = fetch(["aaaa1111"], **login(server), **client)
    assert (done.code, done.err) == (0, "")
    assert l0_of(done.rows[0]) == 12.5
    assert server.n_requests["Runs"] == 4


def test_a_fault_at_a_later_page_loses_no_run(fetch, client):
    ids = [f"run{i:05}" for i in range(600)]
    with LoopbackWandb(map(run, ids)) as server:
        server.faults["Runs"] = [None, DROP, DROP, None, Status(500), DROP]
        done = fetch(ids, **login(server), **client)
    assert [row["run_id"] for row in done.rows if l0_of(row) == 12.5] == ids


def test_a_page_that_is_too_slow_is_asked_for_again_and_smaller(fetch, client):
    with LoopbackWandb([run("aaaa1111")]) as server:
        server.faults["Runs"] = [HANG]
        done = fetch(["aaaa1111"], **login(server), **client, WANDB_HTTP_TIMEOUT=3)
    assert (done.code, done.err) == (0, "")
    if "VENV" not in client:  # the older client asks again by itself
        assert server.pages == [(1, 125)]


def test_what_a_job_left_in_the_environment_is_no_hindrance(fetch, tmp_path):
    """Settings of a job that logs a run, a cache directory that can't be made, a broken settings file."""
    env = {"WANDB_MODE": "none", "WANDB_RUN_ID": "", "WANDB_RESUME": "maybe"}
    env |= {"WANDB_CACHE_DIR": "/proc/none", "WANDB_CONFIG_DIR": tmp_path / "config"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config/settings").write_text("[default]\nbase_url = none\n")
    with LoopbackWandb([run("aaaa1111")]) as server:
        done = fetch(["aaaa1111"], **login(server), **env)
    assert (done.code, done.err) == (0, "")
    assert l0_of(done.rows[0]) == 12.5


def test_a_setting_that_the_client_cannot_read_is_named(fetch):
    done = fetch(["aaaa1111"], WANDB_API_KEY="f" * 40, WANDB_HTTP_TIMEOUT="10s")
    told = "fetch-metrics: WANDB_HTTP_TIMEOUT: W&B's client can't read it: "
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(told)


def test_a_wrong_key_is_one_line(fetch, client):
    with LoopbackWandb([run("aaaa1111")]) as server:
        done = fetch(
            ["aaaa1111"], **login(server) | {"WANDB_API_KEY": "f" * 40}, **client
        )
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"fetch-metrics: W&B at {server.url} rejects the API key (HTTP 401);"
        " export a valid WANDB_API_KEY\n"
    )


def test_a_missing_project_is_one_line(fetch, client):
    with LoopbackWandb([run("aaaa1111")]) as server:
        done = fetch(["aaaa1111"], **login(server), WANDB_PROJECT="nope", **client)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f'W&B at {server.url} has no project "nope" of "samuelstevens"' in done.err
    assert "set WANDB_ENTITY and WANDB_PROJECT" in done.err


def test_no_key_is_one_line_and_no_question(fetch, client):
    with LoopbackWandb([run("aaaa1111")]) as server:
        done = fetch(["aaaa1111"], WANDB_BASE_URL=server.url, **client)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"fetch-metrics: no API key for W&B at {server.url}; export WANDB_API_KEY"
        " or read an export instead (METRICS_SNAPSHOT=<file>)\n"
    )
    assert server.n_total == 0


def test_the_client_s_own_login_is_used(fetch, client, tmp_path):
    with LoopbackWandb([run("aaaa1111")]) as server:
        host = server.url.removeprefix("http://")
        # saev's client goes by the host's name alone, the newest by its port too.
        for name in {host, host.partition(":")[0]}:
            with open(tmp_path / ".netrc", "a") as fd:
                fd.write(f"machine {name} login user password {KEY}\n")
        (tmp_path / ".netrc").chmod(0o600)
        done = fetch(["aaaa1111"], WANDB_BASE_URL=server.url, **client)
    assert (done.code, done.err) == (0, "")
    assert l0_of(done.rows[0]) == 12.5


def test_a_dead_network_is_one_line(fetch_impatiently):
    url = "http://127.0.0.1:9"
    env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    done = fetch_impatiently("aaaa1111", 120, [0], **env)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f"no answer from W&B at {url} (" in done.err
    assert "onnection refused)" in done.err
    assert "METRICS_SNAPSHOT=<file>" in done.err


DEAF = """
import signal, sys, time
from saepub import cli
from wandb.sdk.lib.service import service_process

def join(self):
    print("waiting", file=sys.stderr)
    signal.setitimer(signal.ITIMER_REAL, 0.01)  # time is up
    time.sleep(600)

service_process.ServiceProcess.join = join
cli.main("fetch-metrics")
"""


def test_the_client_s_service_is_left_if_it_does_not_end(tmp_path):
    """It may miss the message that ends it, if a request was given up just before."""
    with LoopbackWandb([run("aaaa1111")]) as server:
        env = login(server) | {"HOME": tmp_path, "RUNS_ROOT": tmp_path}
        line = as_jsonl([candidate("aaaa1111")])
        done = run_code(DEAF, stdin=line, cwd=tmp_path, **env)
    assert (done.code, done.err) == (0, "waiting\n")
    assert l0_of(rows_of(done.out)[0]) == 12.5


def test_a_server_that_never_answers_is_given_up(fetch_impatiently):
    with LoopbackWandb([run("aaaa1111")]) as server:
        for operation in ("", "Viewer"):
            server.faults[operation] = [HANG] * 9
        done = fetch_impatiently("aaaa1111", 4, [60], **login(server))
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f"no answer from W&B at {server.url} (timed out)" in done.err


def test_nothing_half_fetched_is_written(fetch, tmp_path):
    ids = [f"run{i:05}" for i in range(300)]
    saved = tmp_path / "saved.jsonl"
    with LoopbackWandb(map(run, ids)) as server:
        server.faults["Runs"] = [None] + [Status(403)] * 9
        done = fetch(ids, "--save-snapshot", saved, **login(server))
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert not saved.exists()


def test_progress_shows_on_a_terminal(tmp_path):
    stdin = as_jsonl([candidate("aaaa1111"), candidate("gone0000")]).encode()
    with Terminal() as terminal, LoopbackWandb([run("aaaa1111")]) as server:
        env = bare_env(**login(server), RUNS_ROOT=tmp_path, HOME=tmp_path)
        streams = {"stdout": subprocess.DEVNULL, "stderr": terminal.fd}
        subprocess.run([PROGRAM], input=stdin, env=env, **streams)
    assert "runs from W&B:" in terminal.shown and "1/2" in terminal.shown


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


ODD = {
    "user": run("odd00000", user=None),
    "no config": run("odd00000", config=None),
    "empty config": run("odd00000", config=""),
    "config of another kind": run("odd00000", config="[1]"),
    "config that is no JSON": run("odd00000", config="{" * 999),
    "deep config": run("odd00000", config=CONFIG | {"deep": nested(200)}),
    "deeper config": run("odd00000", config='{"a":' * 600 + "1" + "}" * 600),
    "deepest config": run("odd00000", config='{"a":' * 5000 + "1" + "}" * 5000),
    "no summary": run("odd00000", summary=None),
    "summary of min and max": run(
        "odd00000", summary={"eval/l0": {"min": 1, "max": 3}}
    ),
    "NaN": run(
        "odd00000", summary='{"eval/l0": NaN, "eval/normalized_mse": -Infinity}'
    ),
    "large number": run("odd00000", config=CONFIG | {"seed": 2**63}),
    "larger number": run("odd00000", config='{"seed": ' + "9" * 5000 + "}"),
    "state": run("odd00000", state=None),
}
FOUND = {
    "no config": {"config": None},
    "empty config": {"config": ""},
    "config of another kind": {"config": [1]},
    "config that is no JSON": {"config": "{" * 200},
    "deeper config": {"config": "nested over 64 deep"},
    "deepest config": {"config": "nested over 64 deep"},
    "no summary": {"summary": None},
    "summary of min and max": {"summary": {"eval/l0": {"min": 1, "max": 3}}},
    "NaN": {"summary": {"eval/l0": "NaN", "eval/normalized_mse": "-Infinity"}},
    "large number": {"config": CONFIG | {"seed": str(2**63)}},
    "larger number": {"config": {"seed": "9" * 200}},
    "state": {"state": None},
}


@pytest.mark.parametrize("client", ["newest", SAEVS], indirect=True)
def test_an_odd_record_costs_itself_alone_and_is_passed_on_as_found(fetch, client):
    """All odd records in one project, on one page with good ones."""
    runs = {
        f"odd{i:05}": record | {"name": f"odd{i:05}"}
        for i, record in enumerate(ODD.values())
    }
    good = [run("good0000"), run("good0001")]
    ids = ["good0000", *runs, "good0001"]
    with LoopbackWandb([good[0], *runs.values(), good[1]]) as server:
        done = fetch(ids, **login(server), **client)
    assert (done.code, done.err) == (0, "")
    url = f"{server.url}/samuelstevens/saev/runs/"
    assert done.rows[0] == candidate("good0000") | recorded(
        "good0000", url + "good0000"
    )
    assert [row["run_id"] for row in done.rows] == ids
    rows = dict(zip(ODD, done.rows[1:-1], strict=True))
    for what, row in rows.items():
        assert row["wandb"]["url"] == url + row["run_id"]
        assert row["wandb"].items() >= FOUND.get(what, {}).items(), what
    assert rows["user"]["wandb"]["config"] == CONFIG
    assert rows["deep config"]["wandb"]["config"].items() >= CONFIG.items()
    assert server.n_requests["Run"] == 0 and server.n_requests["Runs"] == 1


def test_the_address_is_the_client_s_own(fetch, tmp_path):
    """A self-hosted server that only the client's settings file names."""
    with LoopbackWandb([run("aaaa1111")]) as server:
        dpath = tmp_path / ".config" / "wandb"
        dpath.mkdir(parents=True)
        (dpath / "settings").write_text(f"[default]\nbase_url = {server.url}\n")
        done = fetch(["aaaa1111"], WANDB_API_KEY=KEY)
    assert (done.code, done.err) == (0, "")
    url = f"{server.url}/samuelstevens/saev/runs/aaaa1111"
    assert done.rows[0]["wandb"]["url"] == url


# ---- exports ---------------------------------------------------------------------------------


def test_an_export_stands_in_for_wandb(fetch_from):
    """Without a client, only the export knows W&B's address."""
    url = "https://wandb.example.org/lab/saev/runs/cccc3333"
    done = fetch_from(
        [run("aaaa1111"), run("bbbb2222"), run("cccc3333", url=url)],
        ["bbbb2222", "gone0000", "cccc3333"],
    )
    assert (done.code, done.err) == (0, "")
    assert done.rows == [
        candidate("bbbb2222") | recorded("bbbb2222"),
        candidate("gone0000") | {"wandb": None},
        candidate("cccc3333") | recorded("cccc3333", url),
    ]


def test_an_export_needs_no_client(fetch_from, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    assert (
        fetch_from([run("aaaa1111")], VENV=bare).rows[0]["wandb"]["summary"]["eval/l0"]
        == 12.5
    )


def test_the_option_goes_before_the_setting(fetch_from, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(as_jsonl([run("aaaa1111", state="crashed")]))
    done = fetch_from([run("aaaa1111")], ["aaaa1111"], "--snapshot", other)
    assert done.rows[0]["wandb"]["state"] == "crashed"


def test_an_export_may_be_raw(fetch_from):
    """As W&B's API has it: JSON in strings, each config value wrapped."""
    wrapped = {k: {"value": v, "desc": None} for k, v in CONFIG.items()}
    config = json.dumps(wrapped | {"wandb_version": 1})
    done = fetch_from([run("aaaa1111", config=config, summary=json.dumps(SUMMARY))])
    assert done.rows == [candidate("aaaa1111") | recorded("aaaa1111")]


def test_saving_writes_the_runs_asked_for_sorted_and_reproducibly(
    fetch, fetch_from, tmp_path
):
    saved, again = tmp_path / "saved.jsonl", tmp_path / "again.jsonl"
    runs = [run(name) for name in ("cccc3333", "aaaa1111", "bbbb2222")]
    runs[0]["summary"] = SUMMARY | {"eval/l0": math.nan}
    ids = ["cccc3333", "aaaa1111", "gone0000"]
    with LoopbackWandb(runs) as server:
        live = fetch(ids, "--save-snapshot", saved, **login(server))
    rows = [json.loads(text) for text in saved.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["aaaa1111", "cccc3333"]
    url = f"{server.url}/samuelstevens/saev/runs/aaaa1111"
    assert rows[0] == run("aaaa1111", url=url)
    assert rows[1]["summary"]["eval/l0"] == "NaN"
    from_saved = fetch(ids, "--snapshot", saved, "--save-snapshot", again)
    assert again.read_bytes() == saved.read_bytes()
    assert from_saved.out == live.out


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([run("a1"), run("b2"), run("a1")], ":3: 'a1' again, after line 1"),
        ([run("a1"), "{oops\n"], ":2: not JSON: "),
        (["[1]\n"], ":1: not a JSON object"),
        ([{"config": {}}], ':1: no "name" (the run\'s id)'),
        (['{"config": ' + "[" * 100_000 + "\n"], ":1: nested over 64 deep"),
    ],
)
def test_a_broken_export_is_one_line(fetch_from, tmp_path, rows, why):
    done = fetch_from(rows, ["a1"])
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"fetch-metrics: {tmp_path}/export.jsonl{why}")
    assert done.err.count("\n") == 1


def test_an_odd_line_of_an_export_costs_its_run_alone(fetch_from):
    deep = '{"name": "deep0000", "config": ' + '{"a":' * 5000 + "1" + "}" * 5001 + "\n"
    long = '{"name": "long0000", "config": {"seed": ' + "9" * 5000 + "}}\n"
    ids = ["good0000", "deep0000", "long0000"]
    done = fetch_from([run("good0000"), deep, long], ids)
    assert (done.code, done.err) == (0, "")
    good, deep, long = done.rows
    assert l0_of(good) == 12.5
    assert deep["wandb"]["config"] == "nested over 64 deep"
    assert long["wandb"]["config"]["seed"] == "9" * 200


def test_a_missing_export_is_one_line(fetch):
    done = fetch(["a1"], METRICS_SNAPSHOT="/nowhere/export.jsonl")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "fetch-metrics: /nowhere/export.jsonl: No such file or directory;"
        " check METRICS_SNAPSHOT or --snapshot\n"
    )


def test_a_line_without_a_run_id_is_named(fetch_from):
    done = fetch_from([], [{"repo": "r", "layer": 6, "expected": {}}])
    assert done.code == 1
    assert done.err.startswith('fetch-metrics: stdin:1: no "run_id": {"repo": ')
