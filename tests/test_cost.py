"""Operations are those counted by hand, and the plans those of the method's table."""

from typing import Any

import pytest
import torch
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from fast_electra_core.cost import forward_flops_per_token, plan_run


def electra(model_class: Any, *, layers: int, width: int, embedding: int, feed_forward: int, vocab_size: int) -> Any:
    shape = ElectraConfig(
        vocab_size=vocab_size, embedding_size=embedding, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=1, intermediate_size=feed_forward,
    )  # fmt: skip
    with torch.device("meta"):  # shapes only: a base model's weights would take half a gigabyte
        return model_class(shape)


def test_a_detectors_flops_by_hand() -> None:
    """Two layers of width 8: 2 × (24·8² + 4·10·8); a head of 8×8 and 8×1, two operations per weight."""
    model = electra(ElectraForPreTraining, layers=2, width=8, embedding=8, feed_forward=32, vocab_size=50)
    assert forward_flops_per_token(model, sequence_length=10) == 2 * (24 * 64 + 4 * 10 * 8) + 2 * 64 + 2 * 8


def test_a_masked_lms_flops_by_hand() -> None:
    """Embeddings of 4 are projected to 8; dense 8×4 and vocabulary 4×50 run on a quarter of the tokens."""
    model = electra(ElectraForMaskedLM, layers=1, width=8, embedding=4, feed_forward=32, vocab_size=50)
    encoder = 24 * 64 + 4 * 16 * 8 + 2 * 4 * 8
    head = 2 * 8 * 4 + 2 * 4 * 50
    assert forward_flops_per_token(model, sequence_length=16) == encoder + head
    assert forward_flops_per_token(model, sequence_length=16, head_fraction=0.25) == encoder + head / 4


def test_a_gated_feed_forward_counts_as_the_layers_it_has() -> None:
    """ModernBERT: attention 8·h², a doubled input and an output of the feed-forward; head dense h², vocabulary."""
    shape = ModernBertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    expected = 8 * 64 + 2 * 8 * 24 + 2 * 12 * 8 + 4 * 10 * 8 + 2 * 64 + 2 * 8 * 50
    assert forward_flops_per_token(ModernBertForMaskedLM(shape), sequence_length=10) == expected


@pytest.mark.parametrize(
    ("main", "auxiliary", "joint", "frozen", "saving"),
    [
        ((12, 256, 128), (12, 64, 128), 70, 65, 0.08),
        ((12, 768, 768), (4, 768, 768), 724, 593, 0.18),
    ],
    ids=["small, generator a quarter as wide", "base, auxiliary 4 x 768"],
)
def test_plans_match_the_table_of_the_method(
    main: tuple[int, int, int], auxiliary: tuple[int, int, int], joint: int, frozen: int, saving: float
) -> None:
    """Megaflops per token at sequence length 128, vocabulary 30,522, masking 15 %."""
    flops = []
    for model_class, (layers, width, embedding) in [(ElectraForPreTraining, main), (ElectraForMaskedLM, auxiliary)]:
        model = electra(
            model_class, layers=layers, width=width, embedding=embedding, feed_forward=4 * width, vocab_size=30_522
        )
        head_fraction = 0.15 if model_class is ElectraForMaskedLM else 1.0
        flops.append(forward_flops_per_token(model, sequence_length=128, head_fraction=head_fraction))
    plan = plan_run(*flops, num_tokens=1, is_frozen=True)
    assert round(plan.joint_total / 1e6) == joint
    assert round(plan.total / 1e6) == frozen
    assert round(plan.saving_fraction, 2) == saving


def test_a_frozen_plan_by_hand() -> None:
    """Main model 4 forward, 8 backward; auxiliary 2 forward, and 4 backward only if it is trained."""
    plan = plan_run(4.0, 2.0, num_tokens=100, is_frozen=True)
    assert plan == (1400.0, 200.0, 1800.0, 0.0)
    assert plan.saving_fraction == pytest.approx(400 / 1800)


def test_a_joint_plan_by_hand() -> None:
    plan = plan_run(4.0, 2.0, num_tokens=100, is_frozen=False)
    assert plan == (1800.0, 0.0, 1800.0, 0.0)
    assert plan.saving_fraction == 0.0


def test_corruption_that_an_earlier_run_has_drawn_costs_nothing_again() -> None:
    """Main model 12 per token, auxiliary 2: 1200 and 200 for 100 tokens, of which three quarters are there already."""
    assert plan_run(4.0, 2.0, num_tokens=100, is_frozen=True, reused_fraction=0.75) == (1250.0, 50.0, 1800.0, 150.0)
    whole = plan_run(4.0, 2.0, num_tokens=100, is_frozen=True, reused_fraction=1.0)
    assert whole == (1200.0, 0.0, 1800.0, 200.0)
    assert whole.saving_fraction == pytest.approx(600 / 1800)
