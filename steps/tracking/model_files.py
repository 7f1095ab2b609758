"""The files of a model version: checked, copied without pickles, written in MLflow's format."""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.errors import TrackingError

MODEL_FILES = (".json", ".txt", ".safetensors", ".md", ".model")  # no file that could hold a pickle


def check_model_folder(folder: Path) -> str:
    """Hex digest (64 characters) of the weights, after checking that all that a version needs is there."""
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt"))
    needed = {
        "config.json": (folder / "config.json").exists(),
        "a .safetensors file": any(folder.glob("*.safetensors")),
        "a tokenizer (tokenizer.json or vocab.txt)": has_tokenizer,
    }
    missing = [what for what, is_there in needed.items() if not is_there]
    if missing:
        raise TrackingError(f"{folder} cannot be registered: it lacks {', '.join(missing)}")
    return files_digest(folder)


def files_digest(folder: Path) -> str:
    """Hex digest (64 characters) of the bytes of a folder's .safetensors files, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def copy_model_files(folder: Path, destination: Path) -> Path:
    """A copy of the folder's own files of the kinds that cannot hold a pickle."""
    destination.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in MODEL_FILES:
            shutil.copyfile(path, destination / path.name)
    return destination


def save_transformers_model(
    path: Path,
    folder: Path,
    model: Any,
    *,
    run_id: str,
    name: str,
    task: str,
    example: str | Mapping[str, str],
    card: str,
) -> None:
    """path in MLflow's format, with the files of folder as they are in path/model."""
    import huggingface_hub
    import mlflow.transformers
    from mlflow.models import Model

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)  # warns that the hub has no license for it
    entry = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=run_id,
        model_id=model.model_id,
    )
    # A loaded model, not the folder's path: MLflow 3.17's short cut for folders breaks with transformers 5.
    mlflow.transformers.save_model(
        transformers_model=_load_transformers(folder, f"models:/{name}"),
        path=str(path),
        task=task,
        model_card=huggingface_hub.ModelCard(card),  # given, so that none is looked for on the hub
        mlflow_model=entry,
        signature=_signature(task, example),
        input_example=[example if isinstance(example, str) else dict(example)],
        # Text beyond what a classifier was fine-tuned on is cut, as it was there.
        model_config={"truncation": True} if task == "text-classification" else None,
        pip_requirements=_requirements(),
    )
    (path / "LICENSE.txt").unlink(missing_ok=True)  # it would say to look for one on the hub
    shutil.rmtree(path / "model")
    shutil.copytree(folder, path / "model")


def _load_transformers(folder: Path, name: str) -> dict[str, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    (kind,) = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures
    model = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True)
    model.name_or_path = name  # MLflow notes it, and looks it up on the hub, where no name has a colon
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return {"model": model, "tokenizer": tokenizer}


def _signature(task: str, example: str | Mapping[str, str]) -> Any:
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    names = [None] if isinstance(example, str) else list(example)
    outputs = {
        "fill-mask": [ColSpec(DataType.string)],
        "text-classification": [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")],
        "feature-extraction": [TensorSpec(np.dtype("float64"), (-1,))],  # one logit per token: > 0 means replaced
    }
    return ModelSignature(Schema([ColSpec(DataType.string, name) for name in names]), Schema(outputs[task]))


def _requirements() -> list[str]:
    """What loading a version needs, at the versions that wrote it; without local suffixes such as +cpu."""
    from importlib.metadata import version

    names = ("mlflow", "safetensors", "tokenizers", "torch", "transformers")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
