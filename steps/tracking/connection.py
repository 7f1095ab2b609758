"""Which server this process talks to, whether it is there, and how long a call is repeated."""

import contextlib
import logging
import os
import socket
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.errors import TrackingError

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_CHECK_SECONDS = 5  # for one answer of the server, when it is only asked whether it is there
_PATIENCE_SECONDS = 60.0  # how long a call is repeated while the server is away or the database locked
_DENIED = (
    "Give an account that may: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
    "environment"
)
_connected_uri: str | None = None  # one process, one server: MLflow itself keeps this per process too


def connect(tracking_uri: str) -> str:
    """From here on this process talks to tracking_uri; returned absolute, so that another folder can use it.

    Raises:
        TrackingError: the URI names no kind of server that is known.
    """
    global _connected_uri
    uri = _absolute(tracking_uri)
    if uri != _connected_uri:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # MLflow's own retries block for minutes inside one call; `ask` and MetricsLogger repeat instead.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow

        for name in ("alembic", "mlflow.store.db.utils"):  # table creation; errors still show
            logging.getLogger(name).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        _connected_uri = uri
    return uri


def connect_existing(tracking_uri: str) -> str:
    """As connect, for those who only read: a database file must be there already.

    Raises:
        TrackingError: it is not, or cannot be read.
    """
    uri = _absolute(tracking_uri)
    if uri.startswith("sqlite:"):
        path = _sqlite_path(uri)
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
            raise TrackingError(
                f"no MLflow database can be read at {path}: {why}. Go to the folder in which the flows ran, or give "
                "--tracking_uri"
            ) from error
    return connect(tracking_uri)


def check_server(tracking_uri: str, experiment: str) -> None:
    """The server answers, can be written to, and the experiment exists.

    Where it was missing it is created; beside an SQLite file its artifacts go to the folder `mlartifacts/`.

    Raises:
        TrackingError: within seconds, when any of that is not so.
    """
    uri = _absolute(tracking_uri)
    location: str | None = None
    if uri.startswith("sqlite:"):
        location = _check_sqlite(_sqlite_path(uri))
    elif not uri.startswith("http"):
        _check_socket(uri)
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(_CHECK_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    lock = _lock_beside(_sqlite_path(uri)) if location else contextlib.nullcontext()
    with _environment(limits), lock:
        connect(uri)
        _create_experiment(experiment, location)


def connected_uri() -> str:
    """Where `connect` has connected this process to.

    Raises:
        TrackingError: to nothing yet.
    """
    if _connected_uri is None:
        raise TrackingError("this process is connected to no MLflow server; call tracking.connect first")
    return _connected_uri


def mlflow_client() -> Any:
    """A client of that server.

    Raises:
        TrackingError: no server was named; or a database of another release of MLflow, or of something else.
    """
    uri = connected_uri()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return MlflowClient(uri, registry_uri=uri)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise TrackingError(f"MLflow cannot open {uri}: {error}") from error
        raise TrackingError(
            f"the database {uri} was made by an older MLflow. Keep a copy of it, then bring it up to date: "
            f"mlflow db upgrade {uri}"
        ) from error
    except SQLAlchemyError as error:
        raise TrackingError(f"{uri} cannot be used as MLflow's database: {error.args[0]}") from error


def ask(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), repeated while the server is away for at most _PATIENCE_SECONDS."""
    from mlflow.exceptions import MlflowException

    start, delay = time.monotonic(), 0.5
    while True:
        try:
            return function(*args, **kwargs)
        except MlflowException as error:
            waited = time.monotonic() - start
            if not is_passing(error) or waited + delay > _PATIENCE_SECONDS:
                is_denied = error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED")
                hint = _DENIED if is_denied else "Check that the server runs and may be written to, then run `resume`"
                raise TrackingError(
                    f"cannot {what}: MLflow at {connected_uri()} says: {error} (after {waited:.0f} s). {hint}"
                ) from error
        time.sleep(delay)
        delay = min(2 * delay, 10.0)


def is_passing(error: Any) -> bool:
    """Whether to try again. MLflow calls an HTTP server that is away an INTERNAL_ERROR."""
    away = connected_uri().startswith("http") and error.error_code == "INTERNAL_ERROR"
    return away or error.error_code in (
        "TEMPORARILY_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "REQUEST_LIMIT_EXCEEDED",
    )


def create_once(function: Callable[..., Any], name: str, **kwargs: Any) -> None:
    """function(name, **kwargs), whether or not another process is quicker to create the same thing."""
    from mlflow.exceptions import MlflowException

    try:
        function(name, **kwargs)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _absolute(tracking_uri: str) -> str:
    scheme = tracking_uri.partition("://")[0].partition("+")[0]
    if "://" not in tracking_uri or scheme not in _SCHEMES:
        raise TrackingError(
            f"tracking_uri must start with one of {', '.join(f'{s}://' for s in _SCHEMES)}; "
            f"got {tracking_uri!r}. For a local file write sqlite:///mlflow.db"
        )
    return f"sqlite:///{_sqlite_path(tracking_uri)}" if scheme == "sqlite" else tracking_uri.rstrip("/")


def _sqlite_path(uri: str) -> Path:
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or not path or path == ":memory:":
        raise TrackingError(
            f"tracking_uri must name a file, as in sqlite:///mlflow.db (steps are separate processes); got {uri!r}"
        )
    return Path(path).absolute()


def _check_sqlite(path: Path) -> str:
    """The database file can be written to; returns the folder for artifacts beside it, made if missing."""
    artifacts = path.parent / "mlartifacts"
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
    return str(artifacts)


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
        raise TrackingError(
            f"no MLflow server answers at {connected_uri()} (tried to open the experiment {experiment!r} for "
            f"{_CHECK_SECONDS} s: {error}); start it, or give another --tracking_uri, e.g. sqlite:///mlflow.db"
        ) from error
    if found is not None and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {experiment!r} at {connected_uri()} was deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}) or give another --experiment"
        )


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
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
