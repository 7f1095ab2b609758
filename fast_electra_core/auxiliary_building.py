"""From a config and its text to the masked language model that trains under it, and to how it trains.

Shapes: V vocabulary.
"""

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.cooccurrence import cooccurrence_embeddings
from fast_electra_core.data import TokenDataset
from fast_electra_core.distillation import DistilledMaskedLM
from fast_electra_core.methods import MaskedLanguageModel
from fast_electra_core.models import build_masked_lm, encoder_config, set_embeddings, set_output_bias


def build_auxiliary(config: AuxiliaryConfig, dataset: TokenDataset, counts: npt.NDArray[np.int64]) -> PreTrainedModel:
    """A masked language model before its first step, its weights a function of the seed and the text.

    counts are the text's unigram counts (V,); V is the model's vocabulary.
    """
    vocab_size = len(counts)
    model = build_masked_lm(
        encoder_config(config, vocab_size=vocab_size, special_ids=dataset.special_ids), seed=config.seed
    )
    set_output_bias(model, counts)
    if config.embedding_init == "cooccurrence":
        embeddings = cooccurrence_embeddings(dataset.streams, vocab_size=vocab_size, width=config.embedding_size)
        set_embeddings(model, torch.from_numpy(embeddings))
    return model


def auxiliary_method(
    config: AuxiliaryConfig, model: PreTrainedModel, teacher: PreTrainedModel | None, *, mask_token_id: int
) -> MaskedLanguageModel:
    """How the model trains: on the text, and from the teacher if there is one."""
    if teacher is None:
        return MaskedLanguageModel(model, mask_token_id=mask_token_id)
    return DistilledMaskedLM(
        model,
        teacher,
        share=config.distill_share,
        temperature=config.distill_temperature,
        mask_token_id=mask_token_id,
    )
