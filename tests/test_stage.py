"""stage lays out exactly the given checkpoints, copies nothing, and is never half-built."""

import fcntl
import hashlib
import json
import os

import pytest

from kits.programs import ROOT, run_program


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


class Lab:
    def __init__(self, dpath):
        self.dpath = dpath
        self.stage_dpath = dpath / "build/vits-relu/stage"

    def line(self, run_id: str, layer: int = 6, content: bytes = b"sae") -> dict:
        fpath = self.dpath / "runs" / run_id / "sae.pt"
        fpath.parent.mkdir(parents=True, exist_ok=True)
        fpath.write_bytes(content)
        return {
            "repo": "vits-relu",
            "layer": layer,
            "run_id": run_id,
            "checkpoint": str(fpath),
            "bytes": len(content),
            "mtime_ns": str(fpath.stat().st_mtime_ns),
            "sha256": hashlib.sha256(content).hexdigest(),
            "unknown": [1],
        }

    def stage(self, *rows: dict, **env):
        stdin = "".join(json.dumps(row) + "\n" for row in rows)
        env = {"BUILD": self.dpath / "build", "CATALOG": "x"} | env
        done = run_program(ROOT / "bin/stage", stdin=stdin, **env)
        done.rows = [json.loads(text) for text in done.out.splitlines()]
        return done

    def tree(self) -> list[str]:
        root = self.stage_dpath
        return sorted(
            str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()
        )


def test_adds_the_path_and_keeps_every_key(lab):
    row = lab.line("aaaa1111")
    assert lab.stage(row).rows == [row | {"path": "layer_6/aaaa1111/sae.pt"}]
    assert lab.tree() == ["layer_6/aaaa1111/sae.pt"]


def test_a_checkpoint_is_linked_not_copied(lab):
    row = lab.line("aaaa1111")
    lab.stage(row)
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
        row = lab.line("aaaa1111")
        assert lab.stage(row, BUILD=build).returncode == 0
        staged = f"{build}/vits-relu/stage/layer_6/aaaa1111/sae.pt"
        assert os.path.islink(staged) and os.path.samefile(staged, row["checkpoint"])
    finally:
        shutil.rmtree(build)


def test_files_of_an_older_selection_and_strangers_are_removed(lab):
    lab.stage(lab.line("aaaa1111"), lab.line("bbbb2222"))
    (lab.stage_dpath / "notes.txt").write_text("not to be published")
    lab.stage(lab.line("bbbb2222"))
    assert lab.tree() == ["layer_6/bbbb2222/sae.pt"]


def test_a_file_that_changed_or_vanished_since_preflight_stops_it(lab):
    row = lab.line("aaaa1111")
    lab.stage(row)
    kept = lab.tree()
    os.utime(row["checkpoint"], ns=(0, 0))
    done = lab.stage(row)
    assert done.returncode == 1 and "changed since preflight" in done.err
    os.unlink(row["checkpoint"])
    done = lab.stage(row)
    assert done.returncode == 1 and "make recheck REPO=vits-relu" in done.err
    assert lab.tree() == kept, "the old stage stands"


def test_nothing_leaves_the_stage(lab):
    for key, value in (("run_id", "../../x"), ("repo", "../x"), ("layer", "6/../..")):
        done = lab.stage(lab.line("aaaa1111") | {key: value})
        assert done.returncode == 1 and f'"{key}"' in done.err
        assert done.err.count("\n") == 1


def test_one_run_on_two_lines_stops_it(lab):
    row = lab.line("aaaa1111")
    done = lab.stage(row, row)
    assert done.returncode == 1 and "on two lines" in done.err


def test_two_at_once_on_one_repo_are_told_apart(lab):
    row = lab.line("aaaa1111")
    lab.stage(row)
    with open(lab.dpath / "build/vits-relu/.lock", "a+") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = lab.stage(row)
    assert done.returncode == 1
    assert "vits-relu: process" in done.err and "is at work on it" in done.err
    assert lab.stage(row).returncode == 0
