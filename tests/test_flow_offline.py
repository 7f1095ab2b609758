"""The main job with its corruption drawn ahead of training: the same model; another run does not draw it again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Finished
from flow_walker import Walk, load_flow

from steps import lifecycle, planning

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def offline(finished: Finished) -> Iterator[Walk]:
    """The finished run once more, with `--corruption offline` and less fine-tuning, its steps in this process."""
    given = finished.pretrain["start"].task["plan"].data["config"]
    given |= {"corruption": "offline", "untrained_baseline": False, "keep_task_models": False}
    module = load_flow("pretrain_flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.workspace.folder)
        yield Walk(module, module.PretrainFlow, given, "offline")


def test_the_model_is_that_of_online_corruption_bit_for_bit(finished: Finished, offline: Walk) -> None:
    online = finished.pretrain["pretrain"].task["trained"].data
    assert offline.data.trained["digest"] == online["digest"]
    assert offline.data.trained["scores"] == online["scores"]
    speed = {"tokens_per_second"}
    for ours, theirs in zip(offline.data.trained["curve"], online["curve"], strict=True):
        assert {k: v for k, v in ours.items() if k not in speed} == {k: v for k, v in theirs.items() if k not in speed}


def test_the_steps_are_drawn_by_several_tasks_offline_and_by_none_online(finished: Finished, offline: Walk) -> None:
    assert [task["drawn"].data for task in finished.pretrain["corrupt"]] == [{}]
    drawn = [task.drawn for task in offline.tasks["corrupt"]]
    assert len(drawn) == 2
    assert all(result["num_reused_steps"] == 0 for result in drawn)
    corrupted = offline.tasks["gather_corruptions"][0].corrupted
    # 32 tokens a sequence, at most 30 of them ordinary: 5 ids (4.5 rounded up) of 2 bytes; 4 bytes per step of 8.
    assert 0.25 < corrupted["bytes_per_token"] <= (5 * 2 + 4 / 8) / 32 < 0.5


def test_mlflow_and_the_report_say_how_it_was_corrupted(finished: Finished, offline: Walk, tmp_path: Path) -> None:
    client = finished.workspace.mlflow()
    digest = offline.data.trained["corruption"]["corruption.digest"]
    version = client.get_model_version("fast-electra", offline.data.version["version"])
    parent = offline.data.plan["mlflow_run_id"]
    expected = {"corruption": "offline", "corruption.digest": digest, "corruption.reused": "0"}
    for tags in (version.tags, client.get_run(parent).data.tags, client.get_run(version.run_id).data.tags):
        assert expected.items() <= tags.items()
    metrics = client.get_run(version.run_id).data.metrics
    assert metrics["corruption/reused_fraction"] == 0
    assert 0.25 < metrics["corruption/bytes_per_token"] < 0.5
    page = offline.data.page
    assert all(word in page for word in ("corruption.reused", digest, "drawn by an earlier run"))
    online = client.get_model_version("fast-electra", finished.pretrain["register"].task["version"].data["version"])
    assert online.tags["corruption"] == "online"
    assert "corruption.digest" not in online.tags


def test_another_main_model_and_learning_rate_pay_nothing_for_the_same_corruption(
    finished: Finished, offline: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work of the flow's steps, in this process."""
    monkeypatch.chdir(finished.workspace.folder)
    config = offline.data.plan["config"]
    given = config | {"learning_rate": 0.003, "num_layers": 3, "experiment": "another"}
    plan = planning.begin_pretrain(given, flow="PretrainFlow", run_id="another")
    text, frozen = offline.data.text, offline.data.frozen
    tasks = lifecycle.list_corruptions(plan)
    corrupted = lifecycle.gather_corruptions(
        plan, text, frozen, [lifecycle.corrupt(plan, text, frozen, task) for task in tasks]
    )
    ours, _ = lifecycle.pretrain(plan, text, frozen, corrupted)
    theirs = offline.data.trained
    assert ours["digest"] != theirs["digest"]
    assert ours["corruption"] == theirs["corruption"] | {"corruption.reused": "1"}
    assert (ours["cost"]["flops"]["auxiliary"], theirs["cost"]["flops"]["auxiliary_reused"]) == (0, 0)
    assert ours["cost"]["flops"]["auxiliary_reused"] == theirs["cost"]["flops"]["auxiliary"] > 0
    client = finished.workspace.mlflow()
    run = client.get_run(ours["mlflow_run_id"])
    assert run.data.tags["corruption.reused"] == "1"
    assert run.data.metrics["corruption/reused_fraction"] == 1
    cost = json.loads(Path(client.download_artifacts(run.info.run_id, "cost.json", str(tmp_path))).read_text())
    assert cost["flops"]["auxiliary"] == 0 < cost["flops"]["auxiliary_reused"]
    assert run.data.metrics["cost/flops_auxiliary_reused"] == cost["flops"]["auxiliary_reused"]
