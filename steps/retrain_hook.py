"""The exit hooks of RetrainFlow: whichever way it ends, the webhook is told, if one is set (steps.webhook).

Metaflow calls them in a process of its own after the run, on Argo Workflows in a pod; run is Metaflow's, or None where
its metadata cannot be read from there. Then only that it has ended, and how, is told.
"""

import os
from collections.abc import Mapping
from typing import Any

from fast_electra_core.errors import ConfigError
from steps.webhook import message, post, url_given

_PATHSPEC_VARIABLE = "RUN_PATHSPEC"
"""Which Metaflow sets in a hook's pod."""


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
    if run is not None:
        try:
            outcome, words = _details(run, status)
        except Exception as error:  # whatever keeps the details away, that it has ended is told
            print(f"the webhook is told no details: {type(error).__name__}: {error}")
    print(post(url, message(pathspec, status, outcome, words)))


def _details(run: Any, status: str) -> tuple[Mapping[str, Any] | None, str]:
    if status == "succeeded":
        outcome = run.data.outcome
        return outcome, outcome["words"]
    errors = [task.exception for step in run for task in step if task.exception is not None]
    first = f": {errors[-1]}" if errors else ""
    return None, f"{run.pathspec} failed{first}; the champion is as it was"
