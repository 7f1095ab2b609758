"""Argo Workflows in the double of a Kubernetes cluster: what its resources take and keep. Nothing is started.

As version 4, it takes only what Argo's own descriptions allow, unknown fields refused.
"""

import json
from collections.abc import Mapping
from typing import Any

from argo_schemas import validate
from kubernetes_looks import Refused, found

GROUP = "argoproj.io"
_KINDS = {"workflowtemplates": "WorkflowTemplate", "cronworkflows": "CronWorkflow", "sensors": "Sensor"}


class Argo:
    """The part of the double that knows Argo's resources. Tests set what is public."""

    def __init__(self) -> None:
        super().__init__()
        self.argo = 4
        """4 has `schedules` alone, 3 `schedule` alone (as up to 3.5), 36 (3.6) keeps whatever it is given."""
        self.argo_resources = set(_KINDS)
        self.argo_kept: dict[str, dict[str, dict[str, Any]]] = {plural: {} for plural in _KINDS}
        """Objects by plural and name."""
        self.argo_trouble: dict[str, str] = {}
        """What is said of every object of a plural that is really to be made; the rehearsals go well."""
        self.argo_is_strict_on: set[str] = set()
        """Fields of a workflow template's spec that it does not know."""
        self._version = 0

    def argo_served(self) -> Any:
        resources = [
            {"name": plural, "singularName": "", "namespaced": True, "kind": _KINDS[plural], "verbs": ["create"]}
            for plural in sorted(self.argo_resources)
        ]
        return {"kind": "APIResourceList", "groupVersion": f"{GROUP}/v1alpha1", "resources": resources}

    def argo_answer(self, verb: str, plural: str, name: str, query: Mapping[str, str], body: Any) -> Any:
        kept = self.argo_kept[plural]
        if plural not in self.argo_resources:
            raise Refused(404, "the server could not find the requested resource")
        if verb in ("create", "update"):
            return self._take(verb, plural, name or body["metadata"]["name"], query, json.loads(json.dumps(body)))
        if verb == "list":
            return {"kind": f"{_KINDS[plural]}List", "metadata": {}, "items": list(kept.values())}
        return kept.pop(name) if verb == "delete" and name in kept else found(kept, name, f"{plural}.{GROUP}")

    def _take(self, verb: str, plural: str, name: str, query: Mapping[str, str], body: Any) -> Any:
        kept, rehearsed = self.argo_kept[plural], query.get("dryRun") == "All"
        unknown = sorted(self.argo_is_strict_on & set(body["spec"])) if plural == "workflowtemplates" else []
        if unknown and query.get("fieldValidation") == "Strict":
            raise Refused(400, f'strict decoding error: unknown field "spec.{unknown[0]}"')
        if plural == "cronworkflows":
            self._look_at_schedule(name, body["spec"])
        if self.argo == 4:
            try:
                validate(body)
            except ValueError as error:
                raise Refused(422, str(error)) from error
        if plural in self.argo_trouble and not rehearsed:
            raise Refused(422, self.argo_trouble[plural])
        if verb == "create" and name in kept:
            raise Refused(409, f'{plural}.{GROUP} "{name}" already exists')
        if verb == "update" and body["metadata"].get("resourceVersion") != kept[name]["metadata"]["resourceVersion"]:
            raise Refused(409, "the object has been modified; please apply your changes to the latest version")
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        if not rehearsed:
            kept[name] = body
        return body

    def _look_at_schedule(self, name: str, spec: dict[str, Any]) -> None:
        wanted, other = ("schedules", "schedule") if self.argo == 4 else ("schedule", "schedules")
        if self.argo == 36:
            return
        if wanted not in spec:
            raise Refused(422, f'CronWorkflow.argoproj.io "{name}" is invalid: spec.{wanted}: Required value')
        spec.pop(other, None)  # as a server drops what its schema does not know
