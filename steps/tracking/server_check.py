"""What a flow or a command asks of the tracking server before anything costs: whether it is there and can do what will
be needed."""

import contextlib
import os
import re
import socket
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from fast_electra_core.errors import TrackingError
from steps.tracking.connection import (
    absolute_uri,
    artifacts_folder,
    ask,
    connect,
    connected_uri,
    create_once,
    denied,
    mlflow_client,
    sqlite_path,
)

_CHECK_SECONDS = 5  # for one answer
_OLDEST_RELEASE = 3
"""The first with LoggedModels."""


def check_server(tracking_uri: str, experiment: str) -> None:
    """The server answers, is recent enough, can be written to, and the experiment exists.

    Where it was missing it is created; beside an SQLite file its artifacts go to the folder `mlartifacts/`.

    Raises:
        TrackingError: within seconds, when any of that is not so.
    """
    uri = absolute_uri(tracking_uri)
    artifacts = artifacts_folder(uri)
    if artifacts:
        _check_sqlite(sqlite_path(uri), artifacts)
    elif not uri.startswith("http"):
        _check_socket(uri)
    lock = _lock_beside(sqlite_path(uri)) if artifacts else contextlib.nullcontext()
    connect(uri)  # outside of the limits: it sets those that hold from here on
    with _without_patience(), lock:
        _create_experiment(experiment, str(artifacts) if artifacts else None)
        if uri.startswith("http"):
            _check_release(uri)


def connect_existing(tracking_uri: str) -> str:
    """As connect, for commands, to which flows have left something to work on: a database file must be there already,
    a server must answer. Nothing is made at it.

    Raises:
        TrackingError: within seconds, where it is not, or may not be read.
    """
    uri = absolute_uri(tracking_uri)
    if uri.startswith("sqlite:"):
        _check_file(sqlite_path(uri))
    elif not uri.startswith("http"):
        _check_socket(uri)
    connect(uri)
    if uri.startswith("http"):
        with _without_patience():
            _check_answer()
    return uri


def _check_file(path: Path) -> None:
    """The file can be read and has MLflow's tables, which MLflow would make in any other."""
    hint = "Go to the folder in which the flows ran, or give --tracking_uri"
    try:
        with path.open("rb"):
            pass
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'experiments'").fetchone()
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        raise TrackingError(f"no MLflow database can be read at {path}: {why}. {hint}") from error
    except sqlite3.Error as error:
        raise TrackingError(f"no MLflow database can be read at {path}: {error}. {hint}") from error
    if found == (0,):
        raise TrackingError(f"the database {path} has nothing of MLflow's. {hint}")


def _check_answer() -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client().search_registered_models(max_results=1)
    except MlflowException as error:
        if hint := denied(error):
            raise TrackingError(f"MLflow at {connected_uri()} refuses: {error}. {hint}") from error
        raise TrackingError(
            f"no MLflow server answers at {connected_uri()} (tried for {_CHECK_SECONDS} s: {error}); start it with "
            "`make ui` in the folder in which the flows ran, or give --tracking_uri"
        ) from error


def _check_sqlite(path: Path, artifacts: Path) -> None:
    """The database file can be written to; the folder for artifacts is made if missing."""
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"cannot write to the MLflow database {path} ({error}); choose another file: "
            "--tracking_uri sqlite:////FOLDER/mlflow.db"
        ) from error


@contextlib.contextmanager
def _lock_beside(path: Path) -> Iterator[None]:
    """One process at a time creates the tables: MLflow lets two migrate a new file at once, and fails."""
    import fcntl

    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_socket(uri: str) -> None:
    parts = urllib.parse.urlsplit(uri)
    port = parts.port or {"postgresql": 5432, "mysql": 3306, "mssql": 1433}[parts.scheme.partition("+")[0]]
    try:
        socket.create_connection((parts.hostname or "localhost", port), timeout=_CHECK_SECONDS).close()
    except OSError as error:
        raise TrackingError(
            f"no database answers at {parts.hostname}:{port} ({error}; tried for {_CHECK_SECONDS} s); "
            "start it or give another --tracking_uri"
        ) from error


def _create_experiment(experiment: str, location: str | None) -> None:
    from mlflow.exceptions import MlflowException

    client = mlflow_client()
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            create_once(client.create_experiment, experiment, artifact_location=location)
    except MlflowException as error:
        if hint := denied(error):
            raise TrackingError(f"MLflow at {connected_uri()} refuses: {error}. {hint}") from error
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise TrackingError(
                f"MLflow at {connected_uri()} refuses the experiment {experiment!r}: {error}; give another --experiment"
            ) from error
        raise TrackingError(
            f"no MLflow server answers at {connected_uri()} (tried to open the experiment {experiment!r} for "
            f"{_CHECK_SECONDS} s: {error}); start it, or give another --tracking_uri, e.g. sqlite:///mlflow.db"
        ) from error
    if found is not None and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {experiment!r} at {connected_uri()} was deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}) or give another --experiment"
        )


def _check_release(uri: str) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = ask("ask for the server's release", http_request, get_default_host_creds(uri), "/version", "GET")
    found = re.match(r"(\d+)\.\d+", answer.text)
    if answer.status_code != 200 or found is None:  # what speaks MLflow's protocol need not be MLflow
        return
    if int(found.group(1)) < _OLDEST_RELEASE:
        raise TrackingError(
            f"the server at {uri} is MLflow {answer.text.strip()}, which knows no logged models: at least "
            f"{_OLDEST_RELEASE}.0 is needed. Stop it, keep a copy of its database, and upgrade both: pip install "
            "--upgrade mlflow, then mlflow db upgrade DATABASE_URI"
        )


@contextlib.contextmanager
def _without_patience() -> Iterator[None]:
    """A request is made once, and given up after _CHECK_SECONDS."""
    values = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(_CHECK_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
