"""Which server this process talks to, and how long a call is repeated."""

import functools
import logging
import os
import re
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fast_electra_core.errors import TrackingError, full_disk

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
PATIENCE_SECONDS = 150.0
"""How long a call is repeated while the server is away or the database locked: a restart of two minutes, and some."""
_logger = logging.getLogger(__name__)
_DENIED = (
    "Give an account that may: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
    "environment"
)
_DELETED = "Restore it there, or give back the database that had it; in a flow, `resume start` begins anew"
_connected_uri: str | None = None  # one process, one server: MLflow itself keeps this per process too


def connect(tracking_uri: str) -> str:
    """From here on this process talks to tracking_uri; returned absolute, so that another folder can use it.

    Raises:
        TrackingError: the URI names no kind of server that is known.
    """
    global _connected_uri
    uri = absolute_uri(tracking_uri)
    if uri != _connected_uri:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        # MLflow's own retries block for minutes inside one call; `ask` and MetricsLogger repeat instead.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # table creation; errors still show
        # Every try of what is repeated would show a stack of calls, and is raised as an error of ours in the end.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        _connected_uri = uri
    return uri


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
        if not uri.startswith("http"):
            _check_schema(uri)
        return MlflowClient(uri, registry_uri=uri)
    except MlflowException as error:
        raise TrackingError(f"MLflow cannot open {uri}: {error}") from error
    except SQLAlchemyError as error:
        raise TrackingError(f"{uri} cannot be used as MLflow's database: {error.args[0]}") from error


@functools.cache
def _check_schema(uri: str) -> None:
    """A database has no tables yet, or those of this release of MLflow. An older one that lacks a table MLflow brings
    up to date unasked, and whoever else uses it with the older release is locked out.

    Raises:
        TrackingError: it is of another release; the message says what to do.
    """
    import mlflow.store.db_migrations
    import sqlalchemy
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    migrations = ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent))
    if found in (None, migrations.get_current_head()):
        return
    if found in [each.revision for each in migrations.walk_revisions()]:
        raise TrackingError(
            f"the database {uri} was made by an older MLflow. Keep a copy of it, then bring it up to date: "
            f"mlflow db upgrade {uri}"
        )
    raise TrackingError(
        f"the database {uri} was made by a newer MLflow than the {mlflow.__version__} here: install the release that "
        "made it, or give another --tracking_uri"
    )


def denied(error: Any) -> str:
    """What to do where the server refuses on grounds of who is asking; empty where that is not why."""
    return _DENIED if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED") else ""


def _deleted(error: Any) -> str:
    """What to do where a run is no longer there, for which MLflow has two words; empty where that is not why."""
    is_gone = error.error_code == "RESOURCE_DOES_NOT_EXIST" or "Current state is deleted" in str(error)
    return _DELETED if is_gone else ""


def ask(
    what: str,
    function: Callable[..., Any],
    *args: Any,
    patience_seconds: float = PATIENCE_SECONDS,
    **kwargs: Any,
) -> Any:
    """function(*args, **kwargs), repeated while the server is away for at most patience_seconds; that is said once.

    Raises:
        TrackingError: it is away for longer, or refuses; a disk is full.
    """
    from mlflow.exceptions import MlflowException

    start, delay, is_said = time.monotonic(), 0.5, False
    while True:
        try:
            return function(*args, **kwargs)
        except MlflowException as error:
            if full := full_disk(error):  # no matter of patience, and of a download it is said once for each file
                raise TrackingError(f"cannot {what}: {full}. Free disk space, here or there, and try again") from error
            waited = time.monotonic() - start
            if not is_passing(error) or waited + delay > patience_seconds:
                hint = (
                    denied(error)
                    or _deleted(error)
                    or "Check that the server runs and may be written to, then run `resume`"
                )
                raise TrackingError(
                    f"cannot {what}: MLflow at {connected_uri()} says: {in_short(error)} (after {waited:.0f} s). {hint}"
                ) from error
            if not is_said:
                _logger.warning(
                    "MLflow at %s is away (%s); to %s is tried for %.0f s more",
                    connected_uri(), in_short(error), what, patience_seconds,
                )  # fmt: skip
                is_said = True
        time.sleep(delay)
        delay = min(2 * delay, 10.0)


def ask_for(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """`ask` for something that may have been deleted: None where the server says that it is not there."""
    from mlflow.exceptions import MlflowException

    def found() -> Any:
        try:
            return function(*args)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    return ask(what, found)


def in_short(error: Exception) -> str:
    """What an error says; of a database's without the statement, its values, and what SQLAlchemy says of itself."""
    text, *rest = re.split(r"\n(?:\[SQL: |\(Background on this error)", str(error), maxsplit=1)
    return text.rpartition("\n")[2] if rest else text


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


def absolute_uri(tracking_uri: str) -> str:
    """The URI as it reads from any folder.

    Raises:
        TrackingError: it names no kind of server that is known, or its host or port cannot be.
    """
    scheme = tracking_uri.partition("://")[0].partition("+")[0]
    if "://" not in tracking_uri or scheme not in _SCHEMES:
        raise TrackingError(
            f"tracking_uri must start with one of {', '.join(f'{s}://' for s in _SCHEMES)}; "
            f"got {tracking_uri!r}. For a local file write sqlite:///mlflow.db"
        )
    if scheme == "sqlite":
        return f"sqlite:///{sqlite_path(tracking_uri)}"
    try:
        _ = urllib.parse.urlsplit(tracking_uri).port  # which reads it
    except ValueError as error:
        place = tracking_uri.rpartition("@")[2]  # before it may stand a password
        raise TrackingError(
            f"tracking_uri must be SCHEME://HOST:PORT/..., the port from 0 to 65535, IPv6 in brackets; got {place!r}"
        ) from error
    return tracking_uri.rstrip("/")


def artifacts_folder(tracking_uri: str) -> Path | None:
    """Where MLflow's artifacts lie on this machine: beside an SQLite file; None of a server, which has its own place.

    Raises:
        TrackingError: as absolute_uri.
    """
    uri = absolute_uri(tracking_uri)
    return sqlite_path(uri).parent / "mlartifacts" if uri.startswith("sqlite:") else None


def sqlite_path(uri: str) -> Path:
    """The file that an SQLite URI names.

    Raises:
        TrackingError: it names none, or one in a folder that MLflow would look for elsewhere.
    """
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or not path or path == ":memory:":
        raise TrackingError(
            f"tracking_uri must name a file, as in sqlite:///mlflow.db (steps are separate processes); got {uri!r}"
        )
    absolute = Path(path).absolute()
    if taken := re.search(r"%[0-9a-fA-F]{2}|\?", str(absolute)):
        raise TrackingError(
            f"MLflow's database cannot lie at {absolute}: MLflow reads {taken.group()!r} in a path as something else. "
            "Rename the folder, or give another: --tracking_uri sqlite:////FOLDER/mlflow.db"
        )
    return absolute
