"""Claims about fast_electra_core/peak.py."""

import itertools

import pytest
import torch

from fast_electra_core.peak import gemm_flops_per_second


def test_the_best_turn_counts_two_operations_for_each_multiplication() -> None:
    """512 x 768 by 768 x 3072; the third of four turns takes half a second, the others two."""
    lengths = [2.0, 2.0, 0.5, 2.0]
    readings = iter(itertools.accumulate(step for length in lengths for step in (10.0, length)))
    measured = gemm_flops_per_second(torch.device("cpu"), clock=lambda: next(readings))
    assert measured == pytest.approx(2 * 512 * 768 * 3072 / 0.5)
    assert next(readings, None) is None


def test_the_process_s_own_random_numbers_stay_what_they_are() -> None:
    before = torch.get_rng_state()
    gemm_flops_per_second(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
