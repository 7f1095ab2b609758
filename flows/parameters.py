"""Flow parameters out of a config: one for each field, under its name, with its type and its words."""

from typing import Any

from metaflow import FlowSpec, Parameter, current

from fast_electra_core.fields import describe_fields


def parameters_of(config_class: type) -> type:
    """A base class for a flow with a Parameter for each field of the config class.

    None has a default: what is not given is None, "as the preset says", and steps.config decides.
    """
    parameters = {
        name: Parameter(name, type=field.kind, default=None, help=field.text)
        for name, field in describe_fields(config_class).items()
    }
    return type(f"{config_class.__name__}Parameters", (), parameters)


def given_to(flow: FlowSpec) -> dict[str, Any]:
    """The flow's parameters by name, None where not given. `profile` is none of them, though Metaflow lists it so."""
    return {name: getattr(flow, name) for name in current.parameter_names if name != "profile"}
