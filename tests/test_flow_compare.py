"""CompareFlow, interrupted in one of its runs, resumed to its end."""

from pathlib import Path

import pytest
from conftest import TEXT, Workspace, breakable
from toys import save_auxiliary

pytestmark = pytest.mark.slow


def test_a_comparison_that_was_interrupted_does_not_repeat_the_arms_that_are_done(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save_auxiliary(tmp_path / "auxiliary", (tmp_path / "text.txt").read_text().split("\n\n"))
    environment = breakable(workspace, tmp_path)
    quick = ("--num_steps", "4", "--tasks", "rte", "--seeds", "1", "--finetune_max_examples", "16")
    arms = ("--arms", "electra; fast_electra", "--pretrain_seeds", "1", "--untrained_baseline", "false")
    auxiliary = ("--auxiliary", "auxiliary", "--max_auxiliary_fraction", "2")
    command = ("run", *TEXT, *quick, *arms, *auxiliary, "--max-workers", "1")
    second = {"BREAK_AT": "run_arms steps.pretrain 1", **environment}
    output = workspace.run("compare_flow.py", *command, succeeds=False, **second)
    assert "OSError: broken in this step" in output
    broken = workspace.latest("CompareFlow")

    output = workspace.run("compare_flow.py", "resume", "--origin-run-id", broken.id)
    assert "| electra | 1 |" in output and "| fast_electra | 1 |" in output
    run = workspace.latest("CompareFlow")
    assert run.successful
    by_arm = {task["results"].data[0]["arm"]: task for task in run["run_arms"]}
    origins = {arm: task.metadata_dict.get("origin-task-id") for arm, task in by_arm.items()}
    assert origins["electra"] is not None  # taken over
    assert origins["fast_electra"] is None  # done now
    (row, other) = run["gather"].task["found"].data["arms"]
    assert {row["num_runs"], other["num_runs"]} == {1}
