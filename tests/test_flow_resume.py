"""A run that is killed goes on from its checkpoint and ends as if nothing had happened; steps can be done again."""

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG_ENOUGH_TO_BE_KILLED, TEXT, TRAINING, Finished, Workspace
from toys import save_auxiliary

import fast_electra_core
import steps

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
    assert 0 < trained["resumed_from"] < 300
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
    assert sorted(steps) == list(range(10, 301, 10))
    assert not of_run(client, experiment, resumed.pathspec)


def test_a_resumed_run_registers_one_version(finished: Finished, resumed: Any) -> None:
    client = finished.workspace.mlflow()
    versions = client.search_model_versions("name='fast-electra'")
    tags = [version.tags for version in versions if version.tags["metaflow.pathspec"].startswith(resumed.pathspec)]
    whole = finished.pretrain["register"].task["version"].data
    assert [tag["weights.digest"] for tag in tags] == [
        client.get_model_version("fast-electra", whole["version"]).tags["weights.digest"]
    ]


@pytest.mark.parametrize("step", ["finetune", "register"])
def test_a_finished_run_can_be_done_again_from_a_step(step: str, finished: Finished) -> None:
    workspace = finished.workspace
    client = workspace.mlflow()
    run_id = finished.pretrain["start"].task["plan"].data["mlflow_run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    before = {run.info.run_id for run in client.search_runs([experiment])}
    versions = len(client.search_model_versions("name='fast-electra'"))
    workspace.run("pretrain_flow.py", "resume", step, "--origin-run-id", finished.pretrain.id)
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


BREAKS = {
    "tokenize": "fast_electra_core/data.py",
    "gather_tokens": "steps/text_summary.py",
    "score_auxiliary": "steps/auxiliary.py",
    "freeze_auxiliary": "steps/auxiliary.py",
    "gather_scores": "steps/finetune.py",
    "end": "steps/report.py",
}
"""A file that each step imports. It breaks there, before the import of torch: a step that fails early costs little."""
_BREAK = """
import os, sys
if os.environ.get("BREAK_AT") in sys.argv:  # a task's command line names its step
    raise OSError("broken in this step")
"""


@pytest.fixture
def breakable(tmp_path: Path) -> Workspace:
    """A workspace with packages of its own, in which the step that the variable BREAK_AT names raises."""
    workspace = Workspace(tmp_path)
    save_auxiliary(tmp_path / "auxiliary", (tmp_path / "text.txt").read_text().split("\n\n"))
    for package in (steps, fast_electra_core):
        copy = workspace.packages / package.__name__
        copy.unlink()
        shutil.copytree(Path(str(package.__file__)).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in set(BREAKS.values()):
        path = workspace.packages / file
        path.write_text(_BREAK + path.read_text())
    return workspace


def test_a_run_that_breaks_once_in_each_of_six_steps_ends_well_and_is_one_run(breakable: Workspace) -> None:
    quick = ("--num_steps", "4", "--tasks", "rte", "--seeds", "1", "--finetune_max_examples", "16")
    auxiliary = ("--auxiliary", "auxiliary", "--max_auxiliary_fraction", "2")
    command: tuple[str, ...] = ("run", *TEXT, *quick, *auxiliary, "--untrained_baseline", "false")
    statuses = {}
    for step in BREAKS:
        output = breakable.run("pretrain_flow.py", *command, succeeds=False, BREAK_AT=step)
        assert re.search(rf"{step}/.* OSError: broken in this step", output), output
        (parent,) = parents(breakable)
        statuses[step] = parent.info.status
        command = ("resume", "--origin-run-id", breakable.latest("PretrainFlow").id)
    assert statuses == dict.fromkeys(BREAKS, "FAILED")
    breakable.run("pretrain_flow.py", *command)
    last = breakable.latest("PretrainFlow")
    (parent,) = parents(breakable)
    assert last.successful
    assert parent.info.run_id == last["start"].task["plan"].data["mlflow_run_id"]
    assert parent.info.status == "FINISHED"
    assert last["register"].task["version"].data["version"] == "1"


def parents(workspace: Workspace) -> list[Any]:
    """The runs of the workspace's only experiment that are nobody's children."""
    client = workspace.mlflow()
    experiment = client.get_experiment_by_name("fast-electra").experiment_id
    return [run for run in client.search_runs([experiment]) if "mlflow.parentRunId" not in run.data.tags]
