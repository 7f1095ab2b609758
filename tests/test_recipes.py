"""Fine-tuning recipes: ELECTRA's published values, and what overrides them."""

import pytest

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


@pytest.mark.parametrize("recipe", ["electra", "modernbert"])
def test_what_is_given_overrides_the_recipe(recipe: str) -> None:
    given = {"learning_rate": 1e-3, "epochs": 0.5, "layer_decay": 0.7, "batch_size": None}
    settings = finetune_settings(recipe, SPECS["rte"], hidden_size=256, given=given)
    assert (settings.learning_rate, settings.epochs, settings.layer_decay, settings.batch_size) == (1e-3, 0.5, 0.7, 32)


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"finetune_recipe must be one of electra, modernbert; got 'electre'"):
        finetune_settings("electre", SPECS["rte"], hidden_size=256)
