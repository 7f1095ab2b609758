"""A run that is killed goes on from its checkpoint and ends as if nothing had happened; steps can be done again."""

import os
import signal
import time
from typing import Any

import pytest
from conftest import LONG_ENOUGH_TO_BE_KILLED, TRAINING, Finished, Workspace

pytestmark = pytest.mark.slow


def kill_at_the_first_checkpoint(workspace: Workspace) -> str:
    """Start the same training as the finished one and kill -9 all its processes; returns the flow's run id."""
    runs = workspace.folder / ".fast_electra" / "runs"
    before = set(runs.iterdir())
    process = workspace.start("pretrain_flow.py", "run", *TRAINING, *LONG_ENOUGH_TO_BE_KILLED)
    started = time.monotonic()
    while not (
        found := [path for path in runs.glob("PretrainFlow-*/checkpoints/step-*") if path.parents[1] not in before]
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - started < 300
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return found[0].parents[1].name.removeprefix("PretrainFlow-")


@pytest.fixture(scope="module")
def killed(finished: Finished) -> str:
    return kill_at_the_first_checkpoint(finished.workspace)


@pytest.fixture(scope="module")
def resumed(finished: Finished, killed: str) -> Any:
    """Metaflow's run that went on from the killed one."""
    output = finished.workspace.run("pretrain_flow.py", "resume", "--origin-run-id", killed)
    assert "pre-training goes on from its checkpoint at step" in output
    return finished.workspace.latest("PretrainFlow")


def of_run(client: Any, experiment: str, pathspec: str) -> list[Any]:
    return client.search_runs([experiment], f"tags.`metaflow.pathspec` = '{pathspec}'")


def test_a_killed_run_resumes_and_ends_as_if_never_killed(finished: Finished, resumed: Any) -> None:
    trained = resumed["pretrain"].task["trained"].data
    whole = finished.pretrain["pretrain"].task["trained"].data
    assert 0 < trained["resumed_from"] < 200
    assert trained["digest"] == whole["digest"]
    speed = {"tokens_per_second"}
    for ours, theirs in zip(trained["curve"], whole["curve"], strict=True):
        assert {k: v for k, v in ours.items() if k not in speed} == {k: v for k, v in theirs.items() if k not in speed}


def test_a_resumed_run_is_one_run_in_mlflow_with_one_loss_curve(finished: Finished, killed: str, resumed: Any) -> None:
    client = finished.workspace.mlflow()
    plan = resumed["start"].task["plan"].data
    experiment = client.get_run(plan["mlflow_run_id"]).info.experiment_id
    runs = of_run(client, experiment, f"PretrainFlow/{killed}")
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted(
        [f"PretrainFlow/{killed}", "auxiliary", "pre-training", "rte seed 0", "rte seed 0 untrained"]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    (training,) = [run for run in runs if run.info.run_name == "pre-training"]
    steps = [value.step for value in client.get_metric_history(training.info.run_id, "loss")]
    assert sorted(steps) == list(range(10, 201, 10))
    assert not of_run(client, experiment, resumed.pathspec)


def test_a_resumed_run_registers_one_version(finished: Finished, resumed: Any) -> None:
    client = finished.workspace.mlflow()
    versions = client.search_model_versions("name='fast-electra'")
    tags = [version.tags for version in versions if version.tags["metaflow.pathspec"].startswith(resumed.pathspec)]
    whole = finished.pretrain["register"].task["version"].data
    assert [tag["weights.digest"] for tag in tags] == [
        client.get_model_version("fast-electra", whole["version"]).tags["weights.digest"]
    ]


def test_a_finished_run_can_be_done_again_from_a_step(finished: Finished) -> None:
    """From the fine-tunings on; so what is registered is registered again, too."""
    workspace = finished.workspace
    client = workspace.mlflow()
    run_id = finished.pretrain["start"].task["plan"].data["mlflow_run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    before = {run.info.run_id for run in client.search_runs([experiment])}
    versions = len(client.search_model_versions("name='fast-electra'"))
    workspace.run("pretrain_flow.py", "resume", "finetune", "--origin-run-id", finished.pretrain.id)
    again = workspace.latest("PretrainFlow")
    assert again.successful
    assert (
        again["register"].task["version"].data["version"]
        == finished.pretrain["register"].task["version"].data["version"]
    )
    assert again["gather_scores"].task["scores"].data == finished.pretrain["gather_scores"].task["scores"].data
    assert {run.info.run_id for run in client.search_runs([experiment])} == before
    assert len(client.search_model_versions("name='fast-electra'")) == versions
    assert client.get_run(run_id).info.status == "FINISHED"
