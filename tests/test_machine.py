"""What a process may use: its cores, and the memory still available to it."""

import os
import sys

import pytest

from kits.programs import ROOT, run_program
from saepub import machine

GB = 10**9
MEMINFO = f"MemTotal: 64000000 kB\nMemAvailable: {20 * GB // 1024} kB\n"


def test_machine_knows_itself():
    assert 1 <= machine.n_cores() <= os.cpu_count()
    assert 0 < machine.free_bytes() < 1 << 50


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Write a file of /proc or of a cgroup, in a directory in their place."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path / "cgroup")

    def write(name: str, text: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    write("proc/meminfo", MEMINFO)
    return write


def stat(prefix: str = "") -> str:
    return f"anon 5\n{prefix}active_file {GB}\n{prefix}inactive_file {2 * GB}"


def test_pages_of_files_that_were_read_are_free(kernel):
    kernel("proc/self/cgroup", "0::/job/step")
    assert machine.free_bytes() == 20 * GB  # no limit: what the machine has
    kernel("cgroup/job/step/memory.max", "max")
    kernel("cgroup/job/memory.max", 8 * GB)
    kernel("cgroup/job/memory.current", 7 * GB)
    kernel("cgroup/job/memory.stat", stat())
    assert machine.free_bytes() == 4 * GB


def test_version_1_of_cgroups_is_looked_at(kernel):
    kernel(
        "proc/self/cgroup", "11:cpu,memory:/slurm/uid_0/job_7\n1:name=systemd:/\n0::/"
    )
    kernel("cgroup/memory/memory.limit_in_bytes", 2**63 - 4096)
    kernel("cgroup/memory/memory.usage_in_bytes", 30 * GB)
    kernel("cgroup/memory/memory.stat", stat("total_"))
    job = "cgroup/memory/slurm/uid_0/job_7"
    kernel(f"{job}/memory.limit_in_bytes", 8 * GB)
    kernel(f"{job}/memory.usage_in_bytes", 6 * GB)
    kernel(f"{job}/memory.stat", stat("total_"))
    assert machine.free_bytes() == 5 * GB


def test_limit_of_a_container_that_sees_no_path_but_its_own(kernel):
    kernel("proc/self/cgroup", "4:memory:/docker/abc")
    kernel("cgroup/memory/memory.limit_in_bytes", GB)
    kernel("cgroup/memory/memory.usage_in_bytes", GB)
    kernel("cgroup/memory/memory.stat", "total_active_file 0\ntotal_inactive_file 7")
    assert machine.free_bytes() == 7


def test_more_at_once_than_memory_has_room_for_is_told(monkeypatch, capsys):
    monkeypatch.setattr(machine, "n_cores", lambda: 4)
    monkeypatch.setattr(machine, "free_bytes", lambda: 10 * GB)
    assert machine.n_at_once(3 * GB) == 3
    assert machine.n_at_once(GB) == 4
    assert machine.n_at_once(GB, 8) == 8
    assert capsys.readouterr().err == ""
    assert machine.n_at_once(3 * GB, 8) == 3
    assert machine.n_at_once(20 * GB, 2) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].endswith(
        "8 at once would need 24 GB of memory, but 10 GB are free; running 3 at once"
    )


KEEPS = """
import os
from saepub import machine

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

machine.keep_freed_memory()
block = bytearray(b"x") * 10**8
del block
print(resident())
machine.give_back_memory(10**10)
print(resident())
machine.give_back_memory(10**8)
print(resident())
"""


def test_what_malloc_keeps_is_given_back_above_a_limit_only():
    done = run_program(sys.executable, "-c", KEEPS, PYTHONPATH=ROOT / "py")
    kept, below, above = map(int, done.out.split())
    assert kept > 10**8 and below > 10**8 > above + 5 * 10**7
