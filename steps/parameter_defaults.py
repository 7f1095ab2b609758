"""Parameters that are kept for runs which give none: a JSON object of names and values.

{"corpus": "s3://bucket/text/", "store": "s3://bucket/store", "preset": "small", "num_steps": 20000}
"""

import json
from typing import Any

from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.fields import describe_fields


def parse_defaults(text: str, config_class: type) -> dict[str, Any]:
    """The values by name; ranges are checked with all else, in `start`.

    Raises:
        ConfigError: it is no JSON object, names what is no field of the config class, or holds a value of another type.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the defaults are not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"the defaults must be an object of parameters, got {given!r}")
    known = describe_fields(config_class)
    for name, value in given.items():
        check_choice("a name among the defaults", name, known)
        kind = known[name].kind
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"the defaults' {name} must be of type {kind.__name__}, got {value!r}")
    return given
