"""Indices of the selected tokens say the same as the mask; that with them a step waits for no device is shown by
tests/test_second_device.py."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import SpecialIds
from fast_electra_core.last_layer import can_skip
from fast_electra_core.models import build_masked_lm, encoder_config
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


def shape(architecture: str, num_layers: int) -> Any:
    config = PretrainConfig(
        architecture=architecture, num_layers=num_layers, hidden_size=16, embedding_size=16, num_heads=2,
        intermediate_size=32, dropout=0.0, sequence_length=12,
    )  # fmt: skip
    return encoder_config(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL)


def test_the_last_layer_is_whole_where_it_must_be() -> None:
    frozen = build_masked_lm(shape("electra", 1), seed=0).eval()
    assert can_skip(frozen)
    assert not can_skip(frozen.train())
    local = shape("modernbert", 2)
    local.layer_types = ["full_attention", "sliding_attention"]
    assert not can_skip(build_masked_lm(local, seed=0).eval())
