"""A Kubernetes cluster as this user sees it: what it answers, and what one may do there. Nothing here changes anything
but `create_job`, `delete_job`, `keep` and `remove`."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fast_electra_core.errors import FastElectraError

JOBSETS, JOBSET_VERSION = "jobset.x-k8s.io", "v1alpha2"
_SECONDS = (5, 20)  # to connect, to answer


class Permission(NamedTuple):
    """Something that is asked of the API, and what is lost without it."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    lost: str
    """What goes without; empty: nothing does without it."""


TO_RUN = (
    Permission("batch", "jobs", ("create", "get", "patch"), ""),
    Permission("batch", "jobs", ("delete",), "--from_inside, and METAFLOW_KUBERNETES_JOB_TERMINATE_MODE=delete"),
    Permission(JOBSETS, "jobsets", ("create", "get", "delete"), "steps on several nodes (--num_nodes above 1)"),
    Permission("", "pods", ("get", "list"), ""),
    Permission(
        "", "pods/exec", ("get", "create"), "a gentle stop of running tasks; their Jobs are scaled to 0 instead"
    ),
    Permission("", "pods/log", ("get",), "--from_inside"),
)
TO_CHECK = (
    Permission("", "secrets", ("get",), "a look at the profile's Secrets"),
    Permission("", "serviceaccounts", ("get",), "a look at the profile's service account"),
    Permission("", "resourcequotas", ("list",), "a look at quotas"),
    Permission("", "limitranges", ("list",), "a look at limits"),
    Permission("", "nodes", ("list",), "a look at the nodes"),
)
TO_DEPLOY = (
    Permission("argoproj.io", "workflowtemplates", ("create", "get", "list", "update", "delete"), ""),
    Permission("argoproj.io", "cronworkflows", ("create", "get", "update", "delete"), ""),
    Permission("argoproj.io", "workflows", ("create", "get", "list", "patch", "delete"), ""),
    Permission("argoproj.io", "sensors", ("create", "get", "update", "delete"), ""),
)
"""What infra/kubernetes/permissions.md explains, and people.yaml grants."""


class ClusterError(FastElectraError):
    """The cluster cannot be asked at all: no way to it is known, it does not answer, or it does not know this user."""


class Refused(FastElectraError):
    """The API's answer was no: `status` is HTTP's, the text the API's own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """A connection; objects are plain dicts in the API's own words."""

    def __init__(self) -> None:
        """By KUBECONFIG, a pod's service account or ~/.kube/config, as Metaflow does.

        Raises:
            ClusterError: none of them leads to a cluster.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        configuration.retries = 1
        file = os.environ.get("KUBECONFIG")
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not file:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(file, client_configuration=configuration)
        except (config.ConfigException, OSError, config.kube_config.yaml.YAMLError) as error:
            raise ClusterError(
                f"no way to a cluster is known: {error}. On EKS: aws eks update-kubeconfig --name CLUSTER; elsewhere "
                "let KUBECONFIG name your cluster's file"
            ) from error
        self._kubernetes, self._api = client, client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(self._api)
        self.address = configuration.host

    def version(self) -> tuple[int, int]:
        """Of Kubernetes.

        Raises:
            ClusterError: the API does not answer, or does not know this user.
        """
        try:
            found = self._ask(self._kubernetes.VersionApi(self._api).get_code)
            self.may("create", "batch", "jobs", namespace="default")  # /version answers strangers, too
        except Refused as refused:
            if refused.status == 401:
                raise ClusterError(
                    f"{self.address} does not know you (401): log in again; on EKS: aws sso login, then aws eks "
                    "update-kubeconfig --name CLUSTER"
                ) from refused
            raise ClusterError(f"{self.address} refuses to say who it is ({refused.status}): {refused}") from refused
        return int(found["major"]), int("".join(letter for letter in found["minor"] if letter.isdigit()))

    def may(self, verb: str, group: str, resource: str, *, namespace: str, name: str = "") -> bool:
        """Whether this user may do that, by a SelfSubjectAccessReview."""
        kind, _, part = resource.partition("/")
        asked = {
            "verb": verb,
            "group": group,
            "resource": kind,
            "subresource": part,
            "namespace": namespace,
            "name": name,
        }
        asked = {key: value for key, value in asked.items() if value}
        if resource == "nodes":
            del asked["namespace"]  # they are in none
        review = {"spec": {"resourceAttributes": asked}}
        call = self._kubernetes.AuthorizationV1Api(self._api).create_self_subject_access_review
        return bool(self._ask(call, review)["status"]["allowed"])

    def resources_of(self, group: str, version: str) -> dict[str, Any]:
        """What the group serves, by plural name; empty if there is no such group."""
        try:
            found = self._ask(self._objects.get_api_resources, group, version)
        except Refused as refused:
            if refused.status != 404:
                raise
            return {}
        return {resource["name"]: resource for resource in found["resources"]}

    def rehearse(
        self, group: str, version: str, plural: str, *, namespace: str, body: Mapping[str, Any], strict: bool = False
    ) -> dict[str, Any]:
        """Create an object and keep nothing: the server, and who else has a say there, go through all of it. Returns
        what would be kept. With strict, fields that the server does not know are refused instead of dropped.

        Raises:
            Refused: one of them says no.
        """
        call = self._objects.create_namespaced_custom_object
        validation = "Strict" if strict else "Ignore"
        return dict(
            self._ask(call, group, version, namespace, plural, dict(body), dry_run="All", field_validation=validation)
        )

    def read(self, group: str, version: str, plural: str, name: str, *, namespace: str) -> dict[str, Any] | None:
        """An object by its name, or None."""
        try:
            return dict(self._ask(self._objects.get_namespaced_custom_object, group, version, namespace, plural, name))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def keep(self, group: str, version: str, plural: str, body: Mapping[str, Any], *, namespace: str) -> None:
        """Create the object, or replace the one of its name."""
        name = body["metadata"]["name"]
        there = self.read(group, version, plural, name, namespace=namespace)
        metadata = {key: body["metadata"][key] for key in ("name", "labels", "annotations") if key in body["metadata"]}
        if there is None:
            call, words = self._objects.create_namespaced_custom_object, [group, version, namespace, plural]
        else:
            call, words = self._objects.replace_namespaced_custom_object, [group, version, namespace, plural, name]
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
        self._ask(call, *words, {**body, "metadata": metadata})

    def remove(self, group: str, version: str, plural: str, name: str, *, namespace: str) -> None:
        """Delete an object."""
        self._ask(self._objects.delete_namespaced_custom_object, group, version, namespace, plural, name)

    def secret_keys(self, name: str, *, namespace: str) -> list[str]:
        """The keys of a Secret; the values are dropped."""
        found = self._ask(self._kubernetes.CoreV1Api(self._api).read_namespaced_secret, name, namespace)
        return sorted(found.get("data", {}))

    def service_account(self, name: str, *, namespace: str) -> dict[str, Any]:
        """A service account, with its annotations."""
        return dict(self._ask(self._kubernetes.CoreV1Api(self._api).read_namespaced_service_account, name, namespace))

    def quotas(self, *, namespace: str) -> list[dict[str, Any]]:
        """The namespace's ResourceQuotas."""
        return self._items(self._kubernetes.CoreV1Api(self._api).list_namespaced_resource_quota, namespace)

    def limit_ranges(self, *, namespace: str) -> list[dict[str, Any]]:
        """The namespace's LimitRanges."""
        return self._items(self._kubernetes.CoreV1Api(self._api).list_namespaced_limit_range, namespace)

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes there are now."""
        return self._items(self._kubernetes.CoreV1Api(self._api).list_node)

    def create_job(self, body: Mapping[str, Any], *, namespace: str) -> str:
        """The name of the Job that was made."""
        made = self._ask(self._kubernetes.BatchV1Api(self._api).create_namespaced_job, namespace, dict(body))
        return str(made["metadata"]["name"])

    def delete_job(self, name: str, *, namespace: str) -> None:
        """Remove a Job and its pods."""
        call = self._kubernetes.BatchV1Api(self._api).delete_namespaced_job
        self._ask(call, name, namespace, propagation_policy="Background")

    def pods_of_job(self, name: str, *, namespace: str) -> list[dict[str, Any]]:
        """The pods that the Job has started."""
        call = self._kubernetes.CoreV1Api(self._api).list_namespaced_pod
        return self._items(call, namespace, label_selector=f"job-name={name}")

    def log(self, pod: str, *, namespace: str) -> str:
        """The last lines of a pod's log."""
        call = self._kubernetes.CoreV1Api(self._api).read_namespaced_pod_log
        return str(self._ask(call, pod, namespace, tail_lines=50))

    def _items(self, call: Callable[..., Any], *words: Any, **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask(call, *words, limit=500, **options, **more)
            found += page["items"]
            following = page.get("metadata", {}).get("continue")
            if not following:
                return found
            more = {"_continue": following}

    def _ask(self, call: Callable[..., Any], *words: Any, **options: Any) -> Any:
        from urllib3.exceptions import HTTPError

        try:
            answer = call(*words, **options, _request_timeout=_SECONDS)
        except self._kubernetes.ApiException as error:
            raise Refused(int(error.status), _message(error)) from error
        except HTTPError as error:
            raise ClusterError(
                f"{self.address} does not answer: {error}. Is it the right cluster (kubectl config current-context), "
                "and are you in a network that it answers to (terraform's admin_cidrs)?"
            ) from error
        return self._api.sanitize_for_serialization(answer)


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason)
