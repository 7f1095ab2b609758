"""A main model that starts from another is that other one, encoder and where possible head, and nothing but that."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys import change_tensors, dataset_of, save_auxiliary
from transformers import (
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForTokenClassification,
    ModernBertModel,
    PreTrainedModel,
)

import steps.pretrain
from fast_electra_core.config import PretrainConfig, TrainingConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import AuxiliaryError, CheckpointError, ConfigError
from fast_electra_core.initial_model import Start, initial_shape, start_from
from fast_electra_core.models import build_discriminator, detector_logits
from fast_electra_core.tokenizer import train_tokenizer
from fast_electra_core.trainer import training_identity
from steps.auxiliary import fetch_candidates
from steps.config import resolve_pretrain
from steps.frozen import record_of
from steps.initial_model import fetch_initial_model, load_initial_model
from steps.model_source import weights_digest
from steps.pretrain import train_discriminator
from steps.store import Store
from steps.trace import lineage_tags, made_of
from steps.training_run import TrainingRun

VOCAB_SIZE = 60
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "pad_token_id": 0, "max_position_embeddings": 96,
}  # fmt: skip
ENDS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
OURS: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 16, "embedding_size": 16, "num_heads": 2, "intermediate_size": 24,
    "sequence_length": 64, "finetune_max_length": 64, "dropout": 0.0,
}  # fmt: skip
SOURCES: dict[str, tuple[type[PreTrainedModel], bool]] = {
    "electra with its head": (ElectraForPreTraining, True),
    "electra as a masked lm": (ElectraForMaskedLM, False),
    "electra without a head": (ElectraModel, False),
    "modernbert with its head": (ModernBertForTokenClassification, True),
    "modernbert as a masked lm": (ModernBertForMaskedLM, False),
    "modernbert without a head": (ModernBertModel, False),
}


def electra(**changes: Any) -> ElectraConfig:
    return ElectraConfig(**{**SIZES, "embedding_size": 16, **changes})


def modernbert(**changes: Any) -> ModernBertConfig:
    return ModernBertConfig(**{**SIZES, **ENDS, "num_labels": 1, **changes})


def saved(folder: Path, model_class: Any, **changes: Any) -> tuple[Path, Any]:
    """A model whose every weight differs from what a fresh one would have."""
    torch.manual_seed(7)
    shape = electra(**changes) if model_class.__name__.startswith("Electra") else modernbert(**changes)
    model = model_class(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder, model


def start(folder: Path, *, seed: int = 0, **changes: Any) -> Start:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    config = PretrainConfig(**{"architecture": kind, **OURS, **changes})
    return start_from(folder, initial_shape(folder, config), seed=seed)


def ids() -> torch.Tensor:
    return torch.randint(5, VOCAB_SIZE, (3, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", SOURCES)
def test_encoder_and_a_head_of_our_kind_are_taken_over_and_another_head_is_made_anew(
    source: str, tmp_path: Path
) -> None:
    model_class, has_head = SOURCES[source]
    folder, theirs = saved(tmp_path, model_class)
    ours = start(folder, seed=3)
    assert ours.has_head == has_head
    given = theirs.base_model.state_dict()
    taken = ours.model.base_model.state_dict()
    assert taken.keys() == given.keys()
    assert all(torch.equal(taken[name], given[name]) for name in given)
    if has_head:
        expected = theirs(ids()).logits
        assert torch.equal(
            detector_logits(ours.model.eval(), ids()), expected.squeeze(-1) if source[0] == "m" else expected
        )
        return
    fresh = build_discriminator(ours.model.config, seed=3).state_dict()
    heads = {
        name: value for name, value in ours.model.state_dict().items() if name.split(".")[0] not in ("electra", "model")
    }
    assert len(heads) >= 3
    assert all(torch.equal(value, fresh[name]) for name, value in heads.items())
    other = start(folder, seed=4).model.state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in heads.items())


def test_a_head_for_other_labels_is_made_anew(tmp_path: Path) -> None:
    folder, theirs = saved(tmp_path, ModernBertForTokenClassification, num_labels=5)
    ours = start(folder)
    assert not ours.has_head
    assert detector_logits(ours.model, ids()).shape == (3, 64)
    fresh = build_discriminator(ours.model.config, seed=0)
    assert torch.equal(ours.model.head.dense.weight, fresh.head.dense.weight)
    assert torch.equal(ours.model.model.final_norm.weight, theirs.model.final_norm.weight)


def test_what_is_no_knob_of_ours_stays_the_other_models_and_dropout_is_ours(tmp_path: Path) -> None:
    changes = {"global_attn_every_n_layers": 2, "local_attention": 8, "hidden_activation": "relu", "norm_eps": 1e-3}
    folder, theirs = saved(tmp_path, ModernBertForTokenClassification, **changes)
    ours = start(folder, dropout=0.25).model
    assert ours.config.layer_types == ["full_attention", "sliding_attention"]
    assert ours.config.hidden_activation == "relu"
    assert (ours.config.mlp_dropout, ours.config.attention_dropout, ours.config.embedding_dropout) == (0.25,) * 3
    assert torch.equal(detector_logits(ours.eval(), ids()), theirs(ids()).logits.squeeze(-1))
    folder, _ = saved(tmp_path / "electra", ElectraForPreTraining, hidden_act="relu", type_vocab_size=3)
    config = start(folder, dropout=0.25).model.config
    assert (config.hidden_act, config.type_vocab_size) == ("relu", 3)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3}, r"num_layers is 2 in it and 3 here\. Give --num_layers 2$"),
        (
            {"num_heads": 4, "hidden_size": 32, "embedding_size": 32},
            r"hidden_size is 16 in it and 32 here, .* Give --hidden_size 16 --embedding_size 16 --num_heads 2$",
        ),
        ({"intermediate_size": 8}, r"intermediate_size is 24 in it and 8 here\. Give --intermediate_size 24$"),
        (
            {"architecture": "modernbert"},
            r"architecture is electra in it and modernbert here\. Give --architecture elec",
        ),
        ({"sequence_length": 97}, r"it has 96 positions, sequence_length is 97\. Give --sequence_length 96 or less"),
        (
            {"finetune_max_length": 128},
            r"it has 96 positions, finetune_max_length is 128\. Give --finetune_max_length 96",
        ),
    ],
    ids=["layers", "widths", "feed-forward", "architecture", "positions", "positions when fine-tuned"],
)
def test_a_model_of_another_shape_is_refused_with_the_parameters_that_would_fit(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder, _ = saved(tmp_path, ElectraForPreTraining)
    with pytest.raises(ConfigError, match=message):
        start(folder, **changes)


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="it is of type 'bert'; a main model is one of electra, modernbert"):
        start(tmp_path, architecture="electra")
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ConfigError, match="its config cannot be read: "):
        start(tmp_path, architecture="electra")


TABLE = "electra.embeddings.word_embeddings.weight"  # which joint methods share, or put together
LAYER = "electra.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensors: tensors.pop(LAYER), rf"weights of its encoder are missing or of another shape: {LAYER} \(1\)"),
        (
            lambda tensors: tensors.update({LAYER: torch.zeros(16, 23)}),
            rf"weights of its encoder are missing or of another shape: {LAYER} \(1\)",
        ),
    ],
    ids=["missing", "of another shape"],
)
def test_an_encoder_that_is_not_whole_is_refused(spoil: Callable[..., object], message: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, ElectraForPreTraining)
    change_tensors(folder, spoil)
    with pytest.raises(CheckpointError, match=message):
        start(folder)


def test_a_head_in_pieces_is_made_anew(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, ElectraForPreTraining)
    change_tensors(folder, lambda tensors: tensors.pop("discriminator_predictions.dense.weight"))
    ours = start(folder)
    assert not ours.has_head
    fresh = build_discriminator(ours.model.config, seed=0)
    for part in ("dense", "dense_prediction"):
        assert torch.equal(
            getattr(ours.model.discriminator_predictions, part).bias,
            getattr(fresh.discriminator_predictions, part).bias,
        )


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, ElectraForPreTraining)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="it cannot be loaded: "):
        start(folder)


# As a flow's start does it


DOCUMENTS = ["kara moden lis", "moden kara tosu", "lis lis pel"]


class Place:
    """A store, an auxiliary, and a model of another training with the same tokenizer."""

    def __init__(self, root: Path) -> None:
        self.auxiliary = save_auxiliary(root / "auxiliary", DOCUMENTS)
        self.vocab_size = len(train_tokenizer(iter(DOCUMENTS), vocab_size=300))
        self.folder = root / "before"
        self.save(ElectraForPreTraining)
        train_tokenizer(iter(DOCUMENTS), vocab_size=300).save_pretrained(self.folder)
        self.store = Store(str(root / "store"))

    def save(self, model_class: Any, *, missing_tokens: int = 0) -> None:
        """Embeddings as wide as the auxiliary's, so that joint training shares them."""
        saved(self.folder, model_class, vocab_size=self.vocab_size - missing_tokens, embedding_size=8)

    def config(self, **changes: Any) -> PretrainConfig:
        given = {
            "preset": "tiny",
            "auxiliary": str(self.auxiliary),
            "initial_model": str(self.folder),
            **OURS,
            "embedding_size": 8,
            **changes,
        }
        return resolve_pretrain(given)

    def fetch(self, **changes: Any) -> dict[str, Any] | None:
        config = self.config(**changes)
        candidates = fetch_candidates(config, self.store)
        return fetch_initial_model(config, self.store, candidates=candidates)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_model_is_kept_by_content_and_loaded_as_it_was(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fetched = place.fetch()
    assert fetched is not None
    assert fetched["digest"] == weights_digest(place.folder) == weights_digest(place.store.get_folder(fetched["key"]))
    assert (fetched["address"], fetched["registry"]) == (str(place.folder), None)
    assert "with its RTD head" in caplog.text
    loaded = load_initial_model(fetched, place.config(), place.store).model.state_dict()
    assert all(
        torch.equal(loaded[name], value) for name, value in load_file(place.folder / "model.safetensors").items()
    )


def test_a_fresh_head_is_said(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    place.save(ElectraForMaskedLM)
    assert place.fetch() is not None
    assert "which has no RTD head of ours; a fresh one is made" in caplog.text


def test_without_the_parameter_nothing_is_fetched(place: Place) -> None:
    assert place.fetch(initial_model=None) is None
    assert place.store.list_keys("models") == []


def test_weights_that_have_moved_since_are_refused(place: Place) -> None:
    fetched = place.fetch()
    assert fetched is not None
    change_tensors(place.store.get_folder(fetched["key"]), lambda tensors: tensors[LAYER].add_(1e-3))
    with pytest.raises(
        CheckpointError, match=r"has moved: its weights' digest was [0-9a-f]{16}, now it is .* run again"
    ):
        load_initial_model(fetched, place.config(), place.store)


class Begun(BaseException):
    """Training would begin here."""


class RunOnToys(TrainingRun):
    """Reads random sequences instead of token shards."""

    def dataset(self, part: str, config: TrainingConfig) -> TokenDataset:
        folder = self.store.folder / part
        return dataset_of(folder, [np.arange(5, 12)] * 40, vocab_size=20, sequence_length=config.sequence_length)


@pytest.mark.parametrize("method", ["fast_electra", "electra", "electra_decoupled", "electra_gdes"])
def test_training_begins_with_its_weights_and_a_checkpoint_of_others_is_of_another_run(
    method: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[Any, TrainingConfig]] = []

    def begin(method: Any, dataset: Any, config: TrainingConfig, *_: Any, **__: Any) -> None:
        begun.append((method, config))
        raise Begun

    monkeypatch.setattr(steps.pretrain, "train_in_run", begin)
    config = place.config(method=method)
    auxiliary = record_of(fetch_candidates(config, place.store))
    run = RunOnToys(store=place.store, run_key="runs/1", mlflow_run_id="", shard_keys=[], tokenizer_key="")
    online = {"corruption": "online", "reused_fraction": 0.0, "drawing_seconds": 0.0}
    digests = []
    for scale in (1.0, 2.0):
        change_tensors(place.folder, lambda tensors, scale=scale: [tensor.mul_(scale) for tensor in tensors.values()])
        initial = place.fetch()
        assert initial is not None
        digests.append(initial["digest"])
        with pytest.raises(Begun):
            train_discriminator(config, run, auxiliary=auxiliary, corruption=online, initial_model=initial)
        expected = load_file(place.folder / "model.safetensors")
        discriminator = begun[-1][0].discriminator
        found = {**discriminator.state_dict(), TABLE: discriminator.get_input_embeddings().weight}
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    identities = [training_identity(each) for _, each in begun]
    assert [identity.pop("initial_model") for identity in identities] == digests
    assert identities[0] == identities[1]


def with_another_tokenizer(place: Place) -> None:
    train_tokenizer(iter(["abc abd"]), vocab_size=300).save_pretrained(place.folder)


def with_pickles_alone(place: Place) -> None:
    (place.folder / "model.safetensors").rename(place.folder / "pytorch_model.bin")


def with_its_own_code(place: Place) -> None:
    path = place.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "code.Model"}}))


def without_tokenizer(place: Place) -> None:
    for path in place.folder.glob("tokenizer*"):
        path.unlink()


def with_too_few_tokens(place: Place) -> None:
    place.save(ElectraForPreTraining, missing_tokens=1)


def without_a_layer(place: Place) -> None:
    change_tensors(place.folder, lambda tensors: tensors.pop(LAYER))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            with_another_tokenizer,
            ConfigError,
            r"has the tokenizer [0-9a-f]{16}, the auxiliary .* Give an --auxiliary with",
        ),
        (with_pickles_alone, AuxiliaryError, r"holds only pickles \(pytorch_model\.bin\), which are never loaded"),
        (with_its_own_code, AuxiliaryError, r"wants to run code of its own \(auto_map\); remote code is never run"),
        (without_tokenizer, AuxiliaryError, "comes without a usable tokenizer: "),
        (
            with_too_few_tokens,
            ConfigError,
            r"has embeddings for \d+ tokens, auxiliary .* draws from \d+\. Give another",
        ),
        (without_a_layer, CheckpointError, "does not fit: weights of its encoder are missing"),
    ],
)
def test_what_cannot_be_started_from_is_refused_by_name_before_anything_costs(
    spoil: Callable[[Place], None], error: type[Exception], message: str, place: Place
) -> None:
    spoil(place)
    with pytest.raises(error, match=f"^initial_model {place.folder} {message}"):
        place.fetch()
    assert place.store.list_keys("models") == []


def test_a_shape_that_does_not_fit_is_refused_and_the_flags_named_do_fit(place: Place) -> None:
    with pytest.raises(
        ConfigError, match=r"^initial_model .* does not fit: num_layers is 2 in .* Give --num_layers 2$"
    ):
        place.fetch(num_layers=4)
    assert place.fetch(num_layers=2) is not None


def test_a_folder_that_is_not_there_is_said(place: Place) -> None:
    shutil.rmtree(place.folder)
    with pytest.raises(
        AuxiliaryError, match=r"initial_model '.*before' is not a folder\. Give models:/NAME@ALIAS, a fol"
    ):
        place.fetch()


def test_the_lineage_names_the_model_that_a_run_started_from() -> None:
    initial = {"digest": "d1", "address": "models:/m@champion", "registry": {"name": "m", "version": "3"}}
    plan = {
        "mlflow_run_id": "r", "config_digest": "c", "code": {}, "corpus": {"digest": "t", "address": "a"},
        "config": PretrainConfig().to_dict(), "tokenizer_key": "tokenizers/x", "initial_model": initial,
    }  # fmt: skip
    expected = {
        "initial_model.digest": "d1", "initial_model.address": "models:/m@champion", "initial_model.version": "m/3",
    }  # fmt: skip
    for tags in (lineage_tags(plan, "p"), made_of(plan)):
        assert {name: value for name, value in tags.items() if name.startswith("initial")} == expected
    assert not [name for name in made_of(plan | {"initial_model": None}) if name.startswith("initial")]
