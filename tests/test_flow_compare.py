"""CompareFlow, interrupted in one of its runs, resumed to its end."""

import shutil
from pathlib import Path

import pytest
from conftest import TEXT, Workspace
from toys import save_auxiliary

import steps

pytestmark = pytest.mark.slow

_BREAK = """
import os
if os.environ.get("BREAK"):
    _really = train_discriminator

    def train_discriminator(config, *arguments, **more):
        if config.method == "fast_electra":
            raise OSError("broken in this arm")
        return _really(config, *arguments, **more)
"""


def test_a_comparison_that_was_interrupted_does_not_repeat_the_arms_that_are_done(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save_auxiliary(tmp_path / "auxiliary", (tmp_path / "text.txt").read_text().split("\n\n"))
    copy = workspace.packages / "steps"
    copy.unlink()
    shutil.copytree(Path(str(steps.__file__)).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "pretrain.py").open("a") as file:
        file.write(_BREAK)
    quick = ("--num_steps", "4", "--tasks", "rte", "--seeds", "1", "--finetune_max_examples", "16")
    arms = ("--arms", "electra; fast_electra", "--pretrain_seeds", "1", "--untrained_baseline", "false")
    auxiliary = ("--auxiliary", "auxiliary", "--max_auxiliary_fraction", "2")
    output = workspace.run(
        "compare_flow.py", "run", *TEXT, *quick, *arms, *auxiliary, "--max-workers", "1", succeeds=False, BREAK="1"
    )
    assert "OSError: broken in this arm" in output
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
