"""The exit hooks of RetrainFlow: whichever way it ends, the webhook is told, if one is set (steps.webhook).

Metaflow calls them in a process of its own after the run, on Argo Workflows in a pod; run is Metaflow's, or None where
its metadata cannot be read from there. Then MLflow is asked what came of it, if the environment says where that is;
failing that, only how the run ended is told.
"""

import os
from collections.abc import Mapping
from typing import Any

from fast_electra_core.errors import ConfigError
from steps.webhook import message, post, url_given

_PATHSPEC_VARIABLE = "RUN_PATHSPEC"
"""Which Metaflow sets in a hook's pod."""
_TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


def tell_success(run: Any) -> None:
    """The run has reached its end."""
    _tell(run, "succeeded")


def tell_failure(run: Any) -> None:
    """The run has failed."""
    _tell(run, "failed")


def _tell(run: Any, status: str) -> None:
    try:
        url = url_given()
    except ConfigError as error:
        print(error)
        return
    if not url:
        return
    pathspec = run.pathspec if run is not None else os.environ.get(_PATHSPEC_VARIABLE, "a run")
    outcome, words = None, ""
    try:
        outcome, words = _details(run, status) if run is not None else _from_mlflow(pathspec)
    except Exception as error:  # whatever keeps the details away, that it has ended is told
        print(f"the webhook is told no details: {type(error).__name__}: {error}")
    print(post(url, message(pathspec, status, outcome, words)))


def _details(run: Any, status: str) -> tuple[Mapping[str, Any] | None, str]:
    if status == "succeeded":
        outcome = run.data.outcome
        return outcome, outcome["words"]
    errors = [str(task.exception).strip() for step in run for task in step if task.exception is not None]
    said = [error.splitlines()[-1] for error in errors if error]
    # A task whose text is refused frees the lock, for want of which the others end: theirs is not the reason.
    said.sort(key=lambda line: "LockError: " not in line)
    return None, f"{run.pathspec} failed{f': {said[-1]}' if said else ''}"


def _from_mlflow(pathspec: str) -> tuple[Mapping[str, Any] | None, str]:
    """What the run's `end` has left in MLflow; nothing of a run that did not come so far."""
    uri = os.environ.get(_TRACKING_VARIABLE)
    if not uri:
        return None, ""
    from steps import tracking
    from steps.retrain_report import OUTCOME_FILE

    tracking.connect(uri)
    run_id = tracking.find_flow_run(pathspec)
    outcome = tracking.load_dict(run_id, OUTCOME_FILE) if run_id else None
    return outcome, outcome["words"] if outcome else ""
