"""Settings: one place, one order, one splitter; for make and for a stage by hand."""

import os
import re
import shutil

import pytest

from kits.programs import ROOT, run_program, text_of
from kits.tree import Bare, catalog
from saepub import settings
from saepub.cli import UserError
from saepub.making import ready
from saepub.making.call import Call, quote
from saepub.stages import settings as stage
from saepub.stages import tables

pytestmark = pytest.mark.programs

ONE = "build/one/candidates.jsonl"


@pytest.fixture
def bare(tmp_path):
    return Bare(tmp_path / "checkout")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout, for this process, and an environment without settings."""
    for name in settings.BY_NAME:
        monkeypatch.delenv(settings.in_environment(name), raising=False)
    monkeypatch.setattr(settings, "ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    return tmp_path


# ---- what is repeated of the table --------------------------------------------------------------


def test_dotenv_example_is_made_from_the_table_and_gives_nothing():
    text = tables.ENV_EXAMPLE.read_text()
    assert text == tables.env_example(), "run bin/tables"
    assert settings.dotenv(str(tables.ENV_EXAMPLE)) == {}
    assert all(
        f"#{name}=" in text or f"# {name}: never" in text for name in settings.BY_NAME
    )


def test_every_line_of_dotenv_example_can_be_uncommented(checkout):
    lines = tables.env_example().splitlines()
    taken = [line[1:] for line in lines if re.match(r"#[A-Z_]+=", line)]
    (checkout / ".env").write_text("\n".join(taken))
    assert settings.get("N") == settings.resolve()["N"].text == "6"
    assert set(settings.dotenv(".env")) == {*settings.BY_NAME} - {"HF_TOKEN"}


# ---- .env ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SAEV_DIR=/a/b", "/a/b"),
        ("export SAEV_DIR=/a/b", "/a/b"),
        ("SAEV_DIR = /a b/c ", "/a b/c"),
        ("SAEV_DIR=/a # a comment", "/a"),
        ("SAEV_DIR=/a#b", "/a#b"),
        ('SAEV_DIR="/a b" # a comment', "/a b"),
        ("SAEV_DIR='/a #b' # a comment", "/a #b"),
        ("SAEV_DIR='/a$HOME'", "/a$HOME"),
        ("SAEV_DIR=~/saev", "/home/me/saev"),
        ("SAEV_DIR='~/saev'", "/home/me/saev"),
        ("SAEV_DIR=$HOME/saev", "/home/me/saev"),
        ("SAEV_DIR=${HOME}/saev", "/home/me/saev"),
        ('SAEV_DIR="$HOME/my saev"', "/home/me/my saev"),
        (r'SAEV_DIR="/a\$b\"c"', '/a$b"c'),
        ("\ufeffSAEV_DIR=/a", "/a"),
        ("SAEV_DIR=/a\r\nN=3\r", "/a"),
        ("# one\n\n  # two\nSAEV_DIR=/a", "/a"),
        ("SAEV_DIR=", ""),
        ("SAEV_DIR= # none", ""),
        ("RUNS_ROOT=/r\nSAEV_DIR=$RUNS_ROOT/s", "/r/s"),
        ("SAEV_DIR=saev", "saev"),
    ],
)
def test_dotenv_is_read_as_a_shell_would(checkout, line, value):
    (checkout / ".env").write_text(line + "\nREPO=own\nCATALOG=x\n", encoding="utf-8")
    found = settings.resolve()
    assert (found["SAEV_DIR"].text, found["REPO"].text) == (value, "own")


def test_a_list_in_dotenv_may_have_lines(checkout):
    (checkout / ".env").write_text('EXCLUDE="one\n\ttwo,three"\nN=3\n')
    found = settings.resolve()
    assert found["EXCLUDE"].text == "one two three" and found["N"].text == "3"


def test_a_relative_path_in_dotenv_starts_from_the_checkout(checkout, monkeypatch):
    (checkout / ".env").write_text("SAEV_DIR=saev\nCATALOG='my own.json'\n")
    (checkout / "below").mkdir()
    monkeypatch.chdir(checkout / "below")
    assert settings.resolve()["SAEV_DIR"].text == f"{checkout}/saev"
    assert settings.resolve()["CATALOG"].text == f"{checkout}/my own.json"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SAEV_DIRR=/a", ":1: SAEV_DIRR is not a setting; did you mean SAEV_DIR?"),
        ("N=3\nsaev_dir=/a", ":2: saev_dir is not a setting; did you mean SAEV_DIR?"),
        ("EXLUDE=a", ":1: EXLUDE is not a setting; did you mean EXCLUDE?"),
        ("RUNSROOT=a", ":1: RUNSROOT is not a setting; did you mean RUNS_ROOT?"),
        (
            "CUDA_VISIBLE_DEVICES=0",
            ":1: CUDA_VISIBLE_DEVICES is not a setting; README.md lists",
        ),
        ("N=3\n\nHF_TOKEN=hf_secret", ":3: HF_TOKEN is read from the environment only"),
        ("SAEV_DIR", ":1: not NAME=value"),
        ("SAEV_DIR='/a", ":1: not NAME=value, or a quote in it is never closed"),
        ('SAEV_DIR="/a" b', ":1: not NAME=value"),
        ("SAEV_DIR=$NOWHERE/a", ":1: $NOWHERE is not set; for a literal"),
    ],
)
def test_what_dotenv_can_not_say_is_one_line_with_its_place(checkout, text, told):
    (checkout / ".env").write_text(text + "\n")
    with pytest.raises(UserError) as err:
        settings.resolve()
    assert told in str(err.value) and "\n" not in str(err.value)
    assert "hf_secret" not in str(err.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_dotenv_that_is_no_text_is_one_line(bare, content):
    if content is None:
        (bare.dpath / ".env").mkdir()
    else:
        (bare.dpath / ".env").write_bytes(content)
    done = bare.make("dry-run", code=2)
    assert ".env: " in done.err and done.err.count("\n") == 1


# ---- the order ----------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_environment_over_dotenv(checkout, monkeypatch):
    (checkout / ".env").write_text("N=3\nPIN=a\nEXCLUDE=b\nCATALOG=x.json\n")
    monkeypatch.setenv("PIN", "c")
    monkeypatch.setenv("EXCLUDE", "")
    found = settings.resolve({"N": "5"})
    assert [found[name].text for name in ("N", "PIN", "EXCLUDE")] == ["5", "c", ""]
    assert found["N"].source == "make's command line"
    assert found["PIN"].source == "the environment"
    assert found["CATALOG"].source.endswith(".env:4")


def test_one_own_setting_is_enough_to_leave_the_demo(checkout, monkeypatch):
    assert settings.resolve()["CATALOG"] == ("build/demo/catalog.json", "the demo")
    for name in settings.OWN_DATA:
        monkeypatch.setenv(name, "x")
        assert "the demo" not in {value.source for value in settings.resolve().values()}
        monkeypatch.delenv(name)


def test_what_is_measured_of_the_demo_is_no_memory_of_the_lab_s(checkout, monkeypatch):
    assert settings.resolve()["RECORDS"] == ("build/demo/records", "the demo")
    monkeypatch.setenv("RECORDS", "a-rehearsal-s")
    assert settings.resolve()["RECORDS"].text == "a-rehearsal-s"
    monkeypatch.setenv("RUNS_ROOT", "x")
    monkeypatch.delenv("RECORDS")
    assert "RECORDS" not in settings.resolve()


@pytest.mark.parametrize("name", settings.MADE)
def test_a_directory_that_is_made_has_a_name_of_ours_in_the_environment(
    checkout, monkeypatch, name
):
    monkeypatch.setenv(name, "x86_64-conda-linux-gnu")
    assert name not in settings.resolve()
    monkeypatch.setenv(f"SAEPUB_{name}", "ours")
    assert settings.resolve()[name].text == "ours"
    (checkout / ".env").write_text(f"{name}=theirs\n")
    assert settings.resolve()[name].text == "ours"
    monkeypatch.delenv(f"SAEPUB_{name}")
    assert settings.resolve()[name].text == "theirs"


def test_a_clone_with_a_filled_in_dotenv_makes_no_demo(bare):
    bare.dotenv("REPO=two")
    bare.make("build/two/candidates.jsonl")
    assert not (bare.build / "demo").exists()
    assert not (bare.build / "one").exists()


def test_own_settings_in_dotenv_work_after_a_demo(bare):
    demo = bare.build / "demo"
    demo.mkdir(parents=True)
    (bare.build / settings.MARK).touch()
    (demo / "catalog.json").write_text(catalog("other"))
    (demo / "saev").mkdir()
    (demo / "saev/other.py").write_text("run_ids = {6: ['a']}\n")
    bare.make("build/other/candidates.jsonl")
    bare.dotenv("REPO=two")
    bare.make("build/two/candidates.jsonl")


def test_make_and_a_stage_by_hand_agree_on_every_setting(bare):
    bare.dotenv(
        "BUILD=out", "N=3", "EXCLUDE=oneaaa,onebbb", "RUNS_ROOT='/x y/$z'", "PIN="
    )
    shown = bare.run("bin/settings").out
    asks = bare.dpath / "ask.mk"
    names = [
        n for n in settings.BY_NAME if n not in ("HF_TOKEN", "WANDB_API_KEY", "VENV")
    ]
    asks.write_text(
        "include Makefile\nask-all:\n"
        + "".join(f'\t@echo {n}="$${{{settings.in_environment(n)}-}}"\n' for n in names)
    )
    told = bare.make("-f", "ask.mk", "ask-all").out
    for line in told.splitlines():
        name, _, text = line.partition("=")
        row = rf"^{name}(?: +(\S.*?)(?:  +.*)?)?$"
        by_hand = re.search(row, shown, re.MULTILINE)[1] or ""
        assert text in ("", by_hand), name
        assert text or not by_hand or by_hand == settings.BY_NAME[name].default
    assert "N=3\n" in told and "EXCLUDE=oneaaa onebbb\n" in told
    assert "RUNS_ROOT=/x y/$z\n" in told and "BUILD=out\n" in told


def test_nothing_given_on_the_command_line_takes_dotenv_back(bare):
    bare.dotenv("REPO=two", "EXCLUDE=nosuch")
    bare.make("build/one/candidates.jsonl", "build/known-ids", "REPO=one", "EXCLUDE=")
    bare.make("build/known-ids", code=2)


@pytest.mark.parametrize(
    "text", ["a$b", "a#b", "a\\#b", "\\", "a\\\\", "$$", "it's", '"', "100%", " a"]
)
def test_text_reaches_make_as_it_is(tmp_path, text):
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"export X := {quote(text)}\nall:\n\t@printf '%s' \"$$X\"\n")
    assert run_program("make", "-s", "-f", makefile).out == text.strip()


@pytest.mark.parametrize("name", ["EXLUDE", "SAEV_DIRR", "CATALOGUE", "Repo"])
def test_a_misspelt_name_on_the_command_line_is_refused_with_the_nearest(bare, name):
    bare.dotenv()
    done = bare.make("dry-run", f"{name}=x", code=2)
    assert re.search(rf"{name} is not a setting; did you mean [A-Z_]+\?", done.err)
    assert done.err.count("\n") == 1


# ---- lists of ids -------------------------------------------------------------------------------

LISTS = ["{0} {1}", "{0},{1}\n", "{0}\t{1}", " ,{0},,\n {1}, "]


@pytest.mark.parametrize("text", LISTS)
def test_a_list_of_ids_is_split_the_same_everywhere(text, bare, monkeypatch):
    text = text.format("oneaaa", "onebbb")
    monkeypatch.setenv("EXCLUDE", text)
    assert settings.ids("EXCLUDE") == ["oneaaa", "onebbb"]
    assert drops(bare, EXCLUDE=text) == ["excluded by hand"] * 2 + ["not in W&B"]
    (bare.dpath / ".env").write_text(f'EXCLUDE="{text}"\n')
    assert drops(bare) == ["excluded by hand"] * 2 + ["not in W&B"]
    assert drops(bare, EXCLUDE="") == ["not in W&B"] * 3


@pytest.mark.parametrize("text", LISTS)
def test_a_list_of_ids_on_the_command_line_is_split_as_elsewhere(text, bare):
    bare.dotenv()
    text = text.format("oneaaa", "twobbb")
    bare.make("build/known-ids", f"EXCLUDE={text}")
    assert (bare.build / ".settings/EXCLUDE").read_text() == "oneaaa twobbb"


def drops(bare, **env):
    """What classify, run by hand, says about three runs."""
    keys = "layer expected l0 nmse nmse_source objective activation d_model d_sae train_layer"
    line = dict.fromkeys(
        [*keys.split(), "state", "created_at", "wandb", "aux", "shard"]
    )
    line |= {"repo": "one", "expected": {}}
    rows = [line | {"run_id": run_id} for run_id in ("oneaaa", "onebbb", "c")]
    done = bare.run("bin/classify", stdin=text_of(rows), **env)
    assert done.code == 0, done.err
    return [row["drop"] for row in done.rows]


@pytest.mark.parametrize("name", ["PIN", "EXCLUDE"])
def test_ids_in_dotenv_serve_all_repos_and_only_one_of_none_is_refused(bare, name):
    bare.dotenv(f"{name}=oneaaa twobbb")
    for repo in ("REPO=one", "REPO=two", "REPO="):
        bare.make("build/known-ids", repo)
    bare.dotenv(f"{name}=oneaaa twobbb nosuch")
    for repo in ("REPO=one", "REPO=two", "REPO="):
        done = bare.make("build/known-ids", repo, code=2)
        assert f"{name} nosuch: not a candidate of any repo" in done.err


def test_another_repos_broken_sweep_does_not_stop_this_one(bare):
    bare.dotenv("EXCLUDE=twoaaa")
    (bare.saev_dir / "two.py").write_text("run_ids = {\n")
    done = bare.make("build/known-ids", "REPO=one")
    assert "not checking twoaaa, which may belong to two" in done.err


# ---- what is refused before anything is made -----------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "N=abc",
            "N is 'abc' (make's command line); it takes a whole number, 2 or more",
        ),
        ("N=1", "N is '1' (make's command line); it takes a whole number, 2 or more"),
        (
            "JOBS=-1",
            "JOBS is '-1' (make's command line); it takes a whole number, 1 or more",
        ),
        ("SLURM_TIME=1h", "SLURM_TIME is '1h'"),
        ("REPO=oen", 'has no repo "oen"'),
        ("CATALOG=missing.json", "missing.json: No such file"),
        ("BUILD=", "BUILD is empty (make's command line)"),
        ("VENV=", "VENV is empty (make's command line)"),
        (
            "BUILD=a b",
            "BUILD is a b (make's command line); it may have letters, digits",
        ),
        ("BUILD=a:b", "BUILD is a:b"),
        ("BUILD=a$b", "BUILD is a$b"),
        ("BUILD=a%b", "BUILD is a%b"),
        ("BUILD=a#b", "BUILD is a#b"),
        ("BUILD=it's", "BUILD is it's"),
        ('BUILD=a"b', 'BUILD is a"b'),
        ("VENV=a b", "VENV is a b"),
        ("SAEV_DIR=a\nb", "SAEV_DIR is 'a\\nb'"),
        ("HF_TOKEN=hf_canary", "HF_TOKEN on a command line is visible to every user"),
        ("WANDB_API_KEY=hf_canary", "WANDB_API_KEY on a command line"),
        ("HF_ENDPOINT=https://me:hf_canary@hub.lab/x", "HF_ENDPOINT has a user name"),
        ("WANDB_BASE_URL=http://hf_canary@wandb.lab", "WANDB_BASE_URL has a user name"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_made(bare, given, told):
    bare.dotenv()
    before = bare.files()
    done = bare.make(ONE, given, code=2)
    assert told in done.err and done.err.count("\n") == 1, done.err
    assert "hf_canary" not in done.out + done.err
    assert bare.files() == before


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"repos": []}', '{"repos": [{}]}', "{"]
)
def test_a_wrong_catalog_is_told_in_our_words(bare, content):
    bare.catalog.write_text(content)
    bare.dotenv()
    done = bare.make(ONE, code=2)
    assert f"{bare.catalog}: " in done.err
    for word in ("Traceback", "jq:", "No rule", "internal error"):
        assert word not in done.err


def test_a_catalog_saved_with_a_byte_order_mark_is_read(bare):
    bare.catalog.write_bytes(b"\xef\xbb\xbf" + bare.catalog.read_bytes())
    bare.dotenv()
    bare.make(ONE)


# ---- paths, and their changes --------------------------------------------------------------------

ODD = [
    "my 'own' sweeps",
    'a"b#c',
    "a$b%c:d",
    "$(x);*",
    "a\\b",
    "-ünder",
]


@pytest.mark.parametrize("name", ODD)
def test_any_path_to_sweeps_and_catalog_works_and_changes_are_noticed(tmp_path, name):
    odd = tmp_path / name
    bare = Bare(tmp_path / "checkout", odd / "saev")
    bare.catalog = odd / f"{name}.json"
    bare.catalog.write_text(catalog("one", "two"))
    by = [f"SAEV_DIR={bare.saev_dir}", f"CATALOG={bare.catalog}", f"RUNS_ROOT={odd}"]
    by += [f"METRICS_SNAPSHOT={odd}/s.jsonl", f"SHARDS_ROOT={odd}", f"RECORDS={odd}/r"]
    bare.make(ONE, *by)
    assert is_up_to_date(bare, *by)
    (bare.saev_dir / "one.py").write_text('run_ids = {6: ["fresh"]}\n')
    bare.make(ONE, *by)
    assert "fresh" in (bare.dpath / ONE).read_text()
    # From .env and from the environment alike.
    bare.dotenv(
        *(
            f"{k}='{v}'" if "'" not in v else f'{k}="{v}"'.replace("$", "\\$")
            for k, v in (b.split("=", 1) for b in by)
        )
    )
    if "\\" not in name:
        assert is_up_to_date(bare)
    assert is_up_to_date(bare, **dict(b.split("=", 1) for b in by))


def is_up_to_date(bare, *argv, **env):
    return "is up to date" in bare.make(ONE, *argv, **env).out


def test_a_checkout_with_an_odd_path_works(tmp_path):
    bare = Bare(tmp_path / 'my $work\'s "place" #1')
    bare.dotenv()
    if '"' in str(bare.dpath):
        lines = (f'SAEV_DIR="{bare.saev_dir}"', f'CATALOG="{bare.catalog}"')
        text = "\n".join(line.replace("$", "\\$") for line in lines)
        text = re.sub(r'(?<!=)"(?!$)', '\\"', text, flags=re.MULTILINE)
        (bare.dpath / ".env").write_text(text)
    bare.make(ONE)
    assert is_up_to_date(bare)


def test_another_catalog_is_seen_though_it_is_older(bare):
    bare.dotenv()
    bare.make(ONE)
    other = bare.dpath / "other.json"
    other.write_text(catalog("two"))
    os.utime(other, (1, 1))
    told = bare.make(
        "build/two/candidates.jsonl", "REPO=one", f"CATALOG={other}", code=2
    )
    assert 'has no repo "one"; it has: two' in told.err
    bare.make("build/two/candidates.jsonl", f"CATALOG={other}")


def test_a_value_that_goes_and_comes_back_is_two_changes(bare):
    bare.dotenv()
    bare.make(ONE)
    other = bare.dpath / "other"
    shutil.copytree(bare.saev_dir, other)
    (other / "one.py").write_text('run_ids = {6: ["elsewhere"]}\n')
    bare.make(ONE, "SAEV_DIR=other")
    assert "elsewhere" in (bare.dpath / ONE).read_text()
    bare.make(ONE)
    assert "oneaaa" in (bare.dpath / ONE).read_text()


# ---- make itself ---------------------------------------------------------------------------------


def test_make_n_writes_nothing_and_says_what_would_be_done(bare):
    bare.dotenv()
    before = bare.files()
    assert "bin/extract-ids one" in bare.make("-n", ONE).out
    assert bare.files() == before
    bare.make(ONE)
    before = bare.files()
    assert "bin/extract-ids" not in bare.make("-n", ONE).out
    assert (
        "bin/extract-ids one" in bare.make("-n", ONE, f"SAEV_DIR={bare.saev_dir}/.").out
    )
    assert bare.make("-q", ONE, f"SAEV_DIR={bare.saev_dir}/.", code=1)
    assert bare.files() == before


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("-tj2", "make -t would take old results for current ones; leave out -t"),
        ("-kij", "make -i would go on past a failure"),
    ],
)
def test_options_of_make_that_end_in_another_release_are_refused(bare, option, told):
    bare.dotenv()
    bare.make(ONE)
    before = bare.files()
    done = bare.make(option, ONE, f"SAEV_DIR={bare.saev_dir}/.", code=2)
    assert told in done.err
    assert bare.files() == before


def test_help_needs_nothing(bare):
    (bare.dpath / ".env").write_text("what is this\n")
    bare.make("help")
    bare.make()


def test_a_failed_joint_leaves_no_temporary_file(bare):
    bare.dotenv()
    (bare.saev_dir / "one.py").write_text("run_ids = {\n")
    for _ in range(3):
        bare.make(ONE, code=2)
    assert not [f for f in bare.files() if f.endswith(".tmp")]


def test_what_a_killed_program_left_is_removed(bare):
    bare.dotenv()
    bare.make(ONE)
    node = os.uname().nodename
    left, mine, elsewhere = (
        bare.build / f"one/.candidates.jsonl.{owner}.tmp"
        for owner in (f"{node}-999999999", f"{node}-{os.getpid()}", "n1-999999999")
    )
    for fpath in (left, mine, elsewhere):
        fpath.touch()
    bare.make(ONE)
    # On another machine that process may be alive.
    assert mine.exists() and elsewhere.exists() and not left.exists()


def test_a_joint_dated_in_the_future_is_made_again(bare):
    bare.dotenv()
    bare.make(ONE)
    os.utime(bare.dpath / ONE, (2**32, 2**32))
    done = bare.make(ONE)
    assert f"{ONE} is dated in the future" in done.err
    assert is_up_to_date(bare)


def test_a_summary_of_a_repo_that_is_no_more_is_no_matter(bare):
    bare.dotenv()
    bare.make(ONE)
    (bare.build / "gone").mkdir()
    (bare.build / "gone/summary.txt").touch()
    bare.catalog.write_text(catalog("one"))
    assert is_up_to_date(bare)
    shown = bare.run("make", "-n", "build/report.html").out
    assert "bin/report --others --out build/report.html one\n" in shown


def test_the_makefile_is_a_page():
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert len(lines) <= 217
    recipe = 0
    for line in lines:
        recipe = recipe + 1 if line.startswith("\t") else 0
        assert recipe <= 3, line


def test_the_demo_is_made_at_the_first_call_also_where_set_up_came_before(
    checkout, monkeypatch
):
    ran = []

    def run(program: str) -> None:
        ran.append(program)
        raise UserError("enough")

    monkeypatch.setattr(ready, "run", run)
    monkeypatch.setattr(ready, "set_up", lambda: None)
    # Setup continues in another process, which has the demo's paths from the environment.
    for exported in (False, True):
        if exported:
            monkeypatch.setenv("CATALOG", "build/demo/catalog.json")
        lines = "\n".join(stage.for_make(Call(goals="dry-run")))
        assert "$(error" in lines and ran.pop() == "bin/demo"


def test_a_release_that_cannot_succeed_ends_before_anything_is_made(bare):
    before = bare.files()
    demo = bare.make("release", code=2).err
    assert "*** this is the demo; set SAEV_DIR and RUNS_ROOT for your own" in demo
    bare.dotenv()
    told = bare.make("release", code=2).err
    assert "*** HF_TOKEN is not set; create a token with write access" in told
    (bare.dpath / ".env").unlink()
    assert bare.files() == before


def test_a_password_in_an_index_is_not_kept(bare):
    bare.dotenv("TORCH_INDEX=https://me:canary@index.example/simple")
    bare.make(ONE)
    assert run_program("grep", "-r", "canary", bare.build).code == 1
