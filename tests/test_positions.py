"""How many tokens a model can take, against the models themselves."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from fast_electra_core.positions import usable_positions

POSITIONS = 20
NARROW: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": POSITIONS, "pad_token_id": 1,
}  # fmt: skip
OTHERWISE: dict[str, dict[str, Any]] = {
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
    "xmod": {"default_language": "en_XX"},
}


@pytest.mark.parametrize(
    ("model_type", "usable"),
    [
        ("bert", 20), ("electra", 20), ("albert", 20), ("deberta-v2", 20),
        ("roberta", 18), ("xlm-roberta", 18), ("xlm-roberta-xl", 18), ("camembert", 18), ("mpnet", 18), ("ibert", 18),
        ("data2vec-text", 18), ("roberta-prelayernorm", 18), ("luke", 18), ("xmod", 18),
    ],
)  # fmt: skip
def test_a_model_takes_as_many_tokens_as_is_said_and_not_one_more(model_type: str, usable: int) -> None:
    config = AutoConfig.for_model(model_type, **NARROW, **OTHERWISE.get(model_type, {}))
    assert usable_positions(config.to_dict()) == usable
    model = AutoModel.from_config(config).eval()
    model(input_ids=torch.full((1, usable), 7))
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.full((1, usable + 1), 7))


def test_a_model_that_knows_distances_alone_takes_any_number() -> None:
    deberta = {"model_type": "deberta-v2", "max_position_embeddings": POSITIONS}
    assert usable_positions({**deberta, "position_biased_input": False}) is None
    assert usable_positions({"model_type": "t5"}) is None
