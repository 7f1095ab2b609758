"""The main job on several machines, which in a local run are processes of this one."""

from typing import Any

import pytest
from conftest import TRAINING, Workspace
from toys import save_auxiliary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("nodes"))
    save_auxiliary(workspace.folder / "auxiliary", (workspace.folder / "text.txt").read_text().split("\n\n"))
    return workspace


@pytest.fixture(scope="module")
def together(workspace: Workspace) -> Any:
    """A short run on two machines."""
    auxiliary = ("--auxiliary", "auxiliary", "--max_auxiliary_fraction", "2")
    quick = ("--num_steps", "20", "--finetune_max_examples", "16", "--untrained_baseline", "false")
    # As from a shell whose `python` is another one.
    command = ("run", *TRAINING, *auxiliary, *quick, "--num_nodes", "2")
    workspace.run("pretrain_flow.py", *command, PATH="/usr/bin:/bin")
    return workspace.latest("PretrainFlow")


def test_two_machines_train_one_model(together: Any) -> None:
    results = [task["trained"].data for task in together["pretrain_together"]]
    assert sorted(map(bool, results)) == [False, True]
    trained = together["gather_machines"].task["trained"].data
    assert trained in results
    assert (trained["num_processes"], trained["curve"][-1]["step"]) == (2, 20)


def test_the_tracker_sees_one_training_and_one_version(workspace: Workspace, together: Any) -> None:
    client = workspace.mlflow()
    parent = together["start"].task["plan"].data["mlflow_run_id"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    trainings = [run for run in children if run.info.run_name == "pre-training"]
    assert [run.info.status for run in trainings] == ["FINISHED"]
    version = together["register"].task["version"].data
    assert client.get_model_version("fast-electra", version["version"]).run_id == trainings[0].info.run_id
