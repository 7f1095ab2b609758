"""A registered version as a folder that transformers loads and the Hugging Face hub takes: config, safetensors,
tokenizer and model card.

    fast-electra export models:/fast-electra@champion folder/
    fast-electra export models:/fast-electra/3 folder/ --tracking_uri https://mlflow.example.com
"""

import argparse
import logging
import tempfile
from pathlib import Path

from fast_electra_core.errors import ConfigError
from steps import tracking
from steps.command import add_tracking_uri
from steps.model_card import Facts, model_card

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fast-electra export` takes."""
    parser.add_argument("address", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("folder", help="new, or empty")
    add_tracking_uri(parser)


def run(arguments: argparse.Namespace) -> int:
    """`fast-electra export`."""
    export(arguments.address, arguments.folder, arguments.tracking_uri)
    return 0


def export(address: str, folder: str | Path, tracking_uri: str) -> Path:
    """folder holds config.json, *.safetensors, the tokenizer and README.md of `models:/NAME@ALIAS` or
    `models:/NAME/VERSION`: whole, or not at all. No network is needed but the tracking server.

    README.md is the card that the version was registered with; one that has none gets a card from its tags.

    Raises:
        ConfigError: there is something in the folder, or it cannot be written.
        TrackingError: no such version.
        AuxiliaryError: the version holds no transformers model, or only pickles, or wants to run code of its own.
    """
    from steps.model_source import read_config

    target = Path(folder).expanduser().resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"folder must be new or empty, got {folder}; give another, or remove what is in it")
    tracking.connect_existing(tracking_uri)
    info = tracking.model_version_info(address)
    with _scratch_at(target) as scratch:
        made = tracking.download_model(address, Path(scratch) / "model")
        read_config(made, what=address)
        card = made / "README.md"
        if not card.is_file():
            facts = Facts(summary=f"Version {info['version']} of {info['name']}.", task="", tags=info["tags"])
            card.write_text(model_card(info["name"], facts), encoding="utf-8")
        if target.is_dir():  # it stays the same folder: it may be where the user stands, or another disk
            for path in sorted(made.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(target / path.name)
        else:
            made.rename(target)
    _logger.info("models:/%s/%s is in %s", info["name"], info["version"], folder)
    return target


def _scratch_at(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the target's disk."""
    place = target if target.is_dir() else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=place)
    except OSError as error:
        raise ConfigError(f"folder must be one that can be written, got {target} ({error}); give another") from error
