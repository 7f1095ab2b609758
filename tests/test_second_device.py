"""Nothing in training, scoring or fine-tuning takes it for granted that it runs on the CPU; on a device of its own the
numbers are the same, and a step waits for nothing.

A stand-in for a GPU in what can be known without one: where every tensor is, and what the CPU would have to wait for.
"""

import subprocess
import sys
from pathlib import Path


def test_a_device_that_is_not_the_cpu() -> None:
    """In a process of its own, since the device is there for the whole process."""
    checks = Path(__file__).with_name("on_second_device.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
