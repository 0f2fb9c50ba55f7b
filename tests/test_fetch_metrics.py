"""fetch-metrics adds what W&B knows: through its real clients, or from an export of it."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import pty
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kits.fake_wandb import DROP, HANG, KEY, FakeWandb, Status
from kits.programs import ROOT, bare_env, run_program
from saepub import jsonl
from saepub.tracking import run_facts

PROGRAM = ROOT / "bin/fetch-metrics"
EXPECTED = {
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
FACTS = {
    "l0": 12.5,
    "nmse": 0.25,
    "nmse_source": "wandb",
    "n_dead": 3,
    "objective": "matryoshka",
    "n_prefixes": 10,
    "activation": {"key": "relu"},
    "d_model": 8,
    "d_sae": 32,
    "train_layer": 6,
    "state": "finished",
    "created_at": "2025-12-01T10:00:00Z",
}


def run(name: str, **changes) -> dict:
    """A run's record, good where `changes` don't say otherwise."""
    date = "2025-12-01T10:00:00Z"
    base = {"name": name, "state": "finished", "createdAt": date}
    return base | {"config": CONFIG, "summary": SUMMARY} | changes


def without(summary_key: str) -> dict:
    return {k: v for k, v in SUMMARY.items() if k != summary_key}


OLD = {"summary": without("eval/normalized_mse")}


def candidate(run_id: str, **changes) -> dict:
    base = {"repo": "vits-relu", "layer": 6, "run_id": run_id, "expected": EXPECTED}
    return base | changes


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
        done.rows = [json.loads(text) for text in done.out.splitlines()]
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


def _venv_with_saev_s_client() -> pathlib.Path:
    """A venv with wandb 0.22.0, which saev pins; made once."""
    venv = ROOT / "build" / "wandb-0.22.0"
    venv.parent.mkdir(exist_ok=True)
    with open(f"{venv}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (venv / ".ready").exists():
            return venv
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [venv / "bin/pip", "install", "--quiet", "wandb==0.22.0"]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip can't install wandb 0.22.0: {last}")
        (venv / ".ready").touch()
    return venv


SAEV_S = pytest.param("0.22.0", marks=pytest.mark.slow_setup)


@pytest.fixture(params=["newest", SAEV_S])
def client(request) -> dict[str, object]:
    """Settings that pick a client; its own tries are few, so that ours show."""
    few = {"WANDB_X_GRAPHQL_RETRY_MAX": 1}
    return (
        few if request.param == "newest" else few | {"VENV": _venv_with_saev_s_client()}
    )


@pytest.fixture
def fetch_impatiently(tmp_path, client):
    """Run the program, all of it but for how long it waits."""
    python = pathlib.Path(client.get("VENV", sys.prefix)) / "bin/python"
    code = (
        "from saepub import cli; from saepub.tracking import runs as wandb_runs;"
        " wandb_runs.LOGIN_PATIENCE, wandb_runs.PAUSES = 4, (60,);"
        " cli.main('fetch-metrics')"
    )

    def go(run_id, **env):
        env = {"HOME": tmp_path, "RUNS_ROOT": tmp_path, "PYTHONPATH": ROOT / "py"} | env
        stdin = as_jsonl([candidate(run_id)])
        return run_program(python, "-c", code, stdin=stdin, cwd=tmp_path, **env)

    return go


def login(server: FakeWandb) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}


def test_a_line_gains_what_wandb_knows_and_nulls_where_it_knows_none(fetch, client):
    with FakeWandb([run("aaaa1111")]) as server:
        done = fetch(
            [candidate("aaaa1111", own={"kept": [1]})], **login(server), **client
        )
    assert (done.returncode, done.err) == (0, "")
    url = f"{server.url}/samuelstevens/saev/runs/aaaa1111"
    line = candidate("aaaa1111", own={"kept": [1]}) | FACTS | {"wandb_url": url}
    assert done.rows == [line]


def test_many_runs_come_in_few_requests(fetch, client):
    ids = [f"run{i:05}" for i in range(223)]
    strangers = [run(f"other{i}") for i in range(50)]
    with FakeWandb([*map(run, ids), *strangers]) as server:
        done = fetch(ids[::-1], **login(server), **client)
    assert [row["run_id"] for row in done.rows] == ids[::-1]
    assert all(row["d_model"] == 8 and row["l0"] == 12.5 for row in done.rows)
    assert server.n_requests["Run"] == 0
    assert server.n_requests["Runs"] <= math.ceil(223 / 100)
    handshake = server.n_total - server.n_requests["Runs"]
    assert handshake <= (6 if "VENV" in client else 4)


def test_runs_beyond_a_page_come_from_the_next(fetch):
    ids = [f"run{i:05}" for i in range(1203)]
    with FakeWandb(map(run, ids)) as server:
        done = fetch(ids, **login(server))
    assert [row["run_id"] for row in done.rows if row["l0"] == 12.5] == ids
    assert server.n_requests["Runs"] <= math.ceil(1203 / 100)
    assert max(n for n, _ in server.pages) <= 1000


def test_429_500_and_a_dropped_connection_pass(fetch, client):
    with FakeWandb([run("aaaa1111")]) as server:
        server.faults["Runs"] = [Status(429, retry_after=1), Status(500), DROP]
        done = fetch(["aaaa1111"], **login(server), **client)
    assert (done.returncode, done.err) == (0, "")
    assert done.rows[0]["l0"] == 12.5
    assert server.n_requests["Runs"] == 4


def test_a_fault_at_a_later_page_loses_no_run(fetch, client):
    ids = [f"run{i:05}" for i in range(600)]
    with FakeWandb(map(run, ids)) as server:
        server.faults["Runs"] = [None, DROP, DROP, None, Status(500), DROP]
        done = fetch(ids, **login(server), **client)
    assert [row["run_id"] for row in done.rows if row["l0"] == 12.5] == ids


def test_a_page_that_is_too_slow_is_asked_for_again_and_smaller(fetch, client):
    with FakeWandb([run("aaaa1111")]) as server:
        server.faults["Runs"] = [HANG]
        done = fetch(["aaaa1111"], **login(server), **client, WANDB_HTTP_TIMEOUT=3)
    assert (done.returncode, done.err) == (0, "")
    if "VENV" not in client:  # the older client asks again by itself
        assert server.pages == [(1, 125)]


def test_a_wrong_key_is_one_line(fetch, client):
    with FakeWandb([run("aaaa1111")]) as server:
        done = fetch(
            ["aaaa1111"], **login(server) | {"WANDB_API_KEY": "f" * 40}, **client
        )
    assert (done.returncode, done.out) == (1, "")
    assert done.err == (
        f"fetch-metrics: W&B at {server.url} refuses the API key (HTTP 401);"
        " export a right WANDB_API_KEY\n"
    )


def test_a_missing_project_is_one_line(fetch, client):
    with FakeWandb([run("aaaa1111")]) as server:
        done = fetch(["aaaa1111"], **login(server), WANDB_PROJECT="nope", **client)
    assert (done.returncode, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f'W&B at {server.url} has no project "nope" of "samuelstevens"' in done.err
    assert "set WANDB_ENTITY and WANDB_PROJECT" in done.err


def test_no_key_is_one_line_and_no_question(fetch, client):
    with FakeWandb([run("aaaa1111")]) as server:
        done = fetch(["aaaa1111"], WANDB_BASE_URL=server.url, **client)
    assert (done.returncode, done.out) == (1, "")
    assert done.err == (
        f"fetch-metrics: no API key for W&B at {server.url}; export WANDB_API_KEY"
        " or read an export instead (METRICS_SNAPSHOT=<file>)\n"
    )
    assert server.n_total == 0


def test_the_client_s_own_login_is_used(fetch, client, tmp_path):
    with FakeWandb([run("aaaa1111")]) as server:
        host = server.url.removeprefix("http://")
        # saev's client goes by the host's name alone, the newest by its port too.
        for name in {host, host.partition(":")[0]}:
            with open(tmp_path / ".netrc", "a") as fd:
                fd.write(f"machine {name} login user password {KEY}\n")
        (tmp_path / ".netrc").chmod(0o600)
        done = fetch(["aaaa1111"], WANDB_BASE_URL=server.url, **client)
    assert (done.returncode, done.err) == (0, "")
    assert done.rows[0]["l0"] == 12.5


def test_a_dead_network_is_one_line(fetch_impatiently):
    url = "http://127.0.0.1:9"
    done = fetch_impatiently("aaaa1111", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    assert (done.returncode, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f"no answer from W&B at {url} (" in done.err
    assert "onnection refused)" in done.err
    assert "METRICS_SNAPSHOT=<file>" in done.err


def test_a_server_that_never_answers_is_given_up(fetch_impatiently):
    with FakeWandb([run("aaaa1111")]) as server:
        for operation in ("", "Viewer"):
            server.faults[operation] = [HANG] * 9
        done = fetch_impatiently("aaaa1111", **login(server))
    assert (done.returncode, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f"no answer from W&B at {server.url} (timed out)" in done.err


def test_nothing_half_fetched_is_written(fetch, tmp_path):
    ids = [f"run{i:05}" for i in range(300)]
    saved = tmp_path / "saved.jsonl"
    with FakeWandb(map(run, ids)) as server:
        server.faults["Runs"] = [None] + [Status(403)] * 9
        done = fetch(ids, "--save-snapshot", saved, **login(server))
    assert (done.returncode, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert not saved.exists()


def test_progress_shows_on_a_terminal(tmp_path):
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with FakeWandb([run("aaaa1111")]) as server:
        settings = login(server) | {"RUNS_ROOT": tmp_path, "HOME": tmp_path}
        stdin = as_jsonl([candidate("aaaa1111"), candidate("gone0000")]).encode()
        env = {k: str(v) for k, v in bare_env(**settings).items()}
        subprocess.run(
            [PROGRAM], input=stdin, stdout=subprocess.DEVNULL, stderr=terminal, env=env
        )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(screen, 1024):
            shown += chunk
    os.close(screen)
    assert b"runs from W&B:" in shown and b"1/2" in shown


def test_data_of_any_type_from_wandb_is_null_not_a_crash(fetch, client):
    runs = [
        run("nan00000", summary='{"eval/l0": NaN, "eval/normalized_mse": -Infinity}'),
        run("text0000", summary={"eval/l0": "NaN", "eval/normalized_mse": "Infinity"}),
        run("null0000", config=None, summary=None, state=None),
        run("flat0000", config={"sae": 5, "objective": [], "train_data": "x"}),
        run("types000", state=5, summary={"eval/l0": True, "eval/normalized_mse": {}}),
    ]
    names = [r["name"] for r in runs]
    with FakeWandb(runs) as server:
        done = fetch(names, **login(server), **client)
    assert done.returncode == 0
    nan, text, null, flat, types = done.rows
    assert (nan["l0"], nan["nmse"]) == ("NaN", "-Infinity")
    assert (text["l0"], text["nmse"]) == ("NaN", "Infinity")
    assert (null["l0"], null["objective"], null["state"]) == (None, None, None)
    assert (flat["d_model"], flat["objective"], flat["train_layer"]) == (
        None,
        None,
        None,
    )
    assert (types["l0"], types["nmse"], types["state"]) == (None, None, None)


# ---- exports ---------------------------------------------------------------------------------


def test_an_export_stands_in_for_wandb(fetch_from):
    done = fetch_from([run("aaaa1111"), run("bbbb2222")], ["bbbb2222", "gone0000"])
    assert (done.returncode, done.err) == (0, "")
    url = "https://wandb.ai/samuelstevens/saev/runs/bbbb2222"
    assert done.rows == [
        candidate("bbbb2222") | FACTS | {"wandb_url": url},
        candidate("gone0000") | run_facts.NULLS,
    ]


def test_an_export_needs_no_client(fetch_from, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    assert fetch_from([run("aaaa1111")], VENV=bare).rows[0]["l0"] == 12.5


def test_the_option_goes_before_the_setting(fetch_from, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(as_jsonl([run("aaaa1111", state="crashed")]))
    done = fetch_from([run("aaaa1111")], ["aaaa1111"], "--snapshot", other)
    assert done.rows[0]["state"] == "crashed"


def test_an_export_may_be_raw(fetch_from):
    """As W&B's API has it: JSON in strings, each config value wrapped."""
    wrapped = {k: {"value": v, "desc": None} for k, v in CONFIG.items()}
    config = json.dumps(wrapped | {"wandb_version": 1})
    done = fetch_from([run("aaaa1111", config=config, summary=json.dumps(SUMMARY))])
    assert done.rows[0].items() >= FACTS.items()


def test_saving_writes_the_runs_asked_for_sorted_and_reproducibly(
    fetch, fetch_from, tmp_path
):
    saved, again = tmp_path / "saved.jsonl", tmp_path / "again.jsonl"
    runs = [run(name) for name in ("cccc3333", "aaaa1111", "bbbb2222")]
    runs[0]["summary"] = SUMMARY | {"eval/l0": math.nan}
    ids = ["cccc3333", "aaaa1111", "gone0000"]
    with FakeWandb(runs) as server:
        live = fetch(ids, "--save-snapshot", saved, **login(server))
    rows = [json.loads(text) for text in saved.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["aaaa1111", "cccc3333"]
    assert rows[0] == run("aaaa1111")
    assert rows[1]["summary"]["eval/l0"] == "NaN"
    read = fetch_from(runs[::-1], ids[::-1], "--save-snapshot", again)
    assert again.read_bytes() == saved.read_bytes()
    from_saved = fetch(ids, "--snapshot", saved, WANDB_BASE_URL=server.url)
    assert from_saved.out == live.out
    assert read.returncode == 0


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([run("a1"), run("b2"), run("a1")], ":3: 'a1' again, after line 1"),
        ([run("a1"), "{oops\n"], ":2: not JSON: "),
        (["[1]\n"], ":1: not a JSON object"),
        ([{"config": {}}], ':1: no "name" (the run\'s id)'),
        (['{"name": ' + "[" * 100_000 + "\n"], ":1: not JSON: "),
    ],
)
def test_a_broken_export_is_one_line(fetch_from, tmp_path, rows, why):
    done = fetch_from(rows, ["a1"])
    assert (done.returncode, done.out) == (1, "")
    assert done.err.startswith(f"fetch-metrics: {tmp_path}/export.jsonl{why}")
    assert done.err.count("\n") == 1


def test_a_missing_export_is_one_line(fetch):
    done = fetch(["a1"], METRICS_SNAPSHOT="/nowhere/export.jsonl")
    assert (done.returncode, done.out) == (1, "")
    assert done.err == (
        "fetch-metrics: /nowhere/export.jsonl: No such file or directory;"
        " METRICS_SNAPSHOT or --snapshot names it\n"
    )


def test_a_line_without_a_run_id_is_named(fetch_from):
    done = fetch_from([], [{"repo": "r", "layer": 6, "expected": {}}])
    assert done.returncode == 1
    assert done.err.startswith('fetch-metrics: stdin:1: no "run_id": {"repo": ')


# ---- what a record says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, {"key": "relu"}),
        ({"top_k": 32}, {"key": "top-k", "top_k": 32}),
        (
            {"key": "batch-top-k", "top_k": 16, "aux": {"key": "auxk"}},
            {"key": "batch-top-k", "top_k": 16, "aux": {"key": "auxk"}},
        ),
        ({"top_k": "32"}, {"key": "top-k", "top_k": None}),
        ({"key": 7}, None),
        ("relu", None),
        (None, None),
    ],
)
def test_an_activation_of_either_age_has_a_key(config, activation):
    record = run("a1", config={"sae": {"activation": config}})
    assert run_facts.facts(record)["activation"] == activation


def test_a_config_too_deep_for_jq_is_null(fetch_from):
    deep = {"a": 1}
    for _ in range(500):
        deep = {"a": deep}
    config = CONFIG | {"sae": CONFIG["sae"] | {"activation": deep}}
    done = fetch_from([run("a1", config=config, **OLD), run("b2", **OLD)])
    assert done.returncode == 0
    assert done.rows[0]["activation"] is None
    assert "1 of 1 runs have no eval/normalized_mse" in done.err


@pytest.mark.parametrize(
    ("sae", "widths"),
    [
        ({"d_model": 8, "d_sae": 32}, (8, 32)),
        ({"d_model": 8, "exp_factor": 4}, (8, 32)),
        ({"d_vit": 8, "exp_factor": 4}, (8, 32)),
        ({"d_model": 8, "exp_factor": "4"}, (8, None)),
        ({"d_model": 8, "d_sae": 32.0, "exp_factor": 4}, (8, None)),
        ({"exp_factor": 4}, (None, None)),
        ({"d_model": True, "d_sae": 10**30}, (None, None)),
    ],
)
def test_widths_come_from_configs_of_either_age(sae, widths):
    found = run_facts.facts(run("a1", config={"sae": sae}))
    assert (found["d_model"], found["d_sae"]) == widths


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ({"n_prefixes": 10}, "matryoshka"),
        ({}, "vanilla"),
        ({"n_prefixes": "10"}, None),
        (None, None),
    ],
)
def test_matryoshka_means_that_the_objective_has_prefixes(objective, name):
    assert (
        run_facts.facts(run("a1", config={"objective": objective}))["objective"] == name
    )


def test_mse_never_stands_in_for_nmse(fetch_from):
    done = fetch_from([run("a1", summary=without("eval/normalized_mse"))])
    assert done.rows[0]["nmse"] is None


TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf, "NaN", "-Infinity"])
SCALAR = (
    NOT_FINITE
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
)
ANY = st.recursive(SCALAR, lambda below: st.lists(below, max_size=2), max_leaves=4)


def maybe(**fields) -> st.SearchStrategy:
    """An object with some of these fields, or anything else in its place."""
    return ANY | st.fixed_dictionaries({}, optional=fields)


CONFIGS = maybe(
    sae=maybe(
        activation=maybe(key=ANY, top_k=ANY, aux=ANY),
        **dict.fromkeys(("d_model", "d_vit", "d_sae", "exp_factor"), ANY),
    ),
    objective=maybe(n_prefixes=ANY),
    train_data=maybe(layer=ANY),
)
SUMMARIES = maybe(
    **dict.fromkeys(("eval/l0", "eval/normalized_mse", "eval/n_dead"), ANY)
)


@given(ANY, ANY, CONFIGS, SUMMARIES)
def test_any_record_gives_a_line_that_the_next_stage_reads(
    state, created_at, config, summary
):
    record = run(
        "a1", state=state, createdAt=created_at, config=config, summary=summary
    )
    line = jsonl.loads(jsonl.dumps(run_facts.facts(record)).encode())
    jsonl.check(line, run_facts.NULLS, "here")


# ---- where NMSE comes from -------------------------------------------------------------------


def infer(
    runs_root: pathlib.Path, run_id: str, content: object, shard="3802cb66"
) -> None:
    dpath = runs_root / run_id / "inference" / shard
    dpath.mkdir(parents=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (dpath / "metrics.json").write_text(text)


def sources(done) -> list[tuple]:
    return [(row["run_id"], row["nmse"], row["nmse_source"]) for row in done.rows]


def test_runs_older_than_the_metric_take_nmse_from_the_shard(fetch_from, tmp_path):
    for run_id, value in [("a1", 0.5), ("b2", 0.4)]:
        infer(tmp_path, run_id, {"normalized_mse": value, "mse": 9})
    done = fetch_from([run("a1", **OLD), run("b2", **OLD)], NMSE_SHARD="3802cb66")
    assert sources(done) == [("a1", 0.5, "disk:3802cb66"), ("b2", 0.4, "disk:3802cb66")]
    assert done.err == (
        "fetch-metrics: vits-relu layer 6: NMSE from disk:3802cb66 for 2 of 2 runs\n"
    )


def test_one_layer_never_mixes_sources(fetch_from, tmp_path):
    """One run has W&B's, two only the disk's, one neither: the disk has more."""
    for run_id in ("new1", "old1", "old2"):
        infer(tmp_path, run_id, {"normalized_mse": 0.5})
    runs = [run("new1"), *(run(i, **OLD) for i in ("old1", "old2", "bare"))]
    done = fetch_from(runs, NMSE_SHARD="3802cb66")
    disk = "disk:3802cb66"
    assert sources(done) == [
        ("new1", 0.5, disk),
        ("old1", 0.5, disk),
        ("old2", 0.5, disk),
        ("bare", None, disk),
    ]
    assert "NMSE from disk:3802cb66 for 3 of 4 runs" in done.err


def test_wandb_stays_where_the_disk_has_no_more(fetch_from, tmp_path):
    infer(tmp_path, "old1", {"normalized_mse": 0.5})
    done = fetch_from([run("new1"), run("old1", **OLD)], NMSE_SHARD="3802cb66")
    assert sources(done) == [("new1", 0.25, "wandb"), ("old1", None, "wandb")]
    assert done.err == (
        "fetch-metrics: vits-relu layer 6: 1 of 2 runs have no eval/normalized_mse in W&B,"
        " and no more have it on disk in shard 3802cb66 (1)\n"
    )


def test_wandb_stays_where_it_has_all_even_if_the_disk_has_too(fetch_from, tmp_path):
    infer(tmp_path, "new1", {"normalized_mse": 0.5})
    done = fetch_from([run("new1")], NMSE_SHARD="3802cb66")
    assert sources(done) == [("new1", 0.25, "wandb")]
    assert done.err == ""


def test_each_layer_and_repo_has_its_own_source(fetch_from, tmp_path):
    infer(tmp_path, "old1", {"normalized_mse": 0.5})
    layer7 = {"config": CONFIG | {"train_data": {"layer": 7}}}
    runs = [run("old1", **OLD), run("new1", **layer7), run("new2")]
    candidates = [
        candidate("old1"),
        candidate("new1", layer=7),
        candidate("new2", repo="vitb-relu"),
    ]
    done = fetch_from(runs, candidates, NMSE_SHARD="3802cb66")
    assert [source for *_, source in sources(done)] == [
        "disk:3802cb66",
        "wandb",
        "wandb",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "running"},
        {"config": CONFIG | {"objective": {}}},
        {"summary": {"eval/l0": 0}},
        {"summary": {"eval/mse": 1}},
    ],
)
def test_a_run_that_is_dropped_anyway_has_no_say(fetch_from, tmp_path, changes):
    infer(tmp_path, "good", {"normalized_mse": 0.5})
    infer(tmp_path, "misfit", {"normalized_mse": 0.5})
    summary = without("eval/normalized_mse")
    runs = [run("good"), run("misfit", **{"summary": summary} | changes)]
    done = fetch_from(runs, NMSE_SHARD="3802cb66")
    assert sources(done) == [("good", 0.25, "wandb"), ("misfit", None, "wandb")]
    assert done.err == ""


def test_an_excluded_run_has_no_say(fetch_from):
    runs = [run("new1"), run("old1", **OLD)]
    assert fetch_from(runs, EXCLUDE="old1").err == ""
    assert "1 of 2 runs have no eval/normalized_mse in W&B" in fetch_from(runs).err


def test_without_a_shard_the_missing_setting_is_named(fetch_from):
    runs = [run("new1"), *(run(i, **OLD) for i in ("old1", "old2", "old3"))]
    done = fetch_from(runs)
    assert done.returncode == 0
    assert done.err == (
        "fetch-metrics: vits-relu layer 6: 3 of 4 runs have no eval/normalized_mse in W&B;"
        " set NMSE_SHARD=<shard>\n"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not a JSON object"),
        ({"mse": 0.5}, 'no number "normalized_mse"'),
        ({"normalized_mse": "0.5"}, 'no number "normalized_mse"'),
        ({"normalized_mse": True}, 'no number "normalized_mse"'),
        ("[" * 100_000, "maximum recursion"),
        ('{"normalized_mse": 0.5}' + " " * 2**20, "over 1.05 MB"),
    ],
)
def test_a_metrics_file_that_cannot_be_trusted_is_named(
    fetch_from, tmp_path, content, why
):
    infer(tmp_path, "good", {"normalized_mse": 0.5})
    infer(tmp_path, "old1", content)
    done = fetch_from([run("good", **OLD), run("old1", **OLD)], NMSE_SHARD="3802cb66")
    assert done.returncode == 0
    assert [nmse for _, nmse, _ in sources(done)] == [0.5, None]
    assert f"{tmp_path}/old1/inference/3802cb66/metrics.json: {why}" in done.err


def test_a_metrics_fifo_or_directory_does_not_hang(fetch_from, tmp_path):
    infer(tmp_path, "good", {"normalized_mse": 0.5})
    (tmp_path / "dir1/inference/s/metrics.json").mkdir(parents=True)
    (tmp_path / "fifo/inference/s").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo/inference/s/metrics.json")
    (tmp_path / "good/inference/s").symlink_to("3802cb66")
    runs = [run(i, **OLD) for i in ("good", "dir1", "fifo")]
    done = fetch_from(runs, NMSE_SHARD="s")
    assert [nmse for _, nmse, _ in sources(done)] == [0.5, None, None]
    assert "fifo/inference/s/metrics.json: not a file; passed over" in done.err
    assert "dir1/inference/s/metrics.json: Is a directory; passed over" in done.err


def test_a_measured_nan_is_passed_on_as_wandb_writes_it(fetch_from, tmp_path):
    infer(tmp_path, "old1", '{"normalized_mse": NaN}')
    done = fetch_from([run("old1", **OLD)], NMSE_SHARD="3802cb66")
    assert sources(done) == [("old1", "NaN", "disk:3802cb66")]


@pytest.mark.parametrize("shard", ["../../etc", "a/b", ".", "a\nb"])
def test_a_shard_is_a_plain_name(fetch_from, shard):
    done = fetch_from([run("a1")], NMSE_SHARD=shard)
    assert (done.returncode, done.out) == (1, "")
    assert "NMSE_SHARD is" in done.err
    assert done.err.count("\n") == 1


def test_a_shard_needs_the_runs_root(fetch_from):
    done = fetch_from([run("a1")], NMSE_SHARD="3802cb66", RUNS_ROOT="/nowhere")
    assert (done.returncode, done.out) == (1, "")
    assert done.err == (
        "fetch-metrics: /nowhere: no such directory; set RUNS_ROOT, where NMSE_SHARD is\n"
    )
