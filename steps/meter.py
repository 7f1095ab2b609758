"""How much memory a piece of work needs, measured."""

import resource
import sys
from pathlib import Path

_KIBIBYTE = 1024


class MemoryMeter:
    """Reads the peak of memory since it was made: of the GPU, where the work is on one, or of this process.

    A process's peak counts from its beginning. On Linux a higher one before the meter was made is taken for the work's,
    so a reading may be too high; elsewhere the work must first pass it, so a reading may be too low.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = self._current_bytes()

    def peak_bytes(self) -> int:
        """Bytes at the peak above those held when the meter was made."""
        return max(0, self._highest_bytes() - self._before)

    def _current_bytes(self) -> int:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            return int(torch.cuda.memory_allocated(self._device))
        return _of_process("VmRSS")

    def _highest_bytes(self) -> int:
        if self._device.startswith("cuda"):
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        return _of_process("VmHWM")


def _of_process(name: str) -> int:
    """Bytes of memory that Linux reports under this name; elsewhere those of the peak, whatever the name."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage's peak would be the parent's, where that held more when it made this process.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[name].removesuffix("kB")) * _KIBIBYTE
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * _KIBIBYTE
