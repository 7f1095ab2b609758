"""Argo Workflows: which field its schedules want, what a deployment would make, and what was there before."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from steps.checks import Check
from steps.cluster import Cluster, ClusterError, Refused
from steps.metaflow_settings import setting

GROUP, VERSION = "argoproj.io", "v1alpha1"
USE_SCHEDULES = "METAFLOW_ARGO_WORKFLOWS_USE_SCHEDULES"
_INSTALL = "kubectl apply --server-side -k infra/kubernetes/third-party"
_ANY_CRON = "0 0 1 1 *"
_UNKNOWN_FIELD = "strict decoding error"


class Planned(NamedTuple):
    """What Metaflow will make of a flow, read off its workflow template."""

    name: str
    cron: str
    """Empty: no schedule."""
    sensor: str
    """The name of its sensor; empty: no event starts it."""
    sensor_namespace: str

    def objects(self, namespace: str) -> list[tuple[str, str, str]]:
        """(plural, namespace, name) of all that a deployment may touch."""
        space = self.sensor_namespace or setting("METAFLOW_ARGO_EVENTS_SENSOR_NAMESPACE", namespace)
        sensor = ("sensors", space, self.sensor or self.name.replace(".", "-"))
        return [("workflowtemplates", namespace, self.name), ("cronworkflows", namespace, self.name), sensor]


def planned(template: Mapping[str, Any]) -> Planned:
    """Of a template as `argo-workflows create --only-json` prints it."""
    notes = template["metadata"].get("annotations", {})
    cron = json.loads(notes.get("metaflow/cron", "{}")).get("schedule") or ""
    sensor, namespace = notes.get("metaflow/sensor_name", ""), notes.get("metaflow/sensor_namespace", "")
    return Planned(template["metadata"]["name"], cron, sensor, namespace)


def check_argo(cluster: Cluster, namespace: str, template: Mapping[str, Any]) -> tuple[list[Check], bool]:
    """Is there an Argo that takes the template, its schedule and its sensor, by rehearsals that keep nothing? Besides,
    whether its schedules are a list (Argo Workflows 4)."""
    plan, served = planned(template), cluster.resources_of(GROUP, VERSION)
    needed = ["workflowtemplates", *(["cronworkflows"] if plan.cron else []), *(["sensors"] if plan.sensor else [])]
    missing = [plural for plural in needed if plural not in served]
    if missing:
        said = f"{', '.join(missing)} of {GROUP}/{VERSION} are not served; a deployment needs them"
        return [Check("Argo", "failed", said, _INSTALL)], False
    checks = [_check_template(cluster, namespace, template), *_check_end(template["spec"])]
    if "cronworkflows" not in served:
        return checks, _is_set()
    check, is_list = _check_schedule(cluster, namespace, plan.cron or _ANY_CRON)  # one that is there may have to go
    return [*checks, check] if plan.cron else checks, is_list


def present(cluster: Cluster, namespace: str, plan: Planned) -> dict[tuple[str, str, str], dict[str, Any] | None]:
    """All that the deployment may touch, as it is now; None where it is not there. A sensor that is there already may
    be in another namespace, which the template says: Metaflow deletes it there."""
    served = cluster.resources_of(GROUP, VERSION)
    found: dict[tuple[str, str, str], dict[str, Any] | None] = {}
    objects = plan.objects(namespace)
    for plural, space, name in objects:
        if plural in served:
            there = found[plural, space, name] = cluster.read(GROUP, VERSION, plural, name, namespace=space)
            earlier = planned(there) if plural == "workflowtemplates" and there else None
            if earlier and earlier.sensor and earlier.objects(namespace)[-1] not in objects:
                objects.append(earlier.objects(namespace)[-1])
    return found


def missing(plan: Planned, namespace: str, there: Mapping[tuple[str, str, str], Any]) -> list[str]:
    """What the deployment should have made and did not."""
    template, schedule, sensor = plan.objects(namespace)
    wanted = [template, *([schedule] if plan.cron else []), *([sensor] if plan.sensor else [])]
    return [f"{each[0]}/{each[2]}" for each in wanted if there.get(each) is None]


def restore(cluster: Cluster, before: Mapping[tuple[str, str, str], dict[str, Any] | None]) -> list[str]:
    """Make it what it was before; returns what was done, and what could not be, in words."""
    done = []
    for (plural, namespace, name), body in before.items():
        what = f"{plural}/{name} in {namespace}"
        try:
            there = cluster.read(GROUP, VERSION, plural, name, namespace=namespace)
            if body is None and there is not None:
                cluster.remove(GROUP, VERSION, plural, name, namespace=namespace)
                done.append(f"{what}, which was not there before, is removed")
            elif body is not None and (there is None or there["spec"] != body["spec"]):
                cluster.keep(GROUP, VERSION, plural, body, namespace=namespace)
                done.append(f"{what} is again what it was")
        except (Refused, ClusterError) as error:
            done.append(f"{what} could not be put back: {error}. See to it by kubectl")
    return done


def _check_template(cluster: Cluster, namespace: str, template: Mapping[str, Any]) -> Check:
    what = "workflow template"
    metadata = {**template["metadata"], "name": "fast-electra-preflight", "namespace": namespace}
    body = {**template, "metadata": metadata}
    try:
        cluster.rehearse(GROUP, VERSION, "workflowtemplates", namespace=namespace, body=body, strict=True)
    except Refused as refused:
        if _UNKNOWN_FIELD not in str(refused):
            return Check(what, "failed", f"refused: {refused}", "mend the flow or the profile; --only_json prints it")
        remedy = "the server would leave these fields out: is its Argo as new as Metaflow expects?"
        return Check(what, "note", f"taken, but for fields that Argo does not know: {refused}", remedy)
    return Check(what, "ok", "taken (rehearsed, not kept)")


def _check_end(spec: Mapping[str, Any]) -> list[Check]:
    """What runs when all is done must need no agent of Argo's, which has neither a role nor a token here: the run would
    never end. For a flow with hooks Metaflow makes a request by that agent; Argo leaves it out where there is `onExit`.
    """
    if spec.get("onExit") or "exit" not in (spec.get("hooks") or {}):
        return []
    said = "after a run of a flow with exit hooks, Metaflow asks a request of Argo's agent, which has no role here"
    return [Check("end of a run", "failed", said, "leave --create=--no-enable-error-msg-capture out")]


def _check_schedule(cluster: Cluster, namespace: str, cron: str) -> tuple[Check, bool]:
    what = f"schedule {cron}"
    taken = {field: _takes(cluster, namespace, {field: value}) for field, value in _forms(cron).items()}
    if taken["schedules"] == "" != taken["schedule"]:
        return Check(what, "ok", "taken as a list, `schedules`, which Argo Workflows 4 wants"), True
    if taken["schedule"] == "" != taken["schedules"]:
        return Check(what, "ok", "taken as `schedule`, as Argo Workflows before 3.6 wants it"), False
    if taken["schedule"]:
        return Check(what, "failed", f"refused: {taken['schedules']}", "mend the cron expression, or Argo"), False
    if not setting(USE_SCHEDULES):
        said = "taken both as `schedule` and as `schedules`, so that the server does not say which its Argo reads"
        return Check(
            what, "failed", said, f"set {USE_SCHEDULES}=True for Argo Workflows 3.6 and up, False below"
        ), False
    return Check(what, "ok", f"taken; {USE_SCHEDULES} is {_is_set()}"), _is_set()


def _forms(cron: str) -> dict[str, Any]:
    return {"schedules": [cron], "schedule": cron}


def _takes(cluster: Cluster, namespace: str, schedule: Mapping[str, Any]) -> str:
    """Why the server does not take a schedule of this form; empty if it does, and keeps it."""
    spec = {"suspend": True, "workflowSpec": {"workflowTemplateRef": {"name": "fast-electra-preflight"}}, **schedule}
    metadata = {"name": "fast-electra-preflight", "namespace": namespace}
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "CronWorkflow", "metadata": metadata, "spec": spec}
    try:
        kept = cluster.rehearse(GROUP, VERSION, "cronworkflows", namespace=namespace, body=body)
    except Refused as refused:
        return str(refused)
    (field,) = schedule
    return "" if field in kept["spec"] else f"the server drops {field}"


def _is_set() -> bool:
    return setting(USE_SCHEDULES).lower() not in ("", "0", "false")
