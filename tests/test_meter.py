"""A piece of work's memory, in a process of its own, whose peak nothing before has raised."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from steps import meter

MEGABYTE = 1 << 20
WORK = """
from steps.meter import MemoryMeter

before = b"x" * (64 << 20)  # held, and so not the work's
meter = MemoryMeter("cpu")
for _ in range(2):
    work = b"x" * (96 << 20)
    del work
print(meter.peak_bytes())
later = MemoryMeter("cpu")
work = b"x" * (96 << 20)
print(later.peak_bytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a reading may be too low")
def test_the_peak_of_a_work_is_measured_although_its_memory_is_free_again() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    for measured in map(int, done.stdout.split()):  # what was held and free again before does not hide the later work
        assert 95 * MEGABYTE < measured < 104 * MEGABYTE


def test_where_the_current_memory_cannot_be_read_the_highest_so_far_stands_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter.Path, "is_file", lambda path: False)
    assert meter.MemoryMeter("cpu").peak_bytes() < 16 * MEGABYTE  # nothing was done


@pytest.mark.parametrize(("platform", "num_bytes"), [("darwin", 3), ("freebsd14", 3 * 1024)])
def test_elsewhere_the_system_counts_in_bytes_or_kibibytes(
    platform: str, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter.Path, "is_file", lambda path: False)
    monkeypatch.setattr(meter.sys, "platform", platform)
    monkeypatch.setattr(meter.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    assert meter._of_process("VmRSS") == num_bytes


@pytest.mark.gpu
def test_on_a_gpu_it_is_what_torch_has_allocated() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    before = torch.zeros(MEGABYTE, device="cuda")
    measured = meter.MemoryMeter("cuda")
    torch.zeros(3 * MEGABYTE, device="cuda")
    assert measured.peak_bytes() == 3 * 4 * MEGABYTE
    del before
