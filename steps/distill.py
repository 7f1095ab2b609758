"""The larger masked language model that an auxiliary learns from: fetched, checked before anything costs, loaded."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.documents import check_attention
from fast_electra_core.errors import AuxiliaryError, ConfigError
from steps.auxiliary import check_folder, load_masked_lm
from steps.model_source import check_unmoved, content_key, download, keep_copy, weights_digest
from steps.store import Store


def fetch_teacher(config: AuxiliaryConfig, store: Store) -> dict[str, Any] | None:
    """Bring the teacher that config names into the store and check that it can teach; returns its address, key, digest
    and version, None where none is named.

    Raises:
        AuxiliaryError: it could not serve as auxiliary either; see auxiliary.fetch_candidates.
        ConfigError: it cannot attend as the config says.
        DataError, TrackingError: it is not there.
    """
    if not config.distill_from:
        return None
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        address = config.distill_from
        folder, version = download(address, Path(scratch) / "model", config.tracking_uri, role="distill_from")
        try:
            described = check_folder(folder, address=address, sequence_length=config.sequence_length)
            model = load_masked_lm(folder, address=address)  # its weights are complete, and of the right shapes
            check_attention(model, config.attention)
        except (AuxiliaryError, ConfigError) as error:
            raise type(error)(f"distill_from {address} cannot teach: {error}") from error
        digest = weights_digest(folder)
        key = content_key("auxiliaries", folder, digest=digest, tokenizer_digest=described["tokenizer_digest"])
        keep_copy(folder, store, key)
    return {"address": address, "key": key, "digest": digest, "registry": version}


def load_teacher(teacher: dict[str, Any], store: Store) -> PreTrainedModel:
    """The teacher that fetch_teacher has kept.

    Raises:
        CheckpointError: its weights are not those that were checked.
    """
    folder = check_unmoved(teacher, store, what=f"distill_from {teacher['address']}")
    return load_masked_lm(folder, address=teacher["address"])
