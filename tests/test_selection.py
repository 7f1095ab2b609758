"""Indices of the selected tokens say the same as the mask; with them a step waits for no device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fast_electra_core.config import PretrainConfig
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import SpecialIds
from fast_electra_core.electra import DecoupledElectra, Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.last_layer import can_skip
from fast_electra_core.methods import Batch, MaskedLanguageModel, Method, Totals
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config, freeze
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.selection import find_selected

SPECIAL = SpecialIds(cls=2, sep=3, mask=4, pad=0, all_special=(0, 1, 2, 3, 4))
VOCAB_SIZE = 40


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_indices_pick_and_put_what_the_mask_does(rows: int, length: int, share: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    is_selected = torch.rand(rows, length, generator=rng) < share
    values = torch.rand(rows, length, 2, generator=rng)
    selection = find_selected(is_selected)
    assert torch.equal(selection.pick(values), values[is_selected])
    new = torch.rand(int(is_selected.sum()), generator=rng)
    before = values[..., 0].clone()
    put = selection.put(before, new)
    assert torch.equal(put, before.masked_scatter(is_selected, new))
    assert torch.equal(before, values[..., 0])


def test_columns_are_each_sequences_own_positions() -> None:
    selection = find_selected(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool))
    assert selection.columns.tolist() == [[1, 3], [0, 0], [2, 0]]
    assert selection.flat.tolist() == [1, 3, 10]
    assert selection.places.tolist() == [0, 1, 4]


class NothingToWaitFor(TorchDispatchMode):
    """Refuses operations whose result's shape, or a Python number, depends on the values: on a GPU they wait for it."""

    WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "equal", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for group in args
            if isinstance(group, list | tuple)
            for each in group
        )
        if name.startswith(self.WAITING) or by_mask:
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


def shape(architecture: str, num_layers: int) -> Any:
    config = PretrainConfig(
        architecture=architecture, num_layers=num_layers, hidden_size=16, embedding_size=16, num_heads=2,
        intermediate_size=32, dropout=0.0, sequence_length=12,
    )  # fmt: skip
    return encoder_config(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL)


def methods(architecture: str) -> Iterator[Method]:
    main, small = shape(architecture, 2), shape(architecture, 1)
    auxiliary = build_masked_lm(small, seed=1)
    freeze(auxiliary)
    proposal = FrozenMaskedLm([auxiliary], mask_token_id=SPECIAL.mask)
    for soft_target_share, consistency_weight in ((0.0, 0.0), (0.5, 0.5)):
        yield FastElectra(
            build_discriminator(main, seed=0),
            proposal,
            curriculum=Curriculum("exponential", 2.0, 0.1, 1.0),
            rtd_weight=50.0,
            soft_target_share=soft_target_share,
            consistency_weight=consistency_weight,
        )
    for joint in (Electra, DecoupledElectra):
        generator = build_masked_lm(small, seed=1)
        yield joint(build_discriminator(main, seed=0), generator, rtd_weight=50.0, mask_token_id=SPECIAL.mask)
    yield MaskedLanguageModel(build_masked_lm(main, seed=0), mask_token_id=SPECIAL.mask)


@pytest.mark.parametrize("architecture", ["electra", "modernbert"])
def test_a_step_waits_for_no_device(architecture: str) -> None:
    rng = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCAB_SIZE, (4, 12), generator=rng)
    is_selected = torch.rand(4, 12, generator=rng) < 0.3
    batch = Batch(input_ids, is_selected, torch.rand(4, 12, generator=rng, dtype=torch.float64))
    totals = Totals(input_ids.numel(), is_selected.sum().float())
    for method in methods(architecture):
        optimizer = torch.optim.AdamW(method.parameters(), fused=True)
        for micro_batch in batch.split(2):
            on_device = micro_batch.to(torch.device("cpu"))
            with NothingToWaitFor():
                method.loss(on_device, totals, progress=0.3, stats={}).backward()
        with NothingToWaitFor():
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimizer.step()


def test_the_mask_itself_would_wait() -> None:
    mask = torch.tensor([True, False])
    with NothingToWaitFor(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(2)[mask]


def test_the_last_layer_is_whole_where_it_must_be() -> None:
    frozen = build_masked_lm(shape("electra", 1), seed=0).eval()
    assert can_skip(frozen)
    assert not can_skip(frozen.train())
    local = shape("modernbert", 2)
    local.layer_types = ["full_attention", "sliding_attention"]
    assert not can_skip(build_masked_lm(local, seed=0).eval())
