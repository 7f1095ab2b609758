"""The model registry: versions, their tags and aliases, and the files of a version."""

import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.errors import AuxiliaryError, TrackingError
from steps.tracking.connection import ask, connected_uri, create_once, mlflow_client
from steps.tracking.metrics import send_values, values_at_last_steps
from steps.tracking.model_files import MODEL_FILES, check_model_folder, copy_model_files, save_transformers_model

CARD = "model_card.md"  # as mlflow.transformers calls it
_PARAGRAPH = "\n\n"
_REASON_TAG = "promotion.reason"


def register_model(
    *,
    run_id: str,
    name: str,
    folder: Path,
    task: str,
    example: str | Mapping[str, str],
    card: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    description: str,
    datasets: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """A version of the registered model `name` that `mlflow.transformers.load_model` and pyfunc can load.

    folder: config.json, *.safetensors and a tokenizer, as save_pretrained writes them; they lie unchanged in
    the version's folder `model/`, with card as README.md. task: the transformers pipeline that load_model
    returns; example: an input for it, of a classifier by column (text and, for pairs, text_pair). metrics are
    logged to the run and linked to the model, and to the data that datasets names (metric -> name, digest). The first
    paragraph of description also describes the registered model, where this is its first version.
    A retried step gets the version it has made before. Returns name, version, run_id, model_id and reused.

    Raises:
        TrackingError: the folder lacks one of those files, or the server refuses.
    """
    digest = check_model_folder(folder)
    tags = {**tags, "model.sha256": digest}
    found = ask("list model versions", mlflow_client().search_model_versions, f"run_id='{run_id}'")
    for version in found:
        if version.name == name and version.tags.get("model.sha256") == digest:
            set_version_tags(name, version.version, tags)
            return _version_dict(version, reused=True)
    with tempfile.TemporaryDirectory() as scratch:
        staged = copy_model_files(folder, Path(scratch, "checkpoint"))
        (staged / "README.md").write_text(card, encoding="utf-8")
        what = {"task": task, "example": example, "card": card}
        model = _upload_model(run_id, name, staged, metrics=metrics, datasets=datasets, **what)
    about = (
        f"{description.partition(_PARAGRAPH)[0]}\n\nThe alias champion is of the version to use, where there is one."
    )
    create = mlflow_client().create_registered_model
    ask(f"create the model {name}", create_once, create, name, description=about)
    version = ask(
        f"register {name}",
        mlflow_client().create_model_version,
        name,
        source=f"models:/{model.model_id}",
        run_id=run_id,
        tags={key: str(value) for key, value in tags.items()},
        description=description,
        model_id=model.model_id,
    )
    found = ask("list model versions", mlflow_client().search_model_versions, f"run_id='{run_id}'")
    # More than one of the same files where the server's answer was lost on its way, and it was asked again.
    version, *others = sorted((each for each in found if each.source == version.source), key=lambda v: int(v.version))
    for other in others:
        ask("remove a duplicate version", mlflow_client().delete_model_version, name, other.version)
    link = json.dumps([{"name": name, "version": version.version}])  # what the UI shows beside the model
    tag = mlflow_client().set_logged_model_tags
    ask("tag the logged model", tag, model.model_id, {"mlflow.modelVersions": link})
    return _version_dict(version, reused=False)


def set_version_tags(name: str, version: str | int, tags: Mapping[str, Any]) -> None:
    """Set tags of a model version; those already there are replaced."""
    for key, value in tags.items():
        ask("tag a model version", mlflow_client().set_model_version_tag, name, str(version), key, str(value))


def set_alias(name: str, alias: str, version: str | int) -> None:
    """models:/NAME@ALIAS means this version from now on, whoever else enters the alias at the same moment."""
    from mlflow.exceptions import MlflowException

    enter = mlflow_client().set_registered_model_alias

    def entered() -> None:
        try:
            enter(name, alias, str(version))
        except MlflowException as error:
            if "registered_model_aliases" not in str(error):  # the table, which MLflow has found without it just before
                raise
            enter(name, alias, str(version))

    ask(f"set the alias {alias}", entered)


def aliases(name: str) -> dict[str, str]:
    """Alias -> version of a registered model; empty where there is no such model."""
    found = ask("list models", mlflow_client().search_registered_models, f"name='{name}'")
    return {alias: str(version) for model in found for alias, version in model.aliases.items()}


def model_version_info(uri: str) -> dict[str, Any]:
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` is: name, version, tags, run_id, model_id, aliases.

    Raises:
        TrackingError: the address has another form, or names a model, alias or version that is not there; the
            message lists those that are.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise TrackingError(f"{uri!r} is no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, wanted = match.groups()
    if not ask("list models", mlflow_client().search_registered_models, f"name='{name}'"):
        raise no_such_model(name)
    known = aliases(name)
    number = wanted if alias is None else known.get(alias)
    found = ask("list model versions", mlflow_client().search_model_versions, f"name='{name}'")
    for version in found:
        if str(version.version) == number:
            of_version = sorted(key for key, value in known.items() if value == number)
            return {**_version_dict(version, reused=True), "tags": dict(version.tags), "aliases": of_version}
    numbers = ", ".join(sorted((str(version.version) for version in found), key=int)) or "none"
    named = ", ".join(f"{key} (version {value})" for key, value in sorted(known.items())) or "none"
    missing = f"version {wanted}" if alias is None else f"alias {alias!r}"
    raise TrackingError(
        f"{name} has no {missing}; its aliases: {named}; its versions: {numbers}{_next_move(name, found, alias)}"
    )


def _next_move(name: str, found: Sequence[Any], alias: str | None) -> str:
    """The newest of the versions, to be named instead; with what it lacks, where a champion was asked for."""
    if not found:
        return ""
    newest = max(found, key=lambda version: int(version.version))
    reason = newest.tags.get(_REASON_TAG) if alias == "champion" else None
    return f". Name a version: models:/{name}/{newest.version}{f' ({reason})' if reason else ''}"


def no_such_model(name: str) -> TrackingError:
    """The error for a name that no registered model has: it lists those there are."""
    names = sorted(model.name for model in ask("list models", mlflow_client().search_registered_models))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return TrackingError(
        f"no registered model {name!r} at {connected_uri()}; registered: {', '.join(names) or 'none'}. {hint}"
        "flows/auxiliary_flow.py makes an auxiliary, flows/pretrain_flow.py a main model"
    )


def download_model(uri: str, destination: Path) -> Path:
    """destination (not there yet), with config.json, *.safetensors and the tokenizer of a registered version.
    Nothing is unpickled.

    Raises:
        TrackingError: see model_version_info.
        AuxiliaryError: the version holds no transformers model, or has its weights in pickles only.
    """
    import mlflow.artifacts

    info = model_version_info(uri)
    source = f"models:/{info['name']}/{info['version']}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        fetch = mlflow.artifacts.download_artifacts
        root = Path(ask(f"download {uri}", fetch, artifact_uri=source, dst_path=scratch))
        configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
        if not configs:
            raise AuxiliaryError(f"{uri} holds no transformers model: no config.json among its files")
        folder = copy_model_files(configs[0].parent, Path(scratch, "complete"))
        if not any(folder.glob("*.safetensors")):
            raise AuxiliaryError(
                f"{uri} has no .safetensors file; pickled weights are not read. Save it with safetensors"
            )
        for path in root.glob("components/tokenizer/*"):  # where mlflow.transformers itself keeps the tokenizer
            if path.suffix in MODEL_FILES and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
        folder.rename(destination)
    return destination


def missing_of_signature(address: str) -> list[str]:
    """What a caller of the version needs to know and its files do not say: inputs, outputs, input example."""
    import mlflow.models

    info = ask(f"read the signature of {address}", mlflow.models.get_model_info, address)
    there = {
        "inputs": info.signature is not None and info.signature.inputs is not None,
        "outputs": info.signature is not None and info.signature.outputs is not None,
        "input example": info.saved_input_example_info is not None,
    }
    return [what for what, is_there in there.items() if not is_there]


def amend_texts(version: Mapping[str, Any], *, card: Callable[[str], str], description: Callable[[str], str]) -> None:
    """What goes with a version in words, changed: its description, and the model card among its files; where
    register_model made it, for others have none."""
    import mlflow.artifacts

    client, name, number = mlflow_client(), version["name"], str(version["version"])
    old = ask("read a description", client.get_model_version, name, number).description or ""
    if description(old) != old:
        ask("describe a version", client.update_model_version, name, number, description(old))
    if not version["model_id"].startswith("m-"):
        return
    old = ask("read a model card", mlflow.artifacts.load_text, f"models:/{name}/{number}/{CARD}")
    if card(old) == old:
        return
    with tempfile.TemporaryDirectory() as scratch:
        for file, place in ((CARD, None), ("README.md", "model")):
            path = Path(scratch, file)
            path.write_text(card(old), encoding="utf-8")
            ask("store a model card", client.log_model_artifact, version["model_id"], str(path), place)


def _upload_model(
    run_id: str,
    name: str,
    folder: Path,
    *,
    metrics: Mapping[str, float],
    datasets: Mapping[str, tuple[str, str]] | None,
    **what: Any,
) -> Any:
    """A READY LoggedModel made by the run, with its metrics; FAILED if the upload breaks."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = mlflow_client()
    run = ask(f"find the run {run_id}", client.get_run, run_id)
    model = ask(
        "create a logged model",
        client.create_logged_model,
        run.info.experiment_id,
        name,
        source_run_id=run_id,
        params=dict(run.data.params),
    )
    status = LoggedModelStatus.FAILED
    try:
        path = folder.parent / "model"
        save_transformers_model(path, folder, model, run_id=run_id, name=name, **what)
        ask("upload the model", client.log_model_artifacts, model.model_id, str(path))
        outputs = [LoggedModelOutput(model.model_id, step=0)]
        ask("link the model to its run", client.log_outputs, run_id, models=outputs)
        values = ask("read metrics", values_at_last_steps, run_id, metrics)
        ask("log the model's metrics", send_values, run_id, values, model.model_id, datasets)
        status = LoggedModelStatus.READY
    finally:
        ask("finish the logged model", client.finalize_logged_model, model.model_id, status)
    return model


def _version_dict(version: Any, *, reused: bool) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": str(version.version),
        "run_id": version.run_id,
        "model_id": version.source.removeprefix("models:/"),  # SQL registries leave version.model_id empty
        "reused": reused,
    }
