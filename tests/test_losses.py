"""The optional terms of the loss: by hand, and against torch's own distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, kl_divergence

from fast_electra_core.losses import consistency_loss_sum, masked_lm_loss_sum, rtd_loss_sum, soft_rtd_targets
from fast_electra_core.selection import find_selected


def test_soft_targets_by_hand() -> None:
    """Three selected tokens: two replaced, one drawn as it was; the auxiliary doubts them by .9, .2 and .5."""
    is_selected = torch.tensor([[True, False, True], [False, True, False]])
    is_replaced = torch.tensor([[True, False, True], [False, False, False]])
    doubt = torch.tensor([0.9, 0.2, 0.5])
    targets = soft_rtd_targets(is_replaced, find_selected(is_selected), doubt, share=0.5)
    torch.testing.assert_close(targets, torch.tensor([[0.95, 0.0, 0.6], [0.0, 0.25, 0.0]]))
    assert torch.equal(soft_rtd_targets(is_replaced, find_selected(is_selected), doubt, share=0.0), is_replaced.float())
    whole = soft_rtd_targets(is_replaced, find_selected(is_selected), doubt, share=1.0)
    torch.testing.assert_close(whole, torch.tensor([[0.9, 0.0, 0.2], [0.0, 0.5, 0.0]]))


def test_the_loss_of_a_soft_target_is_the_mean_of_both_losses_weighted_by_it() -> None:
    """A logit of ln 3 says 3 : 1 for replaced; the target says 2 : 3."""
    loss = rtd_loss_sum(torch.tensor([[math.log(3.0)]]), torch.tensor([[0.4]]))
    assert loss.item() == pytest.approx(-0.4 * math.log(0.75) - 0.6 * math.log(0.25))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), length=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_consistency_is_the_mean_of_the_divergences_both_ways(rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = 4 * torch.randn(2, rows, length, generator=generator)
    is_compared = torch.rand(rows, length, generator=generator) < 0.7
    ours, theirs = (Bernoulli(logits=logits.double()) for logits in (first, second))
    each = (kl_divergence(ours, theirs) + kl_divergence(theirs, ours)) / 2
    loss = consistency_loss_sum(first, second, is_compared)
    assert loss.item() == pytest.approx(each[is_compared].sum().item(), rel=1e-4, abs=1e-6)
    assert consistency_loss_sum(first, first, is_compared).item() == 0.0


def test_both_passes_are_pulled_together() -> None:
    logits, others = torch.tensor([[1.0, 3.0]], requires_grad=True), torch.tensor([[-1.0, 0.0]], requires_grad=True)
    is_compared = torch.tensor([[True, False]])
    consistency_loss_sum(logits, others, is_compared).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and others.grad is not None
    assert logits.grad[0, 0] > 0 > others.grad[0, 0]
    assert logits.grad[0, 1] == others.grad[0, 1] == 0


def test_a_sure_detector_that_changes_its_mind_has_a_finite_loss() -> None:
    loss = consistency_loss_sum(torch.tensor([[200.0]]), torch.tensor([[-200.0]]), torch.tensor([[True]]))
    assert loss.item() == 200.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sums_over_logits_of_half_precision_are_taken_in_float32(dtype: torch.dtype) -> None:
    """A thousand tokens: beyond 1024, bfloat16's own numbers are 8 apart."""
    generator = torch.Generator().manual_seed(0)
    logits, others = (4 * torch.randn(2, 8, 125, generator=generator)).to(dtype)
    is_chosen = torch.rand(8, 125, generator=generator) < 0.5
    ours, theirs = (Bernoulli(logits=each.double()) for each in (logits, others))
    each_way = (kl_divergence(ours, theirs) + kl_divergence(theirs, ours)) / 2
    original_ids = torch.randint(8, (125,), generator=generator)
    for loss, expected in (
        (rtd_loss_sum(logits, is_chosen), -ours.log_prob(is_chosen.double()).sum()),
        (consistency_loss_sum(logits, others, is_chosen), each_way[is_chosen].sum()),
        (
            masked_lm_loss_sum(logits.t(), original_ids),
            -Categorical(logits=logits.t().double()).log_prob(original_ids).sum(),
        ),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
