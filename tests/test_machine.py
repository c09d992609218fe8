"""What the process may use: container limits win over the hardware."""

import os
import sys
from pathlib import Path

import pytest
import torch

from app import machine

AVAILABLE = len(os.sched_getaffinity(0))
PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


def test_without_a_cgroup_all_of_the_machine_counts(cgroup: Path) -> None:
    assert machine.cores() == AVAILABLE
    assert machine.memory_bytes() == PHYSICAL


def test_a_cgroup_without_limits_leaves_all_of_the_machine(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("max 100000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert machine.cores() == AVAILABLE
    assert machine.memory_bytes() == PHYSICAL


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(10_000, 1), (100_000, 1), (200_000, min(2, AVAILABLE)), (100_000 * (AVAILABLE + 7), AVAILABLE)],
)
def test_a_cpu_quota_cuts_the_cores(cgroup: Path, quota: int, cores: int) -> None:
    (cgroup / "cpu.max").write_text(f"{quota} 100000\n")
    assert machine.cores() == cores


@pytest.mark.skipif(AVAILABLE < 2, reason="one core cannot be cut")
def test_the_affinity_mask_cuts_the_cores(cgroup: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(sys.platform == "darwin", reason="an Apple chip is one")
@pytest.mark.parametrize("there", [True, False])
def test_an_accelerator_is_looked_for_by_its_driver_s_device(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "nvidiactl"
    if there:
        device.touch()
    monkeypatch.setattr(machine, "_ACCELERATORS", (str(tmp_path / "kfd"), str(device)))
    assert machine.may_have_accelerator() is there


@pytest.mark.skipif(torch.cuda.is_available() or sys.platform == "darwin", reason="there is one")
def test_where_torch_finds_no_accelerator_none_is_looked_for() -> None:
    assert not machine.may_have_accelerator()


def test_a_memory_limit_cuts_the_memory(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("536870912\n")
    assert machine.memory_bytes() == 2**29
    (cgroup / "memory.max").write_text(f"{PHYSICAL * 2}\n")
    assert machine.memory_bytes() == PHYSICAL


def test_a_limit_that_cannot_be_read_is_no_limit(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("")
    (cgroup / "memory.max").write_text("unexpected words")
    assert machine.cores() == AVAILABLE
    assert machine.memory_bytes() == PHYSICAL


def test_the_machine_describes_itself() -> None:
    found = machine.description()
    assert (found["cores"], found["memory_bytes"]) == (machine.cores(), machine.memory_bytes())
    assert found["processor"]
    assert str(found["python"]).startswith("3.")
