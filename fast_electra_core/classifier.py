"""A classifier on a saved encoder: every encoder weight must be there, and its head follows from the seed."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from fast_electra_core.errors import CheckpointError
from fast_electra_core.quiet import quiet


def build_classifier(encoder_folder: Path, *, num_labels: int, seed: int, untrained: bool = False) -> PreTrainedModel:
    """A sequence classifier on the encoder saved in the folder, its new head a function of the seed.

    untrained: the same architecture, freshly initialised. Only safetensors are read, no remote code is run.

    Raises:
        CheckpointError: no usable config or safetensors; encoder weights missing or unknown.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            config = AutoConfig.from_pretrained(encoder_folder, num_labels=num_labels, trust_remote_code=False)
            # Whatever type it was saved in: AdamW's small steps would round away in half precision.
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False, dtype=torch.float32)
            if untrained:
                return model
            loaded, report = AutoModelForSequenceClassification.from_pretrained(
                encoder_folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                # ModernBERT's detector has a head of the classifier's name and of another width.
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{encoder_folder} holds no encoder that can be fine-tuned: {error}") from error
    prefix = f"{model.base_model_prefix}."
    for kind, words in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "has wrongly shaped"),
    ):
        keys = [key if isinstance(key, str) else key[0] for key in report[kind]]  # a mismatch comes with its shapes
        # A pooler belongs to the head: pre-training by masked words or by detection has none.
        names = sorted(n for n in keys if n.startswith(prefix) and not n.startswith(f"{prefix}pooler."))
        if names:
            raise CheckpointError(f"{encoder_folder} {words} encoder weights {', '.join(names[:5])} ({len(names)})")
    # The encoder alone: whatever head the file had stays behind.
    model.base_model.load_state_dict(loaded.base_model.state_dict())
    return model
