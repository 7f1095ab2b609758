"""A pod, or a job of AWS Batch, that is asked to stop: the step learns of it, though only its container is told."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

SCRIPT = ROOT / "infra" / "container" / "tell_step.sh"
STEP = """
import signal, sys, time

def stop(*_):
    print("told", flush=True)
    sys.exit(3)

signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
if "forever" in sys.argv:
    time.sleep(60)
sys.exit(5)
"""
COMMAND = "true && (python -u step.py step train %s 1> >(tee printed)); c=$?; echo then >> printed; exit $c"
"""As Metaflow writes it: the step, its output through another process, then what must follow whatever became of it."""


def start(folder: Path, how_long: str) -> "subprocess.Popen[bytes]":
    """Programs in `folder` come before those of the machine."""
    (folder / "step.py").write_text(STEP)
    path = os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.environ["PATH"]))
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            ["bash", "-c", COMMAND % how_long], cwd=folder, start_new_session=True, stdout=said, stderr=said,
            env={"BASH_ENV": str(SCRIPT), "PATH": path},
        )  # fmt: skip


def wait_until_printed(folder: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "printed").is_file() or word not in (folder / "printed").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_step_is_told_and_the_command_goes_on_behind_it(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("asked", "beside")]
    pods = []
    for folder in folders:
        folder.mkdir()
        pods.append(start(folder, "forever"))
        wait_until_printed(folder, "begun")
    asked, beside = pods
    asked.send_signal(signal.SIGTERM)  # to the first process alone
    assert asked.wait(timeout=20) == 3
    assert (folders[0] / "printed").read_text().split() == ["begun", "told", "then"]
    assert beside.poll() is None and (folders[1] / "printed").read_text().split() == ["begun"]
    beside.send_signal(signal.SIGTERM)
    assert beside.wait(timeout=20) == 3


def test_a_command_that_ends_while_its_processes_are_still_looked_through_gives_its_code(tmp_path: Path) -> None:
    slow = tmp_path / "tr"  # with which the script reads what a process is
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {shutil.which("tr")} "$@"\n')
    slow.chmod(0o755)
    pod = start(tmp_path, "forever")
    wait_until_printed(tmp_path, "begun")
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(timeout=20) == 3
    assert (tmp_path / "printed").read_text().split() == ["begun", "told", "then"]


def test_without_it_the_step_is_not_told(tmp_path: Path) -> None:
    """What it is for."""
    (tmp_path / "step.py").write_text(STEP)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = COMMAND % "forever"
    pod = subprocess.Popen(["bash", "-c", command], cwd=tmp_path, start_new_session=True, env={"PATH": path},
                           stdout=subprocess.DEVNULL)  # fmt: skip
    wait_until_printed(tmp_path, "begun")
    pod.send_signal(signal.SIGTERM)
    pod.wait(timeout=20)
    time.sleep(0.5)
    assert (tmp_path / "printed").read_text().split() == ["begun"]
    os.killpg(pod.pid, signal.SIGKILL)


def test_a_step_that_ends_by_itself_gives_its_code_and_nothing_else_is_said(tmp_path: Path) -> None:
    assert start(tmp_path, "briefly").wait(timeout=20) == 5
    assert (tmp_path / "said").read_text().split() == ["begun"]
    assert (tmp_path / "printed").read_text().split() == ["begun", "then"]


def test_the_image_has_it() -> None:
    image = (ROOT / "infra" / "container" / "Dockerfile").read_text()
    assert "COPY infra/container/tell_step.sh /opt/\n" in image and "BASH_ENV=/opt/tell_step.sh" in image
    assert "COPY --chmod=755 infra/container/killall5 /sbin/\n" in image  # by its path Metaflow runs it
