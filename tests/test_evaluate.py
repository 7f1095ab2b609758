"""Any encoder as something to score: what is stored of it, and what is refused before anything costs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import new_database
from safetensors.torch import load_file
from toys import change_tensors, save_auxiliary
from transformers import ElectraForMaskedLM

from fast_electra_core.classifier import build_classifier
from fast_electra_core.config import EvaluateConfig
from fast_electra_core.errors import AuxiliaryError, CheckpointError, ConfigError
from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest
from steps import model_source, tracking
from steps.evaluate import fetch_model
from steps.store import Store


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model of one layer, 512 positions, with its tokenizer."""
    return save_auxiliary(tmp_path_factory.mktemp("models") / "good", ["a small text about small words", "and another"])


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def fetch(model: Path, **changes: Any) -> dict[str, Any]:
    config = EvaluateConfig(model=str(model), store=str(model.parent / "store"), **changes)
    return fetch_model(config, Store(config.store))


def test_a_model_is_stored_by_content_without_what_is_not_needed(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"never read")
    (model / "notes.py").write_text("raise SystemExit")
    found = fetch(model)
    stored = Store(str(model.parent / "store")).get_folder(found["key"])
    assert {path.suffix for path in stored.iterdir() if path.suffix} == {".json", ".safetensors"}
    tensors = load_file(model / "model.safetensors")
    assert found["num_parameters"] == sum(v.numel() for name, v in tensors.items() if name.startswith("electra."))
    assert (found["model_type"], found["version"], found["address"]) == ("electra", "not registered", str(model))
    assert fetch(Path(shutil.copytree(model, model.with_name("moved"))))["key"] == found["key"]


def test_a_model_in_s3_is_the_same_model(model: Path, s3: Any) -> None:
    for path in model.iterdir():
        s3.upload_file(str(path), "bucket", f"models/mine/{path.name}")
    config = EvaluateConfig(model="s3://bucket/models/mine", store=str(model.parent / "store"))
    found = fetch_model(config, Store(config.store))
    assert found["address"] == "s3://bucket/models/mine"
    assert {**found, "address": str(model)} == fetch(model)


def test_a_model_of_the_hub_is_asked_for_without_pickles_and_code(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:  # the edge: the hub cannot be reached here
        asked.append((name, allow_patterns))
        return str(model)

    monkeypatch.setattr(model_source, "snapshot_download", snapshot_download)
    config = EvaluateConfig(model="hub:google/electra-small-discriminator", store=str(model.parent / "store"))
    assert fetch_model(config, Store(config.store))["digest"] == fetch(model)["digest"]
    assert asked == [
        ("google/electra-small-discriminator", ["*.json", "*.safetensors", "vocab.txt", "merges.txt"]),
    ]


def test_a_registered_model_comes_with_its_version(model: Path, tmp_path: Path) -> None:
    uri = new_database(tmp_path)
    run_id = tracking.start_parent(uri, "tests", name="flow", tags={}, params={})
    made = tracking.register_model(
        run_id=run_id, name="mine", folder=model, task="feature-extraction", example="a text", card="# toy", tags={},
        metrics={}, description="",
    )  # fmt: skip
    tracking.set_alias("mine", "champion", made["version"])
    config = EvaluateConfig(model="models:/mine@champion", store=str(tmp_path / "store"), tracking_uri=uri)
    found = fetch_model(config, Store(config.store))
    assert (found["version"], found["address"]) == ("mine/1", "models:/mine@champion")
    assert found["digest"] == fetch(model)["digest"]


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_of_pickles_alone_is_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = r"model .* holds only pickles \(pytorch_model.bin\), which are never loaded; save it as safetensors"
    with pytest.raises(AuxiliaryError, match=message):
        fetch(model)


def test_a_model_with_code_of_its_own_is_refused(model: Path) -> None:
    edit_config(model, auto_map={"AutoModel": "mine.Model"})
    with pytest.raises(AuxiliaryError, match=r"wants to run code of its own \(auto_map\); remote code is never run"):
        fetch(model)


def test_fewer_positions_than_the_longest_example_are_refused(model: Path) -> None:
    edit_config(model, max_position_embeddings=100)
    with pytest.raises(ConfigError, match=r"finetune_max_length must be <= 100, the positions of .*, got 128"):
        fetch(model)


def test_as_many_positions_as_the_longest_example_are_enough_and_its_digests_are_told(
    good: Path, tmp_path: Path
) -> None:
    found = fetch(Path(shutil.copytree(good, tmp_path / "model")), finetune_max_length=512)
    assert found["digest"] == model_source.weights_digest(good)
    assert found["tokenizer_digest"] == tokenizer_digest(load_tokenizer(good))
    assert found["key"].startswith(f"models/{found['digest']}-") and found["key"].endswith(found["tokenizer_digest"])


def test_a_model_that_is_not_there_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(
        AuxiliaryError, match=r"^model '.*nowhere' is not a folder\. .*flows/pretrain_flow\.py run` makes"
    ):
        fetch(tmp_path / "nowhere")


def test_a_model_without_its_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(AuxiliaryError, match=r"model .* comes without a usable tokenizer: no tokenizer at"):
        fetch(model)


def test_a_model_without_some_of_its_weights_is_refused(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors.pop("electra.encoder.layer.0.attention.self.query.weight"))
    with pytest.raises(CheckpointError, match=r"lacks encoder weights electra\.encoder\.layer\.0\.attention"):
        fetch(model)


def test_a_folder_without_a_config_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(AuxiliaryError, match=r"model .* has no readable config.json"):
        fetch(model)


def test_a_model_whose_config_was_corrected_is_not_the_one_before(model: Path) -> None:
    """The weights are the same, and what is computed with them is not."""
    before = fetch(model)
    edit_config(model, num_attention_heads=2, transformers_version="another")
    heads = json.loads((model / "config.json").read_text())["num_attention_heads"]
    after = fetch(model)
    assert after["digest"] == before["digest"]
    stored = Store(str(model.parent / "store")).get_folder(after["key"])
    assert json.loads((stored / "config.json").read_text())["num_attention_heads"] == heads == 2
    edit_config(model, transformers_version="yet another")
    assert fetch(model)["key"] == after["key"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("untrained", [False, True])
def test_a_model_that_was_saved_in_half_precision_is_fine_tuned_in_float32(
    dtype: str, untrained: bool, model: Path
) -> None:
    ElectraForMaskedLM.from_pretrained(model, dtype=getattr(torch, dtype)).save_pretrained(model)
    assert json.loads((model / "config.json").read_text())["dtype"] == dtype
    classifier = build_classifier(model, num_labels=2, seed=0, untrained=untrained)
    assert {parameter.dtype for parameter in classifier.parameters()} == {torch.float32}
