"""Held-out scores equal slow, separate computations on tiny data."""

import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from toys import MASK, SPECIAL_IDS, corrupt_at, dataset_of, electra_config, method_of
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core import evaluation
from fast_electra_core.batches import make_batch
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import DataError
from fast_electra_core.evaluation import (
    area_under_roc,
    heldout_masked_scores,
    score_detector,
    score_masked_lm,
    unigram_counts,
)
from fast_electra_core.methods import Batch, MaskedLanguageModel

VOCAB_SIZE, LENGTH = 20, 12
COUNTS = np.array([0, 0, 0, 7, 0, 3, 1, 4, 0, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9])


def dataset(folder: Path, documents: list[Any]) -> TokenDataset:
    return dataset_of(folder, documents, vocab_size=VOCAB_SIZE, sequence_length=LENGTH)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """40 sequences: more than one batch of the evaluation."""
    rng = np.random.default_rng(0)
    return dataset(tmp_path_factory.mktemp("heldout"), [rng.integers(5, VOCAB_SIZE, 39) for _ in range(10)])


def random_model(model_class: Any, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = model_class(electra_config(VOCAB_SIZE, dropout=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def make_method(kind: str = "fast_electra") -> Any:
    discriminator, masked_lm = random_model(ElectraForPreTraining), random_model(ElectraForMaskedLM, seed=1)
    return method_of(kind, discriminator, masked_lm, curriculum=Curriculum("constant", 1.0, 0.1, 1.0))


def evaluation_batch(heldout: TokenDataset, index: int, *, mask_fraction: float) -> Batch:
    """One sequence at a time, where the evaluation takes 32."""
    one = torch.tensor([index])
    return make_batch(
        heldout, one, torch.zeros_like(one), mask_fraction=mask_fraction, seed=evaluation._EVALUATION_SEED
    )


def masked_words(heldout: TokenDataset, num_sequences: int) -> list[tuple[int, int, int]]:
    """(sequence, position, word) of everything masked."""
    return [
        (index, position, int(batch.input_ids[0, position]))
        for index in range(num_sequences)
        for batch in [evaluation_batch(heldout, index, mask_fraction=0.3)]
        for position in range(LENGTH)
        if batch.is_selected[0, position]
    ]


@pytest.mark.parametrize("max_sequences", [5, 256])
def test_masked_scores_equal_a_computation_word_by_word(max_sequences: int, heldout: TokenDataset) -> None:
    model = random_model(ElectraForMaskedLM).train()
    scores = score_masked_lm(model, heldout, counts=COUNTS, mask_fraction=0.3, max_sequences=max_sequences)
    words = masked_words(heldout, min(40, max_sequences))
    assert scores.num_masked == len(words)
    losses, hits = [], []
    for index, position, word in words:
        shown = heldout.sequence(index)
        for other_index, other_position, _ in words:
            if other_index == index:
                shown[other_position] = MASK
        row = model(torch.from_numpy(shown)[None]).logits[0, position].double().detach().numpy()
        losses.append(np.log(np.exp(row).sum()) - row[word])
        hits.append(row.argmax() == word)
    assert scores.masked_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert scores.masked_accuracy == pytest.approx(np.mean(hits))
    assert scores.seconds_per_1k_tokens > 0
    assert not model.training, "it is left in evaluation mode"


def test_scores_of_attention_within_documents_equal_a_computation_with_its_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    dataset(tmp_path, [rng.integers(5, VOCAB_SIZE, 4) for _ in range(12)])  # and a separator each
    within = TokenDataset([tmp_path], "train", sequence_length=LENGTH, special_ids=SPECIAL_IDS, attention="document")
    model, method = random_model(ElectraForMaskedLM), make_method()
    masked = score_masked_lm(model, within, counts=COUNTS, mask_fraction=0.3)
    detected = score_detector(method, within, corrupt=corrupt_at(method, 1.5), mask_fraction=0.3)
    method.eval()
    masked_losses, detector_losses = [], []
    for index in range(len(within)):
        batch = evaluation_batch(within, index, mask_fraction=0.3)
        ids = batch.input_ids[0]
        place = torch.tensor([int((ids[:position] == SPECIAL_IDS.sep).sum()) for position in range(LENGTH)])
        visible = (place[:, None] == place)[None, None]
        shown = ids.masked_fill(batch.is_selected[0], MASK)[None]
        rows = model(shown, attention_mask=visible).logits[0][batch.is_selected[0]].detach()
        masked_losses += cross_entropy(rows, ids[batch.is_selected[0]], reduction="none").tolist()
        corrupted = corrupt_at(method, 1.5)(batch).corrupted_ids
        logits = method.discriminator(corrupted, attention_mask=visible).logits[0].detach()
        is_replaced = (corrupted[0] != ids).float()
        detector_losses += binary_cross_entropy_with_logits(logits, is_replaced, reduction="none").tolist()
    assert masked.masked_loss == pytest.approx(np.mean(masked_losses), rel=1e-5)
    assert detected["heldout_rtd_loss"] == pytest.approx(np.mean(detector_losses), rel=1e-5)


def test_the_seconds_are_the_models_per_thousand_tokens(heldout: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 sequences of 12 tokens in two batches, of a second each."""
    clock = itertools.count()
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock))
    scores = score_masked_lm(random_model(ElectraForMaskedLM), heldout, counts=COUNTS, mask_fraction=0.3)
    assert len(heldout) == 40
    assert scores.seconds_per_1k_tokens == pytest.approx(2 / 0.480)


def test_the_unigram_baseline_by_hand(heldout: TokenDataset) -> None:
    """One is added to each count; special tokens are never masked and take no share."""
    scores = score_masked_lm(random_model(ElectraForMaskedLM), heldout, counts=COUNTS, mask_fraction=0.3)
    words = [word for _, _, word in masked_words(heldout, 40)]
    total = sum(int(count) + 1 for count in COUNTS[5:])
    assert scores.unigram_loss == pytest.approx(np.mean([math.log(total / (COUNTS[word] + 1)) for word in words]))
    assert scores.unigram_accuracy == pytest.approx(np.mean([word == 10 for word in words]))  # 10: the first of count 9


def test_scores_are_the_same_at_every_call(heldout: TokenDataset) -> None:
    model = random_model(ElectraForMaskedLM)
    first, second = (score_masked_lm(model, heldout, counts=COUNTS) for _ in range(2))
    assert first[:-1] == second[:-1]


@pytest.mark.parametrize("was_training", [True, False])
def test_held_out_rows_are_the_masked_scores_by_name_and_keep_the_mode(
    was_training: bool, heldout: TokenDataset
) -> None:
    model = random_model(ElectraForMaskedLM)
    method = MaskedLanguageModel(model, mask_token_id=MASK).train(was_training)
    row = heldout_masked_scores(method, heldout, counts=COUNTS)
    assert model.training == was_training
    scores = score_masked_lm(model, heldout, counts=COUNTS)._asdict()
    del row["heldout_seconds_per_1k_tokens"], scores["seconds_per_1k_tokens"]
    assert row == {f"heldout_{name}": value for name, value in scores.items()}


def test_unigram_counts_by_hand(tmp_path: Path) -> None:
    counts = unigram_counts(dataset(tmp_path, [np.array([5, 5, 19]), np.array([7])]), VOCAB_SIZE)
    assert counts.tolist() == [0, 0, 0, 2, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_a_long_stream_is_counted_in_pieces(tmp_path: Path) -> None:
    """A compressed file is one shard, whatever it holds; counted at once it took 8 bytes a token, in every process."""
    ids = np.arange(3_000_000) % 15 + 5
    data = dataset(tmp_path, [ids])
    tracemalloc.start()
    counts = unigram_counts(data, VOCAB_SIZE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.tolist() == [0, 0, 0, 1, 0] + [200_000] * 15  # the separator once
    assert peak < 12e6


@pytest.mark.parametrize("kind", ["fast_electra", "electra", "electra_gdes"])
def test_detector_scores_equal_a_computation_token_by_token(kind: str, heldout: TokenDataset) -> None:
    method = make_method(kind).train()
    scores = score_detector(method, heldout, corrupt=corrupt_at(method, 1.5), mask_fraction=0.3, max_sequences=35)
    method.eval()
    replaced: list[float] = []
    original: list[float] = []
    losses: list[float] = []
    num_selected = 0
    for index in range(35):
        batch = evaluation_batch(heldout, index, mask_fraction=0.3)
        num_selected += int(batch.is_selected.sum())
        corrupted = corrupt_at(method, 1.5)(batch).corrupted_ids
        logits = method.discriminator(corrupted).logits[0].detach().double()
        for position in range(LENGTH):
            is_replaced = bool(corrupted[0, position] != batch.input_ids[0, position])
            (replaced if is_replaced else original).append(float(logits[position]))
            losses.append(math.log1p(math.exp(-float(logits[position]) if is_replaced else float(logits[position]))))
    share = len(replaced) / len(losses)
    ranks = [(high > low) + 0.5 * (high == low) for high in replaced for low in original]
    caught, alarms = sum(value > 0 for value in replaced), sum(value > 0 for value in original)
    assert scores == {
        "heldout_rtd_loss": pytest.approx(np.mean(losses), rel=1e-5),
        "heldout_majority_loss": pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share)),
        "heldout_auc": pytest.approx(np.mean(ranks), abs=1e-6),
        "heldout_replaced_fraction": pytest.approx(share),
        "heldout_replaced_of_selected": pytest.approx(len(replaced) / num_selected),
        "heldout_recall_replaced": pytest.approx(caught / len(replaced)),
        "heldout_recall_original": pytest.approx(1 - alarms / len(original)),
        "heldout_precision_replaced": pytest.approx(caught / (caught + alarms)),
    }


@pytest.mark.parametrize("was_training", [True, False])
def test_scoring_a_detector_keeps_its_mode(was_training: bool, heldout: TokenDataset) -> None:
    method = make_method().train(was_training)
    score_detector(method, heldout, corrupt=corrupt_at(method, 1.0), mask_fraction=0.15, max_sequences=2)
    assert method.discriminator.training == was_training
    assert not method.proposal.models[0].training


def test_where_nothing_is_replaced_there_is_nothing_to_rank(tmp_path: Path) -> None:
    """An auxiliary that is sure of the only word there is."""
    method = make_method()
    with torch.no_grad():
        method.proposal.models[0].generator_lm_head.bias[7] = 1000.0
    text = dataset(tmp_path, [np.full(100, 7)])
    scores = score_detector(method, text, corrupt=corrupt_at(method, 1.0), mask_fraction=0.3, max_sequences=3)
    assert scores["heldout_replaced_fraction"] == 0.0
    assert scores["heldout_auc"] == 0.5
    assert scores["heldout_majority_loss"] == 0.0


def test_the_area_under_the_roc_curve_counts_ties_half() -> None:
    # The positive .4 is above .1 and ties with .4: 1.5 of 2 pairs; of three alike, half of all.
    assert area_under_roc(np.array([0.1, 0.4, 0.4]), np.array([False, False, True])) == 0.75
    assert area_under_roc(np.zeros(3), np.array([False, True, True])) == 0.5


@pytest.mark.parametrize("num_levels", [3, 10_000])
def test_the_area_under_the_roc_curve_is_that_of_scikit_learn(num_levels: int) -> None:
    rng = np.random.default_rng(0)
    is_positive = rng.random(1000) < 0.2
    scores = (rng.integers(num_levels, size=1000) + is_positive).astype(np.float32)
    assert area_under_roc(scores, is_positive) == pytest.approx(roc_auc_score(is_positive, scores), rel=1e-12)


def test_a_batch_is_a_pure_function_of_place_and_seed(heldout: TokenDataset) -> None:
    sequence, epoch = torch.tensor([7, 3, 7]), torch.tensor([0, 1, 1])
    first = make_batch(heldout, sequence, epoch, mask_fraction=0.4, seed=3)
    torch.manual_seed(77)
    again = make_batch(heldout, sequence.flip(0), epoch.flip(0), mask_fraction=0.4, seed=3)
    assert all(torch.equal(ours, theirs.flip(0)) for ours, theirs in zip(first[:3], again[:3], strict=True))
    assert first.input_ids.shape == (3, LENGTH)
    assert not torch.equal(first.is_selected[0], first.is_selected[2]), "another epoch, other positions"
    other = make_batch(heldout, sequence, epoch, mask_fraction=0.4, seed=4)
    assert torch.equal(first.input_ids, other.input_ids)
    assert not torch.equal(first.is_selected, other.is_selected)
    assert not torch.equal(first.sample_uniforms, other.sample_uniforms)


def test_held_out_text_of_less_than_a_sequence_is_refused(tmp_path: Path) -> None:
    short, method = dataset(tmp_path, [np.array([5, 6, 7])]), make_method()
    message = r"the held-out text \(4 tokens\) is shorter than one sequence of 12; give more text, a larger"
    with pytest.raises(DataError, match=message):
        score_masked_lm(random_model(ElectraForMaskedLM), short, counts=COUNTS)
    with pytest.raises(DataError, match=message):
        score_detector(method, short, corrupt=corrupt_at(method, 1.0), mask_fraction=0.15)
