"""Metaflow's config file out of what terraform has made: its outputs metaflow_config and mlflow_config.

    fast-electra metaflow-config infra/terraform                              print it
    METAFLOW_PROFILE=cloud fast-electra metaflow-config infra/terraform --write
    terraform output -json | fast-electra metaflow-config -
    fast-electra metaflow-config infra/terraform --pods > pods.env            the lines of the pods' Secret

With --write it goes where Metaflow looks: ~/.metaflowconfig/config.json, or config_NAME.json with
METAFLOW_PROFILE=NAME, which leaves runs without that profile as they are. Flows and commands of the project take
MLFLOW_TRACKING_URI from there, too.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fast_electra_core.errors import ConfigError
from steps.metaflow_settings import config_path

_OUTPUTS = {"metaflow_config": re.compile(r"METAFLOW_[A-Z0-9_]+"), "mlflow_config": re.compile(r"MLFLOW_[A-Z0-9_]+")}
_TRACKING = "MLFLOW_TRACKING_URI"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra metaflow-config` takes."""
    parser.add_argument(
        "source", help="terraform's folder, a file with `terraform output -json`, or - for standard input"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--write", action="store_true", help="write the file that Metaflow reads, instead of printing it"
    )
    where.add_argument(
        "--pods", action="store_true", help="print the MLFLOW_ settings as NAME=VALUE lines, for the Secret of the pods"
    )
    parser.add_argument(
        "--force", action="store_true", help="with --write: replace a file that is there; it is kept as NAME.before"
    )


def run(arguments: argparse.Namespace) -> int:
    """`fast-electra metaflow-config`.

    Raises:
        ConfigError: no such outputs, or a file is there already.
    """
    if arguments.force and not arguments.write:
        raise ConfigError("--force has no effect without --write; leave it out")
    outputs = settings_of(_outputs(arguments.source))
    if arguments.pods:
        print("\n".join(f"{name}={value}" for name, value in outputs["mlflow_config"].items()))
        return 0
    config = {**outputs["metaflow_config"], _TRACKING: outputs["mlflow_config"][_TRACKING]}
    text = json.dumps(config, indent=2) + "\n"
    if not arguments.write:
        print(text, end="")
        return 0
    path = config_path()
    _write(path, text, force=arguments.force)
    print(f"{len(config)} settings in {path}")
    return 0


def settings_of(outputs: Any) -> dict[str, dict[str, str]]:
    """Terraform's outputs of settings, by output and name.

    Raises:
        ConfigError: one is missing, or holds what is no setting.
    """
    found: dict[str, dict[str, str]] = {}
    for output, pattern in _OUTPUTS.items():
        value = outputs.get(output, {}).get("value") if isinstance(outputs, dict) else None
        if not isinstance(value, dict) or not value:
            raise ConfigError(
                f"terraform's outputs hold no {output}; give the folder infra/terraform after `terraform apply`, or "
                "what `terraform output -json` prints there"
            )
        for name, setting in value.items():
            if not pattern.fullmatch(name) or not isinstance(setting, str) or not setting or "\n" in setting:
                raise ConfigError(
                    f"terraform's {output} must hold {pattern.pattern} with text, got {name}: {setting!r}"
                )
        found[output] = dict(value)
    if _TRACKING not in found["mlflow_config"]:
        raise ConfigError(f"terraform's mlflow_config lacks {_TRACKING}; is it the project's own infra/terraform?")
    return found


def _outputs(source: str) -> Any:
    if source == "-":
        text = sys.stdin.read()
    elif Path(source).is_dir():
        text = _terraform_output(source)
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"no outputs of terraform can be read at {source}: {error.strerror}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} holds no JSON of `terraform output -json`: {error}") from error


def _terraform_output(folder: str) -> str:
    try:
        done = subprocess.run(
            ["terraform", f"-chdir={folder}", "output", "-json", "-no-color"],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no terraform here; give a file with what `terraform output -json` prints"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"terraform output in {folder} failed: {error.stderr.strip()}") from error
    return done.stdout


def _write(path: Path, text: str, *, force: bool) -> None:
    """Whole or not at all; what was there stays beside it."""
    if path.exists() and not force:
        raise ConfigError(
            f"{path} is there already and is left as it is; take --force, which keeps it as {path.name}.before, or "
            "write another with METAFLOW_PROFILE=NAME"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o600)
    if path.exists():
        path.replace(path.with_name(f"{path.name}.before"))
    Path(file.name).replace(path)
