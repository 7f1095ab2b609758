"""RetrainFlow as a user runs it, after PretrainFlow: nothing is new, so it ends; and the webhook is told, secretly."""

import pytest
from conftest import TEXT, TRAINING, Finished
from webhook_receiver import Receiver

pytestmark = pytest.mark.slow


def test_where_nothing_is_new_the_flow_ends_at_once_and_tells_the_webhook(finished: Finished) -> None:
    workspace, receiver = finished.workspace, Receiver()
    output = workspace.run("retrain_flow.py", "run", *TRAINING, FAST_ELECTRA_WEBHOOK=receiver.url)
    receiver.close()
    run = workspace.latest("RetrainFlow")
    assert sorted(step.id for step in run) == ["choose", "end", "start"]
    assert "nothing to do: no file holds text that the champion has not seen" in output
    assert "told the webhook (200, attempt 1)" in output
    ((path, _, content),) = receiver.got
    assert path == "/T0KEN" and content["status"] == "succeeded"
    assert content["outcome"] == run.data.outcome and content["text"] == run.data.outcome["words"]
    assert content["outcome"]["files"] == {"new": 0, "changed": 0, "duplicates": 0, "kept": 1, "gone": 0}
    assert "T0KEN" not in output
    kept = [path for path in workspace.folder.rglob("*") if path.is_file()]
    assert any("RetrainFlow" in str(path) for path in kept)
    assert [path for path in kept if b"T0KEN" in path.read_bytes()] == []


def test_a_bad_deployment_is_refused_before_anything_runs(finished: Finished) -> None:
    deployment = ("--config-value", "deployment", '{"cron": "0 3 * *"}')
    output = finished.workspace.run("retrain_flow.py", *deployment, "run", *TEXT, succeeds=False)
    assert "cron must have five fields" in output and "Traceback" not in output
