"""Runs: parents, their children by key, how they end, and what is logged to them beside metrics."""

import contextlib
import json
import logging
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.errors import Interrupted, TrackingError, check_choice
from steps.tracking.connection import PATIENCE_SECONDS, ask, ask_for, connect, connected_uri, mlflow_client

KEY_TAG = "fast_electra.key"
_CREATION_TAG = "fast_electra.creation"
_LOCAL_UI = "http://127.0.0.1:5000"
_PARENT_TAG = "mlflow.parentRunId"
_STATUSES = ("FINISHED", "FAILED", "KILLED")
_MAX_ENTRIES = 100  # parameters or tags: MLflow refuses more in one batch
_LAST_WORD_SECONDS = 5.0  # how long an error or a stop on its way out is kept for a server that is away
_logger = logging.getLogger(__name__)


def start_parent(
    tracking_uri: str, experiment: str, *, name: str, tags: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
    """A new run, RUNNING, in an experiment that check_server has seen; returns its id. One, also where the server's
    answer is lost on its way and it is asked again."""
    connect(tracking_uri)
    found = ask(f"find the experiment {experiment!r}", mlflow_client().get_experiment_by_name, experiment)
    if found is None:
        raise TrackingError(f"experiment {experiment!r} does not exist at {connected_uri()}; call check_server first")
    token = uuid.uuid4().hex
    run_id = _create_run(found.experiment_id, name, {**tags, _CREATION_TAG: token}, params)
    condition = f"tags.`{_CREATION_TAG}` = '{token}'"
    for run in ask(f"look for {name!r}", mlflow_client().search_runs, [found.experiment_id], condition):
        if run.info.run_id != run_id:
            ask("remove a duplicate run", mlflow_client().delete_run, run.info.run_id)
    return run_id


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
    parent = ask(f"find the run {parent_run_id}", mlflow_client().get_run, parent_run_id)
    experiment_id = parent.info.experiment_id
    found = _children(experiment_id, parent_run_id, key)
    if not found:
        tags = {**tags, _PARENT_TAG: parent_run_id, KEY_TAG: key}
        run_id = _create_run(experiment_id, name, tags, params)
        found = _children(experiment_id, parent_run_id, key)
        if found[0].info.run_id == run_id:
            return run_id
        # Another process made the same child at the same moment: both keep the older one.
        ask("remove a duplicate run", mlflow_client().delete_run, run_id)
    run = found[0]
    run_id = str(run.info.run_id)
    ask("continue a run", mlflow_client().update_run, run_id, status="RUNNING")
    logged = run.data.params
    new = {name: value for name, value in params.items() if name not in logged}
    changed = {f"changed.{k}": v for k, v in params.items() if k in logged and logged[k] != str(v)}
    _log_params_and_tags(run_id, new, {**tags, **changed})
    return run_id


def find_child(parent_run_id: str, key: str) -> str:
    """The id of the child with that key, whatever its status.

    Raises:
        TrackingError: there is none.
    """
    parent = ask(f"find the run {parent_run_id}", mlflow_client().get_run, parent_run_id)
    found = _children(parent.info.experiment_id, parent_run_id, key)
    if not found:
        raise TrackingError(f"the run {parent_run_id} at {connected_uri()} has no child {key!r}; was it deleted?")
    return str(found[0].info.run_id)


def find_flow_run(pathspec: str) -> str | None:
    """The id of the parent run that a flow's run FLOW/ID has opened, in any experiment; None: it has opened none."""
    client = mlflow_client()
    experiments = ask("list experiments", client.search_experiments, max_results=1000)
    ids, quoted = [each.experiment_id for each in experiments], pathspec.replace("'", "''")
    condition = f"tags.`metaflow.pathspec` = '{quoted}'"
    found = ask(f"look for the run of {pathspec}", client.search_runs, ids, condition, max_results=1000)
    parents = [run.info.run_id for run in found if _PARENT_TAG not in run.data.tags]
    return str(parents[0]) if parents else None


def run_url(run_id: str) -> str:
    """The run's page in MLflow's UI: of the server, or of `make ui` where this process talks to a database."""
    experiment = ask(f"find the run {run_id}", mlflow_client().get_run, run_id).info.experiment_id
    server = uri if (uri := connected_uri()).startswith("http") else _LOCAL_UI
    # By itself the UI opens on its pages about prompts and traces, and leaves out those on models.
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


@contextlib.contextmanager
def child_run(tracking_uri: str, parent_run_id: str, **what: Any) -> Iterator[str]:
    """start_child (same arguments) that also ends: FINISHED, FAILED by an error, KILLED by an interrupt. Where that
    error cannot be told to the server it is still the one that comes out."""
    run_id = start_child(tracking_uri, parent_run_id, **what)
    try:
        yield run_id
    except BaseException as error:
        status = status_after(error)
        try:
            finish(run_id, status)
        except TrackingError as lost:
            _logger.warning("the MLflow run %s is not marked %s: %s", run_id, status, lost)
        raise
    finish(run_id)


def status_after(error: BaseException) -> str:
    """Of a run whose work ended so: KILLED if it was told to stop, FAILED otherwise."""
    return "FAILED" if isinstance(error, Exception) and not isinstance(error, Interrupted) else "KILLED"


def finish(run_id: str, status: str = "FINISHED") -> None:
    """End a run: FINISHED, FAILED or KILLED."""
    check_choice("status", status, _STATUSES)
    patience = PATIENCE_SECONDS if status == "FINISHED" else _LAST_WORD_SECONDS
    ask(f"finish the run {run_id}", mlflow_client().set_terminated, run_id, status, patience_seconds=patience)


def reopen(run_id: str) -> None:
    """The run is RUNNING again: a failed flow was resumed."""
    ask(f"continue the run {run_id}", mlflow_client().update_run, run_id, status="RUNNING")


def set_tags(run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags of a run; those already there are replaced."""
    _log_params_and_tags(run_id, {}, tags)


def log_dict(run_id: str, content: Mapping[str, Any] | list[Any], file: str) -> None:
    """Store content as the run's artifact `file` (.json or .yaml)."""
    ask(f"store {file}", mlflow_client().log_dict, run_id, content, file)


def load_dict(run_id: str, file: str) -> dict[str, Any] | None:
    """The content of the run's artifact `file` (.json); None where there is no such run, or it has no such artifact.

    Raises:
        TrackingError: the server does not answer, or the artifact is not a JSON object.
    """
    folder = file.rpartition("/")[0]
    listed = ask_for(f"list the artifacts of {run_id}", mlflow_client().list_artifacts, run_id, folder or None)
    if file not in [entry.path for entry in listed or ()]:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(ask(f"read {file}", mlflow_client().download_artifacts, run_id, file, scratch))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TrackingError(f"{file} of the MLflow run {run_id} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise TrackingError(f"{file} of the MLflow run {run_id} holds no object")
    return content


def log_text(run_id: str, text: str, file: str) -> None:
    """Store text (a report page, a table) as the run's artifact `file`."""
    ask(f"store {file}", mlflow_client().log_text, run_id, text, file)


def log_figure(run_id: str, figure: Any, file: str) -> None:
    """Store a matplotlib figure as the run's artifact `file`; its suffix says the format."""
    ask(f"store {file}", mlflow_client().log_figure, run_id, figure, file)


def log_file(run_id: str, path: Path) -> None:
    """Store a file under its name among the run's artifacts."""
    ask(f"store {path.name}", mlflow_client().log_artifact, run_id, str(path))


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
    ask(f"log the input {name}", mlflow_client().log_inputs, run_id, [entry])


def _create_run(experiment_id: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    texts = {key: str(value) for key, value in tags.items()}
    # resolve_tags adds who started what: mlflow.user, mlflow.source.name.
    run = ask(
        f"create the run {name!r}", mlflow_client().create_run, experiment_id, tags=resolve_tags(texts), run_name=name
    )
    run_id = str(run.info.run_id)
    _log_params_and_tags(run_id, params, {})
    return run_id


def _children(experiment_id: str, parent_run_id: str, key: str) -> list[Any]:
    """Runs of that key under the parent, the oldest first."""
    filter_string = f"tags.`{_PARENT_TAG}` = '{parent_run_id}'"
    found, token = [], None
    while True:
        search = mlflow_client().search_runs
        page = ask("look for child runs", search, [experiment_id], filter_string, max_results=1000, page_token=token)
        found += [run for run in page if run.data.tags.get(KEY_TAG) == key]
        token = page.token
        if not token:
            return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _log_params_and_tags(run_id: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
    from mlflow.entities import Param, RunTag

    param_entries = [Param(key, str(value)) for key, value in params.items()]
    tag_entries = [RunTag(key, str(value)) for key, value in tags.items()]
    send = mlflow_client().log_batch
    for start in range(0, len(param_entries), _MAX_ENTRIES):
        ask("log parameters", send, run_id, params=param_entries[start : start + _MAX_ENTRIES])
    for start in range(0, len(tag_entries), _MAX_ENTRIES):
        ask("set tags", send, run_id, tags=tag_entries[start : start + _MAX_ENTRIES])
