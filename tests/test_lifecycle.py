"""What becomes of a flow's MLflow run when a step fails and is done again, on a real SQLite file."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fast_electra_core.errors import ConfigError, Interrupted, TrackingError
from steps import delivery, launch, lifecycle, planning, retrain, retrain_auxiliary, scoring, tracking
from steps.trace import Plain, attempt, finish, running
from steps.tracking import connection

WORK = {
    name: function
    for module in (lifecycle, scoring, delivery)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and not name.startswith("_")
    and "plan" in inspect.signature(function).parameters
}
OF_A_RETRAINING = {
    f"retrain.{work.__name__}": work
    for work in (retrain.freeze_auxiliary, retrain.pretrain, retrain.register, retrain._close, retrain_auxiliary.score)
}


@pytest.fixture
def plan(database: str, tmp_path: Path) -> Plain:
    """Of a flow whose MLflow run has just been opened; too little for any step to succeed."""
    run_id = tracking.start_parent(database, "tests", name="flow", tags={}, params={})
    config = {"tracking_uri": database, "store": str(tmp_path), "unknown": 0}
    return {"config": config, "mlflow_run_id": run_id, "run_key": "runs/one"}


def status(plan: Plain) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(connection.connected_uri()).get_run(plan["mlflow_run_id"]).info.status)


def test_every_step_of_the_flows_is_among_the_work() -> None:
    flows = Path(lifecycle.__file__).parent.parent / "flows"
    source = "".join(path.read_text() for path in flows.glob("*.py"))
    assert {name for name in WORK if re.search(rf"(launch|lifecycle|scoring|delivery)\.{name}\(", source)} == set(WORK)
    assert len(WORK) >= 14


@pytest.mark.parametrize("work", [*WORK.values(), *OF_A_RETRAINING.values()], ids=[*WORK, *OF_A_RETRAINING])
def test_an_error_in_any_step_marks_the_flows_run_failed(work: Callable[..., Any], plan: Plain) -> None:
    names = [name for name in inspect.signature(work).parameters if name != "plan"]
    with pytest.raises((KeyError, TypeError, ConfigError)):  # of an incomplete plan
        work(plan, **dict.fromkeys(names))
    assert status(plan) == "FAILED"


def test_an_error_after_the_training_of_a_continued_model_marks_the_flows_run_failed(
    plan: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "gather_corruptions", lambda *_: {})
    monkeypatch.setattr(launch, "pretrain", lambda *_: ({}, "page"))
    with pytest.raises(TypeError):  # of the config's unknown field
        retrain.pretrain({**plan, "way": "continue"}, {}, {})
    assert status(plan) == "FAILED"


@attempt
def status_within(plan: Plain) -> str:
    return status(plan)


@attempt
def end(plan: Plain, error: BaseException | None) -> None:
    if error is None:
        finish(plan)
    else:
        raise error


@pytest.mark.parametrize(
    ("error", "before"),
    [
        (ZeroDivisionError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Interrupted("by SIGTERM"), "KILLED"),
        (None, "FINISHED"),
    ],
)
def test_the_next_attempt_at_a_step_marks_the_run_running_again(
    error: BaseException | None, before: str, plan: Plain
) -> None:
    with pytest.raises(type(error)) if error else contextlib.nullcontext():
        end(plan, error)
    assert status(plan) == before
    assert status_within(plan) == "RUNNING"
    assert status(plan) == "RUNNING"  # only the last step finishes it


def test_a_step_of_a_run_that_never_ended_does_without_mlflow(plan: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "connect", None)  # calling it is a TypeError
    assert attempt(lambda plan: "done")(plan) == "done"


def test_an_interrupted_step_marks_the_run_killed(plan: Plain) -> None:
    with pytest.raises(KeyboardInterrupt), running(plan):
        raise KeyboardInterrupt
    assert status(plan) == "KILLED"


def test_the_error_of_a_step_is_the_one_that_is_seen_where_mlflow_is_away(
    plan: Plain, caplog: pytest.LogCaptureFixture
) -> None:
    plan["mlflow_run_id"] = "0" * 32  # unknown: the server refuses
    with pytest.raises(ZeroDivisionError), running(plan):
        raise ZeroDivisionError
    messages = [record.message.partition(":")[0] for record in caplog.records]
    assert messages == [f"the MLflow run {'0' * 32} is not marked FAILED"]


@pytest.fixture
def broken_inputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise TrackingError("no inputs here")

    monkeypatch.setattr(tracking, "log_input", refuse)
    yield


def test_an_error_in_start_after_the_run_was_opened_marks_it_failed(
    database: str, broken_inputs: None, tmp_path: Path
) -> None:
    plan = {
        "config": {"tracking_uri": database, "experiment": "tests", "store": str(tmp_path)},
        "run_key": "runs/one",
        "config_digest": "d",
        "pathspec": "PretrainFlow/1",
        "corpus": {"address": "a", "digest": "d", "num_bytes": 1, "num_files": 1, "shards": []},
    }
    with pytest.raises(TrackingError, match="no inputs here"):
        planning.open_run(plan, {}, params={})
    assert status(plan) == "FAILED"
