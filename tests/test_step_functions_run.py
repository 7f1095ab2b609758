"""RetrainFlow as AWS Step Functions runs it, deployed by `fast-electra deploy`: jobs that are processes, else a mock of
AWS, an MLflow server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_text
from kubernetes_on_s3 import image as of_pods
from mlflow_server import MlflowServer
from step_functions_engine import Execution
from test_argo_run import GIVEN
from test_deploy_retrain import STEPS, deploy
from test_deploy_step_functions import aws  # noqa: F401 -- a fixture
from tiny_flow import settle
from toys import save_auxiliary

from steps import retrain
from steps.lock import Lock
from steps.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[str]:
    """A real one, where `aws` has something that only answers."""
    server = MlflowServer(tmp_path)
    server.start()
    yield server.uri
    server.stop()


def test_it_goes_through_every_step_where_there_is_nothing_to_do_and_trains_where_there_is(
    aws: Callable[[str], Any],  # noqa: F811
    s3: Any,
    s3_endpoint: str,
    mlflow: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    s3.upload_file(str(write_text(tmp_path / "text.txt")), "bucket", "text/text.txt")
    for path in save_auxiliary(tmp_path / "auxiliary", (tmp_path / "text.txt").read_text().split("\n\n")).iterdir():
        s3.upload_file(str(path), "bucket", f"auxiliary/{path.name}")
    places = {name: f"s3://bucket/{folder}" for name, folder in
              {"corpus": "text", "store": "store", "auxiliary": "auxiliary"}.items()}  # fmt: skip
    settle(tmp_path, monkeypatch, **{**GIVEN, **places, "tracking_uri": mlflow})
    deploy(capfd, to="step-functions")
    (machine,) = aws("stepfunctions").list_state_machines()["stateMachines"]
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    image = {**of_pods(), **keys, "AWS_ENDPOINT_URL": s3_endpoint}
    (target,) = aws("events").list_targets_by_rule(Rule="RetrainFlow")["Targets"]

    def execution(name: str) -> Execution:
        found = machine["stateMachineArn"]
        return Execution(aws, found, tmp_path / name, image=image, given=json.loads(target["Input"]))

    lock = Lock(Store("s3://bucket/store"), retrain.LOCK_NAME, owner="another/run", lifetime_seconds=600)
    assert lock.acquire() is None
    idle = execution("idle")
    assert idle.run() == "SUCCEEDED", idle.jobs[-1].log.read_text()
    lock.release()
    assert {job.step for job in idle.jobs} == STEPS and len(idle.jobs) == len(STEPS)
    assert "nothing to do: another run is at work: another/run since" in idle.jobs[-1].log.read_text()

    trained = execution("trained")
    assert trained.run() == "SUCCEEDED", trained.jobs[-1].log.read_text()
    assert [job.step for job in trained.jobs].count("tokenize") == 2
    assert "registered                        fast-electra 1  @challenger @champion" in trained.jobs[-1].log.read_text()
