"""Named starting points. An auxiliary's preset and the main model's of the same name belong together.

tiny: seconds, for tests. demo: minutes on two CPU cores. laptop: a little over an hour on one. small, base, large:
ELECTRA's sizes and recipes (arXiv 2003.10555, table 6) with an auxiliary of the same width and a third of the depth, as
Fast-ELECTRA has it (`Unverified:` second-hand). modernbert_base: ModernBERT-base's shape, with such an auxiliary.
"""

from collections.abc import Mapping
from typing import Any

from fast_electra_core.errors import check_choice

_Values = Mapping[str, Any]

_TINY = {
    "hidden_size": 32, "embedding_size": 32, "num_heads": 2, "intermediate_size": 64, "dropout": 0.0,
    "sequence_length": 32, "batch_size": 8, "learning_rate": 2e-3, "warmup_fraction": 0.1,
    "checkpoint_every_steps": 5, "log_every_steps": 5, "shard_megabytes": 1.0,
}  # fmt: skip
_DEMO = {
    "architecture": "modernbert",
    "hidden_size": 128, "embedding_size": 128, "num_heads": 2, "intermediate_size": 256, "dropout": 0.0,
    "sequence_length": 64, "batch_size": 32, "learning_rate": 4e-3, "warmup_fraction": 0.05,
    "checkpoint_every_steps": 200, "log_every_steps": 25, "shard_megabytes": 8.0,
}  # fmt: skip
_LAPTOP = {
    **_DEMO, "learning_rate": 3e-3, "warmup_fraction": 0.02, "checkpoint_every_steps": 500, "log_every_steps": 50,
    "shard_megabytes": 16.0,
}  # fmt: skip
# More tokens masked, and a start from co-occurrences: docs/decisions/0001.
_PAST_THE_PLATEAU = {"embedding_init": "cooccurrence", "mask_fraction": 0.3}
_SMALL = {
    "hidden_size": 256, "embedding_size": 128, "num_heads": 4, "intermediate_size": 1024,
    "sequence_length": 128, "batch_size": 128, "learning_rate": 5e-4, "warmup_fraction": 0.01,
    "shard_megabytes": 64.0,
}  # fmt: skip
_BASE = {
    "hidden_size": 768, "embedding_size": 768, "num_heads": 12, "intermediate_size": 3072,
    "sequence_length": 512, "batch_size": 256, "learning_rate": 2e-4, "warmup_fraction": 0.013,
    "shard_megabytes": 64.0,
}  # fmt: skip
_LARGE = {
    "hidden_size": 1024, "embedding_size": 1024, "num_heads": 16, "intermediate_size": 4096, "mask_fraction": 0.25,
    "sequence_length": 512, "batch_size": 2048, "learning_rate": 2e-4, "warmup_fraction": 0.025,
    "shard_megabytes": 64.0,
}  # fmt: skip
# Shape, learning rate, weight decay, warm-up (3e9 tokens) and the auxiliary's mask fraction are ModernBERT's own
# (AnswerDotAI/ModernBERT, yamls/modernbert/modernbert-base-pretrain.yaml), which trains on 1.7e12 tokens, at a constant
# rate, in batches of 4608 × 1024, every third layer global. Here every layer is, and the rate falls to 0.
# `Unverified:` number and size of the batches, Fast-ELECTRA's from second hand. Replaced token detection on such an
# encoder has not been published as far as we know, so nobody has tuned it.
_MODERNBERT_BASE = {
    "architecture": "modernbert",
    "hidden_size": 768, "embedding_size": 768, "num_heads": 12, "intermediate_size": 1152, "dropout": 0.0,
    "sequence_length": 512, "batch_size": 2048, "micro_batch_size": 64, "learning_rate": 8e-4, "weight_decay": 1e-5,
    "warmup_fraction": 0.023, "shard_megabytes": 64.0,
}  # fmt: skip

AUXILIARY_PRESETS: Mapping[str, _Values] = {
    "tiny": {**_TINY, "num_layers": 1, "num_steps": 10, "vocab_size": 512},
    "demo": {**_DEMO, **_PAST_THE_PLATEAU, "num_layers": 2, "num_steps": 700, "vocab_size": 4096},
    "laptop": {**_LAPTOP, **_PAST_THE_PLATEAU, "num_layers": 2, "num_steps": 8000, "vocab_size": 8192},
    "small": {**_SMALL, "num_layers": 4, "num_steps": 500_000, "vocab_size": 30_522},
    "base": {**_BASE, "num_layers": 4, "num_steps": 383_000, "vocab_size": 30_522},
    "large": {**_LARGE, "num_layers": 8, "num_steps": 200_000, "vocab_size": 30_522, "mask_fraction": 0.15},
    "modernbert_base": {
        **_MODERNBERT_BASE, "num_layers": 7, "num_steps": 62_500, "vocab_size": 50_368, "mask_fraction": 0.3,
    },
}  # fmt: skip
# How to fine-tune models of that size; from small on, the recipe knows.
_SCORING: Mapping[str, _Values] = {
    "tiny": {
        "tasks": "sst2,rte", "seeds": 2, "finetune_max_examples": 32, "finetune_epochs": 1.0, "finetune_max_length": 48,
        "keep_task_models": False,
    },
    "demo": {
        "seeds": 2, "finetune_learning_rate": 1e-3, "layer_decay": 1.0, "finetune_epochs": 3.0,
        "finetune_max_length": 64,
    },
    "laptop": {"seeds": 3, "finetune_learning_rate": 1e-3, "layer_decay": 1.0, "finetune_epochs": 3.0},
    "small": {},
    # 0.4 to 1.3 GB a task, in the store and again in MLflow: only where it is asked for.
    "base": {"keep_task_models": False}, "large": {"keep_task_models": False},
    "modernbert_base": {"finetune_recipe": "modernbert", "keep_task_models": False},
}  # fmt: skip
# On GLUE's rte a model of this size is at chance (docs/LOG.md), which is then kept with the version.
_CHANCE_ON_RTE = {"waive_gates": "majority:rte"}
PRETRAIN_PRESETS: Mapping[str, _Values] = {
    "tiny": {
        **_TINY, "num_layers": 2, "num_steps": 10, "max_auxiliary_fraction": 1.0,
        **_SCORING["tiny"], "waive_gates": "majority",
    },
    "demo": {
        **_DEMO, **_SCORING["demo"], "warm_start": "layers", "num_layers": 4, "num_steps": 500,
        "learning_rate": 2e-3,
    },
    "laptop": {
        **_LAPTOP, **_SCORING["laptop"], **_CHANCE_ON_RTE, "warm_start": "layers", "num_layers": 4, "num_steps": 9000,
        "learning_rate": 2e-3,
    },
    "small": {**_SMALL, "num_layers": 12, "num_steps": 1_000_000},
    "base": {**_BASE, **_SCORING["base"], "num_layers": 12, "num_steps": 766_000},
    "large": {**_LARGE, **_SCORING["large"], "num_layers": 24, "num_steps": 400_000},
    "modernbert_base": {
        **_MODERNBERT_BASE, **_SCORING["modernbert_base"], "num_layers": 22, "num_steps": 125_000,
    },
}  # fmt: skip
EVALUATE_PRESETS = _SCORING


def preset_values(name: str, presets: Mapping[str, _Values]) -> dict[str, Any]:
    """A copy of the named preset's values.

    Raises:
        ConfigError: no preset has this name; the nearest right one is offered.
    """
    check_choice("preset", name, presets)
    return dict(presets[name])
