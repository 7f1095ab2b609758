"""The figures that google-research/electra's flops_computation.py prints, out of this project's counts."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from fast_electra_core.cost import METHOD_WORK, RunSize, plan_flops
from fast_electra_core.cost_conventions import GOOGLE_BACKWARD, google_flops_per_token
from fast_electra_core.model_cost import cost_of, forward_flops_per_token

MASKED = 0.15625  # 80 of 512: the source's share of tokens with an output


def electra(model_class: Any, width: int, *, embedding: int, **more: int) -> Any:
    shape = {"num_hidden_layers": 12, "num_attention_heads": width // 64, "intermediate_size": 4 * width, **more}
    with torch.device("meta"):
        return model_class(ElectraConfig(embedding_size=embedding, hidden_size=width, **shape))


def trained(main: Any, generator: Any | None, *, steps: float, batch: int, length: int) -> float:
    """FLOPs of a run, through the ledger."""
    costs = [
        cost_of(model, sequence_length=length, head_fraction=MASKED)._replace(
            forward_flops=google_flops_per_token(model, sequence_length=length, head_fraction=MASKED)
        )
        for model in (main, generator)
        if model is not None
    ]
    work = METHOD_WORK["mlm" if generator is None else "electra"]
    size = RunSize(num_tokens=int(steps * batch * length), tokens_per_pass=batch * length)
    return plan_flops(costs[0], costs[1:], work=work, size=size, backward=GOOGLE_BACKWARD).total


def test_electra_small_has_cost_the_printed_figure() -> None:
    main = electra(ElectraForPreTraining, 256, embedding=128)
    generator = electra(ElectraForMaskedLM, 64, embedding=128)
    assert f"{trained(main, generator, steps=1e6, batch=128, length=128):.4e}" == "1.2937e+18"


def test_electra_base_has_cost_the_printed_figure() -> None:
    main = electra(ElectraForPreTraining, 768, embedding=768)
    generator = electra(ElectraForMaskedLM, 256, embedding=768)
    assert f"{trained(main, generator, steps=766_000, batch=256, length=512):.4e}" == "6.4245e+19"


def test_bert_base_has_cost_the_printed_figure() -> None:
    with torch.device("meta"):
        main = BertForMaskedLM(BertConfig())
    assert f"{trained(main, None, steps=1e6, batch=256, length=512):.4e}" == "6.4283e+19"


def test_what_the_conventions_add_to_matrix_products_by_hand() -> None:
    """One layer of width 64 with a head, feed-forward 8, embeddings of 4, 10 tokens in sequences of 6."""
    shape = {"embedding": 4, "vocab_size": 10, "num_hidden_layers": 1, "intermediate_size": 8}
    look_ups = 2 * 4 * 10 + 2 * 4 * (6 + 2)  # tokens; positions and two types
    embeddings = 2 * 4 + 5 * 4 + 4 * 4 + 64  # two sums, a norm, dropout; the projection's bias
    attention = 3 * 64 + (5 + 4 + 1) * 6 + 64 + 4 * 64 + 64 + 5  # biases, scores, output, dropout, residual, "norm"
    feed_forward = 8 * 8 + 8 + 64 + 4 * 64 + 64 + 5 * 64
    common = look_ups + embeddings + attention + feed_forward
    detector = electra(ElectraForPreTraining, 64, **shape)
    added = google_flops_per_token(detector, sequence_length=6) - forward_flops_per_token(detector, sequence_length=6)
    assert added == common + 64 + 8 * 64
    masked_lm = electra(ElectraForMaskedLM, 64, **shape)
    half = {"sequence_length": 6, "head_fraction": 0.5}
    added = google_flops_per_token(masked_lm, **half) - forward_flops_per_token(masked_lm, **half)
    assert added == common + 0.5 * (4 + 8 * 4 + 5 * 4 + 5 * 10 + 2 * 10)


def test_models_that_the_conventions_do_not_speak_of_are_refused() -> None:
    with torch.device("meta"):
        model = ModernBertForMaskedLM(ModernBertConfig(num_hidden_layers=1))
    with pytest.raises(ValueError, match="ELECTRA's conventions are for electra and bert, got model type 'modernbert'"):
        google_flops_per_token(model, sequence_length=8)
