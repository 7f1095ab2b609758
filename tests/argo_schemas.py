"""What Argo 4 and Argo Events know of their resources, as Hera generates it from their API descriptions."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Hera's are the models of Argo Workflows 4 and Argo Events 1.9. What the latter know of otherwise:
_APART = {
    "Sensor": {
        "apiVersion", "kind",  # Argo Events leaves them out of its description of a resource
        "spec.template.container.name",  # Metaflow's; Argo Events ignores it
    },
}  # fmt: skip


def validate(resource: Mapping[str, Any]) -> None:
    """Raises ValueError where a WorkflowTemplate, CronWorkflow, Workflow or Sensor is not what Argo's API describes:
    a value of another type, a field that is missing, one that is not known. A null is a field that is not there."""
    from hera.events.models import Sensor
    from hera.workflows.models import CronWorkflow, Workflow, WorkflowTemplate

    model = {each.__name__: each for each in (CronWorkflow, Sensor, Workflow, WorkflowTemplate)}[resource["kind"]]
    given = without_nulls(resource)
    for trigger in given["spec"].get("triggers", ()):  # the workflow that a sensor starts is free of form there
        validate(trigger["template"]["k8s"]["source"].pop("resource"))
    known = json.loads(model.model_validate(given).model_dump_json(by_alias=True, exclude_unset=True))
    if others := set(_differences(given, known)) - _APART.get(resource["kind"], set()):
        raise ValueError(f"{resource['kind']}: fields or values that Argo does not know: {', '.join(sorted(others))}")


def _differences(given: Any, known: Any, place: str = "") -> Iterator[str]:
    """Where what the model has kept is not what it was given: it drops the fields that it does not know."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key in given.keys() | known.keys():
            yield from _differences(given.get(key), known.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for index, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from _differences(one, other, f"{place}[{index}]")
    elif given != known:
        yield place


def without_nulls(value: Any) -> Any:
    """As the API server reads it: a null is a field that is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
