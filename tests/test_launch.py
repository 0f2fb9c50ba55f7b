"""Every program behaves the same in any shell, from anywhere, under any name."""

import os
import pathlib
import re
import sys

import pytest

from kits.programs import FORKS, ROOT, Done, run_program
from kits.tree import Bare
from saepub import __version__

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("really")]

FORKED = os.environ[FORKS]
PROGRAMS = sorted(f.name for f in (ROOT / "bin").iterdir())
JQ = sorted(f.stem for f in (ROOT / "jq").iterdir())
EXTRACT = ("extract-ids", "one")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    bare = Bare(tmp_path_factory.mktemp("launch") / "checkout")
    bare.dotenv()
    return bare


def test_every_filter_has_a_program():
    assert set(JQ) <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_tells_its_purpose_and_version_under_any_name(name, tmp_path):
    link = tmp_path / "my own name"
    link.symlink_to(ROOT / "bin" / name)
    # Forks: to start each of them for real takes 20 s.
    told = run_program(link, "--help", cwd=tmp_path, VENV=FORKED)
    assert (told.code, told.err) == (0, ""), told.err
    assert len(told.out.splitlines()) >= 3 and "#!" not in told.out
    told = run_program(link, "--version", cwd=tmp_path, VENV=FORKED)
    assert (told.code, told.err) == (0, "")
    assert told.out == f"{name} (saepub) {__version__}\n"


@pytest.mark.parametrize("name", JQ)
def test_a_filter_takes_no_arguments(name):
    done = run_program(ROOT / "bin" / name, "--no-such-option")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"usage: {name} ")


def run(bare, cwd, argv=EXTRACT, **env) -> Done:
    return run_program(bare.dpath / "bin" / argv[0], *argv[1:], cwd=cwd, **env)


def test_a_program_works_from_any_directory(bare, tmp_path):
    done = run(bare, tmp_path)
    assert (done.code, done.err) == (0, "")
    assert [row["run_id"] for row in done.rows] == ["oneaaa", "onebbb"]


HOSTILE_MODULES = (
    "random.py",
    "json.py",
    "re.py",
    "saepub/__init__.py",
    "jinja2.py",
    "pydantic.py",
)


@pytest.fixture
def trap(tmp_path):
    """A directory of modules and start-up files that leave a trace when they are run."""
    for name in (*HOSTILE_MODULES, "sitecustomize.py", "usercustomize.py"):
        fpath = tmp_path / "trap" / name
        fpath.parent.mkdir(parents=True, exist_ok=True)
        fpath.write_text(
            f"open({str(tmp_path / 'sprung')!r}, 'w')\nraise SystemExit(9)\n"
        )
    start_up = tmp_path / "trap/start.sh"
    start_up.write_text(f"touch {tmp_path}/sprung; exit 9\n")
    (tmp_path / "trap/.jq").write_text('error("~/.jq was read")\n')
    yield tmp_path / "trap"
    assert not (tmp_path / "sprung").exists()


OF_PYTHON = {
    "PYTHONPATH": "{trap}",
    "PYTHONHOME": "{trap}",
    "PYTHONSTARTUP": "{trap}/random.py",
    "PYTHONUSERBASE": "{trap}",
    "PYTHONINSPECT": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONWARNINGS": "error",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONHASHSEED": "none",
    "VIRTUAL_ENV": "{trap}",
    "CONDA_PREFIX": "{trap}",
}
OF_BASH = {
    "CDPATH": "{trap}:/",
    "BASH_ENV": "{trap}/start.sh",
    "ENV": "{trap}/start.sh",
    "SHELLOPTS": "noglob",
    "BASHOPTS": "extglob",
    "BASH_FUNC_cd%%": "() {{ touch {trap}/../sprung; }}",
    "BASH_FUNC_exec%%": "() {{ touch {trap}/../sprung; }}",
    "GLOBIGNORE": "*",
    "IFS": "/",
    "POSIXLY_CORRECT": "1",
}
OF_ALL = {
    "LC_ALL": "C",
    "LANG": "xx_YY.latin1",
    "HOME": "{trap}",
    "MAKEFILES": "",
}


@pytest.mark.parametrize("shell", [OF_PYTHON, OF_BASH, OF_ALL])
def test_a_stage_a_filter_and_make_are_the_same_in_any_shell(bare, trap, shell):
    env = {name: text.format(trap=trap) for name, text in shell.items()}
    plain = run(bare, bare.dpath)
    assert run(bare, trap, **env) == plain
    done = run(bare, trap, ("classify", "--version"), **env)
    assert (done.code, done.err) == (0, "") and done.out
    assert run(bare, trap, ("announce",), **env).code == 0
    os.utime(bare.saev_dir / "one.py")
    assert bare.make("build/one/candidates.jsonl", **env).err == ""
    assert (bare.build / "one/candidates.jsonl").read_text() == plain.out


def test_the_whole_release_runs_make_in_the_checkout(bare, trap):
    for name in ("CDPATH", "BASH_ENV"):
        env = {name: OF_BASH[name].format(trap=trap), "MAKEFLAGS": "-n"}
        link = trap.parent / f"push-{name}"
        link.symlink_to(bare.dpath / "bin/push-dinov3")
        (trap / "checkout").mkdir(exist_ok=True)
        done = run_program(link, "--dry-run", cwd=trap.parent, **env)
        assert done.code == 0, done.err
        assert "bin/extract-ids one" in done.out or "summary.txt" in done.out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("bin/select <&-", "select: stdin or stdout is closed\n"),
        ("bin/extract-ids one >&-", "extract-ids: stdin or stdout is closed\n"),
        ("bin/extract-ids one 2>&- | grep -c '' >&2", "2\n"),
    ],
)
def test_a_closed_stream_is_one_line_and_spoils_no_data(bare, command, told):
    done = bare.run("sh", "-c", command)
    assert (done.out, done.err) == ("", told)
    assert done.code == (0 if "2>&-" in command else 1)


LIBRARY = """
import os
os.write(1, b"a library's log\\n")
os.system("echo a program of its own")
from json import JSONDecodeError, loads
"""


def test_nothing_but_our_data_goes_to_stdout(tmp_path):
    """Whatever a library and the programs that it starts write there."""
    (tmp_path / "orjson.py").write_text(LIBRARY)
    code = f"""if True:
        import sys
        sys.path[:0] = {str(tmp_path)!r}, {str(ROOT / "py")!r}
        from saepub.cli import program
        program("known-ids")"""
    stdin = '{"repo": "one", "run_id": "aaaaaaaa"}\n'
    done = run_program(sys.executable, "-I", "-c", code, stdin=stdin)
    told = "a library's log\na program of its own\n"
    assert (done.code, done.out, done.err) == (0, "", told)


def test_a_python_that_does_not_run_is_told_in_one_line(tmp_path):
    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\necho 'pyenv: no version 3.99\n' >&2; exit 1\n")
    shim.chmod(0o755)
    for python, why in (
        (shim, "pyenv: no version 3.99"),
        ("nowhere", "nowhere: not found"),
    ):
        done = run_program(ROOT / "bin/settings", VENV=tmp_path / "none", PYTHON=python)
        assert done.err.startswith(f"settings: can't run {python}: ")
        assert why in done.err and done.err.count("\n") == 1


def test_an_old_python_is_told_by_any_program_and_by_make(bare, tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1; exit 1\n')
    old.chmod(0o755)
    env = {"VENV": tmp_path / "none", "PYTHON": old}
    why = "Python 3.9.1 is too old; set PYTHON to python 3.11 or later\n"
    for name in ("extract-ids", "setup"):
        done = run_program(ROOT / "bin" / name, **env)
        assert done.code == 1 and re.fullmatch(rf"[\w-]+: {why}", done.err)
    assert why in bare.make("setup", code=2, **env).err


def test_a_missing_jq_is_told_with_how_to_get_it(bare, tmp_path):
    path = tmp_path / "path"
    path.mkdir()
    for dpath in os.environ["PATH"].split(":"):
        for fpath in pathlib.Path(dpath).glob("*"):
            if fpath.name != "jq" and not (path / fpath.name).is_symlink():
                (path / fpath.name).symlink_to(fpath)
    done = bare.make("setup", code=2, VENV=tmp_path / "venv", PATH=path)
    assert "setup: jq is not installed; get it with: apt install jq" in done.err
