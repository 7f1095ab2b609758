"""MLflow behind plain functions that take run ids: the only package that imports it.

A step is its own process, and several may write at once: a process says once where the server is (`connect`,
or any function that takes a tracking_uri), after which a run id is all that is needed. Whatever a retried or
resumed step does again leaves one run, one value per metric and step of a training, and one model version.
"""

from steps.tracking.champions import CHAMPION, Throne, claim, throne
from steps.tracking.connection import artifacts_folder, connect, connected_uri
from steps.tracking.metrics import MetricsLogger, log_metrics, log_results
from steps.tracking.model_files import files_digest
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
    find_flow_run,
    finish,
    load_dict,
    log_dict,
    log_figure,
    log_file,
    log_input,
    log_text,
    reopen,
    run_url,
    set_tags,
    start_child,
    start_parent,
    status_after,
)
from steps.tracking.server_check import check_server, connect_existing
from steps.tracking.system import system_metrics
from steps.tracking.versions import ORIGIN_TAGS, find_users, find_versions, log_model_input, run_record

__all__ = [
    "CHAMPION",
    "KEY_TAG",
    "ORIGIN_TAGS",
    "MetricsLogger",
    "Throne",
    "aliases",
    "amend_texts",
    "artifacts_folder",
    "check_server",
    "child_run",
    "claim",
    "connect",
    "connect_existing",
    "connected_uri",
    "download_model",
    "files_digest",
    "find_child",
    "find_flow_run",
    "find_users",
    "find_versions",
    "finish",
    "load_dict",
    "log_dict",
    "log_figure",
    "log_file",
    "log_input",
    "log_metrics",
    "log_model_input",
    "log_results",
    "log_text",
    "missing_of_signature",
    "model_version_info",
    "register_model",
    "reopen",
    "run_record",
    "run_url",
    "set_alias",
    "set_tags",
    "set_version_tags",
    "start_child",
    "start_parent",
    "status_after",
    "system_metrics",
    "throne",
]
