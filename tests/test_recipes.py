"""Fine-tuning recipes: ELECTRA's published values, and what overrides them."""

import pytest
import torch

from fast_electra_core.errors import ConfigError
from fast_electra_core.glue import SPECS, TASK_NAMES
from fast_electra_core.recipes import finetune_settings


@pytest.mark.parametrize(
    ("width", "rate", "decay"), [(128, 3e-4, 0.8), (256, 3e-4, 0.8), (768, 1e-4, 0.8), (1024, 5e-5, 0.9)]
)
def test_electras_rate_and_decay_follow_the_width(width: int, rate: float, decay: float) -> None:
    settings = finetune_settings("electra", SPECS["cola"], hidden_size=width)
    assert (settings.learning_rate, settings.layer_decay) == (rate, decay)
    assert (settings.batch_size, settings.warmup_fraction, settings.weight_decay) == (32, 0.1, 0.01)


def test_electras_epochs_are_ten_for_rte_and_stsb_and_three_otherwise() -> None:
    epochs = {task: finetune_settings("electra", SPECS[task], hidden_size=256).epochs for task in TASK_NAMES}
    assert {task for task in epochs if epochs[task] == 10} == {"rte", "stsb"}
    assert set(epochs.values()) == {3, 10}


def test_only_electra_swaps_pairs_and_decays_by_layer() -> None:
    electra, modern = (finetune_settings(name, SPECS["mrpc"], hidden_size=768) for name in ("electra", "modernbert"))
    assert (electra.has_swapped_pairs, modern.has_swapped_pairs) == (True, False)
    assert (electra.layer_decay, modern.layer_decay) == (0.8, 1.0)
    assert (modern.learning_rate, modern.epochs, modern.betas) == (5e-5, 10, (0.9, 0.98))


def test_modernberts_values_follow_task_and_width() -> None:
    base, large = (finetune_settings("modernbert", SPECS["sst2"], hidden_size=width) for width in (768, 1024))
    assert (base.learning_rate, base.epochs, base.batch_size) == (8e-5, 2, 16)
    assert (large.learning_rate, large.epochs, large.batch_size) == (1e-5, 3, 16)
    batches = {task: finetune_settings("modernbert", SPECS[task], hidden_size=768).batch_size for task in TASK_NAMES}
    assert {task: size for task, size in batches.items() if size != 16} == {
        "cola": 32, "mrpc": 32, "stsb": 32, "mnli": 64, "wnli": 32,
    }  # fmt: skip


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_modernberts_weights_decay_by_the_same_fraction_whatever_the_rate(rate: float | None) -> None:
    """One step at the peak rate without a gradient: 1e-5 of the weight goes, as with composer's DecoupledAdamW."""
    settings = finetune_settings("modernbert", SPECS["rte"], hidden_size=768, given={"learning_rate": rate})
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert 1 - weight.item() == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize("recipe", ["electra", "modernbert"])
def test_what_is_given_overrides_the_recipe(recipe: str) -> None:
    given = {"learning_rate": 1e-3, "epochs": 0.5, "layer_decay": 0.7, "batch_size": None}
    settings = finetune_settings(recipe, SPECS["rte"], hidden_size=256, given=given)
    assert (settings.learning_rate, settings.epochs, settings.layer_decay) == (1e-3, 0.5, 0.7)
    assert settings.batch_size == finetune_settings(recipe, SPECS["rte"], hidden_size=256).batch_size


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"finetune_recipe must be one of electra, modernbert; got 'electre'"):
        finetune_settings("electre", SPECS["rte"], hidden_size=256)
