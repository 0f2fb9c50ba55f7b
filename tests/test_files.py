"""A file appears whole or not at all, and the next writer removes what a kill left of it."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from saepub import files
from saepub.cli import UserError
from saepub.release import staged

NODE = os.uname().nodename


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    process.wait()
    return process.pid


def names(dpath: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in dpath.iterdir())


def test_on_an_error_the_file_before_stands_and_nothing_else(tmp_path):
    fpath = tmp_path / "a"
    fpath.write_text("before")
    with pytest.raises(OSError), files.write_aside(fpath) as fd:
        fd.write("half")
        raise OSError
    assert (fpath.read_text(), names(tmp_path)) == ("before", ["a"])


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, dead):
    kept = [
        f".a.{NODE}-{os.getppid()}.tmp",  # at work
        f".a.elsewhere-{dead}.tmp",  # of another machine: who knows
        f".b.{NODE}-{dead}.tmp",  # another file's
        ".a.tmp",
    ]
    for name in (f".a.{NODE}-{dead}.tmp", *kept):
        (tmp_path / name).touch()
    with files.write_aside(tmp_path / "a") as fd:
        fd.write("whole")
    assert names(tmp_path) == sorted(["a", *kept])


def test_whoever_has_the_stage_finds_nothing_left_in_it(tmp_path, monkeypatch, dead):
    monkeypatch.setenv("SAEPUB_BUILD", str(tmp_path))
    stage = tmp_path / "x" / "stage"
    stage.mkdir(parents=True)
    for name in (f".pareto.png.{NODE}-{dead}.tmp", ".README.md.elsewhere-7.tmp"):
        (stage / name).touch()
    for name in ("mine.tmp", ".hidden", ".env"):
        (stage / name).touch()
    with staged.lock("x"):
        assert names(stage) == [".env", ".hidden", "mine.tmp"]


def test_a_scratch_directory_goes_and_those_of_killed_processes_too(
    tmp_path, monkeypatch, dead
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"saepub-verify-{NODE}-{dead}-abc_"
    (left / "models").mkdir(parents=True)
    kept = [
        f"saepub-verify-{NODE}-{os.getppid()}-abc_",
        f"saepub-other-{NODE}-{dead}-abc_",
        f"saepub-verify-elsewhere-{dead}-abc_",
        "saepub-verify-mine",
    ]
    for name in kept:
        (tmp_path / name).mkdir()
    with files.scratch("verify") as dpath:
        assert dpath.parent == tmp_path and not left.exists()
        assert names(tmp_path) == sorted([*kept, dpath.name])
        # A writer's own file isn't a leftover while it is being written.
        with files.scratch("verify"):
            assert dpath.exists()
    assert names(tmp_path) == sorted(kept)


def test_a_disk_without_locks_is_told_with_the_way_out(tmp_path, monkeypatch):
    """As Lustre and NFS may be mounted."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    told = r"/\.lock: No locks available; set BUILD to a disk with file locks"
    with pytest.raises(UserError, match=told), files.lock(tmp_path / ".lock"):
        pass


def test_a_full_disk_does_not_keep_a_lock_from_being_held(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", full)
    again = files.lock(tmp_path / ".lock", patience=0)
    held = pytest.raises(files.Held, match="another process")
    with files.lock(tmp_path / ".lock"), held, again:
        pass


def test_a_lock_says_who_has_it(tmp_path):
    fpath = tmp_path / "sub" / ".lock"
    again = files.lock(fpath, patience=0)
    with files.lock(fpath), pytest.raises(files.Held) as held, again:
        pass
    assert str(held.value) == f"process {os.getpid()} on {NODE}"
    with files.lock(fpath, patience=0):
        pass
