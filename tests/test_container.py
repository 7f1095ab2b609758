"""Both flows in containers of the image: the profile's pods run with the rights, limits and mounts that it gives them.

They need a container engine and an image of this checkout (`make image`), and are skipped without.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT, TEXT, TRAINING
from container_pods import ContainerPod, engine, has_image
from kubernetes_on_s3 import IN_PODS, OnKubernetes, running_on_kubernetes
from mlflow_server import MlflowServer

BUCKET, IMAGE = "in-containers", "fast-electra:cpu"
STOP_SECONDS = 20  # from the signal to the end of the container, checkpoint and logs in S3


@pytest.fixture(scope="module")
def container_pod() -> type[ContainerPod]:
    """Pods of the image, which stands for the one with CUDA, too: there is no GPU."""
    found = engine()
    if found is None:
        pytest.skip("no container engine here")
    if not has_image(found, IMAGE):
        pytest.skip(f"no image {IMAGE} here: make image")

    class OfThisImage(ContainerPod):
        engine = found
        images = {f"registry.test/fast-electra:{kind}": IMAGE for kind in ("cpu", "gpu")}

    return OfThisImage


@pytest.fixture(scope="module")
def in_containers(
    container_pod: type[ContainerPod], s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnKubernetes]:
    with running_on_kubernetes(tmp_path_factory.mktemp("containers"), s3_endpoint, BUCKET, pod=container_pod) as found:
        found.cluster.secrets["fast-electra"] |= IN_PODS
        found.workspace.timeout_seconds = 1800  # nearly thirty containers, each of which imports anew
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_both_flows_run_whole_in_containers_and_two_pods_train_together(
    in_containers: OnKubernetes, server: MlflowServer
) -> None:
    places = ("--corpus", f"s3://{BUCKET}/corpus", "--store", f"s3://{BUCKET}/store", "--tracking_uri", server.uri)
    good_enough = ("--num_steps", "60", "--learning_rate", "0.01")  # for the alias by which the next flow finds it
    auxiliary = in_containers.run("auxiliary_flow.py", *TEXT, *places, *good_enough)
    assert "fast-electra-auxiliary 1" in auxiliary
    main = in_containers.run("pretrain_flow.py", *TRAINING, *places, "--num_steps", "10", "--num_nodes", "2")
    assert "fast-electra 1" in main
    pods = in_containers.cluster.pods.values()
    assert len(pods) > 10 and {pod.phase for pod in pods} == {"Succeeded"}
    assert len(in_containers.cluster.jobsets) == 1
    with_read_only_root = [pod for pod in pods if has_read_only_root(pod.spec["containers"][0])]
    assert len(with_read_only_root) > 10


@pytest.mark.slow
@pytest.mark.parametrize("by_whom", ["the cluster", "Metaflow"])
def test_a_pod_that_is_stopped_leaves_a_checkpoint_in_time_and_the_next_one_goes_on_from_it(
    by_whom: str, in_containers: OnKubernetes, server: MlflowServer
) -> None:
    """The kubelet tells the container's first process, which has half a minute; Metaflow runs killall5 in it."""
    folder = f"stopped-by-{by_whom.split()[-1]}"
    places = ("--corpus", f"s3://{BUCKET}/corpus", "--store", f"s3://{BUCKET}/{folder}", "--tracking_uri", server.uri)
    long = ("--num_steps", "1500", "--checkpoint_every_steps", "50")
    process = in_containers.start("auxiliary_flow.py", *TEXT, *places, *long)
    while not in_containers.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/runs/").get("Contents"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    (pod,) = (each for each in in_containers.cluster.pods.values() if each.phase == "Running")
    asked = time.monotonic()
    if by_whom == "Metaflow":
        stop = ["exec", pod.name, "/bin/sh", "-c", "/sbin/killall5"]
        subprocess.run([str(engine()), *stop], check=True, capture_output=True, timeout=10)
        subprocess.run([str(engine()), "wait", pod.name], capture_output=True, timeout=60)
    else:
        subprocess.run([str(engine()), "stop", "--time", "30", pod.name], check=True, capture_output=True)
    seconds = time.monotonic() - asked
    output, _ = process.communicate(timeout=in_containers.workspace.timeout_seconds)
    assert process.returncode == 0, output
    (stopped_at,) = re.findall(r"stopped after step (\d+); a checkpoint is written", output)
    assert f"goes on from its checkpoint at step {stopped_at}" in output
    assert seconds < STOP_SECONDS


def has_read_only_root(container: dict[str, Any]) -> bool:
    return bool(container["securityContext"].get("readOnlyRootFilesystem"))


@pytest.mark.parametrize("profile", ["kubernetes", "kubernetes-spot"])
def test_the_image_begins_where_a_pod_with_a_read_only_root_may_write(profile: str) -> None:
    """Metaflow makes folders and unpacks the code where the container starts."""
    begins = re.findall(r"(?m)^WORKDIR (.*)", (ROOT / "infra/container/Dockerfile").read_text())[-1]
    steps = json.loads((ROOT / f"infra/profiles/{profile}.json").read_text())["steps"]
    read_only = [each for each in steps.values() if each.get("security_context", {}).get("read_only_root_filesystem")]
    assert read_only and {each["tmpfs_path"] for each in read_only} == {begins}
