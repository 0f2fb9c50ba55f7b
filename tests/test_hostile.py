"""Text from W&B, sweeps and headers is data, and stays data wherever it goes."""

import contextlib
import html.parser
import json
import pathlib
import re
import shlex

import pytest

from kits import checkpoints as util
from kits import hostile_text
from kits.hostile_text import (
    CATALOG_PLACES,
    HEADER_PLACES,
    RECORD_PLACES,
    SETTINGS,
    put,
)
from kits.in_process import run
from kits.lab import Labs
from saepub import jsonl, settings
from saepub.cli import UserError
from saepub.release import plot, publishable
from saepub.stages import push

pytestmark = pytest.mark.long

NAMES = tuple(hostile_text.texts(pathlib.Path("/")))
DOCUMENTS = ["README.md", "manifest.jsonl", "pareto.png", "check.npz", "config.json"]


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    """After all tests, nothing is where a path with ../ in it would lead."""
    labs = Labs(tmp_path_factory.mktemp("hostile"))
    yield labs
    assert not list(labs.dpath.rglob("escaped*"))


@pytest.fixture(scope="module")
def texts(labs):
    return hostile_text.texts(labs.dpath / "ran")


@pytest.fixture(autouse=True)
def nothing_was_run(labs):
    yield
    assert not (labs.dpath / "ran").exists()


# ---- the whole pipe --------------------------------------------------------------------------


class Crowd:
    """A lab with a run for each hostile text in each place, taken through the whole pipe.

    Every one of them would be chosen, but for what the text does to it.
    """

    def __init__(self, labs: Labs, texts: dict[str, str]):
        self.lab = labs.new()
        self.told = ""
        for path in RECORD_PLACES:
            for text in texts.values():
                run_id = self.add()
                self.lab.records[run_id] = put(self.lab.records[run_id], path, text)
        for path in HEADER_PLACES:
            for text in texts.values():
                fpath = self.lab.fpath(self.add())
                weights = fpath.read_bytes().partition(b"\n")[2]
                util.write_raw(fpath, put(util.header(), path, text), weights)
        for text in texts.values():  # runs that nobody asked for
            self.lab.records[text] = self.lab.records["r1"] | {"name": text}
        self.lab.write()
        self.before = self.lab.left()
        self.refused: list[str] = []
        self.checked = self.check()
        self.staged = self.step("stage", self.checked)
        self.rendered = self.step("render", self.staged, *self.account)
        self.summary = self.step("summary", self.rendered, *self.account)
        (self.lab.build / "tiny/rendered.jsonl").write_text(self.rendered)
        self.step("report", "", "tiny")
        self.report = (self.lab.build / "report.html").read_text()

    def add(self) -> str:
        n = len(self.lab.records) + 1
        self.lab.run(f"r{n}", l0=float(n), nmse=1 / (n + 1))
        return f"r{n}"

    @property
    def account(self) -> tuple[str, str]:
        return "--account", str(self.lab.build / "tiny/account.jsonl")

    def step(self, name: str, stdin: str, *argv: str, code: int = 0, **env: str) -> str:
        seen = self.lab.program(f"bin/{name}", *argv, stdin=stdin, **env)
        assert seen.code == code, seen.err
        self.told += seen.err
        return seen.out if code == 0 else seen.err

    def choose(self, metrics: str, **env: str) -> str:
        classified = self.step("classify", metrics, **env)
        settled = self.step("settle", classified)
        return self.step("select", settled, "-n", "10000", *self.account)

    def check(self) -> str:
        """What preflight passes on once the runs that it refuses are excluded, as it says."""
        records = self.step("fetch-metrics", self.step("extract-ids", "", "tiny"))
        metrics = self.step("facts", records)
        told = self.step("preflight", self.choose(metrics), code=1).splitlines()
        assert told[-1].startswith("preflight: to continue"), told[-1][:500]
        command = shlex.split(told[-1].partition("to continue without them: ")[2])
        assert command[:3] == ["make", "dry-run", "REPO=tiny"] and len(command) == 4
        exclude = command[3].removeprefix("EXCLUDE=")
        if kept := re.fullmatch(r"\$\(cat (.+)\)", exclude):
            exclude = (self.lab.tree_dpath / kept[1]).read_text()
        self.refused = exclude.split()
        for run_id in self.refused:
            assert (
                sum(f"preflight: tiny layer 6 {run_id}: " in line for line in told) == 1
            )
        return self.step("preflight", self.choose(metrics, EXCLUDE=exclude))


@pytest.fixture(scope="module")
def crowd(labs, texts):
    return Crowd(labs, texts)


@pytest.fixture(scope="module")
def twin(labs, crowd):
    """The same runs with nothing hostile about them."""
    lab = labs.new()
    plain = util.header()["cfg"]["activation"]
    rows = [json.loads(text) for text in crowd.staged.splitlines()]
    for row in rows:
        row |= {"created_at": "2026-01-10T00:00:00Z", "activation_config": plain}
        row |= {
            "activation": {"key": "relu"},
            "wandb_url": None,
        }
    lab.entry |= crowd.lab.entry
    lab.sweep = crowd.lab.sweep
    lab.write()
    lab.stage_dpath.mkdir(parents=True)
    (lab.build / settings.MARK).touch()
    account = lab.build / "tiny/account.jsonl"
    runs = [row | {"fate": "chosen"} for row in rows]
    told = (crowd.lab.build / "tiny/account.jsonl").read_text().splitlines()
    for left in map(json.loads, told):  # those left out by hand are named
        if left["drop"] == "excluded by hand":
            runs.append(left)
    account.write_text("".join(json.dumps(run) + "\n" for run in runs))
    stdin = "".join(json.dumps(row) + "\n" for row in rows)
    seen = lab.program("bin/render", "--account", account, stdin=stdin)
    assert seen.code == 0, seen.err
    (lab.build / "tiny/rendered.jsonl").write_text(seen.out)
    assert lab.program("bin/report", "tiny").code == 0
    return lab


def run_ids(lines: str) -> list[str]:
    return [json.loads(line)["run_id"] for line in lines.splitlines()]


def test_hostile_headers_are_refused_or_harmless(crowd):
    assert len(crowd.refused) > len(HEADER_PLACES) * len(NAMES) / 2
    assert set(crowd.refused).isdisjoint(run_ids(crowd.checked))


def test_nothing_told_or_shown_moves_a_terminal(crowd):
    for text in (crowd.told, crowd.summary):
        assert all(line.isprintable() for line in text.split("\n"))
    assert len(crowd.told.splitlines()) < 2 * len(crowd.lab.records)


def test_stage_holds_the_chosen_and_nothing_leaves_it(crowd):
    stage = crowd.lab.stage_dpath
    found = sorted(
        str(f.relative_to(stage)) for f in stage.rglob("*") if not f.is_dir()
    )
    chosen = [f"layer_6/{run_id}/sae.pt" for run_id in run_ids(crowd.checked)]
    assert found == sorted(DOCUMENTS + chosen)
    assert crowd.lab.left() == crowd.before


def test_card_is_that_of_harmless_runs(crowd, twin):
    card, own = (lab.stage_dpath / "README.md" for lab in (crowd.lab, twin))
    assert card.read_bytes() == own.read_bytes()
    assert card.read_text().count("\n| r") == len(run_ids(crowd.checked))


def test_manifest_keeps_what_stood_in_the_header(crowd):
    text = (crowd.lab.stage_dpath / "manifest.jsonl").read_text()
    assert text.isascii()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["run_id"] for row in rows] == run_ids(crowd.checked)
    for row in rows:
        first = (crowd.lab.stage_dpath / row["path"]).open("rb").readline()
        # No line passes on half a character: jq could not.
        header = json.loads(first.replace(b"\\ud800", b"?"))
        assert json.loads(row["activation_config"]) == header["cfg"]["activation"]
        created_at = crowd.lab.records[row["run_id"]]["createdAt"]
        assert row["created_at"] == created_at.replace("\ud800", "?")


class Tags(html.parser.HTMLParser):
    """Every tag of a page with its attributes' names."""

    def __init__(self, text: str):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.add((tag, *sorted(name for name, _ in attrs)))


def test_report_has_only_the_tags_of_harmless_runs(crowd, twin):
    known = Tags((twin.build / "report.html").read_text()).found
    dropped = {("tr", "class")}
    assert Tags(crowd.report).found - known <= dropped
    assert not re.search(r"href=.?javascript", crowd.report)


# ---- the sweep, the catalog, the settings ----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_sweep_is_data(labs, texts, name):
    lab, text = labs.new(), texts[name]
    comment = " ".join(
        text.replace("\0", " ").encode("utf-8", "replace").decode().split()
    )
    sweeps = (
        f"run_ids = {{6: [{text!r}]}}",
        f"run_ids = {{6: ['aaaaaaaa', {text!r}]}}",
        f"run_ids = {{{text!r}: ['aaaaaaaa']}}",
        f"run_ids = {{6: ['aaaaaaaa'  # '{comment}'\n]}}",
        f"run_ids = {{6: [  # {comment}\n 'aaaaaaaa']}}",
        f"# {comment}\nx = {text!r}\nrun_ids = {{6: ['aaaaaaaa']}}",
    )
    lab.run()
    lab.write()
    for sweep in sweeps:
        (lab.saev_dir / "sweep.py").write_text(sweep)
        done = run("extract-ids", "tiny", env=lab.settings)
        found = done.code, set(run_ids(done.out))
        assert found in ((1, set()), (0, {"aaaaaaaa"})) or name == "option"
        where = f"extract-ids: {lab.saev_dir}/sweep.py:"
        assert done.code == 0 or done.err.startswith(where)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_catalog_is_refused_or_data(labs, texts, name):
    lab = labs.new()
    lab.run()
    lab.write()
    for path in CATALOG_PLACES:
        entry = put(lab.entry | {"layers": [6]}, path, texts[name])
        catalog = json.dumps({"repos": [entry], "collections": []})
        (lab.dpath / "catalog.json").write_text(catalog)
        done = run("extract-ids", "--all", env=lab.settings)
        if done.code == 0:
            assert run_ids(done.out) == ["aaaaaaaa"]
        if path in (("slug",), ("sweep",)):  # make reads them too
            seen = lab.program("make", "-n", lab.build / "tiny/candidates.jsonl")
            assert all(line.isprintable() for line in seen.err.splitlines())
    for key in ("title", "slug", "namespace", texts[name]):
        collection = {"namespace": "lab", "title": "Ours"} | {key: texts[name]}
        catalog = json.dumps({"repos": [], "collections": [collection]})
        (lab.dpath / "catalog.json").write_text(catalog)
        run("extract-ids", "--all", env=lab.settings)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_hostile_setting_is_refused_or_data(labs, texts, setting, name):
    made, text = labs.made, texts[name]
    if "\0" in text or not text.isascii():
        return  # no environment can hold it
    env = made.settings | {setting: text, "BUILD": labs.dpath / "settings"}
    candidates = (made.build / "tiny/candidates.jsonl").read_bytes()
    classified, settled = (
        (made.build / f"tiny/{name}.jsonl").read_bytes()
        for name in ("classified", "settled")
    )
    run("fetch-metrics", stdin=candidates, env=env)
    run("settle", stdin=classified, env=env)
    run("select", stdin=settled, env=env)


def test_a_hostile_title_is_drawn_as_it_stands(labs, texts, tmp_path):
    account = (labs.made.build / "tiny/account.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in account]
    title = " ".join(text[:80] for text in texts.values() if text.isprintable())
    plot.pareto(tmp_path / "pareto.png", title, rows)
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


# ---- lines by hand ---------------------------------------------------------------------------

JOINTS = {
    "fetch-metrics": "candidates",
    "settle": "classified",
    "select": "settled",
    "stage": "checked",
    "render": "staged",
    "summary": "rendered",
}


@pytest.fixture(scope="module")
def copied(labs):
    return labs.copy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", JOINTS)
def test_a_hostile_line_is_refused_or_data(
    labs, copied, texts, monkeypatch, stage, name
):
    monkeypatch.setattr(plot, "pareto", lambda fpath, *_: fpath.write_bytes(b"plot"))
    lab = copied if stage in ("stage", "render") else labs.made
    first, *rest = (lab.build / f"tiny/{JOINTS[stage]}.jsonl").read_text().splitlines()
    line = json.loads(first)
    argv = (
        ["--account", str(lab.build / "tiny/account.jsonl")]
        if stage in ("render", "summary")
        else []
    )
    own_card = (labs.made.stage_dpath / "README.md").read_text()
    # Of the slow stages, each key meets every third text, and each text every third key.
    step = 3 if stage in ("stage", "render") else 1
    for key in (*line, "")[NAMES.index(name) % step :: step]:
        hostile = put(line, (key,), texts[name])
        stdin = "\n".join([json.dumps(hostile), *rest]) + "\n"
        done = run(stage, *argv, stdin=stdin, env=lab.settings)
        if stage == "render" and done.code == 0:
            card = (lab.stage_dpath / "README.md").read_text()
            told_apart = key in ("loader", "aux") or (key, name) == ("run_id", "option")
            assert card == own_card or told_apart, key


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_line_does_not_get_past_push(labs, texts, monkeypatch, name):
    """In a key that decides what is sent where: the line is refused, or its stage."""
    monkeypatch.setenv("SAEPUB_BUILD", str(labs.made.build))
    text = (labs.made.build / "tiny/rendered.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in text]
    assert publishable.check_stage("tiny", rows) == []
    for path in (
        ("run_id",),
        ("path",),
        ("sha256",),
        ("documents",),
        ("documents", ""),
    ):
        row = put(rows[0], path, texts[name])
        with contextlib.suppress(UserError):
            jsonl.check(row, push.KEYS, "stdin:1")
            assert publishable.check_stage("tiny", [row, *rows[1:]]), path
