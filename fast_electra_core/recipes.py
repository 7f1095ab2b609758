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
    decay: float
    """What a step at the peak rate takes off each weight, as a fraction of it."""
    epochs: float


# Up to width 768, and above. `Unverified:` from memory of ModernBERT's paper (arXiv 2412.13663, its appendix on GLUE).
# fmt: off
_MODERNBERT = {
    "cola": (_ModernBert(8e-5, 1e-6, 5), _ModernBert(3e-5, 8e-6, 5)),
    "sst2": (_ModernBert(8e-5, 1e-5, 2), _ModernBert(1e-5, 1e-6, 3)),
    "mrpc": (_ModernBert(5e-5, 5e-6, 10), _ModernBert(8e-5, 5e-6, 2)),
    "stsb": (_ModernBert(8e-5, 5e-6, 10), _ModernBert(8e-5, 1e-5, 10)),
    "qqp": (_ModernBert(5e-5, 5e-6, 10), _ModernBert(3e-5, 5e-6, 5)),
    "mnli": (_ModernBert(5e-5, 5e-6, 1), _ModernBert(3e-5, 1e-5, 1)),
    "qnli": (_ModernBert(8e-5, 5e-6, 2), _ModernBert(3e-5, 5e-6, 2)),
    "rte": (_ModernBert(5e-5, 1e-5, 3), _ModernBert(5e-5, 8e-6, 3)),
}
# fmt: on
_MODERNBERT_OTHER = (_ModernBert(5e-5, 5e-6, 3), _ModernBert(3e-5, 5e-6, 3))
_MODERNBERT_BATCHES = {"mnli": 64, "sst2": 16, "qqp": 16, "qnli": 16, "rte": 16}
"""src/evals/glue_jobs.py of the repository named below; 32 for the others."""


def finetune_settings(
    recipe: str, spec: TaskSpec, *, hidden_size: int, given: Mapping[str, Any] | None = None
) -> FinetuneSettings:
    """The recipe's settings for a task and an encoder of this width, overridden by each given value that is not None.

    electra (google-research/electra, configure_finetuning.py): rate 3e-4 up to width 256, 1e-4 up to 768, 5e-5 above;
    decay of the rate by layer .8, above width 768 .9; 10 epochs for rte and stsb, 3 otherwise; batch 32, warm-up 10 %,
    weight decay .01, pairs of mrpc and stsb in both orders.
    modernbert: betas (.9, .98), warm-up 6 % and linear decay, batches by task, each pair as it is and no decay by layer
    (AnswerDotAI/bert24, in which ModernBERT was made: yamls/ablations, src/evals/glue_jobs.py); rate, weight decay and
    epochs by task and width, `Unverified:`. Its weight decay follows the rate's course, but not its height (composer's
    DecoupledAdamW); here, where the rate multiplies it, it is divided by the peak rate. Departs from it: at most
    finetune_max_length tokens (there 256), and biases and norms do not decay.

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
        by_task = _MODERNBERT.get(spec.name, _MODERNBERT_OTHER)[hidden_size > 768]
        values = {
            "learning_rate": by_task.learning_rate,
            "epochs": spec.epochs if spec.is_custom else by_task.epochs,
            "batch_size": _MODERNBERT_BATCHES.get(spec.name, 32),
            "layer_decay": 1.0,
            "warmup_fraction": 0.06,
            "betas": (0.9, 0.98),
            "has_swapped_pairs": False,
        }
    known = {field.name for field in fields(FinetuneSettings)}
    values |= {name: value for name, value in (given or {}).items() if value is not None and name in known}
    if recipe == "modernbert":
        values["weight_decay"] = by_task.decay / values["learning_rate"]
    return FinetuneSettings(**values)
