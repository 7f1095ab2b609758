"""Dropout that is on for one forward pass of a frozen model, and leaves no trace."""

from typing import Any

import pytest
import torch
from toys import electra_config
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from fast_electra_core.dropout import dropout_on
from fast_electra_core.models import freeze

SIZES: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "pad_token_id": 0,
}  # fmt: skip
ENDS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
FAMILIES: dict[str, Any] = {
    "electra": lambda: ElectraForMaskedLM(electra_config(30)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=30, dim=16, hidden_dim=24, n_layers=2, n_heads=2, pad_token_id=0)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, **ENDS)),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES)),
}
IDS = torch.randint(5, 30, (2, 10), generator=torch.Generator().manual_seed(0))


def frozen(family: str) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    freeze(model)
    return model


def logits_with(model: Any, rate: float, *, seed: int = 1) -> torch.Tensor:
    with dropout_on(model, rate, seed=seed):
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_is_a_function_of_rate_and_seed_also_of_a_model_trained_without(family: str) -> None:
    model = frozen(family)
    torch.manual_seed(7)
    first = logits_with(model, 0.3)
    torch.manual_seed(8)
    assert torch.equal(logits_with(model, 0.3), first)
    others = [logits_with(model, 0.3, seed=2), logits_with(model, 0.2), model(input_ids=IDS).logits]
    assert not any(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_it_is_left_afterwards(family: str) -> None:
    model = frozen(family)
    before, rates = model(input_ids=IDS).logits, [module.p for module in model.modules() if hasattr(module, "p")]
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), dropout_on(model, 0.5, seed=0):
        assert all(module.training for module in model.modules())
        raise ZeroDivisionError
    assert not any(module.training for module in model.modules())
    assert [module.p for module in model.modules() if hasattr(module, "p")] == rates
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("family", ["electra", "bert", "distilbert", "modernbert"])
def test_attention_drops_at_the_same_rate(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their attention takes the rate as a number; DeBERTa's is an nn.Dropout like the rest."""
    asked: list[float] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def record(*arguments: Any, dropout_p: float = 0.0, **more: Any) -> torch.Tensor:
        asked.append(dropout_p)
        return real(*arguments, dropout_p=dropout_p, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    model = frozen(family)
    logits_with(model, 0.25)
    model(input_ids=IDS)
    num_layers = len(asked) // 2
    assert asked == [0.25] * num_layers + [0.0] * num_layers
    assert num_layers >= 1


def test_the_rate_is_the_share_that_is_dropped() -> None:
    """The dropout of the embeddings comes first: so many of its outputs are 0, the others larger by 1 / (1 - rate)."""
    model = frozen("electra")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.electra.embeddings.dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with dropout_on(model, 0.4, seed=3):
        model(input_ids=IDS.repeat(50, 1))
    (before, after), *_ = seen
    dropped = after == 0
    assert float(dropped.double().mean()) == pytest.approx(0.4, abs=0.02)
    torch.testing.assert_close(after[~dropped], before[~dropped] / 0.6)
