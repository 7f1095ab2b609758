"""What the double of a Kubernetes cluster answers to those who only look: the preflight."""

from collections.abc import Mapping
from typing import Any

from kubernetes_pods import secret_object


class Refused(Exception):
    """An answer that is not the thing asked for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Looks:
    """The part of the double that runs nothing. Tests set what is public."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, str]] = {}
        self.service_accounts: dict[str, dict[str, str]] = {"default": {}}
        """Their annotations."""
        self.nodes: list[dict[str, Any]] = []
        self.quotas: list[dict[str, Any]] = []
        self.limits: list[dict[str, Any]] = []
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that may not be done, such as ("create", "jobs") or ("get", "pods/log")."""
        self.reviewed: list[dict[str, str]] = []
        """What was asked of permissions."""

    def _create_selfsubjectaccessreviews(self, *, body: Any, **_: Any) -> Any:
        asked = body["spec"]["resourceAttributes"]
        self.reviewed.append(asked)
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        return {**body, "status": {"allowed": (asked["verb"], resource) not in self.denied}}

    def _get_secrets(self, *, name: str, **_: Any) -> Any:
        return secret_object(name, found(self.secrets, name, "secrets"))

    def _get_serviceaccounts(self, *, name: str, **_: Any) -> Any:
        annotations = found(self.service_accounts, name, "serviceaccounts")
        return {"kind": "ServiceAccount", "metadata": {"name": name, "annotations": annotations}}

    def _list_nodes(self, *, query: Mapping[str, str], **_: Any) -> Any:
        """A page of one node at a time: whoever does not turn pages misses the rest."""
        at = int(query.get("continue", "0"))
        more = {"continue": str(at + 1)} if at + 1 < len(self.nodes) else {}
        return {"kind": "NodeList", "metadata": more, "items": self.nodes[at : at + 1]}

    def _list_resourcequotas(self, **_: Any) -> Any:
        return {"kind": "ResourceQuotaList", "metadata": {}, "items": self.quotas}

    def _list_limitranges(self, **_: Any) -> Any:
        return {"kind": "LimitRangeList", "metadata": {}, "items": self.limits}


def found(things: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in things:
        raise Refused(404, f'{what} "{name}" not found')
    return things[name]
