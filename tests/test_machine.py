"""What a task takes of its machine: its share of the cores, within a container's quota, and one of the GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from steps import machine
from steps.machine import num_cores, share_cores, take_gpu


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's quota file, for a process that is bound to eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", 8), ("400000 100000\n", 4), ("50000 100000\n", 1), ("1600000 100000\n", 8), ("", 8), (None, 8)],
)
def test_a_quota_takes_cores_away_and_leaves_one(quota: Path, content: str | None, cores: int) -> None:
    if content is not None:
        quota.write_text(content)
    assert num_cores() == cores


@pytest.fixture
def no_threads_given(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_tasks", "threads"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_tasks_side_by_side_share_the_cores(quota: Path, no_threads_given: None, num_tasks: int, threads: int) -> None:
    share_cores(num_tasks)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["METAFLOW_KUBERNETES_WORKLOAD", "AWS_BATCH_JOB_ID"])
def test_a_pod_has_its_cores_for_itself(
    quota: Path, no_threads_given: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    quota.write_text("400000 100000")
    monkeypatch.setenv(name, "1")
    share_cores(20)
    assert torch.get_num_threads() == 4


def test_a_number_of_threads_that_was_given_holds(
    quota: Path, no_threads_given: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    share_cores(1)
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp along on Linux alone")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")],
)
def test_threads_that_wait_give_their_core_up_unless_somebody_has_said_how_they_wait(
    given: dict[str, str], spins: str
) -> None:
    """As libgomp says it when torch loads it: what is set later has no effect."""
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    said = subprocess.run(
        [sys.executable, "-c", "import steps.machine, torch"], env={**others, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with three, as far as torch tells of them: which one is the process's, at first the second."""
    chosen = [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: chosen.__setitem__(0, index))
    return chosen


def test_tasks_side_by_side_take_one_gpu_each(gpus: list[int]) -> None:
    taken = []
    for index in range(4):
        take_gpu(index)
        taken.append(gpus[0])
    assert taken == [0, 1, 2, 0]


def test_who_is_no_task_of_a_fan_out_keeps_its_gpu(gpus: list[int]) -> None:
    take_gpu(None)
    assert gpus == [1]
