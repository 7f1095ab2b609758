"""Losses and gradients are those of transformers' own classes, accumulation is exact, the auxiliary stands still."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import FALLING, MASK, METHODS, corrupt_at, electra_config, method_of
from transformers import (
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForTokenClassification,
)

from fast_electra_core.curriculum import Smoothing
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.losses import majority_rtd_loss, masked_lm_loss_sum, rtd_loss_sum
from fast_electra_core.methods import (
    Batch,
    MaskedLanguageModel,
    Method,
    Stats,
    Totals,
    add_detection_stats,
    detection_metrics,
)
from fast_electra_core.proposals import FrozenMaskedLm

VOCAB_SIZE = 40


def electra_shape(*, dropout: float = 0.0, embedding_size: int = 8) -> Any:
    return electra_config(
        VOCAB_SIZE, dropout=dropout, embedding_size=embedding_size, hidden_size=16, intermediate_size=24
    )


def make(name: str, *, dropout: float = 0.0, seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    # Weights of spread 0.3: at the usual 0.02 every prediction is nearly uniform and a wrong one could pass.
    discriminator = ElectraForPreTraining(electra_shape(dropout=dropout))
    masked_lm = ElectraForMaskedLM(electra_shape(dropout=dropout, **arguments))
    with torch.no_grad():
        for parameter in [*discriminator.parameters(), *masked_lm.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method_of(name, discriminator, masked_lm)


def auxiliary_of(method: FastElectra) -> Any:
    assert isinstance(method.proposal, FrozenMaskedLm)
    (auxiliary,) = method.proposal.models
    return auxiliary


def make_batch(rows: int = 6, length: int = 12, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=generator)
    is_selected = torch.rand(rows, length, generator=generator) < 0.3
    is_selected[0] = False  # micro-batches are to hold different numbers of selected tokens
    is_selected[1, :3] = True
    return Batch(ids, is_selected, torch.rand(rows, length, generator=generator, dtype=torch.float64))


def totals_of(batch: Batch) -> Totals:
    return Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))


def loss_and_gradients(method: Method, batches: list[Batch], totals: Totals) -> tuple[float, dict[str, Tensor], Stats]:
    method.zero_grad()
    loss = 0.0
    stats: Stats = {}
    for batch in batches:
        part = method.loss(batch, totals, progress=0.25, stats=stats)
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    gradients = {name: value.grad.clone() for name, value in method.named_parameters() if value.grad is not None}
    return loss, gradients, stats


def assert_same_gradients(method: Method, expected_loss: Tensor, gradients: dict[str, Tensor]) -> None:
    method.zero_grad()
    expected_loss.backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad for name, value in method.named_parameters() if value.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_fast_electras_loss_and_gradients_are_those_of_electra_for_pre_training() -> None:
    method, batch = make("fast_electra"), make_batch()
    loss, gradients, _ = loss_and_gradients(method, [batch], totals_of(batch))
    corruption = method.corrupt(batch, FALLING.at(0.25))
    assert 0 < int(corruption.is_replaced.sum()) < int(batch.is_selected.sum())
    oracle = 50.0 * method.discriminator(corruption.corrupted_ids, labels=corruption.is_replaced.long()).loss
    assert loss == pytest.approx(oracle.item(), rel=1e-5)
    assert_same_gradients(method, oracle, gradients)


def masked_lm_oracle(model: Any, batch: Batch) -> Tensor:
    labels = batch.input_ids.masked_fill(~batch.is_selected, -100)
    loss: Tensor = model(batch.input_ids.masked_fill(batch.is_selected, MASK), labels=labels).loss
    return loss


def test_the_masked_lms_loss_and_gradients_are_those_of_electra_for_masked_lm() -> None:
    method, batch = make("masked_lm"), make_batch()
    loss, gradients, stats = loss_and_gradients(method, [batch], totals_of(batch))
    oracle = masked_lm_oracle(method.model, batch)
    assert loss == pytest.approx(oracle.item(), rel=1e-5)
    assert_same_gradients(method, oracle, gradients)
    masked = method.model(batch.input_ids.masked_fill(batch.is_selected, MASK)).logits
    accuracy = float((masked.argmax(-1) == batch.input_ids)[batch.is_selected].float().mean())
    row = method.summarise({name: float(value) for name, value in stats.items()}, progress=0.25)
    assert row == {"loss": pytest.approx(oracle.item()), "masked_accuracy": pytest.approx(accuracy)}


@pytest.mark.parametrize(
    ("name", "embedding_size"),
    [("electra", 8), ("electra", 4), ("electra_decoupled", 8), ("electra_gdes", 8)],
    ids=["shared embeddings", "embeddings of two widths", "decoupled", "disentangled"],
)
def test_electras_loss_is_the_masked_loss_plus_50_times_the_detection_loss(name: str, embedding_size: int) -> None:
    method, batch = make(name, embedding_size=embedding_size), make_batch()
    loss, gradients, stats = loss_and_gradients(method, [batch], totals_of(batch))
    corruption = corrupt_at(method, 1.0)(batch)
    masked_loss = masked_lm_oracle(method.generator, batch)
    rtd_loss = method.discriminator(corruption.corrupted_ids, labels=corruption.is_replaced.long()).loss
    oracle = masked_loss + 50.0 * rtd_loss
    assert loss == pytest.approx(oracle.item(), rel=1e-5)
    assert_same_gradients(method, oracle, gradients)
    row = method.summarise({name: float(value) for name, value in stats.items()}, progress=0.25)
    assert row["generator_loss"] == pytest.approx(masked_loss.item())
    assert row["loss"] == pytest.approx(rtd_loss.item())
    assert row["temperature"] == 1.0


def test_modernbert_losses_are_those_of_its_own_classes() -> None:
    shape = ModernBertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    auxiliary, discriminator = ModernBertForMaskedLM(shape), ModernBertForTokenClassification(shape)
    masked_lm, batch = MaskedLanguageModel(auxiliary, mask_token_id=MASK), make_batch()
    loss = masked_lm.loss(batch, totals_of(batch), progress=0.0, stats={})
    assert loss.item() == pytest.approx(masked_lm_oracle(auxiliary, batch).item(), rel=1e-5)
    proposal = FrozenMaskedLm([auxiliary], mask_token_id=MASK)
    method = FastElectra(discriminator, proposal, curriculum=FALLING, rtd_weight=2.0)
    loss = method.loss(batch, totals_of(batch), progress=0.0, stats={})
    corruption = method.corrupt(batch, Smoothing(2.0))
    scores = discriminator(corruption.corrupted_ids).logits[..., 0].sigmoid()
    likelihood = torch.where(corruption.is_replaced, scores, 1 - scores)
    assert loss.item() == pytest.approx(-2.0 * likelihood.log().mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(rows=st.integers(2, 7), size=st.integers(1, 7), seed=st.integers(0, 1000))
def test_accumulation_over_micro_batches_equals_the_full_batch(name: str, rows: int, size: int, seed: int) -> None:
    """In the lineage of the HF Trainer it does not."""
    method, batch = make(name), make_batch(rows, seed=seed)
    loss, gradients, stats = loss_and_gradients(method, [batch], totals_of(batch))
    parts = batch.split(size)
    assert len(parts) == -(-rows // size)
    accumulated_loss, accumulated, accumulated_stats = loss_and_gradients(method, parts, totals_of(batch))
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == accumulated.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(accumulated[parameter], gradient, rtol=1e-4, atol=2e-5, msg=parameter)
    assert {key: float(value) for key, value in accumulated_stats.items()} == {
        key: pytest.approx(float(value), rel=1e-5) for key, value in stats.items()
    }


def test_corruption_samples_from_the_masked_input_at_the_scheduled_temperature() -> None:
    method, batch = make("fast_electra"), make_batch()
    masked_ids = batch.input_ids.masked_fill(batch.is_selected, MASK)
    corrupted = method.corrupt(batch, Smoothing(1.5)).corrupted_ids
    assert torch.equal(corrupted[~batch.is_selected], batch.input_ids[~batch.is_selected])
    probabilities = (auxiliary_of(method)(masked_ids).logits / 1.5).double().softmax(dim=-1)
    for row, position in batch.is_selected.nonzero().tolist():
        uniform, token = float(batch.sample_uniforms[row, position]), int(corrupted[row, position])
        below = probabilities[row, position, :token].sum().item()
        assert below - 1e-6 <= uniform <= below + probabilities[row, position, token].item() + 1e-6


def test_the_corruption_of_a_sequence_does_not_depend_on_its_batch() -> None:
    method, batch = make("fast_electra"), make_batch()
    whole = method.corrupt(batch, Smoothing(2.0))
    parts = [method.corrupt(part, Smoothing(2.0)) for part in batch.split(1)]
    assert torch.equal(whole.corrupted_ids, torch.cat([part.corrupted_ids for part in parts]))


def test_the_replaced_share_follows_the_falling_temperature() -> None:
    method, batch = make("fast_electra"), make_batch(200)
    with torch.no_grad():
        auxiliary_of(method).generator_lm_head.bias[7] += 8.0  # an auxiliary that is nearly always sure it is token 7
    batch = batch._replace(input_ids=batch.input_ids.masked_fill(batch.is_selected, 7))
    shares = []
    for progress in (0.0, 0.05, 0.1, 0.5):
        stats: Stats = {}
        method.loss(batch, totals_of(batch), progress=progress, stats=stats)
        row = method.summarise({key: float(value) for key, value in stats.items()}, progress=progress)
        assert row["temperature"] == FALLING.at(progress).temperature
        shares.append(row["replaced_of_selected"])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] + 0.05


def test_the_frozen_auxiliary_is_no_part_of_what_is_trained_or_stored() -> None:
    method = make("fast_electra", dropout=0.3)
    method.train()
    assert method.discriminator.training
    assert not any(module.training for module in auxiliary_of(method).modules())
    assert all(name.startswith("discriminator.") for name, _ in method.named_parameters())
    assert all(name.startswith("discriminator.") for name in method.state_dict())
    ours = {value.data_ptr() for value in auxiliary_of(method).parameters()}
    assert not ours & {value.data_ptr() for value in method.parameters()}


def test_the_frozen_auxiliary_gets_no_gradient_and_does_not_move_by_a_single_bit() -> None:
    method = make("fast_electra", dropout=0.3)
    before = {name: value.numpy().tobytes() for name, value in auxiliary_of(method).state_dict().items()}
    discriminator_before = {name: value.clone() for name, value in method.discriminator.state_dict().items()}
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    for step in range(5):
        method.train()
        batch = make_batch(seed=step)
        method.loss(batch, totals_of(batch), progress=step / 5, stats={}).backward()
        assert all(value.grad is None and not value.requires_grad for value in auxiliary_of(method).parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert {name: value.numpy().tobytes() for name, value in auxiliary_of(method).state_dict().items()} == before
    moved = method.discriminator.state_dict()
    assert any(not torch.equal(moved[name], value) for name, value in discriminator_before.items())


def test_electra_shares_token_embeddings_where_their_widths_agree() -> None:
    """And the generator's output matrix goes along: lucidrains leaves it on the old one."""
    shared, apart = make("electra"), make("electra", embedding_size=4)
    ours, theirs = (model.get_input_embeddings() for model in (shared.discriminator, shared.generator))
    assert ours.weight is theirs.weight
    assert shared.generator.get_output_embeddings().weight is ours.weight
    ours, theirs = (model.get_input_embeddings() for model in (apart.discriminator, apart.generator))
    assert ours.weight is not theirs.weight
    names = [name for name, _ in shared.named_parameters()]
    assert sum("word_embeddings" in name or "generator_lm_head.weight" in name for name in names) == 1


def test_electras_generator_trains_without_dropout_and_the_detector_sends_it_no_gradient() -> None:
    method, batch = make("electra", dropout=0.3, embedding_size=4), make_batch()
    method.train()
    assert method.discriminator.training
    assert not method.generator.training
    _, gradients, _ = loss_and_gradients(method, [batch], totals_of(batch))
    method.zero_grad()
    masked_lm_oracle(method.generator, batch).backward()  # type: ignore[no-untyped-call]
    for name, value in method.generator.named_parameters():
        torch.testing.assert_close(gradients[f"generator.{name}"], value.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_detection_metrics_by_hand() -> None:
    """Ten tokens, four selected, three replaced; two of these and one of the seven originals are flagged."""
    logits = torch.tensor([[1.0, 2.0, -1.0, 3.0, -1.0], [-1.0, -1.0, 0.0, -2.0, -3.0]])
    is_replaced = torch.tensor([[True, True, True, False, False], [False] * 5])
    is_selected = torch.tensor([[True, True, True, True, False], [False] * 5])
    stats: Stats = {}
    add_detection_stats(stats, logits, is_replaced, is_selected)
    sums = {name: float(value) for name, value in stats.items()}
    assert sums == {"num_tokens": 10, "num_selected": 4, "num_replaced": 3, "num_flagged": 3, "num_caught": 2}
    assert detection_metrics(sums) == {
        "replaced_fraction": 0.3,
        "replaced_of_selected": 0.75,
        "recall_replaced": pytest.approx(2 / 3),
        "recall_original": pytest.approx(6 / 7),
        "precision_replaced": pytest.approx(2 / 3),
    }


def test_detection_metrics_of_nothing_replaced_and_nothing_flagged_are_zero() -> None:
    sums = {"num_tokens": 5.0, "num_selected": 0.0, "num_replaced": 0.0, "num_flagged": 0.0, "num_caught": 0.0}
    metrics = detection_metrics(sums)
    assert metrics.pop("recall_original") == 1.0
    assert set(metrics.values()) == {0.0}


def test_stats_add_up_over_batches() -> None:
    stats: Stats = {}
    for _ in range(3):
        add_detection_stats(stats, torch.ones(2, 5), torch.ones(2, 5) > 0, torch.ones(2, 5) > 0)
    assert {name: float(value) for name, value in stats.items()} == dict.fromkeys(stats, 30.0)
    assert all(value.dtype == torch.float64 for value in stats.values())


def test_all_that_a_batch_brings_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of torch here; whether it is, a GPU would show."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: -tensor.double())
    batch = make_batch()._replace(documents=torch.ones(6, 12, dtype=torch.int64))
    pinned = batch.pinned()
    given = {name: value for name, value in batch._asdict().items() if value is not None and name != "selection"}
    assert set(given) >= {"input_ids", "is_selected", "sample_uniforms", "documents"}
    assert all(torch.equal(getattr(pinned, name), -value.double()) for name, value in given.items())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(first=st.integers(0, 2**32 - 1), last=st.integers(0, 2**32 - 1), other=st.integers(0, 2**32 - 1))
def test_every_bit_of_the_first_sequences_outer_numbers_counts_for_the_seed_of_dropout(
    first: int, last: int, other: int
) -> None:
    words = torch.tensor([[first, other, last], [other, other, other]], dtype=torch.float64)
    batch = make_batch(2, 3)._replace(sample_uniforms=words / 2**32)
    assert batch.dropout_seed() == batch.to(torch.device("cpu")).dropout_seed() == (first * 2**29) ^ last


def test_losses_by_hand() -> None:
    """A logit of ln 3 says 3 : 1 for replaced."""
    logits = torch.log(torch.tensor([[3.0, 3.0, 1.0]]))
    loss = rtd_loss_sum(logits, torch.tensor([[True, False, False]]))
    torch.testing.assert_close(loss, -torch.log(torch.tensor(0.75 * 0.25 * 0.5)))
    word_logits = torch.log(torch.tensor([[1.0, 2.0, 5.0], [3.0, 3.0, 2.0]]))
    loss = masked_lm_loss_sum(word_logits, torch.tensor([2, 0]))
    torch.testing.assert_close(loss, -torch.log(torch.tensor(5 / 8 * 3 / 8)))


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.562335), (0.5, 0.693147), (0.0, 0.0), (1.0, 0.0)])
def test_the_majority_baseline_is_the_entropy_of_the_share(share: float, expected: float) -> None:
    """At a quarter: 0.25 ln 4 + 0.75 ln (4/3) = 0.346574 + 0.215762."""
    assert majority_rtd_loss(share) == pytest.approx(expected, abs=1e-6)
