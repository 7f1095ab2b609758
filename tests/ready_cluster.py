"""A cluster on which nothing is wrong, beside S3 and an MLflow server, for what asks before it acts."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import NAMESPACE, Cluster, running

GPU = {"cpu": "31850m", "memory": "127Gi", "ephemeral-storage": "300Gi", "nvidia.com/gpu": "1"}
CPU = {"cpu": "3920m", "memory": "14Gi", "ephemeral-storage": "90Gi"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def node(pool: str, allocatable: dict[str, str], *taints: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{pool}-node", "labels": {"fast-electra/pool": pool}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": allocatable},
    }


class Answering:
    """An HTTP server that says the same to everybody."""

    def __init__(self) -> None:
        self.status, self.text, self.asked = 200, '{"experiments": []}', [("", "")]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization", "")))
                data = outer.text.encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = _answer
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def answering() -> Iterator[Answering]:
    """In the tracking server's place (a real one is asked in test_kubernetes_manifests)."""
    found = Answering()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@contextmanager
def ready_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, *, s3: str, mlflow: str) -> Iterator[Cluster]:
    """The cluster, and the settings that lead there; the addresses are those of servers that run."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"))
    image = {"PATH": folders, "AWS_EC2_METADATA_DISABLED": "true"}
    with running(Cluster(folder / "cluster", image=image)) as cluster:
        cluster.folder.mkdir()
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        cluster.secrets["fast-electra"] = keys | {"MLFLOW_TRACKING_URI": mlflow}
        for name in ("fast-electra", "fast-electra-argo"):
            cluster.service_accounts[name] = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/task"}
        cluster.nodes = [node("cpu", CPU), node("cpu", CPU), node("gpu", GPU, GPU_TAINT)]
        set_metaflow(folder, monkeypatch, s3=s3, mlflow=mlflow)
        monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig())
        yield cluster


def set_metaflow(folder: Path, monkeypatch: pytest.MonkeyPatch, *, s3: str, mlflow: str) -> None:
    """Metaflow's settings for these servers, and no others."""
    for name in [name for name in os.environ if name.startswith(("METAFLOW_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    settings = {
        "METAFLOW_HOME": str(folder / "metaflow_home"),
        "METAFLOW_KUBERNETES_NAMESPACE": NAMESPACE,
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/metaflow",
        "METAFLOW_S3_ENDPOINT_URL": s3,
        "MLFLOW_TRACKING_URI": mlflow,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
