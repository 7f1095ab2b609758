"""Attention kept within documents: each is seen by a model as if it stood alone, at its positions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_models import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, shape
from torch import Tensor
from toys import dataset_of
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel

from fast_electra_core.batches import make_batch
from fast_electra_core.config import PretrainConfig
from fast_electra_core.documents import attention_mask, check_attention, number_documents
from fast_electra_core.errors import ConfigError
from fast_electra_core.models import build_discriminator, detector_logits, masked_logits
from fast_electra_core.selection import find_selected
from steps.corruption_plan import identity_of

ENDS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
LOCAL = ModernBertConfig(
    vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
    pad_token_id=0, global_attn_every_n_layers=2, local_attention=4, **ENDS,
)  # fmt: skip
MODELS: dict[str, Any] = {
    **{name: make for name, make in FAMILIES.items() if not name.startswith("deberta")},
    "modernbert, local layers": lambda: ModernBertForMaskedLM(LOCAL),
}
LENGTHS = [6, 4, 7]  # of the documents in each sequence, separators included
LENGTH = sum(LENGTHS)


def sequences() -> Tensor:
    """(2, L): [CLS] first, and every document with its separator."""
    ids = torch.randint(5, VOCAB_SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = SPECIAL_IDS.cls
    ids[:, torch.tensor(LENGTHS).cumsum(0) - 1] = SPECIAL_IDS.sep
    return ids


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Away from zero biases and unit norms, which would hide a part left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits (2, L, .) of each document run by itself, told at which positions it stands."""
    parts, first = [], 0
    for length in LENGTHS:
        positions = torch.arange(first, first + length)[None]
        if model.config.model_type == "roberta":  # which counts from pad + 1
            positions = positions + 1
        parts.append(model(input_ids=ids[:, first : first + length], position_ids=positions).logits)
        first += length
    return torch.cat(parts, dim=1)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_documents_are_counted_from_separator_to_separator(lengths: list[int]) -> None:
    ids = torch.tensor([[token for length in lengths for token in [7] * (length - 1) + [3]]])
    expected = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert number_documents(ids, separator_id=3).tolist() == [expected]


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_masked_language_model_sees_each_document_as_if_it_stood_alone(name: str, with_gradients: bool) -> None:
    torch.manual_seed(0)
    model, ids = shaken(MODELS[name]()), sequences()
    is_selected = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    documents = number_documents(ids, separator_id=SPECIAL_IDS.sep)
    with torch.set_grad_enabled(with_gradients):
        logits = masked_logits(model, ids, find_selected(is_selected), documents)
    torch.testing.assert_close(logits, alone(model, ids)[is_selected])
    across = masked_logits(model, ids, find_selected(is_selected))
    assert not torch.allclose(logits, across, atol=1e-2)


@pytest.mark.parametrize("architecture", ["electra", "modernbert"])
def test_a_detector_sees_each_document_as_if_it_stood_alone(architecture: str) -> None:
    model, ids = shaken(build_discriminator(shape(architecture), seed=0)), sequences()
    documents = number_documents(ids, separator_id=SPECIAL_IDS.sep)
    logits = detector_logits(model, ids, documents)
    torch.testing.assert_close(logits, alone(model, ids).view(2, LENGTH))
    assert not torch.allclose(logits, detector_logits(model, ids), atol=1e-2)


def test_a_local_layer_sees_its_window_of_the_document() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 1, 1]])
    masks = attention_mask(LOCAL, documents)
    assert isinstance(masks, dict)
    expected = [  # within two tokens, and within the document
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert masks["sliding_attention"][0, 0].int().tolist() == expected


def test_batches_bring_their_documents_along_where_these_are_kept_apart(tmp_path: Path) -> None:
    texts = [np.arange(5, 5 + length) for length in (3, 9, 4, 1, 8, 12, 2, 6)]
    dataset = dataset_of(tmp_path, texts, vocab_size=VOCAB_SIZE, sequence_length=10)
    sequence = torch.arange(4)

    def batch() -> Any:
        return make_batch(dataset, sequence, torch.zeros_like(sequence), mask_fraction=0.2, seed=0)

    assert batch().documents is None
    dataset.attention = "document"
    made = batch()
    assert torch.equal(made.documents, number_documents(made.input_ids, separator_id=dataset.special_ids.sep))
    assert torch.equal(torch.cat([part.documents for part in made.split(2)]), made.documents)
    assert torch.equal(made.to(torch.device("cpu")).documents, made.documents)


@pytest.mark.parametrize("name", ["deberta", "deberta-v2"])
def test_a_deberta_is_refused(name: str) -> None:
    model = FAMILIES[name]()
    check_attention(model, "sequence")
    with pytest.raises(ConfigError, match=f"attention document does not fit: a {name} does not run on"):
        check_attention(model, "document")


def test_what_is_drawn_ahead_for_one_kind_of_attention_is_not_read_for_the_other() -> None:
    def identity(**given: Any) -> dict[str, Any]:
        return identity_of(PretrainConfig(**given), shard_keys=["a"], tokenizer_key="b", auxiliary_digest="c")

    assert identity(attention="document") != identity()
    assert "attention" not in identity()  # what was drawn before there was a choice is still found
