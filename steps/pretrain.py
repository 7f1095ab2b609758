"""Pre-training as a step of a flow: the models out of the store, what is trained built of them, and kept."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from fast_electra_core.auxiliary_building import auxiliary_method, build_auxiliary
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.corruption_store import StoredSamples, maker
from fast_electra_core.data import SpecialIds, TokenDataset
from fast_electra_core.evaluation import heldout_masked_scores, score_detector, score_masked_lm, unigram_counts
from fast_electra_core.method_building import (
    AnyMethod,
    build_frozen,
    build_generator,
    build_main_model,
    build_method,
    build_model_free,
    corrupt_for_scoring,
)
from fast_electra_core.method_knobs import MODEL_FREE
from fast_electra_core.methods import MaskedLanguageModel
from fast_electra_core.models import set_output_bias, warm_start
from fast_electra_core.proposals import Proposal
from fast_electra_core.tokenizer import load_tokenizer, num_ids
from fast_electra_core.trainer import Row
from steps.corruption_plan import identity_of, range_key, range_of
from steps.distill import load_teacher
from steps.frozen import load_members
from steps.initial_model import load_initial_model
from steps.machine import device
from steps.training_run import TrainingRun, save_model, train_in_run

_logger = logging.getLogger(__name__)


def train_auxiliary(
    config: AuxiliaryConfig, run: TrainingRun, *, teacher: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a masked language model; returns its key in the store, digest, curves and scores.

    teacher is fetch_teacher's; the model gets its vocabulary.

    Raises:
        CheckpointError: the newest checkpoint is of another run, for instance of one with another teacher.
    """
    dataset, heldout = run.dataset("train", config), run.dataset("heldout", config)
    larger = None
    vocab_size = num_ids(load_tokenizer(run.store.get_folder(run.tokenizer_key)))
    if teacher:  # the weights, not their address, are what a checkpoint must agree with
        config = replace(config, distill_from=teacher["digest"])
        larger = load_teacher(teacher, run.store).to(device())
        vocab_size = larger.config.vocab_size  # it may have more logits than its tokenizer has tokens
    counts = unigram_counts(dataset, vocab_size)
    model = build_auxiliary(config, dataset, counts).to(device())
    method = auxiliary_method(config, model, larger, mask_token_id=dataset.special_ids.mask)

    def evaluate() -> Row:
        return heldout_masked_scores(method, heldout, counts=counts)

    result = train_in_run(method, dataset, config, run, evaluate=evaluate, label="auxiliary")
    return result and {
        **result,
        **save_model(model, run, "auxiliary"),
        "scores": score_masked_lm(model, heldout, counts=counts)._asdict(),
        "num_tokens": config.num_steps * config.batch_size * config.sequence_length,
    }


def train_discriminator(
    config: PretrainConfig,
    run: TrainingRun,
    *,
    auxiliary: dict[str, Any],
    corruption: dict[str, Any],
    initial_model: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the main model by config.method; returns its key in the store, digest, curves and scores.

    corruption is corruption_plan.summarise's. Where it was drawn ahead, the auxiliary is in memory while the main model
    is set up and while held-out text is scored, not while it trains. initial_model is fetch_initial_model's.

    Raises:
        CheckpointError: the newest checkpoint is of another run, for instance of one that started from other weights.
    """
    if initial_model:  # the weights, not their address, are what a checkpoint must agree with
        config = replace(config, initial_model=initial_model["digest"])
    dataset, heldout = run.dataset("train", config), run.dataset("heldout", config)

    def method_on(drawn_from: Proposal | PreTrainedModel | None) -> AnyMethod:
        return build_method(config, main_model, drawn_from, mask_token_id=dataset.special_ids.mask).to(device())

    is_offline = config.corruption == "offline"
    if is_offline:
        run = replace(run, samples=_stored_samples(config, run, auxiliary))
        _mention_other_devices(corruption["devices"])
    counts = functools.cache(functools.partial(unigram_counts, dataset))  # for some methods only: reads all the text
    initial = load_initial_model(initial_model, config, run.store).model if initial_model else None
    members = load_members(auxiliary, run.store)
    main_model = _start_main_model(config, members[0], dataset.special_ids, counts=counts, initial_model=initial)
    partner = functools.partial(partner_of, config, run, dataset=dataset, counts=counts)
    method = method_on(None if is_offline else partner(members=members))
    del members

    def evaluate() -> Row:
        scored = method_on(partner(members=load_members(auxiliary, run.store))) if is_offline else method
        if isinstance(scored, MaskedLanguageModel):
            return heldout_masked_scores(scored, heldout, counts=counts(main_model.config.vocab_size))
        corrupt = corrupt_for_scoring(scored)
        return score_detector(scored, heldout, corrupt=corrupt, mask_fraction=config.mask_fraction)

    result = train_in_run(method, dataset, config, run, evaluate=evaluate, label="pre-training")
    method.finish()
    return result and {
        **result,
        **save_model(main_model, run, "masked_lm" if config.method == "mlm" else "discriminator"),
        "scores": evaluate(),
    }


def _start_main_model(
    config: PretrainConfig,
    auxiliary: PreTrainedModel,
    special_ids: SpecialIds,
    *,
    counts: Callable[[int], npt.NDArray[np.int64]],
    initial_model: PreTrainedModel | None,
) -> PreTrainedModel:
    """The main model at its start; counts: the training text's unigram counts, by vocabulary size; initial_model: the
    main model, where it is given."""
    vocab_size = auxiliary.config.vocab_size
    main_model = initial_model or build_main_model(config, vocab_size=vocab_size, special_ids=special_ids)
    if config.warm_start != "none":
        warm_start(main_model, auxiliary, with_layers=config.warm_start == "layers")
    if config.method == "mlm":
        set_output_bias(main_model, counts(vocab_size))
    return main_model


def partner_of(
    config: PretrainConfig,
    run: TrainingRun,
    *,
    members: Sequence[PreTrainedModel],
    dataset: TokenDataset,
    counts: Callable[[int], npt.NDArray[np.int64]],
) -> Proposal | PreTrainedModel | None:
    """What replaces tokens for the main model in training, if anything does: members are the auxiliary's."""
    if config.method == "mlm":
        return None
    if config.method == "fast_electra":
        return build_frozen(config, [model.to(device()) for model in members], dataset, counts=counts)
    if config.method in MODEL_FREE:
        tokenizer = load_tokenizer(run.store.get_folder(run.tokenizer_key))
        return build_model_free(config, dataset, num_ids=num_ids(tokenizer), counts=counts)
    return build_generator(members[0], counts(members[0].config.vocab_size), seed=config.seed + 1)


def corruption_identity(config: PretrainConfig, run: TrainingRun, auxiliary: dict[str, Any]) -> dict[str, Any]:
    """What the replacements of the run's steps are a function of."""
    return identity_of(
        config, shard_keys=run.shard_keys, tokenizer_key=run.tokenizer_key, auxiliary_digest=auxiliary["digest"]
    )


def _stored_samples(config: PretrainConfig, run: TrainingRun, auxiliary: dict[str, Any]) -> StoredSamples:
    identity = corruption_identity(config, run, auxiliary)
    return StoredSamples(
        lambda step: run.store.get_folder(range_key(identity, range_of(step, config))), identity=identity
    )


def _mention_other_devices(devices: Sequence[str]) -> None:
    ours = maker(device())["device"]
    others = [name for name in devices if name != ours]
    if others:
        _logger.info(
            "corruption was drawn on %s, training is on %s: a few of the samples may not be those of online corruption",
            ", ".join(others), ours,
        )  # fmt: skip
