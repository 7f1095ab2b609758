"""Claims about steps/export.py, with transformers as the judge, on one real SQLite registry."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import new_database
from toys import electra_config
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ModernBertConfig,
    PreTrainedModel,
)

from fast_electra_core.errors import AuxiliaryError, ConfigError, TrackingError
from fast_electra_core.models import build_discriminator
from fast_electra_core.tokenizer import train_tokenizer
from steps import tracking
from steps.command import main
from steps.export import export
from steps.gates import LINEAGE_TAGS
from steps.register import register_discriminator
from steps.tracking import connection

TEXT = "the cat sat on the mat"
SCHEDULE = {"schedule": "exponential", "temperature_start": 2.0, "temperature_decay": 0.1, "temperature_end": 1.0}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(tmp_path_factory.mktemp("registry"))


def config_of(architecture: str, vocab_size: int) -> Any:
    if architecture == "electra":
        return electra_config(vocab_size, max_position_embeddings=64)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return ModernBertConfig(vocab_size=vocab_size, max_position_embeddings=64, num_labels=1, **sizes, **ids)


class Registered:
    """A version, the model that it was made of, and the ids of TEXT."""

    def __init__(self, architecture: str, folder: Path, uri: str) -> None:
        tokenizer = train_tokenizer(iter([TEXT] * 20), vocab_size=300)
        self.model: PreTrainedModel = build_discriminator(config_of(architecture, len(tokenizer)), seed=0).eval()
        self.ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made = register_discriminator(
            {"tracking_uri": uri, "architecture": architecture, "method": "fast_electra", **SCHEDULE},
            folder=folder,
            run_id=tracking.start_parent(uri, "tests", name="flow", tags={}, params={}),
            tags=dict.fromkeys(LINEAGE_TAGS, "x"),
            metrics={},
        )
        self.address = f"models:/fast-electra/{made['version']}"


@pytest.fixture(scope="module", params=["electra", "modernbert"])
def registered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, uri: str) -> Registered:
    return Registered(request.param, tmp_path_factory.mktemp(request.param), uri)


@pytest.fixture(scope="module")
def folder(registered: Registered, tmp_path_factory: pytest.TempPathFactory, uri: str) -> Path:
    return export(registered.address, tmp_path_factory.mktemp("exported") / "new" / "model", uri)


@torch.no_grad()
def output_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits, or hidden states where there is no head."""
    found: torch.Tensor = model.eval()(input_ids=ids)[0]
    return found


def test_the_detector_gives_the_same_logits(registered: Registered, folder: Path) -> None:
    is_electra = registered.model.config.model_type == "electra"
    loader = AutoModelForPreTraining if is_electra else AutoModelForTokenClassification
    logits = output_of(loader.from_pretrained(folder), registered.ids)
    assert torch.equal(logits, output_of(registered.model, registered.ids))


def test_the_encoder_alone_gives_the_same_hidden_states(registered: Registered, folder: Path) -> None:
    hidden = output_of(AutoModel.from_pretrained(folder), registered.ids)
    assert torch.equal(hidden, output_of(registered.model.base_model, registered.ids))


def test_a_classifier_to_be_fine_tuned_starts_from_the_encoder(registered: Registered, folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    assert output_of(model, registered.ids).shape == (1, 3)
    hidden = output_of(model.base_model, registered.ids)
    assert torch.equal(hidden, output_of(registered.model.base_model, registered.ids))


def test_the_tokenizer_comes_along(registered: Registered, folder: Path) -> None:
    assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] == registered.ids[0].tolist()


def test_the_code_on_the_card_runs(registered: Registered, folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(blocks[0].replace('"FOLDER"', repr(str(folder))), names)
    logits = output_of(names["model"], names["tokenizer"](TEXT, return_tensors="pt")["input_ids"])
    assert torch.equal(logits, output_of(registered.model, registered.ids))
    assert names["classifier"].config.num_labels == 2


def test_the_card_is_the_one_that_was_registered(registered: Registered, folder: Path) -> None:
    from mlflow import MlflowClient

    info = tracking.model_version_info(registered.address)
    model = MlflowClient(connection.connected_uri()).get_logged_model(info["model_id"])
    kept = Path(model.artifact_location) / "model" / "README.md"
    assert (folder / "README.md").read_text() == kept.read_text()


def test_nothing_else_is_in_the_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md", ".txt"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no scratch is left


@pytest.fixture(scope="module")
def electra(tmp_path_factory: pytest.TempPathFactory, uri: str) -> Registered:
    return Registered("electra", tmp_path_factory.mktemp("electra"), uri)


def test_exporting_and_loading_need_no_network(
    electra: Registered, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = export(electra.address, tmp_path / "model", uri)
    AutoTokenizer.from_pretrained(folder)
    assert torch.equal(
        output_of(AutoModelForPreTraining.from_pretrained(folder), electra.ids), output_of(electra.model, electra.ids)
    )


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(electra: Registered, uri: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (export(electra.address, tmp_path / "empty", uri) / "config.json").is_file()
    with pytest.raises(ConfigError, match=r"folder must be new or empty, got .*empty; give another, or remove what"):
        export(electra.address, tmp_path / "empty", uri)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="folder must be new or empty"):
        export(electra.address, tmp_path / "file", uri)


def test_a_tilde_is_the_home_and_no_folder_of_that_name(
    electra: Registered, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quoted `~/model` comes so from a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export(electra.address, "~/model", uri) == tmp_path / "model"


def test_the_folder_may_be_where_one_stands_or_a_link(
    electra: Registered, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(electra.address, ".", uri)
    assert Path("config.json").is_file()  # by way of the folder one stands in, not by its name
    assert not [path for path in Path().iterdir() if path.is_dir()]
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    export(electra.address, tmp_path / "link", uri)
    assert (tmp_path / "there" / "config.json").is_file()
    with pytest.raises(ConfigError, match=r"folder must be one that can be written, got .*config\.json/x"):
        export(electra.address, tmp_path / "there" / "config.json" / "x", uri)


def test_a_version_that_is_not_there_leaves_nothing(electra: Registered, uri: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrackingError, match="fast-electra has no version 99; its aliases:"):
        export("models:/fast-electra/99", tmp_path / "empty", uri)
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "empty").rmdir()
    with pytest.raises(TrackingError, match="fast-electra has no version 99; its aliases:"):
        export("models:/fast-electra/99", tmp_path / "model", uri)
    assert list(tmp_path.iterdir()) == []


def register_by_hand(name: str, source: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(connection.connected_uri())
    client.create_registered_model(name)
    client.create_model_version(name, str(source), tags={"made.by": "hand"})


def test_a_version_without_a_card_gets_one_from_its_tags(electra: Registered, uri: str, tmp_path: Path) -> None:
    electra.model.save_pretrained(tmp_path / "source")
    register_by_hand("theirs", tmp_path / "source")
    card = (export("models:/theirs/1", tmp_path / "model", uri) / "README.md").read_text()
    assert "# theirs\n\nVersion 1 of theirs." in card
    assert "| made.by | hand |" in card


def test_a_model_that_wants_to_run_code_is_refused(electra: Registered, uri: str, tmp_path: Path) -> None:
    electra.model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "theirs.Model"}}))
    register_by_hand("sly", tmp_path / "source")
    with pytest.raises(AuxiliaryError, match="models:/sly/1 wants to run code of its own"):
        export("models:/sly/1", tmp_path / "model", uri)
    assert not (tmp_path / "model").exists()


def test_the_command_exports_and_says_where(
    electra: Registered, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["export", electra.address, str(tmp_path / "model"), "--tracking_uri", uri]) == 0
    assert f"{electra.address} is in {tmp_path / 'model'}" in caplog.text
    assert (tmp_path / "model" / "README.md").is_file()
