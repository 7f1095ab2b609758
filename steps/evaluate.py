"""Any encoder as something to score: a registered version, a folder, S3 or the hub."""

import tempfile
from pathlib import Path
from typing import Any

from fast_electra_core.classifier import build_classifier
from fast_electra_core.config import EvaluateConfig
from fast_electra_core.errors import AuxiliaryError, ConfigError, DataError
from fast_electra_core.positions import usable_positions
from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest
from steps.model_source import check_weights, content_key, download, keep_copy, read_config, weights_digest
from steps.store import Store


def fetch_model(config: EvaluateConfig, store: Store) -> dict[str, Any]:
    """Bring the model into the store and check that it can be fine-tuned; its address, key, digests and version.

    Raises:
        AuxiliaryError: no config, weights only as a pickle, code of its own, or no usable tokenizer.
        CheckpointError: no encoder that can be fine-tuned; says which weights are missing.
        ConfigError: fewer positions than finetune_max_length.
    """
    what = f"model {config.model}"
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        folder, version = download(config.model, Path(scratch) / "model", config.tracking_uri, role="model")
        described = read_config(folder, what=what)
        check_weights(folder, what=what)
        positions = usable_positions(described)
        if positions is not None and positions < config.finetune_max_length:
            raise ConfigError(
                f"finetune_max_length must be <= {positions}, the positions of {config.model}, got "
                f"{config.finetune_max_length}"
            )
        try:
            tokenizer = load_tokenizer(folder)
        except DataError as error:
            raise AuxiliaryError(f"{what} comes without a usable tokenizer: {error}") from error
        model = build_classifier(folder, num_labels=2, seed=0)  # its weights are complete, and of the right shapes
        digest = weights_digest(folder)
        key = content_key("models", folder, digest=digest, tokenizer_digest=tokenizer_digest(tokenizer))
        keep_copy(folder, store, key)
    return {
        "address": config.model,
        "key": key,
        "digest": digest,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "model_type": described.get("model_type"),
        "num_parameters": sum(parameter.numel() for parameter in model.base_model.parameters()),
        "version": f"{version['name']}/{version['version']}" if version else "not registered",
    }
