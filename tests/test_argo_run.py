"""RetrainFlow as Argo Workflows runs it, deployed by `fast-electra deploy`: pods that are processes, data in S3, an
MLflow server, a webhook."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from argo_engine import REDIRECT, ArgoPod, Workflow
from conftest import ROOT, write_text
from kubernetes_on_s3 import image
from mlflow_server import MlflowServer
from ready_cluster import ready_cluster
from tiny_flow import settle
from toys import save_auxiliary
from webhook_receiver import Receiver

from steps import retrain
from steps.command import main
from steps.lock import Lock
from steps.store import Store

pytestmark = pytest.mark.slow
BUCKET = "on-argo"
GIVEN: dict[str, Any] = {
    "preset": "tiny", "corpus": f"s3://{BUCKET}/text", "store": f"s3://{BUCKET}/store", "corpus_licence": "CC0-1.0",
    "heldout_fraction": 0.1, "shard_megabytes": 0.06, "min_new_tokens": 1000, "num_steps": 10,
    "auxiliary": f"s3://{BUCKET}/auxiliary", "max_auxiliary_fraction": 2.0, "tasks": "rte", "seeds": 1,
    "finetune_max_examples": 16, "untrained_baseline": False, "waive_gates": "majority,replay",
}  # fmt: skip


OF_A_MAIN_MODEL = GIVEN.keys() - {"min_new_tokens"}


class OnArgo(NamedTuple):
    cluster: Any
    s3: Any
    mlflow: MlflowServer
    webhook: Receiver

    def run(self) -> tuple[str, Workflow]:
        workflow = Workflow(self.cluster, "retrainflow")
        return workflow.run(), workflow


@contextlib.contextmanager
def started(server: MlflowServer) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


@pytest.fixture(scope="module")
def on_argo(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnArgo]:
    folder = tmp_path_factory.mktemp("argo")
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=s3_endpoint, **keys)
    s3.create_bucket(Bucket=BUCKET)
    write_text(folder / "text.txt")
    s3.upload_file(str(folder / "text.txt"), BUCKET, "text/text.txt")
    for path in save_auxiliary(folder / "auxiliary", (folder / "text.txt").read_text().split("\n\n")).iterdir():
        s3.upload_file(str(path), BUCKET, f"auxiliary/{path.name}")
    (folder / "packages").mkdir()
    (folder / "packages" / "sitecustomize.py").write_text(REDIRECT)
    server, webhook = MlflowServer(folder), Receiver()
    with (
        contextlib.closing(s3),
        contextlib.closing(webhook),
        started(server),
        pytest.MonkeyPatch.context() as patch,
        ready_cluster(folder, patch, s3=s3_endpoint, mlflow=server.uri) as cluster,
    ):
        cluster.pod = ArgoPod
        cluster.image |= image() | {"PYTHONPATH": str(folder / "packages")}
        cluster.secrets["fast-electra"]["FAST_ELECTRA_WEBHOOK"] = webhook.url
        for name, value in cluster.secrets["fast-electra"].items():
            patch.setenv(name, value)
        patch.setenv("METAFLOW_DATASTORE_SYSROOT_S3", f"s3://{BUCKET}/metaflow")
        settle(folder, patch, **GIVEN)
        profile = str(ROOT / "infra" / "profiles" / "kubernetes.json")
        command = ["deploy", str(ROOT / "flows" / "retrain_flow.py"), "--to", "argo-workflows"]
        assert main([*command, "--profile", profile, "--defaults", "weekly.json"]) == 0
        yield OnArgo(cluster, s3, server, webhook)


def steps_of(workflow: Workflow) -> list[str]:
    """Of its pods, in the order in which they were started; a hook has none."""
    return [pod.annotations["metaflow/step_name"] for pod in workflow.pods if pod.annotations]


def told(on_argo: OnArgo) -> dict[str, Any]:
    """What the webhook was told last."""
    _, _, content = on_argo.webhook.got[-1]
    return dict(content)


def test_while_another_run_is_at_work_three_pods_say_so(on_argo: OnArgo) -> None:
    lock = Lock(Store(f"s3://{BUCKET}/store"), retrain.LOCK_NAME, owner="another/run", lifetime_seconds=600)
    assert lock.acquire() is None
    status, workflow = on_argo.run()
    lock.release()
    assert (status, steps_of(workflow)) == ("Succeeded", ["start", "choose", "end"])
    assert workflow.hooks == ["success-tell-success"]
    run = f"RetrainFlow/argo-{workflow.name}"
    assert (told(on_argo)["run"], told(on_argo)["status"]) == (run, "succeeded")
    assert told(on_argo)["outcome"]["reason"].startswith("another run is at work: another/run since")


@pytest.mark.long
def test_a_run_that_is_refused_ends_and_the_webhook_is_told(on_argo: OnArgo) -> None:
    on_argo.s3.copy_object(Bucket=BUCKET, Key="aside", CopySource=f"{BUCKET}/text/text.txt")
    on_argo.s3.delete_object(Bucket=BUCKET, Key="text/text.txt")
    status, workflow = on_argo.run()
    on_argo.s3.copy_object(Bucket=BUCKET, Key="text/text.txt", CopySource=f"{BUCKET}/aside")
    assert (status, steps_of(workflow), workflow.hooks) == ("Failed", ["start"], ["error-tell-failure"])
    assert "there is no object under the prefix 'text' in bucket 'on-argo'" in workflow.pods[0].log.read_text()
    assert (told(on_argo)["run"], told(on_argo)["status"]) == (f"RetrainFlow/argo-{workflow.name}", "failed")


@pytest.mark.long
def test_a_first_model_becomes_champion_though_a_machine_is_lost_and_then_nothing_is_new(on_argo: OnArgo) -> None:
    workflow = Workflow(on_argo.cluster, "retrainflow", lost={"freeze_auxiliary"})
    assert workflow.run() == "Succeeded"
    assert sorted(steps_of(workflow)) == sorted(
        [
            "start", "choose", "list_texts", "tokenize", "tokenize", "gather_tokens", "list_candidates",
            "score_auxiliary", "freeze_auxiliary", "freeze_auxiliary", "pretrain", "finetune", "gather_scores",
            "register", "end",
        ]
    )  # fmt: skip
    assert workflow.hooks == ["success-tell-success"]
    outcome = told(on_argo)["outcome"]
    assert (outcome["way"], outcome["version"], outcome["is_promoted"]) == ("scratch", "fast-electra 1", True)
    status, workflow = on_argo.run()
    assert (status, steps_of(workflow)) == ("Succeeded", ["start", "choose", "end"])
    assert told(on_argo)["outcome"]["reason"] == "no file holds text that the champion has not seen"


@pytest.mark.long
def test_two_pods_of_a_jobset_train_one_model(on_argo: OnArgo, capfd: pytest.CaptureFixture[str]) -> None:
    Path("pair.json").write_text(json.dumps({**{name: GIVEN[name] for name in OF_A_MAIN_MODEL}, "num_nodes": 2}))
    profile = str(ROOT / "infra" / "profiles" / "kubernetes.json")
    command = ["deploy", str(ROOT / "flows" / "pretrain_flow.py"), "--to", "argo-workflows"]
    assert main([*command, "--profile", profile, "--defaults", "pair.json"]) == 0
    capfd.readouterr()
    workflow = Workflow(on_argo.cluster, "pretrainflow")
    assert workflow.run() == "Succeeded"
    assert "pretrain" not in steps_of(workflow) and steps_of(workflow)[-1] == "end"
    (jobset,) = on_argo.cluster.jobsets.values()
    pods = [pod for pod in on_argo.cluster.pods.values() if "jobset.sigs.k8s.io/jobset-name" in pod.labels]
    assert len(pods) == 2 and jobset["status"]["terminalState"] == "Completed"
    assert "registered" in workflow.pods[-1].log.read_text()


def test_the_webhooks_address_is_in_no_log_and_nothing_that_is_kept(on_argo: OnArgo) -> None:
    pages = on_argo.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert any(key.startswith("metaflow/RetrainFlow/data/") for key in keys)
    bodies = {key: on_argo.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
    assert [key for key, body in bodies.items() if b"T0KEN" in body] == []
    assert (
        on_argo.cluster.pods
        and [name for name, pod in on_argo.cluster.pods.items() if b"T0KEN" in pod.log.read_bytes()] == []
    )
