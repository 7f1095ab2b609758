"""What `fast-electra lineage --reproduce` prints makes the same weights again."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import ROOT, Finished

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.fields import describe_fields
from steps import delivery, lifecycle, planning
from steps.command import main


@pytest.fixture
def script(finished: Finished, capsys: pytest.CaptureFixture[str]) -> str:
    """The lines that are left to do when code and environment are there."""
    uri = f"sqlite:///{finished.workspace.folder}/mlflow.db"
    assert main(["lineage", "models:/fast-electra/1", "--tracking_uri", uri, "--reproduce"]) == 0
    head, _, rest = capsys.readouterr().out.partition("\nsource .venv/bin/activate\n")
    assert "git worktree add" in head
    return rest


def given_on(line: str, config_class: type) -> dict[str, Any]:
    """The parameters of a flow's command line, as click reads them for Metaflow."""
    kinds = describe_fields(config_class)
    words = shlex.split(line.partition(" run ")[2])
    names = [word.removeprefix("--") for word in words[::2]]
    return {
        name: click.types.convert_type(kinds[name].kind)(word) for name, word in zip(names, words[1::2], strict=True)
    }


def tokenized(plan: dict[str, Any]) -> dict[str, Any]:
    tasks = lifecycle.list_tokenizings(plan)
    return lifecycle.gather_tokens(plan, [lifecycle.tokenize(plan, task) for task in tasks])


def test_training_by_the_printed_parameters_gives_the_same_weights_of_auxiliary_and_main_model(
    finished: Finished, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [line for line in script.splitlines() if "python flows/" in line]
    assert "OMP_NUM_THREADS=1 python flows/auxiliary_flow.py" in first and "flows/pretrain_flow.py" in second
    monkeypatch.chdir(tmp_path)  # the script keeps what it makes in the folder where it is started

    plan = planning.begin_auxiliary(given_on(first, AuxiliaryConfig), flow="AuxiliaryFlow", run_id="again")
    text = tokenized(plan)
    made, _ = lifecycle.train_auxiliary(plan, text)
    delivery.register_auxiliary(plan, text, made, pathspec="AuxiliaryFlow/again/register/1")
    assert made["digest"] == finished.auxiliary["train"].task["trained"].data["digest"]

    plan = planning.begin_pretrain(given_on(second, PretrainConfig), flow="PretrainFlow", run_id="again")
    text = tokenized(plan)
    scored = [lifecycle.score_candidate(plan, text, candidate) for candidate in plan["candidates"]]
    frozen, _ = lifecycle.freeze_auxiliary(plan, text, scored)
    drawn = [lifecycle.corrupt(plan, text, frozen, task) for task in lifecycle.list_corruptions(plan)]
    made, _ = lifecycle.pretrain(plan, text, frozen, lifecycle.gather_corruptions(plan, text, frozen, drawn))
    assert made["digest"] == finished.pretrain["pretrain"].task["trained"].data["digest"]
    assert plan["config"]["store"] == "reproduced/store" and Path("reproduced", "store").is_dir()


@pytest.mark.long
def test_the_printed_script_makes_the_same_weights_again_and_says_so(
    finished: Finished, script: str, tmp_path: Path
) -> None:
    (tmp_path / "flows").symlink_to(ROOT / "flows")
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "-c", f"set -e\n{script}"],
        cwd=tmp_path,
        env=finished.workspace.environment(**path),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    digest = finished.pretrain["pretrain"].task["trained"].data["digest"]
    assert f"[ok]      weights as expected {digest}" in ran.stdout
