"""Pods of the test double of a Kubernetes cluster that are containers: by an engine with docker's command line."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes_pods import Pod


def engine() -> str | None:
    """The program that runs containers here, if one does: Podman needs no daemon, so it is asked first."""
    for name in ("podman", "docker"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, timeout=60).returncode == 0:
            return name
    return None


def has_image(engine: str, image: str) -> bool:
    return subprocess.run([engine, "image", "inspect", image], capture_output=True, timeout=60).returncode == 0


class ContainerPod(Pod):
    """One pod whose container is one: image, user, root file system, capabilities, memory, processors and mounts in
    memory as its specification says. The network is this machine's, where S3 and MLflow are. Of the environment it
    gets the pod's own; the rest is the image's.

    In a JobSet the numbers of processes are this machine's, too: torch's rendezvous tells machines apart by address and
    process, and two pods at one address that were both process 32 waited for one another."""

    engine = "podman"
    images: Mapping[str, str] = {}
    """The image of this machine that stands for one that a pod names."""

    def kill(self) -> None:
        subprocess.run([self.engine, "rm", "--force", self.name], capture_output=True, timeout=120)
        super().kill()

    def _whole_environment(self, image: Mapping[str, str], own: Mapping[str, str], folder: Path) -> dict[str, str]:
        return {**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **own}

    def _command(self, own: Mapping[str, str]) -> list[str]:
        (container,) = self.spec["containers"]
        limits, security = container["resources"]["limits"], container["securityContext"]
        settings = [
            f"--name={self.name}", "--network=host", f"--user={security['runAsUser']}:{security['runAsGroup']}",
            f"--memory={limits['memory'].lower()}", f"--cpus={min(float(limits['cpu']), os.cpu_count() or 1)}",
        ]  # fmt: skip
        if "jobset.sigs.k8s.io/jobset-name" in self.labels:
            settings.append("--pid=host")
        settings += [f"--cap-drop={each}" for each in security["capabilities"]["drop"]]
        if not security["allowPrivilegeEscalation"]:
            settings.append("--security-opt=no-new-privileges")
        if security.get("readOnlyRootFilesystem"):
            settings.append("--read-only")
            if self.engine == "podman":  # or it mounts a /tmp that nobody asked for
                settings.append("--read-only-tmpfs=false")
        settings += [self._mount(mount) for mount in container.get("volumeMounts", [])]
        settings += [f"--env={name}" for name in own]  # the values are in the engine's own environment
        image = self.images[container["image"]]
        return [self.engine, "run", "--rm", *settings, image, *container["command"], *container.get("args", [])]

    def _mount(self, mount: Mapping[str, Any]) -> str:
        (volume,) = (each for each in self.spec["volumes"] if each["name"] == mount["name"])
        if volume.get("emptyDir", {}).get("medium") != "Memory":
            raise ValueError(f"a volume that is not in memory: {json.dumps(volume)}")
        size = volume["emptyDir"]["sizeLimit"].replace("Mi", "m").replace("M", "m")
        return f"--shm-size={size}" if mount["mountPath"] == "/dev/shm" else f"--tmpfs={mount['mountPath']}:size={size}"
