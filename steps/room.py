"""Would a profile's pods find room: on a node as it is when empty, under the namespace's quotas and limits."""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from fast_electra_core.errors import ConfigError
from steps.checks import Check
from steps.metaflow_settings import setting
from steps.profile import options_of

_BLOCKING = ("NoSchedule", "NoExecute")
_DEFAULTS = {"cpu": "1", "memory": "4096", "disk": "10240"}
_UNITS = {"cpu": "", "memory": "M", "disk": "M"}
"""Metaflow's defaults, and the units in which it asks: millions of bytes."""
_RESOURCES = {"cpu": "cpu", "memory": "memory", "disk": "ephemeral-storage"}


class Pod(NamedTuple):
    """What one kind of step asks for."""

    kind: str
    requests: dict[str, str]
    """Amounts by Kubernetes' resource names."""
    selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    is_limited: bool
    """Whether it has limits, too, which are then what it requests."""


def pod_of(profile: Mapping[str, Any], kind: str) -> Pod:
    """As Metaflow would ask for it, METAFLOW_KUBERNETES_… included."""
    options = options_of(profile, kind)
    requests = {}
    for name, resource in _RESOURCES.items():
        amount = options.get(name) or _amount_set(f"METAFLOW_KUBERNETES_{name.upper()}") or _DEFAULTS[name]
        requests[resource] = f"{amount}{_UNITS[name]}"
    if options.get("gpu"):
        vendor = options.get("gpu_vendor") or setting("METAFLOW_KUBERNETES_GPU_VENDOR", "nvidia")
        requests[f"{vendor}.com/gpu"] = str(options["gpu"])
    selector = options.get("node_selector")
    if not selector:
        selector = _selector_set()
    tolerations = options.get("tolerations")
    if not tolerations:
        tolerations = list_set("METAFLOW_KUBERNETES_TOLERATIONS")
    is_limited = str(options.get("qos") or setting("METAFLOW_KUBERNETES_QOS")).lower() == "guaranteed"
    return Pod(kind, requests, selector, tolerations, is_limited)


def check_nodes(pod: Pod, nodes: Sequence[Mapping[str, Any]]) -> Check:
    """Whether some node would take the pod if nothing else ran there."""
    what = f"nodes for {pod.kind}"
    asked = ", ".join(f"{name} {amount}" for name, amount in pod.requests.items())
    labels = ",".join(f"{label}={value}" for label, value in pod.selector.items())
    named = [node for node in nodes if pod.selector.items() <= node["metadata"].get("labels", {}).items()]
    refusals = [_refusal(pod, node) for node in named]
    free = refusals.count("")
    if free:
        return Check(what, "ok", f"{free} of {len(nodes)} would take {asked}")
    gpu = next((name for name in pod.requests if name.endswith("/gpu")), None)
    if not named or (gpu and not pod.selector and not any(_amount(node, gpu) for node in nodes)):
        return Check(
            what, "note",
            f"none now {f'is labelled {labels}' if labels else f'has {gpu}'}; that is right where the node group "
            f"scales from zero, and a first pod starts one in minutes. Asked for: {asked}",
            "where no group scales from zero: kubectl get nodes --show-labels, and the node_selector in the profile",
        )  # fmt: skip
    reasons = "; ".join(sorted({refusal for refusal in refusals if refusal}))
    among = f"of the {len(named)} labelled {labels}" if labels else f"of {len(named)}"
    return Check(
        what, "failed", f"none {among} would take {asked}: {reasons}",
        "ask for less in the profile, add the toleration, or give the group larger nodes (terraform's …_instance_types)"
        + (f"; no {gpu} on a GPU node: is the device plugin there (infra/kubernetes/third-party)?" if gpu else ""),
    )  # fmt: skip


def check_quotas(pod: Pod, quotas: Sequence[Mapping[str, Any]], limits: Sequence[Mapping[str, Any]]) -> list[Check]:
    """What the namespace's ResourceQuotas and LimitRanges have against the pod; empty if nothing."""
    found = []
    for resource, text in pod.requests.items():
        wanted = _quantity(text)
        for name, quota, most, used in _quotas_on(pod, resource, quotas):
            if wanted > most:
                remedy = f"ask for less, or have the ResourceQuota {quota} raised"
                found.append(_too_much(pod, f"{name} {text}, the quota {quota} allows {most.normalize():f}", remedy))
            elif wanted + used > most:
                said = f"{name} {text} would wait: {used.normalize():f} of {quota}'s {most.normalize():f} are used"
                found.append(Check(f"quota for {pod.kind}", "note", said))
        for name, most in _most_per_container(resource, limits):
            if wanted > most:
                remedy = f"ask for less, or have the LimitRange {name} raised"
                found.append(
                    _too_much(pod, f"{resource} {text}, {name} allows a container {most.normalize():f}", remedy)
                )
    return found


def _too_much(pod: Pod, said: str, remedy: str) -> Check:
    return Check(f"quota for {pod.kind}", "failed", said, remedy)


def _quotas_on(pod: Pod, resource: str, quotas: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Decimal, Decimal]]:
    names = [resource, f"requests.{resource}", *([f"limits.{resource}"] if pod.is_limited else [])]
    found = []
    for quota in quotas:
        hard, used = quota["spec"].get("hard", {}), quota.get("status", {}).get("used", {})
        for name in names:
            if name in hard:
                found.append((name, quota["metadata"]["name"], _quantity(hard[name]), _quantity(used.get(name, "0"))))
    return found


def _most_per_container(resource: str, limits: Sequence[Mapping[str, Any]]) -> list[tuple[str, Decimal]]:
    return [
        (limit["metadata"]["name"], _quantity(each["max"][resource]))
        for limit in limits
        for each in limit["spec"]["limits"]
        if each["type"] in ("Container", "Pod") and resource in each.get("max", {})
    ]


def _refusal(pod: Pod, node: Mapping[str, Any]) -> str:
    """Why the node would not take the pod; empty if it would."""
    for taint in node.get("spec", {}).get("taints", []):
        if taint["effect"] in _BLOCKING and not any(_tolerates(each, taint) for each in pod.tolerations):
            return f"the taint {taint['key']}={taint.get('value', '')}:{taint['effect']} is not tolerated"
    for resource, text in pod.requests.items():
        if _quantity(text) > _amount(node, resource):
            return f"{resource} is {node['status']['allocatable'].get(resource, 0)}"
    return ""


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return str(toleration.get("key")) == str(taint["key"]) and str(toleration.get("value", "")) == str(
        taint.get("value", "")
    )


def _amount(node: Mapping[str, Any], resource: str) -> Decimal:
    return _quantity(node["status"]["allocatable"].get(resource, "0"))


def _quantity(text: str) -> Decimal:
    from kubernetes.utils.quantity import parse_quantity

    return Decimal(parse_quantity(text))


def _amount_set(name: str) -> str:
    text = setting(name)
    if text and not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ConfigError(f"{name} must be a number, got {text!r}")
    return text


def _selector_set() -> dict[str, str]:
    name = "METAFLOW_KUBERNETES_NODE_SELECTOR"
    text = setting(name)
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(label and equals for label, equals, _ in pairs):
        raise ConfigError(f"{name} must be LABEL=VALUE, several with commas between, got {text!r}")
    return {label: value for label, _, value in pairs}


def list_set(name: str) -> list[Any]:
    """A setting of Metaflow's that is a JSON list; empty where it is not set."""
    text = setting(name)
    try:
        found = json.loads(text or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ConfigError(f"{name} must be a JSON list, got {text!r}")
    return found
