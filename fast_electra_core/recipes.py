"""Named fine-tuning recipes: which rate, how long, how much decay, for which task and width.

A value that the user gives overrides the recipe's for every task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from fast_electra_core.errors import check_choice
from fast_electra_core.glue import TaskSpec

RECIPES = ("electra", "modernbert")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """The knobs of one fine-tuning; meanings and ranges as in ScoringConfig."""

    learning_rate: float = 3e-4
    batch_size: int = 32
    epochs: float = 3.0
    max_length: int = 128
    max_examples: int | None = None
    layer_decay: float = 0.8
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    has_swapped_pairs: bool = True
    """Whether the tasks that ELECTRA doubles (mrpc, stsb) are trained on in both orders."""
    is_best_epoch: bool = False
    """Score the best epoch by the task's metric on dev, which flatters; not the last."""
    seed: int = 0


class _ModernBert(NamedTuple):
    learning_rate: float
    weight_decay: float
    epochs: float


# `Unverified:` ModernBERT-base's values (arXiv 2412.13663, appendix on GLUE), from memory of the paper.
_MODERNBERT = {
    "cola": _ModernBert(8e-5, 1e-6, 5),
    "sst2": _ModernBert(8e-5, 1e-5, 2),
    "mrpc": _ModernBert(5e-5, 5e-6, 10),
    "stsb": _ModernBert(8e-5, 5e-6, 10),
    "qqp": _ModernBert(5e-5, 5e-6, 10),
    "mnli": _ModernBert(5e-5, 5e-6, 1),
    "qnli": _ModernBert(8e-5, 5e-6, 2),
    "rte": _ModernBert(5e-5, 1e-5, 3),
}
_MODERNBERT_OTHER = _ModernBert(5e-5, 5e-6, 3)


def finetune_settings(
    recipe: str, spec: TaskSpec, *, hidden_size: int, given: Mapping[str, Any] | None = None
) -> FinetuneSettings:
    """The recipe's settings for a task and an encoder of this width, overridden by each given value that is not None.

    electra (google-research/electra, configure_finetuning.py): rate 3e-4 up to width 256, 1e-4 up to 768, 5e-5 above;
    decay of the rate by layer .8, above width 768 .9; 10 epochs for rte and stsb, 3 otherwise; batch 32, warm-up 10 %,
    weight decay .01, pairs of mrpc and stsb in both orders.
    modernbert (arXiv 2412.13663): rate, weight decay and epochs by task, no decay by layer, betas (.9, .98), warm-up
    6 %, each pair as it is; `Unverified:` all of it.

    >>> from fast_electra_core.glue import SPECS
    >>> finetune_settings("electra", SPECS["rte"], hidden_size=768).learning_rate
    0.0001
    >>> finetune_settings("modernbert", SPECS["rte"], hidden_size=768, given={"epochs": 1.0}).epochs
    1.0

    Raises:
        ConfigError: an unknown recipe.
    """
    check_choice("finetune_recipe", recipe, RECIPES)
    if recipe == "electra":
        rate = 3e-4 if hidden_size <= 256 else 1e-4 if hidden_size <= 768 else 5e-5
        values: dict[str, Any] = {
            "learning_rate": rate,
            "layer_decay": 0.8 if hidden_size <= 768 else 0.9,
            "epochs": spec.epochs,
        }
    else:
        by_task = _MODERNBERT.get(spec.name, _MODERNBERT_OTHER)
        epochs = spec.epochs if spec.is_custom else by_task.epochs
        values = {
            **by_task._asdict(),
            "epochs": epochs,
            "layer_decay": 1.0,
            "warmup_fraction": 0.06,
            "betas": (0.9, 0.98),
            "has_swapped_pairs": False,
        }
    known = {field.name for field in fields(FinetuneSettings)}
    values |= {name: value for name, value in (given or {}).items() if value is not None and name in known}
    return FinetuneSettings(**values)
