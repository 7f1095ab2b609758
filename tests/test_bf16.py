"""In bf16 everything runs, learns what it learns in fp32, and leaves the weights in fp32. On a CPU that is slower, and
refused; but torch rounds there what it rounds on a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_curves import DISTINCT, build_arm, golden_arms, golden_dataset
from test_golden_curves import GOLDEN
from toys import save_detector

from fast_electra_core import precision
from fast_electra_core.classifier import build_classifier
from fast_electra_core.corruption_store import draw_samples
from fast_electra_core.data import TokenDataset
from fast_electra_core.finetuning import FinetuneResult, finetune
from fast_electra_core.recipes import FinetuneSettings
from fast_electra_core.sample_tasks import sample_task
from fast_electra_core.tokenizer import load_tokenizer
from fast_electra_core.trainer import Hooks, train


def switch(patch: pytest.MonkeyPatch, is_on: bool) -> None:
    patch.setattr(precision, "uses_bf16", lambda precision, device: is_on)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return golden_dataset(tmp_path_factory.mktemp("golden") / "shard")


@pytest.mark.parametrize("name", DISTINCT)
def test_an_arm_learns_what_it_learns_in_fp32(
    name: str, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch(monkeypatch, True)
    rows: list[dict[str, float]] = []
    config = golden_arms()[name]
    method = build_arm(config, dataset)
    train(method, dataset, config=config, checkpoints=tmp_path, hooks=Hooks(on_metrics=rows.append))
    assert [row["loss"] for row in rows] == pytest.approx(GOLDEN[name], rel=5e-3)
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}


def test_what_is_drawn_ahead_is_drawn_in_bf16_too(dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few ids move; all would, were it another distribution."""
    config, drawn = golden_arms()["no_curriculum"], []
    for is_on in (False, True):
        switch(monkeypatch, is_on)
        method = build_arm(config, dataset)
        steps = draw_samples(method.proposal, dataset, config, steps=range(12), curriculum=method._curriculum)
        drawn.append(torch.cat(list(steps)))
    moved = (drawn[0] != drawn[1]).float().mean().item()
    assert 0 < moved < 0.1


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_task_is_learnt_as_in_fp32(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, whole = save_detector(tmp_path), sample_task(task)
    data = replace(whole, train=whole.train[:64], dev={"dev": whole.dev["dev"][:40]}, test={})
    results: list[FinetuneResult] = []
    for is_on in (False, True):
        switch(monkeypatch, is_on)
        model = build_classifier(encoder, num_labels=data.spec.num_labels, seed=0)
        settings = FinetuneSettings(max_length=32, epochs=2)
        results.append(finetune(model, load_tokenizer(encoder), data, settings=settings))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    curves = [[row["loss"] for row in result.curve] for result in results]
    assert curves[1] != curves[0]
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
