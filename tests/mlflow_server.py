"""A real MLflow server on the loopback interface, which tests may pause and stop."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest


class MlflowServer:
    """`mlflow server` with its data in `folder`, a process group of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("a") as log:
            # Its job workers are seven processes more, which nothing here asks anything.
            quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            environment = {**os.environ, **quiet}
            environment.pop("MLFLOW_TRACKING_URI", None)
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
            )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def lose_first_answer(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Of a client's method: the server does what it is asked, and its answer is lost on its way."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    really, answers = getattr(MlflowClient, method), list[Any]()

    def call(*args: Any, **more: Any) -> Any:
        answers.append(really(*args, **more))
        if len(answers) == 1:
            raise MlflowException("the connection was reset", TEMPORARILY_UNAVAILABLE)
        return answers[-1]

    monkeypatch.setattr(MlflowClient, method, call)
