"""What a person sees: a bar on a terminal, lines elsewhere, and errors without our stack."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys import Terminal

from fast_electra_core.errors import ConfigError
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


def in_a_step(body: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import logging\nfrom steps.console import console\n"
        "from fast_electra_core.errors import ConfigError, DataError, Interrupted\n"
        f"def work():\n    {body}\nwith console():\n    work()\n"
    )
    (tmp_path / "program.py").write_text(code)
    return subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )


def test_an_error_of_the_users_shows_its_message_alone(tmp_path: Path) -> None:
    done = in_a_step("raise DataError('the corpus is empty')", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "fast_electra_core.errors.DataError: the corpus is empty\n"


def test_asterisks_of_a_message_are_there_when_metaflow_has_made_bold_type_of_what_stands_between(
    tmp_path: Path,
) -> None:
    done = in_a_step("raise DataError('no file matches **/*.txt')", tmp_path)
    shown = "".join(done.stderr.split("*"))  # what Metaflow's echo does with a line
    assert shown == "fast_electra_core.errors.DataError: no file matches ∗∗/∗.txt\n"


def test_an_error_that_repeats_another_of_ours_is_shown_once_and_with_what_is_behind_both(tmp_path: Path) -> None:
    body = """
    try:
        try:
            open('/no/such')
        except OSError as error:
            raise ConfigError('no layers') from error
    except ConfigError as error:
        raise ConfigError(f'arm a: {error}') from error
"""
    shown = in_a_step(body, tmp_path).stderr.splitlines()
    assert [line for line in shown if "Error" in line] == [
        "FileNotFoundError: [Errno 2] No such file or directory: '/no/such'",
        "fast_electra_core.errors.ConfigError: arm a: no layers",
    ]


def test_a_training_that_was_asked_to_stop_says_so_in_one_line(tmp_path: Path) -> None:
    done = in_a_step("raise Interrupted('stopped after step 7')", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "fast_electra_core.errors.Interrupted: stopped after step 7\n"


def test_an_error_of_ours_keeps_its_stack(tmp_path: Path) -> None:
    done = in_a_step("return 1 / 0", tmp_path)
    assert "Traceback (most recent call last)" in done.stderr
    assert "in work" in done.stderr


def test_log_lines_of_the_project_reach_standard_error_and_those_of_others_only_as_warnings(tmp_path: Path) -> None:
    body = "; ".join(
        [
            "logging.getLogger('steps.x').info('ours')",
            "logging.getLogger('fast_electra_core.x').info('of the core')",
            "logging.getLogger('other').info('hidden')",
            "logging.getLogger('other').warning('theirs')",
        ]
    )
    done = in_a_step(body, tmp_path)
    assert done.stderr == "ours\nof the core\ntheirs\n"


def test_the_error_itself_goes_on_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)  # put back as it was afterwards
    error = ConfigError("num_steps must be >= 1, got 0")
    with pytest.raises(ConfigError, match="num_steps must be >= 1") as caught, console.console():
        raise error
    assert caught.value is error
