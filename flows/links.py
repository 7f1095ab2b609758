"""Metaflow's run and MLflow's run lead to each other."""

from metaflow import current
from metaflow.exception import MetaflowException


def link_run(plan: dict) -> None:
    """This Metaflow run has `mlflow_run:ID` and `mlflow:URL` among its tags; the MLflow run has this one's pathspec, as
    `metaflow.resumed_as` where it goes on with another's work.

    Metaflow's tags need its metadata service on a cluster; where there is none, that is a warning.
    """
    from steps import trace

    trace.note_resume(plan, f"{current.flow_name}/{current.run_id}")
    try:
        current.run.add_tags([f"mlflow_run:{plan['mlflow_run_id']}", f"mlflow:{plan['mlflow_url']}"])
    except MetaflowException as error:
        trace.warn_of_missing_tags(plan, error)
