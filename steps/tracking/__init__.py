"""MLflow behind plain functions that take run ids: the only package that imports it.

A step is its own process, and several may write at once: a process says once where the server is (`connect`,
or any function that takes a tracking_uri), after which a run id is all that is needed. Whatever a retried or
resumed step does again leaves one run, one value per metric and step, and one model version.
"""

from steps.tracking.champions import CHAMPION, Throne, claim, throne
from steps.tracking.connection import check_server, connect
from steps.tracking.metrics import MetricsLogger, log_metrics
from steps.tracking.registry import (
    aliases,
    amend_texts,
    download_model,
    missing_of_signature,
    model_version_info,
    register_model,
    set_alias,
    set_version_tags,
)
from steps.tracking.runs import (
    KEY_TAG,
    child_run,
    find_child,
    finish,
    load_dict,
    log_artifacts,
    log_dict,
    log_figure,
    log_input,
    log_text,
    reopen,
    set_tags,
    start_child,
    start_parent,
)
from steps.tracking.versions import find_versions, log_model_input

__all__ = [
    "CHAMPION",
    "KEY_TAG",
    "MetricsLogger",
    "Throne",
    "aliases",
    "amend_texts",
    "check_server",
    "child_run",
    "claim",
    "connect",
    "download_model",
    "find_child",
    "find_versions",
    "finish",
    "load_dict",
    "log_artifacts",
    "log_dict",
    "log_figure",
    "log_input",
    "log_metrics",
    "log_model_input",
    "log_text",
    "missing_of_signature",
    "model_version_info",
    "register_model",
    "reopen",
    "set_alias",
    "set_tags",
    "set_version_tags",
    "start_child",
    "start_parent",
    "throne",
]
