"""The model that the main model starts from, where one is given: fetched, checked before anything costs, and loaded."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import AuxiliaryError, CheckpointError, ConfigError, DataError
from fast_electra_core.initial_model import Start, initial_shape, start_from
from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest
from steps.model_source import (
    check_unmoved,
    check_weights,
    content_key,
    download,
    keep_copy,
    read_config,
    weights_digest,
)
from steps.store import Store

_logger = logging.getLogger(__name__)


def fetch_initial_model(
    config: PretrainConfig, store: Store, *, candidates: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Bring the model that config names into the store and check that the main model can start from it; returns its
    address, key, digest and version, None where none is named. candidates are auxiliary.fetch_candidates'.

    Raises:
        AuxiliaryError, DataError, TrackingError: it is not there, has no safetensors, or wants code of its own run.
        ConfigError: it is of another architecture, size or tokenizer; names the parameters that would fit.
        CheckpointError: its encoder is not whole.
    """
    if not config.initial_model:
        return None
    what = f"initial_model {config.initial_model}"
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        folder, version = download(
            config.initial_model, Path(scratch) / "model", config.tracking_uri, role="initial_model"
        )
        described = read_config(folder, what=what)
        check_weights(folder, what=what)
        _check_tokens(folder, what, vocab_size=described.get("vocab_size"), candidates=candidates, store=store)
        try:
            start = start_from(folder, initial_shape(folder, config), seed=config.seed)
        except (ConfigError, CheckpointError) as error:
            raise type(error)(f"{what} does not fit: {error}") from error
        digest = weights_digest(folder)
        key = content_key("models", folder, digest=digest, tokenizer_digest=candidates[0]["tokenizer_digest"])
        keep_copy(folder, store, key)
    head = "with its RTD head" if start.has_head else "which has no RTD head of ours; a fresh one is made"
    _logger.info("the main model starts from %s (weights %s), %s", config.initial_model, digest, head)
    return {"address": config.initial_model, "key": key, "digest": digest, "registry": version}


def _check_tokens(
    folder: Path, what: str, *, vocab_size: int | None, candidates: Sequence[dict[str, Any]], store: Store
) -> None:
    try:
        digest = tokenizer_digest(load_tokenizer(folder))
    except (AuxiliaryError, DataError) as error:
        raise AuxiliaryError(f"{what} comes without a usable tokenizer: {error}") from error
    ours = candidates[0]["tokenizer_digest"]
    if digest != ours:
        raise ConfigError(
            f"{what} has the tokenizer {digest}, the auxiliary {ours}. Give an --auxiliary with its tokenizer; "
            "`python flows/auxiliary_flow.py run --tokenizer FOLDER` trains one"
        )
    for candidate in candidates:
        needed = read_config(store.get_folder(candidate["key"]), what=candidate["address"])["vocab_size"]
        if (vocab_size or 0) < needed:
            raise ConfigError(
                f"{what} has embeddings for {vocab_size} tokens, auxiliary {candidate['address']} draws from {needed}. "
                "Give another --auxiliary"
            )


def load_initial_model(initial: dict[str, Any], config: PretrainConfig, store: Store) -> Start:
    """The main model that starts from what fetch_initial_model has kept.

    Raises:
        CheckpointError: its weights are not those that were checked.
    """
    folder = check_unmoved(initial, store, what=f"initial_model {initial['address']}")
    return start_from(folder, initial_shape(folder, config), seed=config.seed)
