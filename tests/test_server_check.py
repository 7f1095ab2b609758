"""Claims about steps/tracking/server_check.py: what a flow is told about its tracking server before anything costs."""

import contextlib
import json
import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from conftest import answering
from registry_toys import client

from fast_electra_core.errors import TrackingError
from steps import tracking
from steps.tracking import server_check


def test_check_server_creates_database_experiment_and_artifact_folder_beside_it(tmp_path: Path) -> None:
    tracking.check_server(f"sqlite:///{tmp_path}/new/mlflow.db", "tests")

    assert client().get_experiment_by_name("tests").artifact_location == str(tmp_path / "new" / "mlartifacts")
    assert (tmp_path / "new" / "mlartifacts").is_dir()


def test_a_relative_database_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert tracking.connect("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_database_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(TrackingError, match=r"cannot write to the MLflow database .*file/mlflow\.db"):
        tracking.check_server(f"sqlite:///{tmp_path}/file/mlflow.db", "tests")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("plain text, longer than a header of sixteen bytes " * 30)

    with pytest.raises(TrackingError, match="file is not a database"):
        tracking.check_server(f"sqlite:///{tmp_path}/notes.txt", "tests")


@pytest.mark.parametrize("uri", ["mlruns", "ftp://host/x", "file:///tmp/mlruns"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"tracking_uri must start with one of http://.* got"):
        tracking.check_server(uri, "tests")


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match="must name a file"):
        tracking.check_server(uri, "tests")


@pytest.mark.parametrize("folder", ["my%20project", "what?"])
def test_a_database_in_a_folder_whose_name_mlflow_would_read_otherwise_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)

    with pytest.raises(TrackingError, match=r"cannot lie at .*mlflow\.db.*--tracking_uri sqlite:////FOLDER/mlflow\.db"):
        tracking.check_server("sqlite:///mlflow.db", "tests")
    assert [path.name for path in tmp_path.rglob("*")] == [folder]


@pytest.mark.parametrize(
    "uri", ["postgresql://host:99999/db", "postgresql://host:port/db", "http://host:99999", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"tracking_uri must be SCHEME://HOST:PORT.*0 to 65535.*got '"):
        tracking.check_server(uri, "tests")


def test_an_experiment_s_name_that_cannot_be_is_said_to_be_that(database: str) -> None:
    with pytest.raises(TrackingError, match=r"refuses the experiment 'xxx.*give another --experiment$") as refusal:
        tracking.check_server(database, "x" * 600)
    assert "no MLflow server answers" not in str(refusal.value)


def test_a_server_that_is_not_there_is_refused_in_seconds() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens: connections are refused
        start = time.monotonic()
        with pytest.raises(TrackingError, match=r"no MLflow server answers at http://127\.0\.0\.1.*tracking_uri"):
            tracking.check_server(f"http://127.0.0.1:{probe.getsockname()[1]}", "tests")
    assert time.monotonic() - start < 10


def test_a_server_that_accepts_and_stays_silent_is_refused_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_check, "_CHECK_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(TrackingError, match="no MLflow server answers"):
            tracking.check_server(f"http://127.0.0.1:{silent.getsockname()[1]}", "tests")
    assert time.monotonic() - start < 5


def test_a_command_is_told_as_soon_that_a_server_is_silent_and_asks_nothing_to_be_made_of_one_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_check, "_CHECK_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(TrackingError, match=r"no MLflow server answers at .* start it with `make ui`"):
            tracking.connect_existing(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 5
    asked: list[str] = []

    def answer(path: str) -> tuple[int, str]:  # of a GET: any other method is refused
        asked.append(path.partition("?")[0].rpartition("/mlflow/")[2])
        return 200, "{}"

    with answering(answer) as address:
        assert tracking.connect_existing(address) == address
    assert asked == ["registered-models/search"]


@pytest.mark.parametrize("content", ["nothing", "tables of another program", "words"])
def test_a_command_makes_no_tables_in_a_file_that_is_not_mlflows(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.db"
    path.write_text("words that are no database" if content == "words" else "")
    if content == "tables of another program":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE films (title TEXT)")
    before = path.read_bytes()
    said = "file is not a database" if content == "words" else "has nothing of MLflow's"
    with pytest.raises(TrackingError, match=f"{said}. Go to the folder in which the flows ran"):
        tracking.connect_existing(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_database_server_that_is_not_there_is_refused_in_seconds() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(TrackingError, match="no database answers at 127"):
            tracking.check_server(f"postgresql://u:p@127.0.0.1:{probe.getsockname()[1]}/mlflow", "tests")
        with pytest.raises(TrackingError, match="no database answers at 127"):
            tracking.connect_existing(f"postgresql://u:p@127.0.0.1:{probe.getsockname()[1]}/mlflow")


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(database: str) -> None:
    tracking.check_server(database, "gone")
    client().delete_experiment(client().get_experiment_by_name("gone").experiment_id)

    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        tracking.check_server(database, "gone")


def test_the_check_leaves_the_request_limits_of_the_process_as_they_were(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)

    tracking.check_server(database, "tests")

    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_a_flow_that_may_not_use_the_server_is_told_so_and_not_that_nobody_answers(denying_server: str) -> None:
    with pytest.raises(TrackingError, match=r"refuses: .*Permission denied.* MLFLOW_TRACKING_USERNAME and"):
        tracking.check_server(denying_server, "tests")


@pytest.mark.parametrize(("release", "is_refused"), [("2.22.5", True), ("3.0.0", False), ("<html>", False)])
def test_a_server_that_is_too_old_to_hold_logged_models_is_refused(release: str, is_refused: bool) -> None:
    experiment = {"experiment_id": "1", "name": "tests", "artifact_location": "x", "lifecycle_stage": "active"}

    def answer(path: str) -> tuple[int, str]:
        return (200, release) if path == "/version" else (200, json.dumps({"experiment": experiment}))

    refused = pytest.raises(TrackingError, match=r"is MLflow 2\.22\.5, which knows no logged models: at least 3\.0 is")
    with answering(answer) as address, refused if is_refused else contextlib.nullcontext():
        tracking.check_server(address, "tests")
