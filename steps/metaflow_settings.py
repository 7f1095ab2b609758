"""Metaflow's settings on this machine, read as Metaflow reads them, and without importing it."""

import json
import os
from pathlib import Path

from fast_electra_core.errors import ConfigError

HOW_TO_SET = (
    "METAFLOW_PROFILE=cloud fast-electra metaflow-config infra/terraform --write and then "
    "export METAFLOW_PROFILE=cloud (docs/cloud.md), or set it in the environment"
)
"""What to do where a setting is missing."""


def config_path() -> Path:
    """The file that Metaflow reads its settings from: METAFLOW_HOME and METAFLOW_PROFILE lead to another."""
    home = Path(os.environ.get("METAFLOW_HOME", "~/.metaflowconfig")).expanduser()
    profile = os.environ.get("METAFLOW_PROFILE")
    return home / (f"config_{profile}.json" if profile else "config.json")


def setting(name: str, default: str = "") -> str:
    """A setting by its full name, such as METAFLOW_KUBERNETES_NAMESPACE: the environment's, else the config file's.

    Raises:
        ConfigError: the config file cannot be read.
    """
    value = os.environ.get(name)
    return value if value is not None else str(_file_settings().get(name, default))


def _file_settings() -> dict[str, object]:
    path = config_path()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"Metaflow's config file {path} cannot be read: {error}. Mend it or move it away") from error
    if not isinstance(found, dict):
        raise ConfigError(f"Metaflow's config file {path} must hold an object of settings, got {found!r:.80}")
    return found
