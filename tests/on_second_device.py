"""What tests/test_second_device.py runs in a process of its own: training, scoring and fine-tuning on a device that is
not the CPU give what they give there, and wait for it only where they log."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_distillation
import torch
from golden_curves import DISTINCT, build_arm, golden_arms, golden_dataset
from second_device import SECOND, SecondDevice, moved, waits
from test_finetuning import encoder  # noqa: F401  # a fixture
from test_golden_curves import GOLDEN
from test_selection import VOCAB_SIZE, shape
from toys import method_of

from fast_electra_core.batches import batch_at
from fast_electra_core.classifier import build_classifier
from fast_electra_core.corruption_store import draw_samples
from fast_electra_core.data import TokenDataset
from fast_electra_core.evaluation import heldout_masked_scores, score_detector, unigram_counts
from fast_electra_core.finetuning import finetune, training_step
from fast_electra_core.method_building import corrupt_for_scoring
from fast_electra_core.methods import Batch, Totals
from fast_electra_core.models import build_discriminator, build_masked_lm
from fast_electra_core.recipes import FinetuneSettings
from fast_electra_core.sample_tasks import sample_task
from fast_electra_core.task_batches import ExampleEncoder
from fast_electra_core.tokenizer import load_tokenizer
from fast_electra_core.trainer import Hooks, train

CPU = torch.device("cpu")


def unmoved(model: Any) -> Any:
    return model


class Enough(Exception):
    """The run has shown what it is to show."""


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with SecondDevice():
        waits.clear()
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return golden_dataset(tmp_path_factory.mktemp("golden") / "shard")


def test_what_is_on_the_cpu_is_not_on_the_device() -> None:
    with pytest.raises(RuntimeError, match="tensors on several devices"):
        torch.arange(3, device=SECOND) + torch.arange(3)


WAITING: dict[str, Callable[[Any], Any]] = {
    "a number": float,
    "a list": lambda there: there.tolist(),
    "a copy": lambda there: there.cpu(),
    "a mask": lambda there: torch.ones(1, device=SECOND)[there > 0],
    "places": lambda there: there.nonzero(),
    "memory that is not pinned": lambda there: torch.ones(1).to(SECOND, non_blocking=True),
    "a copy that is to be waited for": lambda there: torch.ones(1).pin_memory().to(SECOND),
}


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_written_down(name: str) -> None:
    there = torch.ones(1, device=SECOND)
    there + there
    torch.ones(1).pin_memory().to(SECOND, non_blocking=True)
    assert not waits
    WAITING[name](there)
    assert waits


@pytest.mark.parametrize("name", DISTINCT)
def test_an_arm_has_its_golden_curve_and_waits_where_it_logs(name: str, dataset: TokenDataset, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    seen = [0]

    def on_step(step: int) -> None:
        seen.append(len(waits))
        if step == 7:
            raise Enough

    config, hooks = golden_arms()[name], Hooks(on_metrics=rows.append, on_step=on_step)
    with pytest.raises(Enough):
        train(build_arm(config, dataset, place=moved), dataset, config=config, checkpoints=tmp_path, hooks=hooks)
    assert [row["loss"] for row in rows] == pytest.approx(GOLDEN[name][:2], rel=1e-4)
    # The hook comes before a step's row: what the row of step 3 waits for is found at step 4. The first step moves what
    # stays, counts of the text.
    waited = [step for step, (before, after) in enumerate(itertools.pairwise(seen), start=1) if after > before]
    assert [step for step in waited if step > 1] == [4, 7], waits


def test_a_killed_run_goes_on_from_its_checkpoint(dataset: TokenDataset, tmp_path: Path) -> None:
    config = replace(golden_arms()["electra_gdes"], checkpoint_every_steps=4)
    rows: list[dict[str, float]] = []

    def on_step(step: int) -> None:
        if step == 8:
            raise Enough

    for ending, hook in ((pytest.raises(Enough), on_step), (contextlib.nullcontext(), lambda step: None)):
        method, hooks = build_arm(config, dataset, place=moved), Hooks(on_metrics=rows.append, on_step=hook)
        with ending:
            train(method, dataset, config=config, checkpoints=tmp_path, hooks=hooks)
    by_step = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(by_step.values()) == pytest.approx(GOLDEN["electra_gdes"], rel=1e-4)
    assert [row["step"] for row in rows].count(6) == 2, "it went on from step 4"


def documents_of_two() -> Batch:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB_SIZE, (4, 12), generator=rng)
    documents = torch.arange(12).expand(4, 12) // 7
    uniforms = torch.rand(4, 12, generator=rng, dtype=torch.float64)
    return Batch(ids, torch.rand(4, 12, generator=rng) < 0.3, uniforms, documents=documents)


@pytest.mark.parametrize("name", ["fast_electra", "electra", "masked_lm"])
def test_a_modernbert_within_documents_loses_what_it_loses_on_the_cpu(name: str) -> None:
    losses, batch = [], documents_of_two()
    totals = Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))
    for device in (CPU, SECOND):
        place = unmoved if device == CPU else moved
        masked_lm = place(build_masked_lm(shape("modernbert", 1), seed=1))
        method = place(method_of(name, build_discriminator(shape("modernbert", 2), seed=0), masked_lm))
        there = batch.to(device)
        waits.clear()
        loss = method.loss(there, totals, progress=0.3, stats={})
        loss.backward()
        assert not waits
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_second_draw_with_dropout_in_the_auxiliary_is_the_cpus_and_waits_for_nothing(dataset: TokenDataset) -> None:
    config, losses = replace(golden_arms()["consistency"], auxiliary_dropout=0.5), []
    batch = batch_at(0, dataset, config)
    for device, place in ((CPU, unmoved), (SECOND, moved)):
        method, there = build_arm(config, dataset, place=place), batch.to(device)
        torch.manual_seed(0)
        waits.clear()
        loss = method.loss(there, Totals(128, 32), progress=0.1, stats={})
        assert not waits
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_distillation_loses_what_it_loses_on_the_cpu() -> None:
    losses, batch = [], test_distillation.make_batch()
    for device in (CPU, SECOND):
        method = test_distillation.make()
        if device == SECOND:
            moved(method), moved(method.teacher)
        there = batch.to(device)
        waits.clear()
        loss = method.loss(there, test_distillation.totals_of(batch), progress=0.0, stats={})
        loss.backward()
        assert not waits
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_is_drawn_ahead_is_what_is_drawn_on_the_cpu(dataset: TokenDataset) -> None:
    config = golden_arms()["dropout"]
    drawn = [
        list(draw_samples(method.proposal, dataset, config, steps=range(3), curriculum=method._curriculum))
        for method in (build_arm(config, dataset), build_arm(config, dataset, place=moved))
    ]
    assert [each.tolist() for each in drawn[0]] == [each.tolist() for each in drawn[1]]


@pytest.mark.parametrize("name", ["fast_electra", "electra", "mlm", "bigram"])
def test_held_out_text_scores_as_on_the_cpu(name: str, dataset: TokenDataset) -> None:
    config = golden_arms()[name]
    scores = []
    for place in (unmoved, moved):
        method = build_arm(config, dataset, place=place)
        if name == "mlm":
            counts = unigram_counts(dataset, VOCAB_SIZE)
            scores.append(heldout_masked_scores(method, dataset, counts=counts))
            scores[-1].pop("heldout_seconds_per_1k_tokens")
        else:
            corrupt = corrupt_for_scoring(method)
            scores.append(score_detector(method, dataset, corrupt=corrupt, mask_fraction=0.25))
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_task_is_learnt_as_on_the_cpu(task: str, encoder: Path) -> None:  # noqa: F811
    whole = sample_task(task)
    data = replace(whole, train=whole.train[:64], dev={"dev": whole.dev["dev"][:40]}, test={})
    tokenizer, settings = load_tokenizer(encoder), FinetuneSettings(max_length=32, epochs=1)

    def classifier() -> Any:
        return build_classifier(encoder, num_labels=data.spec.num_labels, seed=0)

    results = [finetune(place(classifier()), tokenizer, data, settings=settings) for place in (unmoved, moved)]
    there, here = results[1], results[0]
    assert [row["loss"] for row in there.curve] == pytest.approx([row["loss"] for row in here.curve], rel=1e-3)
    assert there.predictions["dev"] == pytest.approx(here.predictions["dev"], rel=1e-3)

    model = moved(classifier())
    encode, take = ExampleEncoder(model, tokenizer, 32), training_step(model, settings)
    encoded = encode(data.train)
    waits.clear()
    for first in (0, 8):
        take(encode.batch(encoded, range(first, first + 8)), encoded.labels[first : first + 8], 1.0)
    # transformers asks once in each step whether anything is padded.
    assert waits == ["aten._local_scalar_dense.default"] * 2
