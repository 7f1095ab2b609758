"""The loss curve of every arm of the comparisons, at toy size: `python tests/golden_curves.py` writes them anew.

They are not a proof that a curve is right: other tests are, against independent oracles. They say when one has moved,
so that no change of an arm, its data order or its random numbers goes unnoticed (docs/decisions/0013).
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toys import SPECIAL_IDS, dataset_of, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core.arms import COMPARISONS, CompareConfig, list_arms
from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.method_building import (
    build_frozen,
    build_generator,
    build_main_model,
    build_method,
    build_model_free,
)
from fast_electra_core.method_knobs import MODEL_FREE
from fast_electra_core.trainer import Hooks, train

Place = Callable[[Any], Any]
CURVES = Path(__file__).with_suffix(".json")
VOCAB_SIZE = 40
SETTINGS: dict[str, Any] = {
    "num_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_heads": 2, "intermediate_size": 24, "dropout": 0.1,
    "sequence_length": 16, "batch_size": 8, "num_steps": 12, "learning_rate": 5e-3,
    "log_every_steps": 3, "checkpoint_every_steps": 12, "precision": "fp32", "pretrain_seeds": 1,
    "mask_fraction": 0.25, "seed": 3, "max_auxiliary_fraction": 1.0,
}  # fmt: skip
OPTIONS = "; ".join(
    (
        "soft_targets: soft_target_share=0.5", "consistency: consistency_weight=100", "keep: keep_fraction=0.15",
        "gentle_generator: method=electra_decoupled, generator_learning_rate=0.001",
    )
)  # fmt: skip

DISTINCT = [
    "fast_electra", "electra", "electra_gdes", "mlm", "uniform", "unigram", "bigram", "dropout", "unigram_mix",
    "top_k", "top_p", "soft_targets", "consistency", "keep",
]  # fmt: skip
"""Arms that compute something different, without those that differ from one of these in a number."""


def golden_arms() -> dict[str, PretrainConfig]:
    """Every arm of the comparisons without a grid, and one for each option that is off by default, by name."""
    given = [{"comparison": name} for name, comparison in COMPARISONS.items() if not comparison.grid]
    configs = [CompareConfig(**SETTINGS, **each) for each in [*given, {"arms": OPTIONS}]]
    return {arm.name: config.of_arm(arm) for config in configs for arm in list_arms(config)}


def curve(config: PretrainConfig, dataset: TokenDataset, folder: Path) -> list[float]:
    """The mean losses of the windows of steps between two rows of its log."""
    rows: list[dict[str, float]] = []
    hooks = Hooks(on_metrics=rows.append)
    train(build_arm(config, dataset), dataset, config=config, checkpoints=folder, hooks=hooks)
    return [row["loss"] for row in rows]


def build_arm(config: PretrainConfig, dataset: TokenDataset, *, place: Place = lambda model: model) -> Any:
    """The arm's method; `place` puts a model where it is to run."""
    main_model = build_main_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    partner = _partner(config, dataset, place)
    return place(build_method(config, main_model, partner, mask_token_id=SPECIAL_IDS.mask))


def _partner(config: PretrainConfig, dataset: TokenDataset, place: Place) -> Any:
    counts = np.bincount(np.concatenate(dataset.streams), minlength=VOCAB_SIZE).astype(np.int64)
    if config.method == "mlm":
        return None
    if config.method in MODEL_FREE:
        return build_model_free(config, dataset, num_ids=VOCAB_SIZE, counts=lambda size: counts)
    torch.manual_seed(7)
    auxiliary = ElectraForMaskedLM(electra_config(VOCAB_SIZE, dropout=0.1))
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # else every token would be as likely as another
    if config.method == "fast_electra":
        return build_frozen(config, [place(auxiliary)], dataset, counts=lambda size: counts)
    return build_generator(auxiliary, counts, seed=config.seed)


def golden_dataset(folder: Path) -> TokenDataset:
    """Text in which each token has four successors, the likelier the lower: there is something to learn."""
    rng = np.random.default_rng(11)
    successors = rng.integers(5, VOCAB_SIZE, (VOCAB_SIZE, 4))
    documents = []
    for _ in range(40):
        tokens = [int(rng.integers(5, VOCAB_SIZE))]
        for _ in range(60):
            tokens.append(int(successors[tokens[-1], rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))]))
        documents.append(np.array(tokens))
    return dataset_of(folder, documents, vocab_size=VOCAB_SIZE, sequence_length=SETTINGS["sequence_length"])


def main() -> None:
    """Write all curves."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        dataset = golden_dataset(Path(root) / "shard")
        curves = {name: curve(config, dataset, Path(root) / name) for name, config in golden_arms().items()}
    lines = [f' "{name}": {json.dumps([round(loss, 5) for loss in losses])}' for name, losses in curves.items()]
    CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
