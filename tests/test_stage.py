"""stage lays out exactly the given checkpoints, copies nothing, and leaves nothing half-built."""

import errno
import fcntl
import os

import pytest

from kits import checkpoints as util
from kits.lab import Lab


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def line(lab: Lab, run_id: str, content: bytes = b"sae") -> dict:
    """A line as preflight passes it on, with a key that stage doesn't know."""
    facts = util.facts(lab.put(run_id, content))
    return {"repo": "tiny", "layer": 6, "run_id": run_id, "unknown": [1]} | facts


def tree(lab: Lab) -> list[str]:
    root = lab.stage_dpath
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())


def test_adds_the_path_and_keeps_every_key(lab):
    row = line(lab, "aaaa1111")
    assert lab.call("stage", row).rows == [row | {"path": "layer_6/aaaa1111/sae.pt"}]
    assert tree(lab) == ["layer_6/aaaa1111/sae.pt"]


def test_a_checkpoint_is_linked_not_copied(lab):
    row = line(lab, "aaaa1111")
    lab.call("stage", row)
    staged = lab.stage_dpath / "layer_6/aaaa1111/sae.pt"
    assert os.path.samefile(staged, row["checkpoint"])
    assert os.stat(row["checkpoint"]).st_nlink == 2


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_across_file_systems_a_checkpoint_is_a_symlink(lab, tmp_path_factory):
    import shutil
    import tempfile

    build = tempfile.mkdtemp(dir="/dev/shm")
    try:
        if os.stat(build).st_dev == os.stat(lab.dpath).st_dev:
            pytest.skip("/dev/shm is on the same file system")
        row = line(lab, "aaaa1111")
        lab.call("stage", row, BUILD=build)
        staged = f"{build}/tiny/stage/layer_6/aaaa1111/sae.pt"
        assert os.path.islink(staged) and os.path.samefile(staged, row["checkpoint"])
    finally:
        shutil.rmtree(build)


def test_a_disk_that_takes_no_links_is_told_with_the_way_out(lab, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", no_links)
    monkeypatch.setattr("os.symlink", no_links)
    told = lab.call("stage", line(lab, "aaaa1111"), code=1).last
    assert "layer_6/aaaa1111/sae.pt: can't be a link to " in told
    assert "set BUILD to a disk that can have links" in told


def test_an_older_tree_that_cannot_be_removed_is_named(lab):
    """As where another machine still has one of its files open, over NFS."""
    row = line(lab, "aaaa1111")
    lab.call("stage", row)
    stuck = lab.build / "tiny/.stage.old"
    stuck.write_text("in place of a directory that can't be removed")
    assert f"{stuck}: " in lab.call("stage", row, code=1).last
    assert tree(lab) == ["layer_6/aaaa1111/sae.pt"]


def test_files_of_an_older_selection_and_strangers_are_removed(lab):
    lab.call("stage", line(lab, "aaaa1111"), line(lab, "bbbb2222"))
    (lab.stage_dpath / "notes.txt").write_text("not to be published")
    lab.call("stage", line(lab, "bbbb2222"))
    assert tree(lab) == ["layer_6/bbbb2222/sae.pt"]


def test_a_file_that_changed_or_vanished_since_preflight_stops_it(lab):
    row = line(lab, "aaaa1111")
    lab.call("stage", row)
    kept = tree(lab)
    os.utime(row["checkpoint"], ns=(0, 0))
    done = lab.call("stage", row, code=1)
    assert "changed since preflight" in done.err
    os.unlink(row["checkpoint"])
    done = lab.call("stage", row, code=1)
    assert "make recheck REPO=tiny" in done.err
    assert tree(lab) == kept, "the old stage stands"


def test_nothing_leaves_the_stage(lab):
    for key, value in (("run_id", "../../x"), ("repo", "../x"), ("layer", "6/../..")):
        done = lab.call("stage", line(lab, "aaaa1111") | {key: value}, code=1)
        assert f'"{key}"' in done.err
        assert done.err.count("\n") == 1


def test_one_run_on_two_lines_stops_it(lab):
    row = line(lab, "aaaa1111")
    done = lab.call("stage", row, row, code=1)
    assert "on two lines" in done.err


def test_two_at_once_on_one_repo_are_told_apart(lab):
    row = line(lab, "aaaa1111")
    lab.call("stage", row)
    with open(lab.dpath / "build/tiny/.lock", "a+") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = lab.call("stage", row, code=1)
    assert "tiny: process" in done.err and "is working on it" in done.err
    lab.call("stage", row)
