"""What registered versions are linked to, and how they are found by it."""

from typing import Any

from steps.tracking.connection import ask, mlflow_client


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
