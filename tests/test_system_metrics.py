"""Claims about the system metrics of steps/tracking/, on a real SQLite database."""

import time
from pathlib import Path
from typing import Any

import pytest
from registry_toys import client

from steps import tracking


@pytest.fixture
def run_id(database: str) -> str:
    return tracking.start_parent(database, "tests", name="flow", tags={}, params={})


def test_the_machine_s_load_is_logged_under_mlflow_s_names(run_id: str, tmp_path: Path) -> None:
    with tracking.system_metrics(run_id, spill=tmp_path / "spill", every_seconds=1.1):
        time.sleep(2.6)
    metrics = client().get_run(run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(metrics)
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100


def test_system_metrics_of_a_resumed_step_follow_on_and_are_there_once(run_id: str, tmp_path: Path) -> None:
    for _ in ("first attempt", "second"):
        with tracking.system_metrics(run_id, spill=tmp_path / "spill", every_seconds=1.1):
            time.sleep(2.6)
    history = client().get_metric_history(run_id, "system/cpu_utilization_percentage")
    steps = [value.step for value in sorted(history, key=lambda value: value.timestamp)]
    assert len(steps) >= 4
    assert steps == sorted(set(steps))


def test_a_clock_that_is_set_back_before_and_while_a_resumed_step_runs_costs_no_system_metrics(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, hours = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() - 3600 * hours[0])
    steps: list[list[int]] = []
    for hours[0] in (0.0, 2.0):
        with tracking.system_metrics(run_id, spill=tmp_path / "spill", every_seconds=1.1):
            time.sleep(0.3)
            hours[0] += 1
            time.sleep(2.0)
        history = client().get_metric_history(run_id, "system/cpu_utilization_percentage")
        steps.append(sorted(value.step for value in history))
    first, both = steps
    assert len(first) >= 2 and both[: len(first)] == first and len(set(both)) >= len(first) + 2
    assert both[-1] < 60  # not in hours


def test_a_server_that_goes_away_costs_system_metrics_a_warning_only(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("steps.tracking.system._CLOSE_WAIT_SECONDS", 0.5)

    def refuse(*_: Any) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

        raise MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)

    with tracking.system_metrics(run_id, spill=tmp_path / "spill", every_seconds=0.2):
        monkeypatch.setattr("steps.tracking.metrics.send_values", refuse)
        time.sleep(0.5)
    assert "took no metrics of run" in caplog.text
    assert "system/cpu_utilization_percentage" in (tmp_path / "spill").read_text()
