"""The same questions from inside: a small Job, as light steps run, that asks and is removed."""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps import probe
from steps.checks import Check
from steps.cluster import Cluster, Refused
from steps.cluster_checks import PEOPLE
from steps.metaflow_settings import setting
from steps.profile import options_of
from steps.room import list_set, pod_of

_WHAT = "from inside"
_HOPELESS = {
    "ErrImagePull": "push the image, or give the profile image_pull_secrets",
    "ImagePullBackOff": "push the image, or give the profile image_pull_secrets",
    "InvalidImageName": "mend the profile's image, or METAFLOW_KUBERNETES_CONTAINER_REGISTRY",
    "CreateContainerConfigError": "make the Secret that is named there (docs/cloud.md)",
}
_LINE_EVERY_SECONDS = 30.0
_KEPT_SECONDS = 600
_logger = logging.getLogger(__name__)


def ask_from_inside(
    cluster: Cluster, profile: Mapping[str, Any], namespace: str, asked: Mapping[str, str], *, wait_seconds: float
) -> list[Check]:
    """Run `probe` as a light step would run, on what is asked ({"s3": address, "mlflow": uri}); the Job is removed."""
    try:
        name = cluster.create_job(_job(profile, namespace, asked), namespace=namespace)
    except Refused as refused:
        return [Check(_WHAT, "failed", f"the Job is refused: {refused}", "mend what it names in the profile")]
    checks: list[Check] = []
    try:
        checks += _await(cluster, name, namespace, asked, wait_seconds)
    except Refused as refused:
        checks.append(Check(_WHAT, "failed", f"the pod cannot be looked at: {refused}", PEOPLE))
    finally:
        checks += _remove(cluster, name, namespace)
    return checks


def image_of(options: Mapping[str, Any]) -> str:
    """The profile's image as Metaflow names it: with the registry that is set, unless it has one."""
    default = setting("METAFLOW_DEFAULT_CONTAINER_IMAGE", "python:3.11")
    image = options.get("image") or setting("METAFLOW_KUBERNETES_CONTAINER_IMAGE", default)
    registry = setting("METAFLOW_KUBERNETES_CONTAINER_REGISTRY", setting("METAFLOW_DEFAULT_CONTAINER_REGISTRY"))
    has_registry = re.match(".+?[:.].+?/", image)  # Metaflow's rule, not Docker's: localhost/image has none
    return image if has_registry or not registry else f"{registry.rstrip('/')}/{image}"


def _job(profile: Mapping[str, Any], namespace: str, asked: Mapping[str, str]) -> dict[str, Any]:
    from kubernetes import client

    options = options_of(profile, "light")
    environment = {name: str(value) for name, value in options.get("environment", {}).items()}
    environment |= {f"PROBE_{name.upper()}": address for name, address in asked.items()}
    if endpoint := setting("METAFLOW_S3_ENDPOINT_URL"):
        environment["METAFLOW_S3_ENDPOINT_URL"] = endpoint
    where = pod_of(profile, "light")
    secrets = [*options.get("secrets", []), *filter(None, setting("METAFLOW_KUBERNETES_SECRETS").split(","))]
    amounts = {"cpu": "500m", "memory": "512M", "ephemeral-storage": "512M"}
    container = client.V1Container(
        name="preflight",
        image=image_of(options),
        image_pull_policy=options.get("image_pull_policy") or setting("METAFLOW_KUBERNETES_IMAGE_PULL_POLICY") or None,
        command=["python", "-c", Path(probe.__file__).read_text(encoding="utf-8")],
        env=[client.V1EnvVar(name=name, value=value) for name, value in environment.items()],
        env_from=[client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=name)) for name in secrets],
        resources=client.V1ResourceRequirements(requests=amounts, limits=amounts),
        security_context=client.V1SecurityContext(**options.get("security_context", {})),
    )
    pod = client.V1PodSpec(
        containers=[container],
        restart_policy="Never",
        service_account_name=options.get("service_account") or setting("METAFLOW_KUBERNETES_SERVICE_ACCOUNT") or None,
        node_selector=where.selector,
        tolerations=[client.V1Toleration(**each) for each in where.tolerations],
        image_pull_secrets=[
            client.V1LocalObjectReference(name=name)
            for name in options.get("image_pull_secrets") or list_set("METAFLOW_KUBERNETES_IMAGE_PULL_SECRETS")
        ],
    )
    template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=options.get("labels")), spec=pod)
    job = client.V1Job(
        api_version="batch/v1",
        kind="Job",
        metadata=client.V1ObjectMeta(generate_name="fast-electra-preflight-", namespace=namespace),
        spec=client.V1JobSpec(backoff_limit=0, ttl_seconds_after_finished=_KEPT_SECONDS, template=template),
    )
    return dict(client.ApiClient().sanitize_for_serialization(job))


def _remove(cluster: Cluster, name: str, namespace: str) -> list[Check]:
    try:
        cluster.delete_job(name, namespace=namespace)
    except Refused as refused:
        return [Check(_WHAT, "note", f"the Job {name} stays for {_KEPT_SECONDS // 60} minutes: {refused}", PEOPLE)]
    return []


def _await(cluster: Cluster, name: str, namespace: str, asked: Mapping[str, str], wait_seconds: float) -> list[Check]:
    started = said = time.monotonic()
    state = "no pod yet"
    while time.monotonic() - started < wait_seconds:
        for pod in cluster.pods_of_job(name, namespace=namespace)[:1]:
            if pod["status"]["phase"] in ("Succeeded", "Failed"):
                return _read(cluster, pod, asked)
            reason, state = _waiting(pod)
            if reason in _HOPELESS:
                return [Check(_WHAT, "failed", state, _HOPELESS[reason])]
        if time.monotonic() - said >= _LINE_EVERY_SECONDS:
            said = time.monotonic()
            _logger.info("waiting for the pod of %s: %s", name, state)
        time.sleep(min(1.0, wait_seconds / 10))
    remedy = "wait longer (--wait_minutes) where a node has to be started first; otherwise kubectl describe the pod"
    return [Check(_WHAT, "failed", f"no answer after {wait_seconds / 60:g} minutes: {state}", remedy)]


def _waiting(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Why the pod does not run yet, in one word and in the API's."""
    status = pod["status"]
    for container in status.get("containerStatuses", []):
        waiting = container["state"].get("waiting")
        if waiting:
            return waiting["reason"], f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition["reason"], f"{condition['reason']}: {condition.get('message', '')}"
    return "", str(status["phase"])


def _read(cluster: Cluster, pod: Mapping[str, Any], asked: Mapping[str, str]) -> list[Check]:
    try:
        log = cluster.log(pod["metadata"]["name"], namespace=pod["metadata"]["namespace"])
    except Refused as refused:
        remedy = "this needs the right to read pods/log, and that the API server reaches the nodes' port 10250"
        return [Check(_WHAT, "failed", f"the pod's log cannot be read: {refused}", remedy)]
    last = log.strip().rpartition("\n")[2]
    try:
        found = json.loads(last)
        return [Check(f"{name}, {_WHAT}", *found[name]) for name in ("image", *asked)]
    except (ValueError, KeyError, TypeError):
        said = f"the pod's last words: {last or '(none)'}{_ending(pod)}"
        return [Check(_WHAT, "failed", said, "has the image python and boto3?")]


def _ending(pod: Mapping[str, Any]) -> str:
    """How its container ended, in the API's words: one that could not be started has nothing else to say."""
    for container in pod["status"].get("containerStatuses", []):
        ended = container["state"].get("terminated")
        if ended:
            words = (f"exit code {ended['exitCode']}", ended.get("reason"), ended.get("message"))
            return f" ({', '.join(filter(None, words))})"
    return ""
