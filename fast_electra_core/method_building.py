"""From a config to the models and the method that train under it, all weights a function of the seed and the text."""

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import SpecialIds
from fast_electra_core.electra import DecoupledElectra, DisentangledElectra, Electra
from fast_electra_core.methods import FastElectra, MaskedLanguageModel, Temperature
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config, set_output_bias

AnyMethod = FastElectra | Electra | MaskedLanguageModel


def build_main_model(config: PretrainConfig, *, vocab_size: int, special_ids: SpecialIds) -> PreTrainedModel:
    """The model that config.method trains and delivers: an encoder with an RTD head, for mlm with a vocabulary head."""
    shape = encoder_config(config, vocab_size=vocab_size, special_ids=special_ids)
    build = build_masked_lm if config.method == "mlm" else build_discriminator
    return build(shape, seed=config.seed)


def build_generator(auxiliary: PreTrainedModel, counts: npt.NDArray[np.int64], *, seed: int) -> PreTrainedModel:
    """A masked language model of the auxiliary's shape, from a random start of its own.

    Like an auxiliary it begins as the unigram model of the training text, whose counts are (V,).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator: PreTrainedModel = type(auxiliary)(auxiliary.config)
    set_output_bias(generator, counts)
    return generator


def build_method(
    config: PretrainConfig, main_model: PreTrainedModel, masked_lm: PreTrainedModel | None, *, mask_token_id: int
) -> AnyMethod:
    """config.method on built models, which it may change; call `.to(device)` afterwards, not before.

    masked_lm: fast_electra's auxiliary (None where replacements are drawn ahead), or the generator of a joint method;
    mlm wants none.
    """
    if config.method == "mlm":
        return MaskedLanguageModel(main_model, mask_token_id=mask_token_id)
    if config.method == "fast_electra":
        return FastElectra(
            main_model,
            masked_lm,
            temperature=temperature_of(config),
            rtd_weight=config.rtd_weight,
            mask_token_id=mask_token_id,
        )
    assert masked_lm is not None  # the config refuses corruption ahead of training
    if config.method == "electra":
        return Electra(main_model, masked_lm, rtd_weight=config.rtd_weight, mask_token_id=mask_token_id)
    apart = DisentangledElectra if config.method == "electra_gdes" else DecoupledElectra
    return apart(
        main_model,
        masked_lm,
        rtd_weight=config.rtd_weight,
        mask_token_id=mask_token_id,
        generator_rate_factor=generator_rate_factor(config),
    )


def generator_rate_factor(config: PretrainConfig) -> float:
    """The generator's learning rate over the main model's."""
    if config.generator_learning_rate is None:
        return 1.0
    return config.generator_learning_rate / config.learning_rate


def temperature_of(config: PretrainConfig) -> Temperature:
    """The schedule that a config describes."""
    return Temperature(config.schedule, config.temperature_start, config.temperature_decay, config.temperature_end)
