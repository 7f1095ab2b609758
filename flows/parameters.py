"""Flow parameters out of a config: one for each field, under its name, with its type and its words.

A schedule gives no parameters: its runs take them from the Config `defaults`, which a deployment keeps.

python flows/pretrain_flow.py --config defaults weekly.json argo-workflows create
"""

from collections.abc import Callable
from typing import Any

from metaflow import Config, FlowSpec, Parameter, current

from fast_electra_core.fields import describe_fields
from said import said_by_metaflow
from steps.config import default_text
from steps.parameter_defaults import parse_defaults

HELP = "Parameters for runs that give none, such as those of a schedule: a JSON object of names and values."


def parameters_of(config_class: type) -> type:
    """A base class for a flow with a Parameter for each field of the config class, and the Config `defaults`.

    None has a default: what is not given is None, "as the preset says", and steps.config decides.
    """
    parameters = {
        name: Parameter(
            name, type=field.kind, default=None, help=f"{field.text} {default_text(name, config_class)}".strip()
        )
        for name, field in describe_fields(config_class).items()
    }
    defaults = Config("defaults", default_value="{}", parser=_parser_for(config_class), plain=True, help=HELP)
    return type(f"{config_class.__name__}Parameters", (), {**parameters, "defaults": defaults})


def given_to(flow: FlowSpec) -> dict[str, Any]:
    """The flow's parameters by name, None where neither the run nor `defaults` gives one."""
    values = {name: getattr(flow, name) for name in current.parameter_names}
    given = {name: value for name, value in values.items() if not isinstance(value, dict)}  # Configs are listed, too
    return {name: flow.defaults.get(name) if value is None else value for name, value in given.items()}


def _parser_for(config_class: type) -> Callable[[str], dict[str, Any]]:
    def parse(text: str) -> dict[str, Any]:
        with said_by_metaflow():
            return parse_defaults(text, config_class)

    return parse
