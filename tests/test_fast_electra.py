"""Fast-ELECTRA's loss on every proposal, with its curriculum, soft targets and consistency."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, kl_divergence
from toys import FALLING, MASK, SPECIAL_IDS, electra_config
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core.bigrams import count_bigrams
from fast_electra_core.curriculum import Curriculum, Smoothing
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.methods import Batch, Stats, Totals
from fast_electra_core.proposals import BigramProposal, FrozenMaskedLm, Proposal, UniformProposal, UnigramProposal
from fast_electra_core.randomness import fresh

VOCAB_SIZE = 40
NEVER = SPECIAL_IDS.all_special
STREAM = np.random.default_rng(0).integers(5, VOCAB_SIZE, 400).astype(np.uint16)
UNIGRAM = torch.tensor(np.bincount(STREAM, minlength=VOCAB_SIZE) / len(STREAM)).float()
PROPOSALS = ["one model", "two models", "uniform", "unigram", "bigram"]
STEADY = Curriculum("constant", 1.5, 0.1, 1.0)


def spread(model: Any) -> Any:
    """Away from the start, where every prediction is nearly uniform and a wrong one could pass."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def proposal_of(name: str) -> Proposal:
    torch.manual_seed(1)
    if "model" in name:
        shape = electra_config(VOCAB_SIZE, dropout=0.2)
        models = [spread(ElectraForMaskedLM(shape)) for _ in range(1 if name == "one model" else 2)]
        return FrozenMaskedLm(models, mask_token_id=MASK, unigram=UNIGRAM)
    if name == "uniform":
        return UniformProposal(vocab_size=VOCAB_SIZE, never=NEVER)
    unigram = UnigramProposal(np.bincount(STREAM, minlength=VOCAB_SIZE), never=NEVER)
    return unigram if name == "unigram" else BigramProposal(
        count_bigrams([STREAM], vocab_size=VOCAB_SIZE, never=NEVER), unigram
    )  # fmt: skip


def method_on(name: str = "one model", curriculum: Curriculum | None = STEADY, **terms: float) -> FastElectra:
    torch.manual_seed(2)
    discriminator = spread(ElectraForPreTraining(electra_config(VOCAB_SIZE)))
    return FastElectra(discriminator, proposal_of(name), curriculum=curriculum, rtd_weight=50.0, **terms)


def batch_of(rows: int = 6, length: int = 12, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=generator)
    is_selected = torch.rand(rows, length, generator=generator) < 0.4
    is_selected[0] = False  # micro-batches are to hold different numbers of selected tokens
    is_selected[1, :3] = True
    words = torch.randint(2**32, (rows, length), generator=generator)
    return Batch(ids, is_selected, words.double() * 2.0**-32)


def loss_of(method: FastElectra, batches: list[Batch], whole: Batch, *, progress: float = 0.25) -> tuple[float, Stats]:
    """The loss of a batch in parts, its gradients left in the method."""
    method.zero_grad()
    totals = Totals(whole.input_ids.numel(), int(whole.is_selected.sum()))
    stats: Stats = {}
    losses = [method.loss(batch, totals, progress=progress, stats=stats) for batch in batches]
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    return sum(float(loss.detach()) for loss in losses), stats


def gradients_of(method: FastElectra) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in method.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", PROPOSALS)
def test_the_loss_is_that_of_electra_for_pre_training_whatever_replaces_tokens(name: str) -> None:
    method, batch = method_on(name), batch_of()
    loss, _ = loss_of(method, [batch], batch)
    corruption = method.corrupt(batch, STEADY.at(0.25))
    oracle = method.discriminator(corruption.corrupted_ids, labels=corruption.is_replaced.long()).loss
    assert loss == pytest.approx(50.0 * oracle.item(), rel=1e-5)
    assert corruption.is_replaced.any()


@pytest.mark.parametrize("name", PROPOSALS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(rows=st.integers(2, 5), length=st.integers(3, 12), seed=st.integers(0, 2**31))
def test_only_selected_positions_change(name: str, rows: int, length: int, seed: int) -> None:
    """lucidrains' random tokens land outside the chosen positions; a token drawn as it was is not replaced."""
    batch = batch_of(rows, length, seed=seed)
    smoothing = Smoothing(1.5, 0.2, 0.3, 20, 0.9)
    corrupted, is_replaced = method_on(name).corrupt(batch, smoothing)
    assert torch.equal(corrupted[~batch.is_selected], batch.input_ids[~batch.is_selected])
    assert torch.equal(is_replaced, corrupted != batch.input_ids)


@pytest.mark.parametrize("name", PROPOSALS)
def test_nothing_but_the_detector_is_trained(name: str) -> None:
    method, batch = method_on(name, soft_target_share=0.5 * ("model" in name), consistency_weight=1.0), batch_of()
    loss_of(method.train(), [batch], batch)
    assert {parameter.split(".")[0] for parameter, _ in method.named_parameters()} == {"discriminator"}
    if isinstance(method.proposal, FrozenMaskedLm):
        for value in (value for model in method.proposal.models for value in model.parameters()):
            assert value.grad is None and not value.requires_grad


@pytest.mark.parametrize(
    "name, terms",
    [
        *((name, {}) for name in PROPOSALS),
        ("two models", {"soft_target_share": 0.5}),
        ("one model", {"consistency_weight": 3.0}),
        ("bigram", {"consistency_weight": 3.0}),
    ],
)
def test_accumulation_over_micro_batches_equals_the_full_batch(name: str, terms: dict[str, float]) -> None:
    method, batch = method_on(name, **terms), batch_of(7)
    loss, stats = loss_of(method, [batch], batch)
    expected = gradients_of(method)
    for size in (1, 2, 4):
        accumulated, parts = loss_of(method, batch.split(size), batch)
        assert accumulated == pytest.approx(loss, rel=1e-5)
        for key, gradient in gradients_of(method).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=2e-5, msg=key)
        assert {key: float(value) for key, value in parts.items()} == {
            key: pytest.approx(float(value), rel=1e-5) for key, value in stats.items()
        }


def test_a_row_of_metrics_shows_what_of_the_curriculum_is_on() -> None:
    curriculum = Curriculum("linear", 2.0, 1.0, 1.0, dropout=0.2, unigram_share=0.4, top_k=4, top_p=0.5, vocab_size=40)
    method, batch = method_on(curriculum=curriculum, consistency_weight=1.0), batch_of()
    _, stats = loss_of(method, [batch], batch, progress=0.5)
    row = method.summarise({key: float(value) for key, value in stats.items()}, progress=0.5)
    assert (row["temperature"], row["auxiliary_dropout"], row["unigram_share"], row["top_p"]) == (1.5, 0.1, 0.2, 0.75)
    assert row["top_k"] == 13.0  # 4 · 10 ** 0.5 = 12.6
    unselected = batch.input_ids.numel() - int(batch.is_selected.sum())
    assert row["consistency_loss"] == float(stats["consistency_loss"]) / unselected > 0


@pytest.mark.parametrize("name", ["uniform", "unigram", "bigram"])
def test_without_a_model_there_is_no_temperature_to_show(name: str) -> None:
    method, batch = method_on(name, curriculum=None), batch_of()
    _, stats = loss_of(method, [batch], batch)
    row = method.summarise({key: float(value) for key, value in stats.items()}, progress=0.25)
    assert "temperature" not in row
    assert row["replaced_of_selected"] > 0.8, "a word of 35 is rarely drawn as it was"
    assert method.last_smoothing == Smoothing()


SMALL_BUT_ON: list[Any] = [
    Curriculum("constant", 1.0, 0.1, 1.0, dropout=0.1),
    Curriculum("constant", 1.0, 0.1, 1.0, unigram_share=0.1),
    Curriculum("constant", 1.0, 0.1, 1.0, top_p=0.9),
    Curriculum("constant", 1.0, 0.1, 1.0, top_k=36, vocab_size=VOCAB_SIZE),
    {"soft_target_share": 0.1},
    {"consistency_weight": 0.1},
]


@pytest.mark.parametrize("setting", SMALL_BUT_ON, ids=str)
def test_a_small_share_is_not_switched_off(setting: Any) -> None:
    """electra_pytorch's `int(replace_prob) != 0` takes a probability of 0.1 for none."""
    plain, batch = Curriculum("constant", 1.0, 0.1, 1.0), batch_of(40)
    off = method_on(curriculum=plain)
    if isinstance(setting, dict):
        assert loss_of(method_on(curriculum=plain, **setting), [batch], batch)[0] != loss_of(off, [batch], batch)[0]
    else:
        on = method_on(curriculum=setting).corrupt(batch, setting.at(0.0)).corrupted_ids
        assert not torch.equal(on, off.corrupt(batch, plain.at(0.0)).corrupted_ids)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_soft_targets_are_mixed_from_the_auxiliarys_doubt(share: float) -> None:
    method, batch = method_on("two models", soft_target_share=share), batch_of()
    loss, _ = loss_of(method, [batch], batch)
    corruption = method.corrupt(batch, STEADY.at(0.25))
    assert isinstance(method.proposal, FrozenMaskedLm)
    masked = batch.input_ids.masked_fill(batch.is_selected, MASK)
    with torch.no_grad():
        mean = torch.stack([model(input_ids=masked).logits.softmax(-1) for model in method.proposal.models]).mean(0)
    doubt = 1 - mean.gather(2, corruption.corrupted_ids[..., None]).squeeze(2)
    hard = corruption.is_replaced.float()
    targets = torch.where(batch.is_selected, (1 - share) * hard + share * doubt, 0.0)
    scores = method.discriminator(corruption.corrupted_ids).logits.sigmoid()
    likelihood = targets * scores.log() + (1 - targets) * (1 - scores).log()
    assert loss == pytest.approx(-50.0 * likelihood.mean().item(), rel=1e-5)


def test_consistency_compares_two_draws_of_the_same_positions_where_none_was_drawn() -> None:
    method, batch = method_on(consistency_weight=1e5), batch_of()
    loss, stats = loss_of(method, [batch], batch)
    smoothing = STEADY.at(0.25)
    first = method.corrupt(batch, smoothing).corrupted_ids
    second = method.corrupt(batch._replace(sample_uniforms=fresh(batch.sample_uniforms)), smoothing).corrupted_ids
    assert not torch.equal(first, second)
    ours, theirs = (Bernoulli(logits=method.discriminator(ids).logits.double()) for ids in (first, second))
    each = (kl_divergence(ours, theirs) + kl_divergence(theirs, ours)) / 2
    expected = each[~batch.is_selected].mean().item()
    plain, _ = loss_of(method_on(), [batch], batch)
    assert loss - plain == pytest.approx(1e5 * expected, rel=1e-3)
    assert float(stats["consistency_loss"]) == pytest.approx(each[~batch.is_selected].sum().item(), rel=1e-4)


class Recording(Proposal):
    """Draws as another proposal, and keeps the batches."""

    def __init__(self, inner: Proposal) -> None:
        self.inner, self.batches = inner, list[Batch]()

    def sample(self, batch: Batch, smoothing: Smoothing) -> torch.Tensor:
        self.batches.append(batch)
        return self.inner.sample(batch, smoothing)


def test_the_second_draw_drops_other_values_of_the_auxiliary_than_the_first() -> None:
    """Of a batch that knows its seed, as every batch in training does."""
    method, batch = method_on(consistency_weight=1.0), batch_of().to(torch.device("cpu"))
    assert method.proposal is not None
    method.proposal = recording = Recording(method.proposal)
    loss_of(method, [batch], batch)
    first, second = (each.dropout_seed() for each in recording.batches)
    assert first == batch.dropout_seed() < 2**61 <= second < 2**63


@pytest.mark.parametrize("name", [None, "uniform"])
def test_soft_targets_need_a_masked_language_model(name: str | None) -> None:
    proposal = proposal_of(name) if name else None
    discriminator = ElectraForPreTraining(electra_config(VOCAB_SIZE))
    with pytest.raises(ValueError, match="soft targets come from the frozen masked language model that draws, and"):
        FastElectra(discriminator, proposal, curriculum=FALLING, rtd_weight=1.0, soft_target_share=0.5)


def test_a_second_draw_cannot_be_read_where_one_was_drawn_ahead() -> None:
    batch = batch_of()
    ahead = batch._replace(corrupted_ids=method_on().corrupt(batch, Smoothing()).corrupted_ids)
    method = FastElectra(
        ElectraForPreTraining(electra_config(VOCAB_SIZE)), None, curriculum=FALLING, rtd_weight=1.0,
        consistency_weight=1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="without a proposal every batch must bring its corrupted_ids"):
        loss_of(method, [ahead], ahead)
