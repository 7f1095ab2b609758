"""The main job on several machines, which in a local run are processes of this one."""

from typing import Any

import pytest
from conftest import TRAINING, Finished

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(finished: Finished) -> Any:
    """A short run on two machines, with the auxiliary of the finished ones."""
    quick = ("--num_steps", "20", "--finetune_max_examples", "16", "--untrained_baseline", "false")
    # As from a shell whose `python` is another one.
    finished.workspace.run("pretrain_flow.py", "run", *TRAINING, *quick, "--num_nodes", "2", PATH="/usr/bin:/bin")
    return finished.workspace.latest("PretrainFlow")


def test_two_machines_train_one_model(together: Any) -> None:
    results = [task["trained"].data for task in together["pretrain_together"]]
    assert sorted(map(bool, results)) == [False, True]
    trained = together["gather_machines"].task["trained"].data
    assert trained in results
    assert (trained["num_processes"], trained["curve"][-1]["step"]) == (2, 20)


def test_the_tracker_sees_one_training_and_one_version(finished: Finished, together: Any) -> None:
    client = finished.workspace.mlflow()
    parent = together["start"].task["plan"].data["mlflow_run_id"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    trainings = [run for run in children if run.info.run_name == "pre-training"]
    assert [run.info.status for run in trainings] == ["FINISHED"]
    version = together["register"].task["version"].data
    assert client.get_model_version("fast-electra", version["version"]).run_id == trainings[0].info.run_id
