"""A run that breaks in one step after another, each time resumed, ends well and is one run in MLflow."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, Workspace
from toys import save_auxiliary

import steps
from steps.tracking.champions import LEDGER_TAG

pytestmark = pytest.mark.slow

BREAKS = {
    "freeze_auxiliary": "steps/frozen.py",
    "end": "steps/closing_table.py",
}
"""A file that each step imports. It breaks there, before the import of torch: a step that fails early costs little."""
_BREAK = """
import os, sys
if os.environ.get("BREAK_AT") in sys.argv:  # a task's command line names its step
    raise OSError("broken in this step")
"""


@pytest.fixture
def breakable(tmp_path: Path) -> Workspace:
    """A workspace with a package of its own, in which the step that the variable BREAK_AT names raises."""
    workspace = Workspace(tmp_path)
    save_auxiliary(tmp_path / "auxiliary", (tmp_path / "text.txt").read_text().split("\n\n"))
    copy = workspace.packages / "steps"
    copy.unlink()
    shutil.copytree(Path(str(steps.__file__)).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in BREAKS.values():
        path = workspace.packages / file
        path.write_text(_BREAK + path.read_text())
    return workspace


def test_a_run_that_breaks_in_its_middle_and_at_its_end_ends_well_and_is_one_run(breakable: Workspace) -> None:
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
    """The flows' runs in the workspace's only experiment: nobody's children, nor a list of champions."""
    client = workspace.mlflow()
    experiment = client.get_experiment_by_name("fast-electra").experiment_id
    others = {"mlflow.parentRunId", LEDGER_TAG}
    return [run for run in client.search_runs([experiment]) if not others & run.data.tags.keys()]
