"""What a cluster is asked before flows run on it: permissions, JobSets, Secrets, accounts, quotas and nodes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steps.checks import Check
from steps.cluster import JOBSET_VERSION, JOBSETS, TO_CHECK, TO_DEPLOY, TO_RUN, Cluster, Permission, Refused
from steps.metaflow_settings import setting
from steps.profile import KINDS, options_of
from steps.room import check_nodes, check_quotas, pod_of

PEOPLE = "infra/kubernetes/base/jobs/people.yaml binds it to the groups fast-electra-users and fast-electra-deployers"
_TRACKING = "MLFLOW_TRACKING_URI"
_EXEC_BY_CREATE = (1, 35)  # from this version on pods/exec asks for `create`, before it for `get`


def namespaces_of(profile: Mapping[str, Any]) -> list[str]:
    """Where the pods of the profile's steps run."""
    default = setting("METAFLOW_KUBERNETES_NAMESPACE", "default")
    return sorted({options_of(profile, kind).get("namespace", default) for kind in KINDS})


def check_permissions(
    cluster: Cluster, profile: Mapping[str, Any], namespace: str, *, needs_jobsets: bool, deploys: bool
) -> list[Check]:
    """May this user do what running flows, this look, and with `deploys` a schedule on Argo need?"""
    version = cluster.version()
    secrets = _names(profile, "secrets", "image_pull_secrets")
    checks = []
    for permission in (*TO_RUN, *TO_CHECK, *(TO_DEPLOY if deploys else ())):
        verbs, lost = permission.verbs, permission.lost
        if permission.resource == "pods/exec":
            verbs = ("create",) if version >= _EXEC_BY_CREATE else ("get",)
        if permission.group == JOBSETS and needs_jobsets:
            lost = ""
        names = secrets if permission.resource == "secrets" else [""]
        missing = [
            verb
            for verb in verbs
            if not all(
                cluster.may(verb, permission.group, permission.resource, namespace=namespace, name=name)
                for name in names
            )
        ]
        checks.append(_permission_check(permission, verbs, missing, lost, namespace))
    return checks


def check_jobsets(cluster: Cluster, namespace: str, *, needed: bool) -> Check:
    """Is the JobSet controller installed, and does it run? Asked by a JobSet that is rehearsed and not kept."""
    what, bad = "JobSet controller", "failed" if needed else "note"
    install = "kubectl apply --server-side -k infra/kubernetes/third-party; only --num_nodes above 1 needs it"
    version = setting("METAFLOW_KUBERNETES_JOBSET_VERSION", JOBSET_VERSION)
    if "jobsets" not in cluster.resources_of(JOBSETS, version):
        return Check(what, bad, f"{JOBSETS}/{version} is not served", install)  # type: ignore[arg-type]
    container = {"name": "none", "image": "none"}
    pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"name": "none", "replicas": 1, "template": {"spec": {"template": pod}}}
    metadata = {"name": "fast-electra-preflight", "namespace": namespace}
    body = {
        "apiVersion": f"{JOBSETS}/{version}",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {"replicatedJobs": [job]},
    }
    try:
        cluster.rehearse(JOBSETS, version, "jobsets", namespace=namespace, body=body)
    except Refused as refused:
        if refused.status == 403:
            return Check(what, "note", f"installed; whether it runs is not known: {refused}", PEOPLE)
        remedy = "is it running? kubectl get pods -n jobset-system"
        return Check(what, bad, f"installed, and refuses: {refused}", remedy)  # type: ignore[arg-type]
    return Check(what, "ok", f"{JOBSETS}/{version} takes a JobSet (rehearsed, not kept)")


def check_secrets(cluster: Cluster, profile: Mapping[str, Any], namespace: str) -> list[Check]:
    """Are the Secrets there that the profile names? Their keys are shown, their values are not looked at."""
    checks = []
    for name in _names(profile, "secrets", "image_pull_secrets"):
        what = f"Secret {name}"
        try:
            keys = cluster.secret_keys(name, namespace=namespace)
        except Refused as refused:
            checks.append(
                _cannot_see(what, refused, f"kubectl create secret generic {name} -n {namespace} (docs/cloud.md)")
            )
        else:
            checks.append(Check(what, "ok", f"keys: {', '.join(keys) or 'none'}"))
    return checks


def check_reaches_mlflow(cluster: Cluster, profile: Mapping[str, Any], namespace: str, given: str | None) -> Check:
    """Will the pods know the tracking server, by a parameter or a Secret? This machine's settings do not reach them."""
    what = "mlflow, for the pods"
    if given is not None:
        return Check(what, "ok", f"{given}, a parameter")
    try:
        for name in _names(profile, "secrets"):
            if _TRACKING in cluster.secret_keys(name, namespace=namespace):
                return Check(what, "ok", f"the Secret {name} holds {_TRACKING}")
    except Refused as refused:
        return Check(what, "note", f"not looked at: {refused}", PEOPLE)
    remedy = "fast-electra metaflow-config infra/terraform --pods gives the Secret's lines (docs/cloud.md)"
    return Check(what, "failed", f"no Secret of the profile holds {_TRACKING}, and no parameter tracking_uri", remedy)


def check_service_accounts(
    cluster: Cluster, profile: Mapping[str, Any], namespace: str, *, deploys: bool
) -> list[Check]:
    """Are the service accounts there, and do they have a role of AWS?"""
    checks = []
    default = setting("METAFLOW_KUBERNETES_SERVICE_ACCOUNT")
    names = _names(profile, "service_account") or [default]
    if deploys:
        names = [profile.get("argo_service_account", ""), *([] if "argo_service_account" in profile else names)]
    for name in filter(None, names):
        what = f"service account {name}"
        try:
            found = cluster.service_account(name, namespace=namespace)
        except Refused as refused:
            checks.append(_cannot_see(what, refused, "kubectl apply -k infra/kubernetes/overlays/aws, or local"))
        else:
            role = found["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn")
            checks.append(Check(what, "ok", f"with the role {role}" if role else "without a role of AWS"))
    return checks


def check_room(cluster: Cluster, profile: Mapping[str, Any], namespace: str) -> list[Check]:
    """Would the pods of each kind of step find a node, and do quotas and limits allow them?"""
    pods = [pod_of(profile, kind) for kind in KINDS]
    checks: list[Check] = []
    try:
        quotas, limits = cluster.quotas(namespace=namespace), cluster.limit_ranges(namespace=namespace)
    except Refused as refused:
        checks.append(Check("quotas", "note", f"not looked at: {refused}", PEOPLE))
    else:
        found = [check for pod in pods for check in check_quotas(pod, quotas, limits)]
        said = f"{len(quotas)} ResourceQuotas and {len(limits)} LimitRanges in {namespace} allow every kind of step"
        checks += found or [Check("quotas", "ok", said)]
    try:
        nodes = cluster.nodes()
    except Refused as refused:
        return [*checks, Check("nodes", "note", f"not looked at: {refused}", PEOPLE)]
    return [*checks, *(check_nodes(pod, nodes) for pod in pods)]


def _permission_check(
    permission: Permission, verbs: Sequence[str], missing: Sequence[str], lost: str, namespace: str
) -> Check:
    what = f"may {permission.resource}"
    if not missing:
        return Check(what, "ok", ", ".join(verbs))
    said = f"{', '.join(missing)} {permission.resource} is not allowed in {namespace}"
    if lost:
        return Check(what, "note", f"{said}; without it goes {lost}", PEOPLE)
    return Check(what, "failed", said, f"ask whoever runs the cluster: {PEOPLE}")


def _cannot_see(what: str, refused: Refused, remedy: str) -> Check:
    if refused.status == 403:
        return Check(what, "note", f"not looked at: {refused}", PEOPLE)
    return Check(what, "failed", str(refused), remedy)


def _names(profile: Mapping[str, Any], *options: str) -> list[str]:
    """All names that the profile gives in these options, whatever the kind of step."""
    found: set[str] = set()
    for kind in KINDS:
        of_kind = options_of(profile, kind)
        for option in options:
            value: Iterable[str] | str = of_kind.get(option, [])
            found.update([value] if isinstance(value, str) else value)
    return sorted(found)
