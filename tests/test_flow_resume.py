"""A run that breaks or is killed goes on and ends as if nothing had happened; steps can be done again."""

import os
import re
import signal
import time
from typing import Any, NamedTuple

import pytest
from conftest import LONG_ENOUGH_TO_BE_KILLED, TRAINING, Finished, Workspace, breakable

pytestmark = pytest.mark.slow


class Resumed(NamedTuple):
    """The same training as the finished one, by four of Metaflow's runs, each going on with the one before."""

    ids: list[str]
    statuses: list[str]
    """Of the one run in MLflow, after the two that broke."""
    data: Any
    """Metaflow's last run."""


@pytest.fixture(scope="module")
def resumed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """It breaks before training, is killed in training, breaks in its last step, and ends."""
    workspace = finished.workspace
    environment = breakable(workspace, tmp_path_factory.mktemp("breaks"))
    ids: list[str] = []
    statuses = []

    def broken(step: str, module: str, *command: str) -> str:
        environment["BREAK_AT"] = f"{step} {module}"
        output = workspace.run("pretrain_flow.py", *command, succeeds=False, **environment)
        assert re.search(rf"{step}/.* OSError: broken in this step", output), output
        run = workspace.latest("PretrainFlow")
        ids.append(run.id)
        statuses.append(workspace.mlflow().get_run(parent_in(run)).info.status)
        return output

    broken("freeze_auxiliary", "steps.frozen", "run", *TRAINING, *LONG_ENOUGH_TO_BE_KILLED)
    kill_at_the_first_checkpoint(workspace, ids[0])
    ids.append(workspace.latest("PretrainFlow").id)
    output = broken("end", "steps.closing_table", "resume", "--origin-run-id", ids[-1])
    assert "pre-training goes on from its checkpoint at step" in output
    workspace.run("pretrain_flow.py", "resume", "--origin-run-id", ids[-1])
    last = workspace.latest("PretrainFlow")
    return Resumed([*ids, last.id], statuses, last)


def kill_at_the_first_checkpoint(workspace: Workspace, run_id: str) -> None:
    """Resume the run and kill -9 all its processes."""
    process = workspace.start("pretrain_flow.py", "resume", "--origin-run-id", run_id)
    started = time.monotonic()
    checkpoints = workspace.folder / ".fast_electra" / "runs" / f"PretrainFlow-{run_id}" / "checkpoints"
    while not list(checkpoints.glob("step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - started < 300
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def parent_in(run: Any) -> str:
    """The flow's run in MLflow."""
    return str(run["start"].task["plan"].data["mlflow_run_id"])


def of_run(client: Any, experiment: str, pathspec: str) -> list[Any]:
    return client.search_runs([experiment], f"tags.`metaflow.pathspec` = '{pathspec}'")


def test_a_killed_run_resumes_and_ends_as_if_never_killed(finished: Finished, resumed: Resumed) -> None:
    trained = resumed.data["pretrain"].task["trained"].data
    whole = finished.pretrain["pretrain"].task["trained"].data
    assert 0 < trained["resumed_from"] < 200
    assert trained["digest"] == whole["digest"]
    speed = {"tokens_per_second"}
    for ours, theirs in zip(trained["curve"], whole["curve"], strict=True):
        assert {k: v for k, v in ours.items() if k not in speed} == {k: v for k, v in theirs.items() if k not in speed}


def test_a_run_that_breaks_in_its_middle_and_at_its_end_ends_well(finished: Finished, resumed: Resumed) -> None:
    assert len(set(resumed.ids)) == 4
    assert resumed.statuses == ["FAILED", "FAILED"]
    assert resumed.data.successful
    assert finished.workspace.mlflow().get_run(parent_in(resumed.data)).info.status == "FINISHED"


def test_a_resumed_run_is_one_run_in_mlflow_with_one_loss_curve(finished: Finished, resumed: Resumed) -> None:
    client = finished.workspace.mlflow()
    first, *others = [f"PretrainFlow/{run_id}" for run_id in resumed.ids]
    experiment = client.get_run(parent_in(resumed.data)).info.experiment_id
    runs = of_run(client, experiment, first)
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted([first, "auxiliary", "pre-training", "rte seed 0", "rte seed 0 untrained"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (training,) = [run for run in runs if run.info.run_name == "pre-training"]
    steps = [value.step for value in client.get_metric_history(training.info.run_id, "loss")]
    assert sorted(steps) == list(range(10, 201, 10))
    assert [run for pathspec in others for run in of_run(client, experiment, pathspec)] == []


def test_a_resumed_run_registers_one_version(finished: Finished, resumed: Resumed) -> None:
    client = finished.workspace.mlflow()
    versions = client.search_model_versions("name='fast-electra'")
    tags = [version.tags for version in versions if version.tags["metaflow.pathspec"].split("/")[1] in resumed.ids]
    whole = finished.pretrain["register"].task["version"].data
    assert [tag["weights.digest"] for tag in tags] == [
        client.get_model_version("fast-electra", whole["version"]).tags["weights.digest"]
    ]


def test_a_finished_run_can_be_done_again_from_a_step(finished: Finished) -> None:
    """From the scores on; so what is registered is registered again, too."""
    workspace = finished.workspace
    client = workspace.mlflow()
    run_id = finished.pretrain["start"].task["plan"].data["mlflow_run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    before = {run.info.run_id for run in client.search_runs([experiment])}
    versions = len(client.search_model_versions("name='fast-electra'"))
    workspace.run("pretrain_flow.py", "resume", "gather_scores", "--origin-run-id", finished.pretrain.id)
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
