"""Nothing of the user's is deleted: what gets removed bears our mark."""

import fcntl
import os
import pathlib
import shutil
import subprocess

import pytest

from kits.programs import bare_env
from kits.tree import Bare
from saepub import settings
from saepub.cli import UserError

pytestmark = pytest.mark.programs

MARK = settings.MARK
ONE = "build/one/candidates.jsonl"


@pytest.fixture
def bare(tmp_path):
    """A checkout in a directory of its own, beside files of the user's."""
    (tmp_path / "work/notes").mkdir(parents=True)
    (tmp_path / "work/notes/thesis.tex").write_text("all of it")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("all of it")
    bare = Bare(tmp_path / "work/checkout")
    (bare.dpath / ".git").mkdir()
    (bare.dpath / ".git/HEAD").write_text("ref")
    bare.dotenv()
    return bare


def everything(bare) -> dict[str, bytes]:
    top = bare.dpath.parents[1]
    return {
        str(f): f.read_bytes() if f.is_file() else b""
        for f in top.rglob("*")
        if "__pycache__" not in f.parts
    }


WRONG = [".", "..", "/", "~", "../..", "./", "../checkout", "py", "bin/../tests/.."]
WRONG += [
    "saev",
    "../notes",
    "/tmp",
    "lab.json",
    "build/..",
    "../../home",
    "/usr/lib/..",
]


@pytest.mark.parametrize("name", settings.MADE)
@pytest.mark.parametrize("path", WRONG)
def test_what_is_somebody_elses_is_no_directory_to_make(bare, monkeypatch, name, path):
    monkeypatch.chdir(bare.dpath)
    monkeypatch.setattr(settings, "ROOT", str(bare.dpath))
    monkeypatch.setenv(settings.in_environment(name), os.path.expanduser(path))
    before = everything(bare)
    with pytest.raises(UserError, match=f"{name} is .*, which (is not empty|contains)"):
        settings.claim(name)
    assert everything(bare) == before


@pytest.mark.parametrize("how", ["command line", "environment", ".env"])
@pytest.mark.parametrize("path", ["", "..", "../my files"])
def test_somebody_elses_directory_is_refused_and_untouched(bare, how, path):
    argv, env = ["VENV=none"], {"HOME": bare.dpath.parents[1] / "home"}
    (bare.dpath.parent / "my files").mkdir()
    if how == "command line":
        argv.append(f"BUILD={path}")
    elif how == "environment":
        env |= {"SAEPUB_BUILD": path}
    else:
        bare.dotenv(f"BUILD={path}")
    before = everything(bare)
    for goal in ("clean", "distclean", ONE):
        done = bare.make(goal, *argv, code=2, **env)
        assert "BUILD is " in done.err and everything(bare) == before


def test_an_environment_of_the_users_own_is_not_removed(bare):
    venv = bare.dpath / "mine/bin"
    venv.mkdir(parents=True)
    bare.make(ONE)
    before = everything(bare)
    done = bare.make("distclean", "VENV=mine", code=2)
    assert "VENV is mine, which is not empty and was not created by saepub" in done.err
    assert everything(bare) == before


@pytest.mark.parametrize("name", ["BUILD", "VENV", "build", "TMPDIR"])
def test_other_programs_variables_name_nothing(bare, tmp_path, name):
    theirs = tmp_path / "home"
    for goal in (ONE, "clean", "help"):
        bare.make(
            goal,
            **(
                {"SAEPUB_X": "1"}
                | ({} if name in ("BUILD", "VENV") else {name: str(theirs)})
            ),
        )
    done = bare.run("env", f"{name}={theirs}", "make", ONE, "clean")
    assert done.code == 0, done.err
    assert [f.name for f in theirs.iterdir()] == ["thesis.tex"]
    assert (bare.build / MARK).exists()


def test_clean_leaves_the_demo_and_distclean_nothing(bare):
    bare.make(ONE)
    (bare.build / "demo").mkdir()
    venv = bare.dpath / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / MARK).touch()
    bare.make("clean")
    assert sorted(f.name for f in bare.build.iterdir()) == [MARK, "demo"]
    bare.make(ONE)
    bare.make("distclean", f"VENV={venv}")
    assert not bare.build.exists() and not venv.exists()
    bare.make("clean")
    bare.make("distclean", f"VENV={venv}")


def test_records_outlive_clean_and_distclean(bare):
    bare.make(ONE)
    record = bare.dpath / "records/one/release.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    bare.make("clean")
    bare.make("distclean", "VENV=none")
    assert record.read_text() == "{}"


@pytest.mark.parametrize(
    "name", ["RECORDS", "SAEV_DIR", "RUNS_ROOT", "SHARDS_ROOT", "CATALOG", "VENV"]
)
def test_what_gets_removed_holds_nothing_else_that_a_setting_names(bare, name):
    bare.make("out/one/candidates.jsonl", "BUILD=out")
    inside = bare.dpath / "out/mine"
    inside.mkdir()
    for goal in ("clean", "distclean"):
        done = bare.make(goal, "BUILD=out", f"{name}={inside}", code=2)
        assert f"BUILD is out, which contains {name}" in done.err
    assert inside.exists()


def test_a_link_is_not_followed_and_not_removed(bare, tmp_path):
    bare.make(ONE)
    target = tmp_path / "home/data"
    target.mkdir()
    (target / "sae.pt").write_text("weights")
    (bare.build / "link").symlink_to(target)
    (bare.build / "one/link").symlink_to(target)
    bare.make("clean")
    assert (target / "sae.pt").read_text() == "weights"
    shutil.rmtree(bare.build)
    (tmp_path / "elsewhere").mkdir()
    bare.build.symlink_to(tmp_path / "elsewhere")
    bare.make(ONE)
    bare.make("clean")
    assert [f.name for f in bare.build.iterdir()] == [MARK]
    done = bare.make("distclean", "VENV=none", code=2)
    assert "a link, which saepub didn't create; remove it yourself" in done.err
    assert bare.build.is_symlink()


def test_an_interrupted_removal_can_continue(bare):
    bare.make(ONE)
    (bare.build / "one/keep").mkdir()
    os.chmod(bare.build / "one", 0o500)
    try:
        bare.run("bin/clean", "--all", VENV="none")
    finally:
        if (bare.build / "one").exists():
            os.chmod(bare.build / "one", 0o700)
    if bare.build.exists():
        assert (bare.build / MARK).exists()
    bare.make("distclean", "VENV=none")
    assert not bare.build.exists()


@pytest.mark.parametrize("stage", ["bin/demo", "bin/stage", "bin/rehearse"])
def test_a_stage_by_hand_does_not_write_where_others_have_files(bare, tmp_path, stage):
    theirs = tmp_path / "home"
    argv = ["true"] if stage == "bin/rehearse" else []
    done = bare.run(stage, *argv, BUILD=theirs)
    assert done.code == 1
    assert (
        f"BUILD is {theirs}, which is not empty and was not created by saepub"
        in done.err
    )
    assert [f.name for f in theirs.iterdir()] == ["thesis.tex"]


def test_help_and_make_n_remove_nothing(bare):
    bare.make(ONE)
    os.utime(bare.dpath / ONE, (2**32, 2**32))
    before = everything(bare)
    bare.make("help")
    bare.make("-n", "clean", "distclean")
    bare.make("-n", ONE)
    assert everything(bare) == before


# ---- the virtual environment ---------------------------------------------------------------------


@pytest.fixture
def shop(bare, tmp_path):
    """A checkout whose setup finds a pip made of shell, which logs what it is asked for."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(log=tmp_path / "log"))
    python.chmod(0o755)
    bare.python, bare.log = python, tmp_path / "log"
    return bare


PYTHON = """#!/bin/sh
# Stands in for python3: makes environments in no time, with itself as their python.
case "$*" in
    *"-m venv"*)
        for venv; do :; done
        [ ! -e "$venv/../no-ensurepip" ] || {{ mkdir -p "$venv/bin"; exit 1; }}
        echo venv >> {log}
        mkdir -p "$venv/bin" && cp "$0" "$venv/bin/python" ;;
    *"-m pip"*) echo "$*" >> {log} ;;
    *) exec python3 "$@" ;;
esac
"""


def set_up(shop, code=0, **env):
    given = {"VENV": shop.dpath / ".venv", "PYTHON": shop.python} | env
    done = shop.run("bin/setup", **given)
    assert done.code == code, done.err
    return done


def n_made(shop) -> int:
    return shop.log.read_text().split("\n").count("venv") if shop.log.exists() else 0


def test_set_up_is_made_once_and_bears_our_mark(shop):
    set_up(shop)
    assert (shop.dpath / ".venv" / MARK).exists() and n_made(shop) == 1
    told = shop.log.read_text()
    set_up(shop)
    assert shop.log.read_text() == told
    os.utime(shop.dpath / "requirements.txt")
    set_up(shop)
    assert n_made(shop) == 1 and shop.log.read_text() != told


def test_a_half_made_environment_is_made_anew(shop):
    set_up(shop)
    for name in (".made", ".ready"):
        (shop.dpath / ".venv" / name).unlink()
    (shop.dpath / ".venv/bin/left").touch()
    set_up(shop)
    assert n_made(shop) == 2 and not (shop.dpath / ".venv/bin/left").exists()


def test_a_failed_environment_is_told_and_made_anew_once_it_can_be(shop):
    (shop.dpath / "no-ensurepip").touch()
    done = set_up(shop, code=1)
    assert "setup: can't create" in done.err and "python3-venv" in done.err
    (shop.dpath / "no-ensurepip").unlink()
    set_up(shop)


def test_set_up_leaves_an_environment_of_the_users_alone(shop):
    venv = shop.dpath / "mine"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text('#!/bin/sh\nexec python3 "$@"\n')
    (venv / "bin/python").chmod(0o755)
    done = set_up(shop, code=1, VENV=venv)
    assert (
        f"VENV is {venv}, which is not empty and was not created by saepub" in done.err
    )
    assert not shop.log.exists() and pathlib.Path(venv / "bin/python").exists()


def test_of_two_set_ups_at_once_the_second_waits(shop):
    set_up(shop)
    venv, noted = shop.dpath / ".venv", shop.log.read_text()
    (venv / ".ready").unlink()
    with open(venv / ".lock") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        second = subprocess.Popen(
            ["bin/setup"],
            cwd=shop.dpath,
            env=bare_env(VENV=venv, PYTHON=shop.python),
            stderr=subprocess.PIPE,
            text=True,
        )
        told = second.stderr.readline()
        assert told == f"setup: waiting for another setup of {venv}\n"
        (venv / ".ready").touch()
    assert second.communicate()[1] == "" and second.returncode == 0
    assert shop.log.read_text().count("install") == noted.count("install")


def test_a_pip_conf_for_other_purposes_is_no_matter(shop):
    """One with `user = true` or `require-hashes = true`, which the environment overrides."""
    noting = PYTHON.replace('echo "$*" >> {log} ;;', "env >> {log} ;;")
    shop.python.write_text(noting.format(log=shop.log))
    set_up(shop)
    noted = shop.log.read_text().splitlines()
    assert {"PIP_USER=0", "PIP_REQUIRE_HASHES=0"} <= set(noted)


def test_no_network_is_told_as_such(shop):
    failing = PYTHON.replace(
        'echo "$*" >> {log} ;;',
        'case "$*" in *install*) echo "WARNING: Retrying after NewConnectionError"'
        '; echo "ERROR: conflicting dependencies"; exit 1 ;; esac ;;',
    )
    shop.python.write_text(failing.format(log=shop.log))
    done = set_up(shop, code=1)
    assert "setup: can't reach the package index" in done.err
    assert "conflicting" not in done.err


def test_set_up_says_which_package_it_is_at(shop):
    telling = PYTHON.replace(
        'echo "$*" >> {log}', 'echo "$*" >> {log}; echo "Collecting torch==2 (x)"'
    )
    shop.python.write_text(telling.format(log=shop.log))
    assert "\nsetup: torch==2\n" in set_up(shop).err
    assert "--extra-index-url" not in shop.log.read_text()
    (shop.dpath / ".venv/.ready").unlink()
    set_up(shop, TORCH_INDEX="https://example.org/cpu")
    assert "--extra-index-url https://example.org/cpu" in shop.log.read_text()
