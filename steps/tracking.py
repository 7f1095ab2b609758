"""MLflow behind plain functions that take run ids: the only file that imports it.

A step is its own process, and several may write at once: a process says once where the server is (`connect`,
or any function that takes a tracking_uri), after which a run id is all that is needed. Whatever a retried or
resumed step does again leaves one run, one value per metric and step, and one model version.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import AuxiliaryError, TrackingError, check_choice

KEY_TAG = "fast_electra.key"
_PARENT_TAG = "mlflow.parentRunId"
_STATUSES = ("FINISHED", "FAILED", "KILLED")
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_CHECK_SECONDS = 5  # for one answer of the server, when it is only asked whether it is there
_PATIENCE_SECONDS = 60.0  # how long a call is repeated while the server is away or the database locked
_MAX_METRICS = 1000  # MLflow refuses more in one batch
_MAX_PARAMS = 100
_MODEL_FILES = (".json", ".txt", ".safetensors", ".md", ".model")  # no file that could hold a pickle
_log = logging.getLogger(__name__)
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
        # MLflow's own retries block for minutes inside one call; `_ask` and MetricsLogger repeat instead.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow

        for name in ("alembic", "mlflow.store.db.utils"):  # table creation; errors still show
            logging.getLogger(name).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        _connected_uri = uri
    return uri


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


def start_parent(
    tracking_uri: str, experiment: str, *, name: str, tags: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
    """A new run, RUNNING, in an experiment that check_server has seen; returns its id."""
    connect(tracking_uri)
    found = _ask(f"find the experiment {experiment!r}", _client().get_experiment_by_name, experiment)
    if found is None:
        raise TrackingError(f"experiment {experiment!r} does not exist at {_connected_uri}; call check_server first")
    return _create_run(found.experiment_id, name, tags, params)


def start_child(
    tracking_uri: str,
    parent_run_id: str,
    *,
    name: str,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    key: str,
) -> str:
    """The child of parent_run_id with that key, RUNNING: the one an earlier attempt has made, or a new one.

    A parameter that an earlier attempt logged with another value keeps the first value (MLflow's params
    cannot be changed); the new one becomes the tag `changed.NAME`.
    """
    connect(tracking_uri)
    parent = _ask(f"find the run {parent_run_id}", _client().get_run, parent_run_id)
    experiment_id = parent.info.experiment_id
    found = _children(experiment_id, parent_run_id, key)
    if not found:
        tags = {**tags, _PARENT_TAG: parent_run_id, KEY_TAG: key}
        run_id = _create_run(experiment_id, name, tags, params)
        found = _children(experiment_id, parent_run_id, key)
        if found[0].info.run_id == run_id:
            return run_id
        # Another process made the same child at the same moment: both keep the older one.
        _ask("remove a duplicate run", _client().delete_run, run_id)
    run = found[0]
    run_id = str(run.info.run_id)
    _ask("continue a run", _client().update_run, run_id, status="RUNNING")
    logged = run.data.params
    new = {name: value for name, value in params.items() if name not in logged}
    changed = {f"changed.{k}": v for k, v in params.items() if k in logged and logged[k] != str(v)}
    _log_params_and_tags(run_id, new, {**tags, **changed})
    return run_id


@contextlib.contextmanager
def child_run(tracking_uri: str, parent_run_id: str, **what: Any) -> Iterator[str]:
    """start_child (same arguments) that also ends: FINISHED, FAILED by an error, KILLED by an interrupt."""
    run_id = start_child(tracking_uri, parent_run_id, **what)
    try:
        yield run_id
    except BaseException as error:
        finish(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    finish(run_id)


def finish(run_id: str, status: str = "FINISHED") -> None:
    """End a run: FINISHED, FAILED or KILLED."""
    check_choice("status", status, _STATUSES)
    _ask(f"finish the run {run_id}", _client().set_terminated, run_id, status)


def reopen(run_id: str) -> None:
    """The run is RUNNING again: a failed flow was resumed."""
    _ask(f"continue the run {run_id}", _client().update_run, run_id, status="RUNNING")


def set_tags(run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags of a run; those already there are replaced."""
    _log_params_and_tags(run_id, {}, tags)


def log_metrics(run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log rows `{"step": int, name: number, ...}`; a metric that has a value at that step keeps it."""
    values = _to_values(rows)
    seen = _ask("read metrics", _logged_steps, run_id, {value.key for value in values})
    fresh = _unseen(values, seen)
    for start in range(0, len(fresh), _MAX_METRICS):
        _ask("log metrics", _send_values, run_id, fresh[start : start + _MAX_METRICS])


def log_dict(run_id: str, content: Mapping[str, Any] | list[Any], file: str) -> None:
    """Store content as the run's artifact `file` (.json or .yaml)."""
    _ask(f"store {file}", _client().log_dict, run_id, content, file)


def log_text(run_id: str, text: str, file: str) -> None:
    """Store text (a report page, a table) as the run's artifact `file`."""
    _ask(f"store {file}", _client().log_text, run_id, text, file)


def log_figure(run_id: str, figure: Any, file: str) -> None:
    """Store a matplotlib figure as the run's artifact `file`; its suffix says the format."""
    _ask(f"store {file}", _client().log_figure, run_id, figure, file)


def log_artifacts(run_id: str, path: Path, artifact_path: str | None = None) -> None:
    """Store a file, or a folder with all in it, under artifact_path of the run."""
    send = _client().log_artifacts if path.is_dir() else _client().log_artifact
    _ask(f"store {path.name}", send, run_id, str(path), artifact_path)


def log_input(run_id: str, *, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
    """Say that the run has read a data set: its name, digest (at most 36 characters), where it lies (source),
    what it was for (context: pre-training, finetuning, ...) and its statistics (profile)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = source.partition(":")[0] if ":" in source else ""
    kind = {"s3": "s3", "hub": "hugging_face", "http": "http", "https": "http"}.get(scheme, "local")
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type=kind,
        source=json.dumps({"path" if kind == "hugging_face" else "uri": source}),
        profile=json.dumps(dict(profile)),
    )
    entry = DatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value=context)])
    _ask(f"log the input {name}", _client().log_inputs, run_id, [entry])


class MetricsLogger:
    """Sends metric rows from a background thread, so that training never waits for the server.

    Rows leave the queue only when the server has confirmed them, and keep the time they were logged at, so a
    batch that is sent twice (its answer was lost) is stored once. Steps that an earlier attempt logged are
    not logged again. Close it, or use it as a context manager; call flush before a checkpoint is written.
    """

    def __init__(
        self,
        run_id: str,
        *,
        spill: Path | None = None,
        send_every_seconds: float = 2.0,
        close_wait_seconds: float = 60.0,
    ) -> None:
        """spill: the .jsonl file for rows that the server would not take; the next MetricsLogger with the
        same file sends them first. By default `.fast_electra/unsent_metrics/RUN_ID.jsonl`."""
        _client()  # fails here, rather than in the thread, where no server was named
        self.run_id = run_id
        self._spill = spill or Path(".fast_electra", "unsent_metrics", f"{run_id}.jsonl")
        self._interval = send_every_seconds
        self._close_wait_seconds = close_wait_seconds
        self._pending = deque(_read_values(self._spill))
        self._seen: dict[str, set[int]] | None = None  # asked for by the thread, so that no server is waited for here
        self._refusal: Exception | None = None  # the server's last answer, where it was a refusal
        self._refused_for_good = self._flushing = self._stop = False
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send_forever, name="metrics", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Queue `{"step": int, name: number, ...}`; returns at once."""
        with self._changed:
            self._pending.extend(_to_values([row]))

    def flush(self, wait_seconds: float = 5.0) -> bool:
        """Every row logged so far is at the server (True) or, after the wait, in the spill file (False)."""
        self._flushing = True
        self._wake.set()
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout=wait_seconds)
            self._flushing = False
            unsent = list(self._pending)
        if unsent:
            _write_values(self._spill, unsent)
        else:
            self._spill.unlink(missing_ok=True)
        return not unsent

    def close(self) -> None:
        """Everything is sent and the thread has ended.

        Raises:
            TrackingError: rows were not taken within close_wait_seconds; it names the file that has them.
        """
        sent = self.flush(self._close_wait_seconds)
        self._stop = True
        self._wake.set()
        if not sent:
            raise TrackingError(
                f"{_connected_uri} took no metrics of run {self.run_id} for {self._close_wait_seconds:g} s "
                f"({self._refusal or 'no answer'}); {len(self._pending)} values are in {self._spill}. "
                "Start the server and run the step again: it sends them first"
            ) from self._refusal
        self._thread.join()

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
            return
        sent = self.flush(min(5.0, self._close_wait_seconds))
        self._stop = True
        self._wake.set()
        if not sent:  # only logged: the error on its way out matters more
            _log.warning("%s unsent metrics are in %s", len(self._pending), self._spill)

    def _is_settled(self) -> bool:
        return not self._pending or self._refused_for_good or not self._thread.is_alive()

    def _send_forever(self) -> None:
        delay = 0.0
        while not self._stop:
            self._wake.clear()
            with self._changed:
                batch = list(islice(self._pending, _MAX_METRICS))
            self._refusal = self._try_to_send(batch) if batch else None
            with self._changed:
                for _ in batch if self._refusal is None else ():
                    self._pending.popleft()
                self._changed.notify_all()
            if self._refusal is not None:
                delay = min(max(2 * delay, 0.5), 30.0)
                self._wake.wait(0.5 if self._flushing else delay)
            else:
                delay = 0.0
                self._wake.wait(0.0 if self._flushing or len(batch) == _MAX_METRICS else self._interval)

    def _try_to_send(self, batch: list["_Value"]) -> Exception | None:
        from mlflow.exceptions import MlflowException

        try:
            if self._seen is None:
                self._seen = _logged_steps(self.run_id)
            _send_values(self.run_id, _unseen(batch, self._seen))
            return None
        except MlflowException as error:
            self._refused_for_good = not _is_passing(error)
            refusal: Exception = error
            return refusal


def register_model(
    *,
    run_id: str,
    name: str,
    folder: Path,
    task: str,
    example: str,
    card: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    description: str,
) -> dict[str, Any]:
    """A version of the registered model `name` that `mlflow.transformers.load_model` and pyfunc can load.

    folder: config.json, *.safetensors and a tokenizer, as save_pretrained writes them; they lie unchanged in
    the version's folder `model/`, with card as README.md. task: the transformers pipeline that load_model
    returns. metrics are logged to the run and linked to the model. A retried step gets the version it has
    made before. Returns name, version, run_id, model_id and reused.

    Raises:
        TrackingError: the folder lacks one of those files, or the server refuses.
    """
    digest = _check_model_folder(folder)
    tags = {**tags, "model.sha256": digest}
    found = _ask("list model versions", _client().search_model_versions, f"run_id='{run_id}'")
    for version in found:
        if version.name == name and version.tags.get("model.sha256") == digest:
            set_version_tags(name, version.version, tags)
            return _version_dict(version, reused=True)
    with tempfile.TemporaryDirectory() as scratch:
        staged = _copy_model_files(folder, Path(scratch, "checkpoint"))
        (staged / "README.md").write_text(card, encoding="utf-8")
        model = _upload_model(run_id, name, staged, task=task, example=example, card=card, metrics=metrics)
    _create_registered_model(name)
    version = _ask(
        f"register {name}",
        _client().create_model_version,
        name,
        source=f"models:/{model.model_id}",
        run_id=run_id,
        tags={key: str(value) for key, value in tags.items()},
        description=description,
        model_id=model.model_id,
    )
    link = json.dumps([{"name": name, "version": version.version}])  # what the UI shows beside the model
    tag = functools.partial(_client().set_logged_model_tags, model.model_id, {"mlflow.modelVersions": link})
    _ask("tag the logged model", tag)
    return _version_dict(version, reused=False)


def set_version_tags(name: str, version: str | int, tags: Mapping[str, Any]) -> None:
    """Set tags of a model version; those already there are replaced."""
    for key, value in tags.items():
        _ask("tag a model version", _client().set_model_version_tag, name, str(version), key, str(value))


def set_alias(name: str, alias: str, version: str | int) -> None:
    """models:/NAME@ALIAS means this version from now on."""
    _ask(f"set the alias {alias}", _client().set_registered_model_alias, name, alias, str(version))


def aliases(name: str) -> dict[str, str]:
    """Alias -> version of a registered model; empty where there is no such model."""
    found = _ask("list models", _client().search_registered_models, f"name='{name}'")
    return {alias: str(version) for model in found for alias, version in model.aliases.items()}


def model_version_info(uri: str) -> dict[str, Any]:
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` is: name, version, tags, run_id, model_id, aliases.

    Raises:
        TrackingError: the address has another form, or names a model, alias or version that is not there; the
            message lists those that are.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise TrackingError(f"{uri!r} is no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, wanted = match.groups()
    if not _ask("list models", _client().search_registered_models, f"name='{name}'"):
        names = sorted(model.name for model in _ask("list models", _client().search_registered_models))
        raise TrackingError(
            f"no registered model {name!r} at {_connected_uri}; registered: {', '.join(names) or 'none'}. "
            "Run flows/auxiliary_flow.py to make an auxiliary"
        )
    known = aliases(name)
    if alias is not None and alias not in known:
        listed = ", ".join(f"{key} (version {value})" for key, value in sorted(known.items())) or "none"
        raise TrackingError(f"{name} has no alias {alias!r}; its aliases: {listed}")
    number = wanted if alias is None else known[alias]
    found = _ask("list model versions", _client().search_model_versions, f"name='{name}'")
    for version in found:
        if str(version.version) == number:
            of_version = sorted(key for key, value in known.items() if value == number)
            return {**_version_dict(version, reused=True), "tags": dict(version.tags), "aliases": of_version}
    listed = ", ".join(sorted((str(version.version) for version in found), key=int)) or "none"
    raise TrackingError(f"{name} has no version {number}; its versions: {listed}")


def download_model(uri: str, destination: Path) -> Path:
    """destination (not there yet), with config.json, *.safetensors and the tokenizer of a registered version.
    Nothing is unpickled.

    Raises:
        TrackingError: see model_version_info.
        AuxiliaryError: the version holds no transformers model, or has its weights in pickles only.
    """
    import mlflow.artifacts

    info = model_version_info(uri)
    source = f"models:/{info['name']}/{info['version']}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        fetch = functools.partial(mlflow.artifacts.download_artifacts, artifact_uri=source, dst_path=scratch)
        root = Path(_ask(f"download {uri}", fetch))
        configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
        if not configs:
            raise AuxiliaryError(f"{uri} holds no transformers model: no config.json among its files")
        folder = _copy_model_files(configs[0].parent, Path(scratch, "complete"))
        if not any(folder.glob("*.safetensors")):
            raise AuxiliaryError(
                f"{uri} has no .safetensors file; pickled weights are not read. Save it with safetensors"
            )
        for path in root.glob("components/tokenizer/*"):  # where mlflow.transformers itself keeps the tokenizer
            if path.suffix in _MODEL_FILES and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
        folder.rename(destination)
    return destination


class _Value(NamedTuple):
    """One number of one metric; timestamp in ms since 1970 is part of its identity at the server."""

    key: str
    value: float
    timestamp: int
    step: int


def _client() -> Any:
    if _connected_uri is None:
        raise TrackingError("this process is connected to no MLflow server; call tracking.connect first")
    from mlflow import MlflowClient

    return MlflowClient(_connected_uri, registry_uri=_connected_uri)


def _is_passing(error: Any) -> bool:
    """Whether to try again. MLflow calls an HTTP server that is away an INTERNAL_ERROR."""
    away = str(_connected_uri).startswith("http") and error.error_code == "INTERNAL_ERROR"
    return away or error.error_code in (
        "TEMPORARILY_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "REQUEST_LIMIT_EXCEEDED",
    )


def _ask(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), repeated while the server is away for at most _PATIENCE_SECONDS."""
    from mlflow.exceptions import MlflowException

    start, delay = time.monotonic(), 0.5
    while True:
        try:
            return function(*args, **kwargs)
        except MlflowException as error:
            waited = time.monotonic() - start
            if not _is_passing(error) or waited + delay > _PATIENCE_SECONDS:
                raise TrackingError(
                    f"cannot {what}: MLflow at {_connected_uri} says: {error} (after {waited:.0f} s). "
                    "Check that the server runs and may be written to, then run `resume`"
                ) from error
        time.sleep(delay)
        delay = min(2 * delay, 10.0)


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

    client = _client()
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            with contextlib.suppress(_AlreadyThere):
                _create_or_raise(client.create_experiment, experiment, artifact_location=location)
    except MlflowException as error:
        raise TrackingError(
            f"no MLflow server answers at {_connected_uri} (tried to open the experiment {experiment!r} for "
            f"{_CHECK_SECONDS} s: {error}); start it, or give another --tracking_uri, e.g. sqlite:///mlflow.db"
        ) from error
    if found is not None and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {experiment!r} at {_connected_uri} was deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}) or give another --experiment"
        )


def _create_registered_model(name: str) -> None:
    with contextlib.suppress(_AlreadyThere):
        _ask(f"create the model {name}", _create_or_raise, _client().create_registered_model, name)


class _AlreadyThere(Exception):
    """Another process was quicker to create the same thing."""


def _create_or_raise(function: Callable[..., Any], name: str, **kwargs: Any) -> None:
    from mlflow.exceptions import MlflowException

    try:
        function(name, **kwargs)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        raise _AlreadyThere(name) from error


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


def _create_run(experiment_id: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    texts = {key: str(value) for key, value in tags.items()}
    # resolve_tags adds who started what: mlflow.user, mlflow.source.name.
    create = functools.partial(_client().create_run, experiment_id, tags=resolve_tags(texts), run_name=name)
    run_id = str(_ask(f"create the run {name!r}", create).info.run_id)
    _log_params_and_tags(run_id, params, {})
    return run_id


def _children(experiment_id: str, parent_run_id: str, key: str) -> list[Any]:
    """Runs of that key under the parent, the oldest first."""
    filter_string = f"tags.`{_PARENT_TAG}` = '{parent_run_id}'"
    found, token = [], None
    while True:
        search = functools.partial(
            _client().search_runs, [experiment_id], filter_string, max_results=1000, page_token=token
        )
        page = _ask("look for child runs", search)
        found += [run for run in page if run.data.tags.get(KEY_TAG) == key]
        token = page.token
        if not token:
            return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _log_params_and_tags(run_id: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
    from mlflow.entities import Param, RunTag

    entries: list[Any] = [Param(key, str(value)) for key, value in params.items()]
    for start in range(0, len(entries), _MAX_PARAMS):
        part = entries[start : start + _MAX_PARAMS]
        _ask("log parameters", functools.partial(_client().log_batch, run_id, params=part))
    entries = [RunTag(key, str(value)) for key, value in tags.items()]
    for start in range(0, len(entries), _MAX_PARAMS):
        part = entries[start : start + _MAX_PARAMS]
        _ask("set tags", functools.partial(_client().log_batch, run_id, tags=part))


def _to_values(rows: Iterable[Mapping[str, Any]]) -> list[_Value]:
    now = int(time.time() * 1000)
    return [
        _Value(key, float(value), now, int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key != "step" and value is not None
    ]


def _send_values(run_id: str, values: list[_Value], model_id: str | None = None) -> None:
    from mlflow.entities import Metric

    if values:
        _client().log_batch(run_id, metrics=[Metric(*value, model_id=model_id) for value in values])


def _logged_steps(run_id: str, keys: set[str] | None = None) -> dict[str, set[int]]:
    """Metric -> steps that have a value at the server; only the given metrics, or all."""
    client = _client()
    there = set(client.get_run(run_id).data.metrics)
    wanted = there if keys is None else there & keys
    return {key: {int(item.step) for item in client.get_metric_history(run_id, key)} for key in wanted}


def _model_values(run_id: str, metrics: Mapping[str, float]) -> list[_Value]:
    """metrics as values at the run's last step of each, so that linking them to a model adds no point to a curve."""
    client = _client()
    found = []
    for value in _to_values([{"step": 0, **metrics}]):
        history = client.get_metric_history(run_id, value.key)
        last = max(history, key=lambda item: (item.step, item.timestamp), default=None)
        if last is not None:
            same = last.value == value.value
            value = value._replace(step=last.step, timestamp=last.timestamp if same else value.timestamp)
        found.append(value)
    return found


def _unseen(values: Iterable[_Value], seen: Mapping[str, set[int]]) -> list[_Value]:
    return [value for value in values if value.step not in seen.get(value.key, ())]


def _read_values(path: Path) -> list[_Value]:
    if not path.exists():
        return []
    return [_Value(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_values(path: Path, values: Iterable[_Value]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    partial.replace(path)


def _check_model_folder(folder: Path) -> str:
    """Hex digest (64 characters) of the weights, after checking that all that a version needs is there."""
    weights = sorted(folder.glob("*.safetensors"))
    missing = [
        what
        for what, there in {
            "config.json": (folder / "config.json").exists(),
            "a .safetensors file": bool(weights),
            "a tokenizer (tokenizer.json or vocab.txt)": any(
                (folder / name).exists() for name in ("tokenizer.json", "vocab.txt")
            ),
        }.items()
        if not there
    ]
    if missing:
        raise TrackingError(f"{folder} cannot be registered: it lacks {', '.join(missing)}")
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _copy_model_files(folder: Path, destination: Path) -> Path:
    """A copy of the folder's own files of the kinds that cannot hold a pickle."""
    destination.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in _MODEL_FILES:
            shutil.copyfile(path, destination / path.name)
    return destination


def _upload_model(
    run_id: str, name: str, folder: Path, *, task: str, example: str, card: str, metrics: Mapping[str, float]
) -> Any:
    """A READY LoggedModel made by the run, with its metrics; FAILED if the upload breaks."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = _client()
    run = _ask(f"find the run {run_id}", client.get_run, run_id)
    create = functools.partial(client.create_logged_model, run.info.experiment_id, name, source_run_id=run_id)
    model = _ask("create a logged model", functools.partial(create, params=dict(run.data.params)))
    status = LoggedModelStatus.FAILED
    try:
        path = folder.parent / "model"
        _save_transformers_model(path, folder, model, run_id=run_id, name=name, task=task, example=example, card=card)
        _ask("upload the model", client.log_model_artifacts, model.model_id, str(path))
        outputs = [LoggedModelOutput(model.model_id, step=0)]
        _ask("link the model to its run", client.log_outputs, run_id, models=outputs)
        values = _ask("read metrics", _model_values, run_id, metrics)
        _ask("log the model's metrics", _send_values, run_id, values, model.model_id)
        status = LoggedModelStatus.READY
    finally:
        _ask("finish the logged model", client.finalize_logged_model, model.model_id, status)
    return model


def _save_transformers_model(
    path: Path, folder: Path, model: Any, *, run_id: str, name: str, task: str, example: str, card: str
) -> None:
    """path in MLflow's format, with the files of folder as they are in path/model."""
    import huggingface_hub
    import mlflow.transformers
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)  # warns that the hub has no license for it
    outputs = Schema([ColSpec(DataType.string)]) if task == "fill-mask" else _per_token_schema()
    entry = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=run_id,
        model_id=model.model_id,
    )
    # A loaded model, not the folder's path: MLflow 3.17's short cut for folders breaks with transformers 5.
    mlflow.transformers.save_model(
        transformers_model=_load_transformers(folder, f"models:/{name}"),
        path=str(path),
        task=task,
        model_card=huggingface_hub.ModelCard(card),  # given, so that none is looked for on the hub
        mlflow_model=entry,
        signature=ModelSignature(inputs=Schema([ColSpec(DataType.string)]), outputs=outputs),
        input_example=[example],
        pip_requirements=_requirements(),
    )
    (path / "LICENSE.txt").unlink(missing_ok=True)  # it would say to look for one on the hub
    shutil.rmtree(path / "model")
    shutil.copytree(folder, path / "model")


def _load_transformers(folder: Path, name: str) -> dict[str, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    (kind,) = transformers.AutoConfig.from_pretrained(folder).architectures
    model = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True)
    model.name_or_path = name  # MLflow notes it, and looks it up on the hub, where no name has a colon
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return {"model": model, "tokenizer": tokenizer}


def _per_token_schema() -> Any:
    import numpy as np
    from mlflow.types import Schema, TensorSpec

    return Schema([TensorSpec(np.dtype("float64"), (-1,))])  # one logit per token: > 0 means replaced


def _requirements() -> list[str]:
    """What loading a version needs, at the versions that wrote it; without local suffixes such as +cpu."""
    from importlib.metadata import version

    names = ("mlflow", "safetensors", "tokenizers", "torch", "transformers")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _version_dict(version: Any, *, reused: bool) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": str(version.version),
        "run_id": version.run_id,
        "model_id": version.source.removeprefix("models:/"),  # SQL registries leave version.model_id empty
        "reused": reused,
    }
