"""Pods of the test double of a Kubernetes cluster: each runs its container's command as a process of this machine."""

import base64
import contextlib
import datetime
import os
import re
import subprocess
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil

SCHEMAS = "1.37"
"""The version of Kubernetes whose schemas everything that is submitted must satisfy, unknown fields refused."""


def validate_job(job: Mapping[str, Any]) -> None:
    """Raises kubernetes_validate.ValidationError where the Job, or its pod, is not what the schemas allow."""
    kubernetes_validate.validate(dict(job), SCHEMAS, strict=True)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Pod:
    """One pod: an object as the API shows it, and the process that it stands for.

    Its environment is the image's, the pod's own and that of its Secrets; of this process's it sees nothing.
    """

    def __init__(self, template: Mapping[str, Any], name: str, namespace: str) -> None:
        metadata = template.get("metadata", {})
        self.name, self.spec = name, template["spec"]
        self.labels, self.annotations = dict(metadata.get("labels", {})), dict(metadata.get("annotations", {}))
        self.metadata = {
            "name": name, "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now(),
            "labels": self.labels, "annotations": self.annotations,
        }  # fmt: skip
        self.phase = "Pending"
        self.state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self.environment: dict[str, str] = {}
        self.log = Path(os.devnull)
        self.status: dict[str, Any] = {}
        """What it says instead of the truth; empty: the truth."""
        self._process: subprocess.Popen[bytes] | None = None

    def to_dict(self) -> dict[str, Any]:
        (container,) = self.spec["containers"]
        status = {
            "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0,
            "ready": self.phase == "Running", "state": self.state,
        }  # fmt: skip
        return {
            "apiVersion": "v1", "kind": "Pod", "metadata": self.metadata, "spec": self.spec,
            "status": self.status or {"phase": self.phase, "hostIP": "127.0.0.1", "containerStatuses": [status]},
        }  # fmt: skip

    def start(
        self,
        folder: Path,
        *,
        image: Mapping[str, str],
        secrets: Mapping[str, Mapping[str, str]],
        hosts: Mapping[str, str],
        when_done: Callable[["Pod"], None],
    ) -> None:
        """Run the command in a folder of its own. A host name that `hosts` knows is replaced by its address: nobody
        else resolves the cluster's names here."""
        try:
            own = self._own_environment(secrets, hosts)
        except KeyError as missing:  # as the kubelet does, which then waits for the Secret
            self.state = {"waiting": {"reason": "CreateContainerConfigError", "message": f"secret {missing} not found"}}
            return
        folder.mkdir(parents=True)
        self.environment = self._whole_environment(image, own, folder)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(own),
                cwd=folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.phase, self.state = "Running", {"running": {"startedAt": now()}}
        self._watch = threading.Thread(target=self._wait, args=(when_done,), daemon=True)
        self._watch.start()

    def kill(self) -> None:
        """As a deleted pod with a grace period of 0."""
        if self._process is None or self._process.poll() is not None:
            return
        for process in psutil.process_iter():  # its session; the image's shell starts the command in a group of its own
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self._process.pid:
                    process.kill()

    def join(self) -> None:
        """Until its process has ended, and that is told."""
        if self._process is not None:
            self._process.wait()
            self._watch.join()

    def _whole_environment(self, image: Mapping[str, str], own: Mapping[str, str], folder: Path) -> dict[str, str]:
        return {**image, "HOME": str(folder), "TMPDIR": str(folder), **own}

    def _command(self, own: Mapping[str, str]) -> list[str]:
        (container,) = self.spec["containers"]
        return [*container["command"], *container.get("args", [])]

    def _wait(self, when_done: Callable[["Pod"], None]) -> None:
        assert self._process is not None
        code = self._process.wait()
        code = 128 - code if code < 0 else code
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": now()}
        self.state, self.phase = {"terminated": terminated}, "Failed" if code else "Succeeded"
        when_done(self)

    def _own_environment(self, secrets: Mapping[str, Mapping[str, str]], hosts: Mapping[str, str]) -> dict[str, str]:
        (container,) = self.spec["containers"]
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= secrets[source["secretRef"]["name"]]
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {})
            if "fieldRef" in reference:
                value = self._field(reference["fieldRef"]["fieldPath"])
            elif "secretKeyRef" in reference:
                value = secrets[reference["secretKeyRef"]["name"]][reference["secretKeyRef"]["key"]]
            else:
                value = variable.get("value", "")
            found[variable["name"]] = hosts.get(value, value)
        return found

    def _field(self, path: str) -> str:
        annotation = re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)
        if annotation:
            return str(self.annotations[annotation[1]])
        fields = {
            "metadata.name": self.name, "metadata.namespace": self.metadata["namespace"],
            "metadata.uid": self.metadata["uid"], "status.hostIP": "127.0.0.1",
            "spec.serviceAccountName": self.spec.get("serviceAccountName") or "default",
        }  # fmt: skip
        return str(fields[path])


def secret_object(name: str, values: Mapping[str, str]) -> dict[str, Any]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "data": data}
