"""Claims about steps/tracking/, on real SQLite files and one real MLflow server on the loopback."""

import contextlib
import functools
import json
import multiprocessing
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import files_no_larger_than
from mlflow.exceptions import MlflowException
from mlflow_server import MlflowServer, lose_first_answer
from registry_toys import client
from toys import MASK, dataset_of, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.errors import ConfigError, Interrupted, TrackingError
from fast_electra_core.methods import MaskedLanguageModel
from steps import tracking
from steps.store import Store
from steps.tracking import connection, runs
from steps.tracking import metrics as tracking_metrics
from steps.training_run import TrainingRun, train_in_run

SPAWN = multiprocessing.get_context("spawn")


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return [(item.step, item.value) for item in client().get_metric_history(run_id, key)]


@pytest.fixture
def parent(database: str) -> str:
    return tracking.start_parent(database, "tests", name="flow", tags={}, params={})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    shutil.copyfile(database.removeprefix("sqlite:///"), server.folder / "server.db")  # its tables are made
    server.start()
    yield server
    server.stop()


# Runs


def check_and_log(uri: str, number: int, barrier: Any, queue: Any) -> None:
    barrier.wait()
    tracking.check_server(uri, "raced")
    parent = tracking.start_parent(uri, "raced", name=f"flow {number}", tags={}, params={})
    with tracking.MetricsLogger(parent, send_every_seconds=0.05) as metrics:
        for step in range(300):
            metrics.log({"step": step, "loss": step + number, "temperature": 2.0})
    queue.put((number, parent))


def test_three_processes_on_one_new_database_at_once_lose_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    barrier, queue = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [SPAWN.Process(target=check_and_log, args=(uri, n, barrier, queue)) for n in range(3)]
    for process in processes:
        process.start()
    runs = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()

    tracking.connect(uri)
    for number, run_id in runs.items():
        assert history(run_id, "loss") == [(step, float(step + number)) for step in range(300)]
    assert len(client().search_experiments(filter_string="name = 'raced'")) == 1


def test_a_process_that_named_no_server_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_connected_uri", None)

    with pytest.raises(TrackingError, match=r"call tracking\.connect first"):
        tracking.finish("some-run")


def test_a_run_whose_creation_was_not_answered_is_there_once(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_first_answer(monkeypatch, "create_run")
    run_id = tracking.start_parent(database, "tests", name="unanswered", tags={"a": "1"}, params={"b": 2})
    (run,) = client().search_runs([client().get_run(run_id).info.experiment_id], "run_name = 'unanswered'")
    assert (run.info.run_id, run.data.tags["a"], run.data.params) == (run_id, "1", {"b": "2"})


def test_a_parent_of_an_unknown_experiment_is_refused(database: str) -> None:
    with pytest.raises(TrackingError, match="experiment 'never' does not exist"):
        tracking.start_parent(database, "never", name="flow", tags={}, params={})


def test_a_retried_step_gets_its_child_run_back(database: str, parent: str) -> None:
    what: dict[str, Any] = {"name": "pretrain", "tags": {"kind": "pretrain"}, "key": "pretrain"}
    first = tracking.start_child(database, parent, params={"learning_rate": 0.1}, **what)
    tracking.finish(first, "FAILED")

    second = tracking.start_child(database, parent, params={"learning_rate": 0.1, "nodes": 2}, **what)

    assert second == first
    run = client().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"learning_rate": "0.1", "nodes": "2"}
    assert run.data.tags["mlflow.parentRunId"] == parent


def test_children_with_other_keys_or_other_parents_are_other_runs(database: str, parent: str) -> None:
    other = tracking.start_parent(database, "tests", name="flow", tags={}, params={})
    runs = {
        tracking.start_child(database, parent, name="finetune", tags={}, params={}, key="cola/0"),
        tracking.start_child(database, parent, name="finetune", tags={}, params={}, key='it\'s "cola"/1'),
        tracking.start_child(database, other, name="finetune", tags={}, params={}, key="cola/0"),
    }

    assert len(runs) == 3


def test_a_parameter_that_changed_between_attempts_keeps_its_value_and_is_tagged(database: str, parent: str) -> None:
    run_id = tracking.start_child(database, parent, name="x", tags={}, params={"seed": 1}, key="changed")
    tracking.start_child(database, parent, name="x", tags={}, params={"seed": 2}, key="changed")

    run = client().get_run(run_id)
    assert run.data.params["seed"] == "1"
    assert run.data.tags["changed.seed"] == "2"


def test_two_processes_that_make_the_same_child_at_once_share_the_older_run(
    database: str, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, older = runs._children, []

    def children_seen_too_early(experiment_id: str, parent_run_id: str, key: str) -> list[Any]:
        if older:
            return real(experiment_id, parent_run_id, key)
        tags = {"mlflow.parentRunId": parent_run_id, tracking.KEY_TAG: key}
        older.append(runs._create_run(experiment_id, "the other process", tags, {}))
        time.sleep(0.01)  # start times are in milliseconds
        return []

    monkeypatch.setattr(runs, "_children", children_seen_too_early)
    run_id = tracking.start_child(database, parent, name="x", tags={}, params={}, key="raced")

    assert run_id == older[0]
    experiment_id = client().get_run(parent).info.experiment_id
    assert [run.info.run_id for run in real(experiment_id, parent, "raced")] == older


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Interrupted("told to stop"), "KILLED"),
    ],
)
def test_a_child_run_ends_with_the_status_of_its_block(
    database: str, parent: str, error: BaseException | None, status: str
) -> None:
    seen = []
    try:
        with tracking.child_run(database, parent, name="x", tags={}, params={}, key=status) as run_id:
            seen.append(run_id)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, Interrupted) as caught:
        assert caught is error

    assert client().get_run(seen[0]).info.status == status


def test_a_run_that_was_deleted_is_named_with_a_move_that_helps(parent: str) -> None:
    move = "Restore it there, or give back the database that had it; in a flow, `resume start` begins anew"
    client().delete_run(parent)
    with pytest.raises(TrackingError, match=f"{parent} must be in the 'active' state.*{move}"):
        tracking.set_tags(parent, {"a": 1})
    with pytest.raises(TrackingError, match=f"'?{'f' * 32}'? not found.*{move}"):
        tracking.set_tags("f" * 32, {"a": 1})


def test_an_unknown_status_is_refused(parent: str) -> None:
    with pytest.raises(ConfigError, match="status must be one of FINISHED, FAILED, KILLED; got 'FINISH'"):
        tracking.finish(parent, "FINISH")


def test_a_run_that_does_not_exist_is_named_at_once(database: str) -> None:
    tracking.connect(database)
    start = time.monotonic()

    with pytest.raises(TrackingError, match="cannot finish the run nowhere"):
        tracking.finish("nowhere")

    assert time.monotonic() - start < 5


def test_artifacts_inputs_and_tags_arrive(parent: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "a.txt").write_text("a")
    tracking.log_dict(parent, {"a": 1}, "a.json")
    tracking.log_text(parent, "<p>", "report.html")
    tracking.log_figure(parent, Figure(), "curves.svg")
    tracking.log_file(parent, tmp_path / "a.txt")
    tracking.set_tags(parent, {"colour": "blue"})
    what: dict[str, Any] = {"name": "wiki", "digest": "d" * 16, "context": "pre-training"}
    for _ in range(2):
        tracking.log_input(parent, source="s3://bucket/wiki", profile={"num_documents": 3}, **what)

    run = client().get_run(parent)
    assert {item.path for item in client().list_artifacts(parent)} == {
        "a.json",
        "report.html",
        "curves.svg",
        "a.txt",
    }
    assert run.data.tags["colour"] == "blue"
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.dataset.source_type) == ("wiki", "d" * 16, "s3")
    assert json.loads(entry.dataset.source) == {"uri": "s3://bucket/wiki"}
    assert json.loads(entry.dataset.profile) == {"num_documents": 3}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "pre-training")]


# Metrics


def test_more_metrics_than_one_batch_holds_are_all_logged(parent: str) -> None:
    tracking.log_metrics(parent, ({"step": step, "a": step, "b": -step} for step in range(1100)))

    assert history(parent, "a") == [(step, float(step)) for step in range(1100)]
    assert history(parent, "b") == [(step, float(-step)) for step in range(1100)]


def test_a_metric_that_has_a_value_at_that_step_keeps_it(parent: str) -> None:
    tracking.log_metrics(parent, [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}])
    tracking.log_metrics(parent, [{"step": 2, "a": 9.0, "b": 9.0}, {"step": 3, "a": 3.0}])

    assert history(parent, "a") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history(parent, "b") == [(2, 9.0)]


def test_of_results_what_comes_out_last_is_what_the_run_says_and_what_stays_is_logged_once(parent: str) -> None:
    for failed in (2.0, 2.0, 0.0):  # two fine-tunings were lost, and done by a resume
        tracking.log_results(parent, {"failed": failed, "mean": 0.5, "untrained": None})

    assert client().get_run(parent).data.metrics == {"failed": 0.0, "mean": 0.5}
    assert sorted(history(parent, "failed")) == [(0, 0.0), (0, 2.0)]
    assert history(parent, "mean") == [(0, 0.5)]


def test_values_that_are_none_are_left_out_and_nan_is_kept(parent: str) -> None:
    tracking.log_metrics(parent, [{"step": 0, "a": None, "b": float("nan")}])

    run = client().get_run(parent)
    assert set(run.data.metrics) == {"b"}
    assert run.data.metrics["b"] != run.data.metrics["b"]


def test_a_resumed_training_logs_only_the_steps_that_are_missing(parent: str) -> None:
    with tracking.MetricsLogger(parent) as metrics:
        for step in (10, 20, 40):  # 30 was lost with the process that had it
            metrics.log({"step": step, "loss": float(step)})
    with tracking.MetricsLogger(parent) as metrics:
        for step in (20, 30, 40, 50):
            metrics.log({"step": step, "loss": step + 0.5, "auc": 0.5})

    assert history(parent, "loss") == [(10, 10.0), (20, 20.0), (40, 40.0), (30, 30.5), (50, 50.5)]
    assert [step for step, _ in history(parent, "auc")] == [20, 30, 40, 50]


def test_flush_brings_rows_to_the_server_before_the_logger_is_closed(parent: str) -> None:
    with tracking.MetricsLogger(parent, send_every_seconds=60.0) as metrics:
        metrics.log({"step": 1, "loss": 2.5})
        assert metrics.flush()
        assert history(parent, "loss") == [(1, 2.5)]


def test_closing_in_the_moment_in_which_the_thread_looks_again_does_not_wait_for_its_next_turn(
    parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = tracking.MetricsLogger(parent, send_every_seconds=60.0)
    clear = metrics._wake.clear

    def closed_before() -> None:
        metrics._stop = True
        metrics._wake.set()
        clear()

    monkeypatch.setattr(metrics._wake, "clear", closed_before)
    metrics._wake.set()
    metrics._thread.join(timeout=10)
    assert not metrics._thread.is_alive()


def test_rows_of_an_unknown_run_end_in_the_spill_file_at_once(database: str, tmp_path: Path) -> None:
    tracking.connect(database)
    metrics = tracking.MetricsLogger("nowhere", spill=tmp_path / "x" / "spill.jsonl")
    metrics.log({"step": 1, "loss": 2.0})
    start = time.monotonic()

    with pytest.raises(TrackingError, match=r"no metrics of run nowhere .* 1 values are in .*spill\.jsonl"):
        metrics.close()

    assert time.monotonic() - start < 10


def test_a_refusal_that_is_over_does_not_fail_the_end(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One 403 of a proxy in the middle of a training, and all is well since."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    refusals, really = [MlflowException("403", PERMISSION_DENIED)], tracking_metrics.send_values

    def send(*arguments: Any) -> None:
        if refusals:
            raise refusals.pop()
        really(*arguments)

    monkeypatch.setattr(tracking_metrics, "send_values", send)
    logger = tracking.MetricsLogger(parent, spill=tmp_path / "spill.jsonl", send_every_seconds=0.05)
    logger.log({"step": 1, "loss": 1.0})
    while refusals:
        time.sleep(0.01)
    logger.log({"step": 2, "loss": 2.0})
    logger.close()
    assert history(parent, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_full_disk_does_not_replace_the_error_on_its_way_out(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    tracking.connect(database)
    monkeypatch.setattr(tracking_metrics, "_write_values", fill)
    with pytest.raises(ZeroDivisionError), tracking.MetricsLogger("nowhere", spill=tmp_path / "spill.jsonl") as logger:
        logger.log({"step": 1, "loss": 1.0})  # of a run that the server does not know
        raise ZeroDivisionError
    assert "1 unsent metrics could not be kept" in caplog.text and "No space left" in caplog.text


def test_a_download_onto_a_full_disk_is_said_in_a_line_not_as_the_servers_fault(database: str) -> None:
    """MLflow lists every file, and means an HTTP server's passing trouble by the same code."""
    line = "[Errno 28] No space left on device: '/mlartifacts/config.json' -> '/store/config.json'"
    files = f"##### File config.json #####\n{line}\n##### File model.safetensors #####\n{line}"

    def fetch() -> None:
        raise MlflowException(f"The following failures occurred while downloading one or more artifacts:\n{files}")

    with pytest.raises(TrackingError) as caught:
        connection.ask("download models:/fast-electra/1", fetch)
    said = f"cannot download models:/fast-electra/1: {line}. Free disk space, here or there, and try again"
    assert str(caught.value) == said


def no_more_disk(database: str) -> contextlib.AbstractContextManager[None]:
    """The database cannot grow beyond what it has now."""
    return files_no_larger_than(Path(database.removeprefix("sqlite:///")).stat().st_size)


def test_a_database_on_a_full_disk_is_said_in_a_line_and_without_stacks_of_calls(
    database: str, parent: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite's words for a write that the system refuses: disk I/O error, or database or disk is full."""
    rows = [{"step": step, "loss": 1.0} for step in range(5000)]
    values = tracking_metrics.to_values(rows[:1000])
    full = r"\(sqlite3\.OperationalError\) (disk I/O error|database or disk is full)"
    tries = iter([no_more_disk(database), contextlib.nullcontext()])

    def send() -> None:
        with next(tries):
            tracking_metrics.send_values(parent, values)

    with no_more_disk(database):
        logger = tracking.MetricsLogger(parent, spill=tmp_path / "spill", close_wait_seconds=3.0)
        for row in rows:
            logger.log(row)
        with pytest.raises(TrackingError, match=rf"took no metrics of run {parent} for 3 s \({full}\); 5000 values"):
            logger.close()
        with pytest.raises(TrackingError, match=rf"says: {full} \(after \d+ s\)\. Check"):
            connection.ask("log metrics", tracking_metrics.send_values, parent, values, patience_seconds=0)
    connection.ask("log metrics", send)
    assert re.search(rf"is away \({full}\); to log metrics is tried for 150 s more", caplog.text)
    assert "Traceback" not in caplog.text and "INSERT" not in caplog.text
    assert len(history(parent, "loss")) == 1000


def test_an_error_in_the_block_is_not_replaced_by_the_loggers_own(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking.connect(database)
    spill = tmp_path / "spill.jsonl"
    with pytest.raises(ZeroDivisionError), tracking.MetricsLogger("nowhere", spill=spill) as metrics:
        metrics.log({"step": 1, "loss": 1 / 1})
        metrics.log({"step": 2, "loss": 1 / 0})

    assert "1 unsent metrics are in" in caplog.text
    assert len(spill.read_text().splitlines()) == 1


def test_a_locked_database_is_waited_for(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    real: Callable[..., None] = tracking_metrics.send_values
    answers = iter([MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)])

    def locked_once(*args: Any) -> None:
        for error in answers:
            raise error
        real(*args)

    monkeypatch.setattr(tracking_metrics, "send_values", locked_once)
    tracking.log_metrics(parent, [{"step": 1, "a": 1.0}])

    assert history(parent, "a") == [(1, 1.0)]


def test_the_end_of_a_run_adds_no_address_of_its_own_to_a_steps_log(
    server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.check_server(server.uri, "quiet")
    tracking.finish(tracking.start_parent(server.uri, "quiet", name="flow", tags={}, params={}))
    assert capsys.readouterr().out == ""


def test_metrics_survive_a_server_that_is_gone_for_a_while(server: MlflowServer, tmp_path: Path) -> None:
    tracking.check_server(server.uri, "served")
    parent = tracking.start_parent(server.uri, "served", name="flow", tags={}, params={"a": 1})
    child = tracking.start_child(server.uri, parent, name="x", tags={}, params={}, key="x")
    assert tracking.start_child(server.uri, parent, name="x", tags={}, params={}, key="x") == child
    spill = tmp_path / "spill.jsonl"

    metrics = tracking.MetricsLogger(child, spill=spill, send_every_seconds=0.05, close_wait_seconds=1.0)
    metrics.log({"step": 1, "loss": 1.0})
    assert metrics.flush(30.0)
    server.pause()  # requests reach it and are answered late: the sender does not know what became of them
    start = time.monotonic()
    for step in range(2, 50):
        metrics.log({"step": step, "loss": float(step)})
    assert time.monotonic() - start < 5.0  # training did not wait: one request alone would have taken longer
    with pytest.raises(TrackingError, match=r"took no metrics .* 48 values are in .*spill\.jsonl"):
        metrics.close()
    assert len(spill.read_text().splitlines()) == 48
    server.resume()
    deadline = time.monotonic() + 10.0  # what is on its way arrives before the next attempt asks what is there
    while len(history(child, "loss")) < 49 and time.monotonic() < deadline:
        time.sleep(0.1)

    with tracking.MetricsLogger(child, spill=spill, send_every_seconds=0.05) as again:
        for step in range(45, 60):  # training resumed from a checkpoint at step 44
            again.log({"step": step, "loss": float(step)})

    assert history(child, "loss") == [(step, float(step)) for step in range(1, 60)]
    assert not spill.exists()


class Watched(MaskedLanguageModel):
    """Tells on_step of each step, by how often it was asked for a loss, before it is done."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        super().__init__(ElectraForMaskedLM(electra_config(30)), mask_token_id=MASK)
        self._on_step, self._num_steps = on_step, 0

    def loss(self, *arguments: Any, **more: Any) -> Any:
        self._num_steps += 1
        self._on_step(self._num_steps)
        return super().loss(*arguments, **more)


@pytest.fixture
def served_training(server: MlflowServer, tmp_path: Path) -> tuple[str, Callable[..., dict[str, Any]]]:
    """A run at the server, and what trains for it from the newest checkpoint on: 20 steps, with a row for each."""
    tracking.check_server(server.uri, "served")
    run = TrainingRun(
        store=Store(str(tmp_path / "store")), run_key="runs/1", shard_keys=[], tokenizer_key="",
        mlflow_run_id=tracking.start_parent(server.uri, "served", name="flow", tags={}, params={}),
    )  # fmt: skip
    dataset = dataset_of(tmp_path / "shard", [np.arange(5, 29)] * 4, vocab_size=30, sequence_length=10)
    config = AuxiliaryConfig(
        num_steps=20, batch_size=4, sequence_length=10, log_every_steps=1, checkpoint_every_steps=5, precision="fp32"
    )

    def attempt(on_step: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
        return train_in_run(Watched(on_step), dataset, config, run, evaluate=dict, label="test")

    return run.mlflow_run_id, attempt


def test_training_goes_on_without_its_server_and_the_metrics_arrive_when_it_is_back(
    server: MlflowServer, served_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when it has the first rows, started again four steps later; a step takes a fifth of a second."""
    run_id, attempt = served_training
    patient = functools.partial(tracking.MetricsLogger, close_wait_seconds=300.0)  # on a busy machine it starts late
    monkeypatch.setattr(tracking, "MetricsLogger", patient)
    back = threading.Thread(target=server.start)

    def on_step(step: int) -> None:
        time.sleep(0.2)
        if step == 14:
            assert history(run_id, "loss")
            server.stop()
        if step == 18:
            back.start()

    result = attempt(on_step)
    back.join()
    assert result["seconds"] < 15  # none of the steps, 4 s in all, has waited for the server
    assert history(run_id, "loss") == [
        (row["step"], pytest.approx(row["loss"])) for row in result["curve"] if "loss" in row
    ]
    assert [row["step"] for row in result["curve"]] == list(range(1, 21))


def test_a_server_that_is_back_only_behind_the_end_of_a_resumed_training_gets_each_row_once(
    server: MlflowServer, served_training: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in step 8; in step 13 the training dies too, goes on without it from step 10, and ends. What it left
    unsent is then in a file and in its curve. The server hears neither of the error, which comes out all the same."""
    run_id, attempt = served_training
    limits = {"send_every_seconds": 0.02, "close_wait_seconds": 0.2}
    monkeypatch.setattr(
        tracking, "MetricsLogger", lambda *args, **more: tracking_metrics.MetricsLogger(*args, **more, **limits)
    )
    monkeypatch.setattr(runs, "_LAST_WORD_SECONDS", 0.0)

    def on_step(step: int) -> None:
        if step == 8:
            deadline = time.monotonic() + 30
            while len(history(run_id, "loss")) < 7 and time.monotonic() < deadline:
                time.sleep(0.02)
            server.stop()
        if step == 13:
            raise ZeroDivisionError

    what = {"name": "x", "tags": {}, "params": {}, "key": "x"}
    with pytest.raises(ZeroDivisionError), tracking.child_run(server.uri, run_id, **what) as child:
        attempt(on_step)
    assert f"the MLflow run {child} is not marked FAILED" in caplog.text
    with pytest.raises(TrackingError, match=r"took no metrics .* Start the server and run the step again"):
        attempt()
    for thread in threading.enumerate():  # they would have ended with their process
        if thread.name == "metrics":
            thread.join()
    server.start()
    limits["close_wait_seconds"] = 60.0
    result = attempt()
    assert result["resumed_from"] == 20
    assert [step for step, _ in history(run_id, "loss")] == list(range(1, 21))
    assert history(run_id, "loss") == [(row["step"], pytest.approx(row["loss"])) for row in result["curve"]]


def test_a_batch_whose_answer_was_lost_is_not_stored_twice(server: MlflowServer, tmp_path: Path) -> None:
    tracking.check_server(server.uri, "served")
    run_id = tracking.start_parent(server.uri, "served", name="flow", tags={}, params={})
    values = tracking_metrics.to_values([{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}])

    tracking_metrics.send_values(run_id, values)
    tracking_metrics.send_values(run_id, values)

    assert [step for step, _ in history(run_id, "loss")] == [1, 2]


def test_a_stored_object_comes_back_and_a_missing_or_damaged_one_is_told_apart(parent: str) -> None:
    tracking.log_dict(parent, {"files": [1, 2]}, "made/corpus.json")
    tracking.log_text(parent, "{cut sho", "cut.json")
    tracking.log_dict(parent, [1, 2], "list.json")
    assert tracking.load_dict(parent, "made/corpus.json") == {"files": [1, 2]}
    assert tracking.load_dict(parent, "corpus.json") is None
    assert tracking.load_dict("0" * 32, "corpus.json") is None  # a run that was purged
    with pytest.raises(TrackingError, match=r"cut\.json of the MLflow run .* is damaged"):
        tracking.load_dict(parent, "cut.json")
    with pytest.raises(TrackingError, match=r"list\.json of the MLflow run .* holds no object"):
        tracking.load_dict(parent, "list.json")
