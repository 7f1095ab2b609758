"""From a config to the models and the method that train under it, all weights a function of the seed and the text."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from fast_electra_core.bigrams import count_bigrams
from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption import Corruption
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.data import SpecialIds, TokenDataset
from fast_electra_core.electra import DecoupledElectra, DisentangledElectra, Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.method_knobs import FIXED
from fast_electra_core.methods import Batch, MaskedLanguageModel
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config, set_output_bias
from fast_electra_core.proposals import (
    BigramProposal,
    FrozenMaskedLm,
    Proposal,
    UniformProposal,
    UnigramProposal,
    unigram_distribution,
)

AnyMethod = FastElectra | Electra | MaskedLanguageModel
Counts = npt.NDArray[np.int64]


def build_main_model(config: PretrainConfig, *, vocab_size: int, special_ids: SpecialIds) -> PreTrainedModel:
    """The model that config.method trains and delivers: an encoder with an RTD head, for mlm with a vocabulary head."""
    shape = encoder_config(config, vocab_size=vocab_size, special_ids=special_ids)
    build = build_masked_lm if config.method == "mlm" else build_discriminator
    return build(shape, seed=config.seed)


def build_generator(auxiliary: PreTrainedModel, counts: Counts, *, seed: int) -> PreTrainedModel:
    """A masked language model of the auxiliary's shape, from a random start of its own.

    Like an auxiliary it begins as the unigram model of the training text, whose counts are (V,).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator: PreTrainedModel = type(auxiliary)(auxiliary.config)
    set_output_bias(generator, counts)
    return generator


def build_frozen(
    config: PretrainConfig, models: Sequence[PreTrainedModel], dataset: TokenDataset, *, counts: Callable[[int], Counts]
) -> FrozenMaskedLm:
    """What fast_electra draws replacements from: the auxiliary's models, frozen here.

    counts: the training text's unigram counts, by vocabulary size; asked for only where config mixes them in.
    """
    unigram, special_ids = None, dataset.special_ids
    if config.unigram_share:
        unigram = unigram_distribution(counts(models[0].config.vocab_size), never=special_ids.all_special)
    return FrozenMaskedLm(models, mask_token_id=special_ids.mask, unigram=unigram)


def build_model_free(
    config: PretrainConfig, dataset: TokenDataset, *, num_ids: int, counts: Callable[[int], Counts]
) -> Proposal:
    """What the methods without a model draw replacements from; num_ids is the tokenizer's length, counts as above.

    Raises:
        DataError: the text, or the vocabulary, holds no ordinary token.
    """
    never = dataset.special_ids.all_special
    if config.method == "uniform":
        return UniformProposal(vocab_size=num_ids, never=never)
    unigram = UnigramProposal(counts(num_ids), never=never)
    if config.method == "unigram":
        return unigram
    return BigramProposal(count_bigrams(dataset.streams, vocab_size=num_ids, never=never), unigram)


def build_method(
    config: PretrainConfig,
    main_model: PreTrainedModel,
    partner: Proposal | PreTrainedModel | None,
    *,
    mask_token_id: int,
) -> AnyMethod:
    """config.method on built models, which it may change; call `.to(device)` afterwards, not before.

    partner: what fast_electra and the methods without a model draw from (None where that is done ahead), or the
    generator of a joint method; mlm wants none.
    """
    if config.method == "mlm":
        return MaskedLanguageModel(main_model, mask_token_id=mask_token_id)
    if config.method in FIXED:
        is_smoothed = config.method == "fast_electra"
        # Of the auxiliary: a main model that goes on from another may have a larger one.
        vocab_size = (partner.models[0] if isinstance(partner, FrozenMaskedLm) else main_model).config.vocab_size
        return FastElectra(
            main_model,
            partner,
            curriculum=curriculum_of(config, vocab_size=vocab_size) if is_smoothed else None,
            rtd_weight=config.rtd_weight,
            soft_target_share=config.soft_target_share,
            consistency_weight=config.consistency_weight,
        )
    assert isinstance(partner, PreTrainedModel)  # the config refuses corruption ahead of training
    if config.method == "electra":
        return Electra(main_model, partner, rtd_weight=config.rtd_weight, mask_token_id=mask_token_id)
    apart = DisentangledElectra if config.method == "electra_gdes" else DecoupledElectra
    return apart(
        main_model,
        partner,
        rtd_weight=config.rtd_weight,
        mask_token_id=mask_token_id,
        generator_rate_factor=generator_rate_factor(config),
    )


def generator_rate_factor(config: PretrainConfig) -> float:
    """The generator's learning rate over the main model's."""
    if config.generator_learning_rate is None:
        return 1.0
    return config.generator_learning_rate / config.learning_rate


def curriculum_of(config: PretrainConfig, *, vocab_size: int) -> Curriculum:
    """The curriculum that a config describes, for an auxiliary of that vocabulary."""
    return Curriculum(
        config.schedule,
        config.temperature_start,
        config.temperature_decay,
        config.temperature_end,
        dropout=config.auxiliary_dropout,
        unigram_share=config.unigram_share,
        top_k=config.top_k,
        top_p=config.top_p,
        vocab_size=vocab_size,
    )


def corrupt_for_scoring(method: FastElectra | Electra) -> Callable[[Batch], Corruption]:
    """How held-out text is corrupted: as at the end of the curriculum, or by the generator at temperature 1."""
    if isinstance(method, FastElectra):
        return functools.partial(method.corrupt, smoothing=method.last_smoothing)
    return functools.partial(method.corrupt, temperature=1.0)
