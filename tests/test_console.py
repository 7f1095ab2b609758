"""What a person sees: a bar on a terminal, and lines elsewhere."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from toys import Terminal

from steps import console
from steps.console import ProgressBar, progress_lines


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_open_terminal", lambda: None)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, as its one element."""
    clock = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    return clock


def test_without_a_terminal_progress_is_a_line_every_half_minute_and_at_the_end(
    no_terminal: None, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="steps")
    with ProgressBar(100, label="pre-training") as bar:
        for done in range(1, 101):
            now[0] += 1.0
            bar.show(loss=2.0 / done, T=1.5)
            bar.update(done)
    assert [record.message for record in caplog.records] == [
        "pre-training: 30/100 (30 %), loss 0.06667, T 1.5, 70 s left",
        "pre-training: 60/100 (60 %), loss 0.03333, T 1.5, 40 s left",
        "pre-training: 90/100 (90 %), loss 0.02222, T 1.5, 10 s left",
        "pre-training: 100/100 (100 %), loss 0.02, T 1.5, 0 s left",
    ]


def test_work_beside_others_of_its_kind_says_a_line_every_half_minute(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="steps")
    show = progress_lines("rte seed 0")
    for step in range(100):
        now[0] += 1.0
        show(step, {"loss": 1 / (step + 1), "num_steps": 100})
    assert caplog.messages == [
        "rte seed 0: 30/100, loss 0.03333, 70 s left",
        "rte seed 0: 60/100, loss 0.01667, 40 s left",
        "rte seed 0: 90/100, loss 0.01111, 10 s left",
    ]


def test_a_line_without_metrics_has_no_gap_for_them(
    no_terminal: None, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="steps")
    with ProgressBar(4, label="files") as bar:
        now[0] += 30.0
        bar.update(3)
    assert caplog.messages == ["files: 3/4 (75 %), 10 s left"]


def test_the_time_left_counts_only_the_steps_of_this_attempt(
    no_terminal: None, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="steps")
    with ProgressBar(100, label="t", initial=50) as bar:
        now[0] += 40.0
        bar.update(60)  # ten steps in 40 s; forty are left
    assert "60/100 (60 %)" in caplog.text
    assert "160 s left" in caplog.text


def test_on_a_terminal_progress_is_a_live_bar_with_the_newest_metrics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(console, "_open_terminal", lambda: terminal)
    caplog.set_level(logging.INFO, logger="steps")
    with ProgressBar(4, label="auxiliary", initial=1) as bar:
        bar.show(loss=1.25)
        bar.update(2)
        bar.update(4)
    assert "auxiliary:" in terminal.shown
    assert "4/4" in terminal.shown
    assert "loss 1.25" in terminal.shown
    assert caplog.records == []  # the bar is enough


def test_there_may_be_no_terminal(tmp_path: Path) -> None:
    code = "from steps.console import _open_terminal; print(_open_terminal())"
    done = subprocess.run([sys.executable, "-c", code], start_new_session=True, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr  # a new session has no controlling terminal


def test_log_lines_of_the_project_reach_standard_error_and_those_of_others_only_as_warnings() -> None:
    body = "; ".join(
        [
            "logging.getLogger('steps.x').info('ours')",
            "logging.getLogger('fast_electra_core.x').info('of the core')",
            "logging.getLogger('other').info('hidden')",
            "logging.getLogger('other').warning('theirs')",
            "logging.getLogger('urllib3.connectionpool').warning('Retrying (...) after connection broken by ...')",
        ]
    )
    program = f"import logging\nfrom steps.console import show_log_lines\nshow_log_lines()\n{body}\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "ours\nof the core\ntheirs\n"
