"""On a GPU: training learns what it learns on the CPU, in fp32, in bf16 and compiled, and its steps wait for nothing.

`tests/test_second_device.py` shows of a stand-in what can be shown without one. Here nothing runs where no GPU is.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_curves import DISTINCT, VOCAB_SIZE, build_arm, golden_arms, golden_dataset

from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import draw_samples
from fast_electra_core.data import TokenDataset
from fast_electra_core.evaluation import heldout_masked_scores, score_detector, unigram_counts
from fast_electra_core.method_building import corrupt_for_scoring
from fast_electra_core.peak import gemm_flops_per_second
from fast_electra_core.trainer import Hooks, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
ARMS = [name for name in DISTINCT if name != "dropout"]
"""Those that draw nothing from a device's own generator, once dropout is off: a GPU drops other values."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return golden_dataset(tmp_path_factory.mktemp("golden") / "shard")


def config_of(name: str, **changes: object) -> PretrainConfig:
    return replace(golden_arms()[name], dropout=0.0, **changes)


def losses(
    config: PretrainConfig,
    dataset: TokenDataset,
    folder: Path,
    device: torch.device,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    rows: list[dict[str, float]] = []
    method = build_arm(config, dataset, place=lambda model: model.to(device))
    train(method, dataset, config=config, checkpoints=folder, hooks=Hooks(on_metrics=rows.append, on_step=on_step))
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_learns_what_it_learns_on_the_cpu(name: str, dataset: TokenDataset, tmp_path: Path) -> None:
    config = config_of(name)
    there, here = (losses(config, dataset, tmp_path / device.type, device) for device in (GPU, CPU))
    assert there == pytest.approx(here, rel=5e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says once that it is a prototype
@pytest.mark.parametrize("name", DISTINCT)
def test_a_step_waits_for_nothing(name: str, dataset: TokenDataset, tmp_path: Path) -> None:
    """The second step and the third; the first moves what stays, and behind the third comes a row of the log."""

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode({1: "error", 2: "error"}.get(step, "default"))

    try:
        losses(golden_arms()[name], dataset, tmp_path, GPU, on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore::Warning")  # of the compiler's own making
@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"compile_layers": True}], ids=str)
@pytest.mark.parametrize("name", ["fast_electra", "electra"])
def test_bf16_and_compiled_layers_learn_the_same(
    name: str, changes: dict[str, object], dataset: TokenDataset, tmp_path: Path
) -> None:
    changed = losses(config_of(name, **changes), dataset, tmp_path / "changed", GPU)
    plain = losses(config_of(name), dataset, tmp_path / "plain", GPU)
    assert changed == pytest.approx(plain, rel=2e-2)


def test_a_stopped_run_goes_on_from_its_checkpoint(dataset: TokenDataset, tmp_path: Path) -> None:
    class Enough(Exception): ...

    def on_step(step: int) -> None:
        if step == 8:
            raise Enough

    config = config_of("fast_electra", checkpoint_every_steps=4)
    whole = losses(config, dataset, tmp_path / "whole", GPU)
    with pytest.raises(Enough):
        losses(config, dataset, tmp_path / "stopped", GPU, on_step)
    assert losses(config, dataset, tmp_path / "stopped", GPU) == pytest.approx(whole[1:], rel=1e-4)


def test_what_is_drawn_ahead_is_drawn_again_to_the_last_id(dataset: TokenDataset) -> None:
    method = build_arm(golden_arms()["dropout"], dataset, place=lambda model: model.to(GPU))
    first, second = (
        list(
            draw_samples(
                method.proposal, dataset, golden_arms()["dropout"], steps=range(3), curriculum=method._curriculum
            )
        )
        for _ in range(2)
    )
    assert [each.tolist() for each in first] == [each.tolist() for each in second]


@pytest.mark.parametrize("name", ["fast_electra", "mlm"])
def test_held_out_text_scores_as_on_the_cpu(name: str, dataset: TokenDataset) -> None:
    config, scores = config_of(name), []
    for device in (CPU, GPU):
        method = build_arm(config, dataset, place=lambda model, device=device: model.to(device))
        if name == "mlm":
            found = heldout_masked_scores(method, dataset, counts=unigram_counts(dataset, VOCAB_SIZE))
            found.pop("heldout_seconds_per_1k_tokens")
        else:
            corrupt = corrupt_for_scoring(method)
            found = score_detector(method, dataset, corrupt=corrupt, mask_fraction=config.mask_fraction)
        scores.append(found)
    assert scores[1] == pytest.approx(scores[0], rel=5e-3)


def test_the_peak_is_what_no_cpu_reaches() -> None:
    assert gemm_flops_per_second(GPU) > 5e12
