"""Corruption drawn ahead of training is that of training, bit for bit, is small on disk, and never silently wrong."""

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core import corruption_store
from fast_electra_core.batches import batch_at
from fast_electra_core.checkpoint import load_latest
from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import StoredSamples, draw_samples, open_samples, write_samples
from fast_electra_core.curriculum import Curriculum, Smoothing
from fast_electra_core.data import SpecialIds, TokenDataset
from fast_electra_core.errors import DataError
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.schedules import temperature_at
from fast_electra_core.token_shards import write_shard
from fast_electra_core.trainer import Hooks, train

VOCAB_SIZE, MASK, NUM_STEPS = 30, 4, 7
SPECIAL_IDS = SpecialIds(cls=2, sep=3, mask=MASK, pad=0, all_special=(0, 1, 2, 3, 4))
CONFIG = PretrainConfig(
    num_steps=NUM_STEPS, batch_size=4, micro_batch_size=2, sequence_length=10, dropout=0.2, learning_rate=0.01,
    mask_fraction=0.3, checkpoint_every_steps=2, log_every_steps=3, precision="fp32", seed=5,
)  # fmt: skip
FALLING = Curriculum("exponential", 3.0, 0.3, 0.5)
IDENTITY = {"seed": 5, "text": "abc"}
RANGES = [range(0, 3), range(3, 6), range(6, 7)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Eleven sequences, their separators at different places, so that the numbers of selected tokens differ."""
    folder = tmp_path_factory.mktemp("shard")
    rng = np.random.default_rng(0)
    documents = [rng.integers(5, VOCAB_SIZE, length) for length in (*[1] * 16, 29, 31)]
    write_shard(folder, documents, separator_id=3, unknown_id=1, vocab_size=VOCAB_SIZE, heldout_fraction=0.0)
    return TokenDataset([folder], "train", sequence_length=10, special_ids=SPECIAL_IDS)


def models(*, dropout: float = 0.2) -> tuple[Any, Any]:
    shape = ElectraConfig(
        vocab_size=VOCAB_SIZE, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(1)
    discriminator, auxiliary = ElectraForPreTraining(shape), ElectraForMaskedLM(shape)
    with torch.no_grad():  # spread out, so that the temperature matters
        for parameter in auxiliary.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return discriminator, auxiliary


def fast_electra(*, with_auxiliary: bool, curriculum: Curriculum = FALLING) -> FastElectra:
    discriminator, auxiliary = models()
    return FastElectra(
        discriminator, proposal_of(auxiliary) if with_auxiliary else None, curriculum=curriculum, rtd_weight=50.0
    )


def proposal_of(auxiliary: Any) -> FrozenMaskedLm:
    return FrozenMaskedLm([auxiliary], mask_token_id=MASK, unigram=torch.arange(VOCAB_SIZE) / 435)


def drawn(
    dataset: TokenDataset,
    config: PretrainConfig = CONFIG,
    steps: range = range(NUM_STEPS),
    *,
    curriculum: Curriculum = FALLING,
) -> list[Tensor]:
    return list(draw_samples(proposal_of(models()[1]), dataset, config, steps=steps, curriculum=curriculum))


@pytest.fixture(scope="module")
def stored(dataset: TokenDataset, tmp_path_factory: pytest.TempPathFactory) -> StoredSamples:
    """The corruption of all steps, in three ranges, each drawn by itself."""
    folders = {steps: tmp_path_factory.mktemp("range") for steps in RANGES}
    for steps, folder in folders.items():
        write(folder, drawn(dataset, steps=steps), first_step=steps.start)
    return StoredSamples(
        lambda step: next(folder for steps, folder in folders.items() if step in steps), identity=IDENTITY
    )


def write(folder: Path, samples: list[Tensor], *, first_step: int = 0, vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    return write_samples(
        folder, samples, first_step=first_step, vocab_size=vocab_size, identity=IDENTITY, made_by={"run": "runs/a"}
    )


class Killed(BaseException):
    """The process ends here."""


def final_tensors(
    method: FastElectra,
    dataset: TokenDataset,
    root: Path,
    *,
    samples_at: Callable[[int], Tensor] | None,
    killed_at: int | None = None,
    config: PretrainConfig = CONFIG,
) -> dict[str, bytes]:
    """The newest checkpoint after an attempt: weights, optimizer, metric sums."""

    def on_step(step: int) -> None:
        if step == killed_at:
            raise Killed

    with contextlib.suppress(Killed):
        hooks = Hooks(on_step=on_step)
        train(method, dataset, config=config, checkpoints=root, hooks=hooks, samples_at=samples_at)
    newest = load_latest(root)
    return {name: value.numpy().tobytes() for name, value in newest.tensors.items()} if newest else {}


@pytest.fixture(scope="module")
def online(dataset: TokenDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return final_tensors(fast_electra(with_auxiliary=True), dataset, tmp_path_factory.mktemp("online"), samples_at=None)


def test_offline_training_without_an_auxiliary_equals_online_bit_for_bit(
    dataset: TokenDataset, stored: StoredSamples, online: dict[str, bytes], tmp_path: Path
) -> None:
    method = fast_electra(with_auxiliary=False)
    assert method.proposal is None
    assert final_tensors(method, dataset, tmp_path, samples_at=stored.at) == online


@pytest.mark.parametrize(("masking", "attention"), [("whole_words", "sequence"), ("spans", "document")])
def test_offline_equals_online_also_by_words_with_tokens_that_are_kept_and_within_documents(
    masking: str, attention: str, dataset: TokenDataset, online: dict[str, bytes], tmp_path: Path
) -> None:
    config, known = replace(CONFIG, masking=masking, keep_fraction=0.3), copy.copy(dataset)
    known.continues_word, known.attention = torch.arange(VOCAB_SIZE) % 2 == 0, attention
    runs = [
        final_tensors(
            fast_electra(with_auxiliary=samples is None),
            known,
            tmp_path / str(samples is None),
            samples_at=samples,
            config=config,
        )
        for samples in (drawn(known, config).__getitem__, None)
    ]
    assert runs[0] == runs[1] != online


SHAPED = [
    FALLING._replace(dropout=0.3),
    FALLING._replace(unigram_share=0.4),
    FALLING._replace(top_k=3, vocab_size=VOCAB_SIZE),
    FALLING._replace(top_p=0.4),
    FALLING._replace(dropout=0.3, unigram_share=0.4, top_k=9, top_p=0.8, vocab_size=VOCAB_SIZE),
]


@pytest.mark.parametrize("curriculum", SHAPED, ids=["dropout", "unigram", "k", "p", "all"])
def test_whatever_shapes_the_auxiliarys_output_offline_equals_online_bit_for_bit(
    curriculum: Curriculum, dataset: TokenDataset, online: dict[str, bytes], tmp_path: Path
) -> None:
    """The main model has dropout too, and neither disturbs the other's random numbers."""
    ahead = drawn(dataset, curriculum=curriculum)
    offline = fast_electra(with_auxiliary=False, curriculum=curriculum)
    found = final_tensors(offline, dataset, tmp_path / "offline", samples_at=ahead.__getitem__)
    direct = fast_electra(with_auxiliary=True, curriculum=curriculum)
    assert final_tensors(direct, dataset, tmp_path / "online", samples_at=None) == found != online


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize("first_offline", [True, False], ids=["offline then online", "online then offline"])
def test_killed_at_any_step_a_run_may_go_on_the_other_way(
    step: int, first_offline: bool, dataset: TokenDataset, stored: StoredSamples, online: Any, tmp_path: Path
) -> None:
    for is_offline, killed_at in ((first_offline, step), (not first_offline, None)):
        method = fast_electra(with_auxiliary=not is_offline)
        found = final_tensors(
            method, dataset, tmp_path, samples_at=stored.at if is_offline else None, killed_at=killed_at
        )
    assert found == online


def test_another_temperature_or_seed_draws_another_corruption(dataset: TokenDataset) -> None:
    first = torch.cat(drawn(dataset))
    other = drawn(dataset, curriculum=Curriculum("constant", 50.0, 0.1, 1.0))
    assert len(torch.cat(other)) == len(first)
    assert not torch.equal(torch.cat(other), first)
    assert not torch.equal(torch.cat(drawn(dataset, replace(CONFIG, seed=6)))[: len(first)], first)


def test_each_step_is_drawn_at_its_temperature_in_training_also_at_the_borders_of_ranges(
    dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow loop: softmax at T(step / num_steps), cumulative sum, first entry above the uniform number."""
    seen = []

    def record(self: Any, batch: Any, smoothing: Smoothing) -> Tensor:
        seen.append(smoothing.temperature)
        return torch.zeros(int(batch.is_selected.sum()), dtype=torch.int64)

    monkeypatch.setattr(FrozenMaskedLm, "sample", record)
    for steps in RANGES:
        drawn(dataset, steps=steps)
    by_hand = [0.5 + 2.5 * np.exp(-(step / 7) / 0.3) for step in range(7)]
    assert seen == pytest.approx([value for value in by_hand for _ in range(2)])  # two micro-batches
    assert seen[::2] == [
        temperature_at(step / 7, schedule="exponential", start=3.0, decay=0.3, end=0.5) for step in range(7)
    ]


def test_the_ids_are_those_of_a_slow_loop(dataset: TokenDataset) -> None:
    _, auxiliary = models()
    auxiliary.eval()
    batch = batch_at(4, dataset, CONFIG)
    masked = torch.where(batch.is_selected, MASK, batch.input_ids)
    temperature = 0.5 + 2.5 * np.exp(-(4 / 7) / 0.3)
    expected = []
    for row, column in batch.is_selected.nonzero().tolist():
        with torch.no_grad():
            logits = auxiliary(input_ids=masked[row : row + 1]).logits[0, column].double()
        cumulative = torch.softmax(logits / temperature, dim=0).cumsum(dim=0)
        expected.append(int((cumulative <= batch.sample_uniforms[row, column]).sum()))
    (found,) = drawn(dataset, steps=range(4, 5))
    assert found.tolist() == expected


def test_steps_have_different_numbers_of_selected_tokens(dataset: TokenDataset) -> None:
    """Else nothing here would notice ids that are read from a neighbour's place."""
    assert len({len(ids) for ids in drawn(dataset)}) > 1


def test_a_token_takes_less_than_half_a_byte(dataset: TokenDataset, tmp_path: Path) -> None:
    """15 % of 126 ordinary tokens are 18.9: 19 ids of 2 bytes per sequence; 4 bytes for each step's count."""
    samples = [torch.full((8 * 19,), 65_535) for _ in range(10)]  # 10 steps of 8 sequences of 128 tokens
    manifest = write(tmp_path, samples, vocab_size=1 << 16)
    size = sum((tmp_path / name).stat().st_size for name in ("samples.bin", "counts.bin"))
    assert size == sum(manifest["num_bytes"].values()) == 10 * (8 * 19 * 2 + 4)
    assert size / (10 * 8 * 128) == pytest.approx(0.3008, abs=1e-4)


def test_a_token_takes_less_than_half_a_byte_with_a_vocabulary_past_16_bits(tmp_path: Path) -> None:
    write(tmp_path, [torch.full((8 * 19,), 65_536)], vocab_size=(1 << 16) + 1)
    size = sum((tmp_path / name).stat().st_size for name in ("samples.bin", "counts.bin"))
    assert size == 8 * 19 * 3 + 4
    assert size / (8 * 128) < 0.5


@settings(max_examples=60, deadline=None)
@given(data=st.data(), first_step=st.integers(0, 10**6))
@pytest.mark.parametrize("vocab_size", [2, 30_522, 1 << 16, (1 << 16) + 1, 1 << 24, (1 << 24) + 1, 1 << 31])
def test_what_is_written_is_read(
    vocab_size: int, data: Any, first_step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids = st.integers(0, vocab_size - 1) | st.just(vocab_size - 1)
    steps = data.draw(st.lists(st.lists(ids, max_size=20), min_size=1, max_size=6))
    folder = tmp_path_factory.mktemp("range")
    write(
        folder, [torch.tensor(step, dtype=torch.int64) for step in steps], first_step=first_step, vocab_size=vocab_size
    )
    opened = open_samples(folder, identity=IDENTITY)
    assert [opened.at(first_step + index).tolist() for index in range(len(steps))] == steps
    assert {opened.at(first_step + index).dtype for index in range(len(steps))} == {torch.int64}
    for outside in (first_step - 1, first_step + len(steps)):
        with pytest.raises(DataError, match=f"holds the corruption of steps {first_step} to .*, not of step {outside}"):
            opened.at(outside)


@pytest.mark.parametrize("name", ["samples.bin", "counts.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut short", "changed", "gone", "empty"])
def test_a_damaged_range_is_noticed(name: str, damage: str, dataset: TokenDataset, tmp_path: Path) -> None:
    write(tmp_path, drawn(dataset))
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        # The last digit of a digest, or the highest bit of the middle byte.
        index = content.rindex(b'"made_by"') - 8 if name == "manifest.json" else len(content) // 2
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
    else:
        path.write_bytes(content[: len(content) - 3] if damage == "cut short" else b"")
    with pytest.raises(DataError, match=r"(instead of \d+|is damaged|cannot be read).*Resume from the step `corrupt`"):
        open_samples(tmp_path, identity=IDENTITY)


def test_the_corruption_of_another_run_is_refused_and_the_difference_named(
    dataset: TokenDataset, tmp_path: Path
) -> None:
    write(tmp_path, drawn(dataset))
    with pytest.raises(DataError, match=r"was drawn for another run: mask_fraction, text differ$"):
        open_samples(tmp_path, identity={"seed": 5, "text": "abd", "mask_fraction": 0.2})


def test_a_corruption_that_does_not_fit_the_text_is_refused(dataset: TokenDataset) -> None:
    selected = int(batch_at(0, dataset, CONFIG).is_selected.sum())
    for count in (selected - 1, selected + 1):
        with pytest.raises(
            DataError, match=f"{count} replacements are stored for step 0, but {selected} positions are"
        ):
            batch_at(0, dataset, CONFIG, samples_at=lambda step, count=count: torch.zeros(count, dtype=torch.int64))


def test_without_an_auxiliary_a_batch_must_be_corrupted_already(dataset: TokenDataset) -> None:
    with pytest.raises(ValueError, match="without a proposal every batch must bring its corrupted_ids"):
        fast_electra(with_auxiliary=False).corrupt(batch_at(0, dataset, CONFIG), Smoothing())


def test_a_manifest_says_what_made_the_range(dataset: TokenDataset, tmp_path: Path) -> None:
    manifest = write(tmp_path, drawn(dataset, steps=range(2, 5)), first_step=2)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert (manifest["first_step"], manifest["end_step"], manifest["bytes_per_id"]) == (2, 5, 2)
    assert manifest["identity"] == IDENTITY
    assert manifest["made_by"] == {"run": "runs/a"}
    about = corruption_store.maker(torch.device("cpu"))
    assert (about["device"], about["num_threads"], about["torch"]) == ("cpu", 1, torch.__version__)


def test_only_the_range_in_use_is_open(stored: StoredSamples, dataset: TokenDataset) -> None:
    asked: list[int] = []
    folder_of = stored._folder_of

    def counted(step: int) -> Path:
        asked.append(step)
        return folder_of(step)

    samples = StoredSamples(counted, identity=IDENTITY)
    found = [samples.at(step) for step in range(NUM_STEPS)]
    assert asked == [0, 3, 6]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, drawn(dataset), strict=True))
