"""Flows with the profile kubernetes, on the double of a cluster, with their data in S3: what tests of it share."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from conftest import ROOT, Workspace
from kubernetes_api import NAMESPACE, Cluster, running
from kubernetes_pods import Pod
from planted import PLANTED
from warm_python import interpreter

KEYS = {**PLANTED, "AWS_DEFAULT_REGION": "us-east-1"}
"""Of the user and, by a Secret, of the pods; S3's double takes any."""
IN_PODS = {"OMP_NUM_THREADS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
"""What this machine adds to the environment of every pod."""


def image() -> dict[str, str]:
    """The environment that infra/container/Dockerfile gives to what runs in it, as far as it matters to processes."""
    folders = (Path(interpreter()).parent, Path(sys.executable).parent, "/usr/local/bin", "/usr/bin", "/bin")
    return {
        "PATH": os.pathsep.join(map(str, folders)),
        "METAFLOW_SKIP_INSTALL_DEPENDENCIES": "1",
        "BASH_ENV": f"{ROOT}/infra/container/tell_step.sh",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **IN_PODS,
    }


class OnKubernetes(NamedTuple):
    workspace: Workspace
    cluster: Cluster
    client: Any
    """S3."""
    bucket: str

    def run(self, flow: str, *arguments: str) -> str:
        """Run a flow with the profile kubernetes, as a user of the cluster does; returns what it printed."""
        return self.workspace.run(flow, *_with_profile(*arguments), **self._environment())

    def start(self, flow: str, *arguments: str) -> "subprocess.Popen[str]":
        """The same, without waiting for its end."""
        return self.workspace.start(flow, *_with_profile(*arguments), **self._environment())

    def _environment(self) -> dict[str, str]:
        return {
            **KEYS,
            "AWS_EC2_METADATA_DISABLED": "true",
            "KUBECONFIG": self.cluster.kubeconfig(),
            "METAFLOW_DEFAULT_DATASTORE": "s3",
            "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{self.bucket}/metaflow",
            "METAFLOW_DATATOOLS_S3ROOT": f"s3://{self.bucket}/data",
            "METAFLOW_S3_ENDPOINT_URL": self.client.meta.endpoint_url,
            "METAFLOW_S3_WORKER_COUNT": "2",
            "METAFLOW_KUBERNETES_NAMESPACE": NAMESPACE,
            "METAFLOW_KUBERNETES_CONTAINER_REGISTRY": "registry.test",
        }


def _with_profile(*arguments: str) -> tuple[str, ...]:
    return ("--config", "profile", str(ROOT / "infra" / "profiles" / "kubernetes.json"), "run", *arguments)


@contextmanager
def running_on_kubernetes(
    folder: Path, s3_endpoint: str, bucket: str, *, pod: type[Pod] = Pod
) -> Iterator[OnKubernetes]:
    """A cluster whose pods are of the class `pod`, and a bucket that holds the small text under `corpus/`."""
    (folder / "cluster").mkdir()
    workspace = Workspace(folder)
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3_endpoint, **keys)
    client.create_bucket(Bucket=bucket)
    client.upload_file(str(workspace.folder / "text.txt"), bucket, "corpus/text.txt")
    with running(Cluster(folder / "cluster", image=image(), pod=pod)) as cluster:
        cluster.secrets["fast-electra"] = dict(KEYS)
        cluster.service_accounts["fast-electra"] = {}
        yield OnKubernetes(workspace, cluster, client, bucket)
    client.close()
