"""Models that users name: `models:/NAME@alias`, a folder, an s3:// prefix or `hub:NAME`; never a pickle, never code."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from fast_electra_core.errors import AuxiliaryError, CheckpointError
from steps import tracking
from steps.store import Store, download_prefix

_FILES = ("*.json", "*.safetensors", "vocab.txt", "merges.txt")
_NOTES = ("_name_or_path", "transformers_version")
"""What a config.json says that changes no number."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def download(address: str, destination: Path, tracking_uri: str, *, role: str) -> tuple[Path, dict[str, Any] | None]:
    """The model's folder, and its registered version if it comes from the registry; role is its flow parameter.

    Raises:
        AuxiliaryError, DataError, TrackingError: it is not there, or cannot be reached.
    """
    if address.startswith("models:/"):
        tracking.connect(tracking_uri)
        info = tracking.model_version_info(address)
        return tracking.download_model(address, destination), info
    if address.startswith("s3://"):
        return download_prefix(address, destination, suffixes=(".json", ".safetensors", ".txt")), None
    if address.startswith("hub:"):
        try:
            return Path(snapshot_download(address.removeprefix("hub:"), allow_patterns=list(_FILES))), None
        except Exception as error:  # among them those of its HTTP library, whichever that is
            raise AuxiliaryError(
                f"{address} could not be fetched from the hub: {error}. Check the name and the connection, or give a "
                "folder"
            ) from error
    folder = Path(address).expanduser()
    if not folder.is_dir():
        flow = "auxiliary" if role in ("auxiliary", "distill_from") else "pretrain"
        raise AuxiliaryError(
            f"{role} {address!r} is not a folder. Give models:/NAME@ALIAS, a folder, s3://BUCKET/PREFIX or "
            f"hub:NAME; `python flows/{flow}_flow.py run` makes one"
        )
    return folder, None


def read_config(folder: Path, *, what: str) -> dict[str, Any]:
    """The model's config.json; what names the model in messages.

    Raises:
        AuxiliaryError: unreadable, or it asks for code of its own to be run.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it is no JSON object but {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise AuxiliaryError(
            f"{what} has no readable config.json: {error}. Give a folder with config.json, *.safetensors and a "
            "tokenizer, as save_pretrained writes them"
        ) from error
    if "auto_map" in config:
        raise AuxiliaryError(f"{what} wants to run code of its own (auto_map); remote code is never run")
    return config


def check_weights(folder: Path, *, what: str) -> None:
    """Raises AuxiliaryError unless the folder has weights as safetensors."""
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        held = f"only pickles ({', '.join(pickles)}), which are never loaded" if pickles else "no weights"
        raise AuxiliaryError(f"{what} holds {held}; save it as safetensors")


def copy_files(source: Path, target: Path) -> None:
    """Copy weights, config and tokenizer, and nothing else, into a new folder."""
    target.mkdir()
    for pattern in _FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def content_key(kind: str, folder: Path, *, digest: str, tokenizer_digest: str) -> str:
    """Where the store keeps a model of that kind: a name for its weights (digest), its config and its tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({name: config[name] for name in sorted(config) if name not in _NOTES})
    return f"{kind}/{digest}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{tokenizer_digest}"


def keep_copy(folder: Path, store: Store, key: str) -> None:
    """Copy weights, config and tokenizer into the store, unless the key, which should name their content, is there."""
    if not store.has(key):
        with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
            copy_files(folder, Path(scratch) / "clean")
            store.put_folder(Path(scratch) / "clean", key)


def check_unmoved(kept: dict[str, Any], store: Store, *, what: str) -> Path:
    """The folder of a model that was kept in the store, its weights those that were checked in `start`.

    Raises:
        CheckpointError: they are not.
    """
    folder = store.get_folder(kept["key"])
    digest = weights_digest(folder)
    if digest != kept["digest"]:
        raise CheckpointError(
            f"{what} has moved: its weights' digest was {kept['digest']}, now it is {digest}. Delete "
            f"{store.address(kept['key'])} and run again"
        )
    return folder


def weights_digest(folder: Path) -> str:
    """Hex digest (16 characters) of all weights: names, dtypes, shapes and bytes, wherever the files cut them."""
    digest = hashlib.sha256()
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    for name in sorted(found):
        with safe_open(found[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
