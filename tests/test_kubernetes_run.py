"""A whole flow on Kubernetes: the profile's pods run as processes under a double of the API server, data in S3."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, TEXT, TRAINING
from kubernetes_on_s3 import KEYS, OnKubernetes, running_on_kubernetes
from planted import PLANTED, leaks, leaks_below
from toys import save_auxiliary

pytestmark = pytest.mark.slow
BUCKET = "on-kubernetes"


@pytest.fixture(scope="module")
def on_kubernetes(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnKubernetes]:
    with running_on_kubernetes(tmp_path_factory.mktemp("kubernetes"), s3_endpoint, BUCKET) as found:
        yield found


class Run(NamedTuple):
    output: str
    jobs: dict[str, dict[str, Any]]
    """The Jobs by step."""
    data: Any
    """Metaflow's run."""


@pytest.fixture(scope="module")
def auxiliary(on_kubernetes: OnKubernetes) -> Run:
    """AuxiliaryFlow with the profile kubernetes, from the command line to the registered model."""
    workspace, cluster = on_kubernetes.workspace, on_kubernetes.cluster
    store = ("--store", f"s3://{BUCKET}/store", "--tracking_uri", f"sqlite:///{workspace.folder}/mlflow.db")
    output = on_kubernetes.run(
        "auxiliary_flow.py", *TEXT, "--corpus", f"s3://{BUCKET}/corpus", *store, "--num_steps", "10"
    )
    jobs = {job["metadata"]["annotations"]["metaflow/step_name"]: job for job in cluster.jobs.values()}
    return Run(output, jobs, workspace)


def test_a_flow_with_a_profile_runs_whole_in_pods(auxiliary: Run, on_kubernetes: OnKubernetes) -> None:
    assert set(auxiliary.jobs) == {"start", "tokenize", "train", "register", "end"}
    assert all(pod.phase == "Succeeded" for pod in on_kubernetes.cluster.pods.values())
    assert "fast-electra-auxiliary 1" in auxiliary.output
    assert on_kubernetes.cluster.unknown == []


def test_each_pod_is_what_the_profile_says_of_its_kind(auxiliary: Run) -> None:
    said = json.loads((ROOT / "infra" / "profiles" / "kubernetes.json").read_text())["steps"]
    for step, kind in {"start": "light", "tokenize": "tokenize", "train": "pretrain"}.items():
        pod = auxiliary.jobs[step]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        limits = container["resources"]["limits"]
        assert (limits["cpu"], limits["memory"]) == (str(said[kind]["cpu"]), f"{said[kind]['memory']}M")
        assert limits.get("nvidia.com/gpu") == {"light": None, "tokenize": None, "pretrain": "1"}[kind]
        assert pod["nodeSelector"] == said[kind]["node_selector"]
        assert pod["tolerations"] == said[kind].get("tolerations", [])
        assert pod["activeDeadlineSeconds"] == 60 * said[kind]["timeout_minutes"]
        assert container["image"] == f"registry.test/fast-electra:{'gpu' if kind == 'pretrain' else 'cpu'}"
    mounts = auxiliary.jobs["train"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [mount["mountPath"] for mount in mounts] == ["/dev/shm"]


def test_every_pod_is_unprivileged_and_bounded(auxiliary: Run) -> None:
    for step, job in auxiliary.jobs.items():
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 10001
        assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security.get("readOnlyRootFilesystem", False) == (step != "train")
        assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
        assert pod["serviceAccountName"] == "fast-electra"


def test_credentials_reach_the_pods_by_their_secret_alone(auxiliary: Run, on_kubernetes: OnKubernetes) -> None:
    for job in auxiliary.jobs.values():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "fast-electra"}}]
        assert not {variable["name"] for variable in container["env"]} & set(KEYS)
    environments = [pod.environment for pod in on_kubernetes.cluster.pods.values()]
    assert len(environments) >= 5 and all(PLANTED.items() <= environment.items() for environment in environments)


def test_no_secret_is_in_anything_that_the_run_leaves(auxiliary: Run, on_kubernetes: OnKubernetes) -> None:
    cluster, client = on_kubernetes.cluster, on_kubernetes.client
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert any(key.startswith("metaflow/AuxiliaryFlow/data/") for key in keys)  # artifacts, logs, cards, the code
    bodies = {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
    found = {key: secrets for key, body in bodies.items() if (secrets := leaks(key, body))}
    assert found == {}
    assert leaks_below(on_kubernetes.workspace.folder) == {}  # MLflow's database and artifacts
    assert leaks("what was printed", auxiliary.output.encode()) == []
    assert leaks("what was submitted", json.dumps([*cluster.jobs.values(), *cluster.jobsets.values()]).encode()) == []
    assert [pod.name for pod in cluster.pods.values() if leaks(pod.name, pod.log.read_bytes())] == []


def test_all_that_the_run_keeps_is_in_the_bucket(auxiliary: Run, on_kubernetes: OnKubernetes) -> None:
    pages = on_kubernetes.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert {key.split("/")[0] for key in keys} == {"corpus", "metaflow", "store"}
    assert any(key.startswith("store/tokens/") for key in keys)
    assert not (on_kubernetes.workspace.folder / ".fast_electra").exists()


@pytest.mark.long
def test_two_pods_of_a_jobset_train_one_model(on_kubernetes: OnKubernetes) -> None:
    folder, cluster = on_kubernetes.workspace.folder, on_kubernetes.cluster
    save_auxiliary(folder / "auxiliary", (folder / "text.txt").read_text().split("\n\n"))
    places = ("--corpus", f"s3://{BUCKET}/corpus", "--store", f"s3://{BUCKET}/store",
              "--tracking_uri", f"sqlite:///{folder}/mlflow.db")  # fmt: skip
    auxiliary = ("--auxiliary", str(folder / "auxiliary"), "--max_auxiliary_fraction", "2")
    quick = ("--num_steps", "20", "--finetune_max_examples", "16", "--untrained_baseline", "false")
    output = on_kubernetes.run("pretrain_flow.py", *TRAINING, *places, *auxiliary, *quick, "--num_nodes", "2")
    assert "fast-electra 1" in output
    (jobset,) = cluster.jobsets.values()
    assert jobset["status"]["conditions"] == [{"type": "Completed", "status": "True"}]
    pods = [pod for pod in cluster.pods.values() if "jobset.sigs.k8s.io/jobset-name" in pod.labels]
    assert sorted(pod.labels["jobset.sigs.k8s.io/replicatedjob-name"] for pod in pods) == ["control", "worker"]
    client = on_kubernetes.workspace.mlflow()
    version = client.get_model_version("fast-electra", "1")
    cost = json.loads(Path(client.download_artifacts(version.run_id, "cost.json")).read_text())
    assert cost["num_processes"] == 2
