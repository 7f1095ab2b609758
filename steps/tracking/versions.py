"""What registered versions are linked to, how they are found by it, and what their runs have kept."""

from typing import Any

from steps.tracking.connection import ask, mlflow_client
from steps.tracking.runs import run_url

ORIGIN_TAGS = {
    "auxiliary.version": "auxiliary",
    "initial_model.version": "initial model",
    "teacher.version": "teacher",
    "pretrained.version": "pre-trained encoder",
}
"""Tags of a version that name others, as NAME/VERSION or several of them with commas between."""


def find_versions(tag: str, value: str) -> list[dict[str, Any]]:
    """The versions of all registered models whose tag has the value, the oldest of a model first: name and version."""
    quoted = value.replace("'", "''")
    found = ask("look for model versions", mlflow_client().search_model_versions, f"tags.`{tag}` = '{quoted}'")
    return [
        {"name": each.name, "version": str(each.version)}
        for each in sorted(found, key=lambda each: (each.name, int(each.version)))
    ]


def log_model_input(run_id: str, model_id: str) -> None:
    """MLflow shows the logged model among what the run has read."""
    from mlflow.entities import LoggedModelInput

    ask("link a model to the run", mlflow_client().log_inputs, run_id, models=[LoggedModelInput(model_id)])


def find_users(name: str, version: str) -> list[dict[str, Any]]:
    """The versions that were made from this one: name, version, and what it was to them (role)."""
    origin, users = f"{name}/{version}", []
    for tag, role in ORIGIN_TAGS.items():
        filter_string = f"tags.`{tag}` LIKE '%{origin}%'"
        for each in ask("look for model versions", mlflow_client().search_model_versions, filter_string):
            if origin in each.tags[tag].split(","):
                users.append({"name": each.name, "version": str(each.version), "role": role})
    return sorted(users, key=lambda each: (each["name"], int(each["version"])))


def run_record(run_id: str) -> dict[str, Any]:
    """What MLflow knows of a run: name, status, url, start and end (ms since 1970), params, tags, metrics and the
    data sets that it has read (inputs).

    Raises:
        TrackingError: there is no such run.
    """
    run = ask(f"find the run {run_id}", mlflow_client().get_run, run_id)
    inputs = [
        {"name": each.dataset.name, "digest": each.dataset.digest, "context": each.tags[0].value if each.tags else ""}
        for each in run.inputs.dataset_inputs
    ]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "url": run_url(run_id),
        "start": run.info.start_time,
        "end": run.info.end_time,
        "params": dict(run.data.params),
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
        "metrics": dict(run.data.metrics),
        "inputs": inputs,
    }
