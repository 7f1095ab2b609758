"""Candidates for the auxiliary: fetched, refused where they cannot serve, scored and priced."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers import logging as transformers_logging

from fast_electra_core.config import PretrainConfig
from fast_electra_core.documents import check_attention
from fast_electra_core.electra import check_shared_embeddings
from fast_electra_core.errors import AuxiliaryError, ConfigError, DataError
from fast_electra_core.evaluation import score_masked_lm, unigram_counts
from fast_electra_core.method_knobs import is_read
from fast_electra_core.model_cost import forward_flops_per_token
from fast_electra_core.models import (
    MASKED_LM_HEADS,
    build_discriminator,
    check_warm_start,
    count_parameters,
    encoder_config,
    freeze,
)
from fast_electra_core.positions import usable_positions
from fast_electra_core.tokenizer import load_tokenizer, num_ids, tokenizer_digest
from steps.dataset import open_dataset
from steps.machine import device
from steps.model_source import check_weights, content_key, download, keep_copy, read_config, weights_digest
from steps.store import Store
from steps.tokenizer import special_ids


def fetch_candidates(config: PretrainConfig, store: Store) -> list[dict[str, Any]]:
    """Bring every candidate into the store and check it; returns address, key, digests, size, price, lineage of each.

    Raises:
        AuxiliaryError: one cannot serve: no masked-LM head, an unknown type, pickled weights, remote code, too few
            positions, or a tokenizer that differs from the first one's. Or all are too dear.
        ConfigError: the main model cannot take over what warm_start says, or cannot share embeddings with a generator
            of this shape where the method wants that; it names the candidate. Or top_k is the whole vocabulary.
    """
    candidates = [_fetch(address, config, store) for address in config.auxiliary_list()]
    first = candidates[0]
    for candidate in candidates[1:]:
        if candidate["tokenizer_digest"] != first["tokenizer_digest"]:
            raise AuxiliaryError(
                f"candidates must share one tokenizer, by content: {candidate['address']} has "
                f"{candidate['tokenizer_digest']}, {first['address']} has {first['tokenizer_digest']}. "
                "Run the flow for each of them"
            )
    check_vocabulary(config, candidates)
    _check_prices(config, candidates)
    return candidates


def _check_prices(config: PretrainConfig, candidates: Sequence[Mapping[str, Any]]) -> None:
    """Some of them, ensemble_size together, may be chosen."""
    least = sum(sorted(candidate["flops_fraction"] for candidate in candidates)[: config.ensemble_size])
    if least <= config.max_auxiliary_fraction or not is_read("max_auxiliary_fraction", config.method):
        return
    prices = "; ".join(f"{candidate['address']}: {candidate['flops_fraction']:.2f}" for candidate in candidates)
    together = f", {config.ensemble_size} of them together" if config.ensemble_size > 1 else ""
    raise AuxiliaryError(
        f"every candidate for the auxiliary is too dear{together}: of the main model's forward FLOPs {prices}; at most "
        f"{config.max_auxiliary_fraction:g} (max_auxiliary_fraction). Name a smaller one with --auxiliary, or give "
        f"--max_auxiliary_fraction {math.ceil(100 * least) / 100:g}"
    )


def too_dear(candidate: Mapping[str, Any], config: PretrainConfig) -> str:
    """Why its price rules the candidate out; empty where it does not."""
    fraction = candidate["flops_fraction"]
    if fraction <= config.max_auxiliary_fraction or not is_read("max_auxiliary_fraction", config.method):
        return ""  # there it has no work
    return (
        f"too dear: {fraction:.2f} of the main model's forward FLOPs, at most {config.max_auxiliary_fraction:g} "
        "(max_auxiliary_fraction)"
    )


def check_vocabulary(config: PretrainConfig, candidates: Sequence[Mapping[str, Any]]) -> None:
    """The candidates' vocabularies suit what is to be done with their output.

    Raises:
        AuxiliaryError: an ensemble of different ones.
        ConfigError: top_k that leaves nothing out.
    """
    sizes = {candidate["address"]: candidate["vocab_size"] for candidate in candidates}
    if config.ensemble_size > 1 and len(set(sizes.values())) > 1:
        raise AuxiliaryError(
            f"candidates of an ensemble must have logits for equally many tokens, got {sizes}. Leave some out, or give "
            "--ensemble_size 1"
        )
    least = min(sizes.values())
    if config.top_k is not None and config.top_k >= least:
        raise ConfigError(
            f"top_k must be below the {least} tokens of the vocabulary, got {config.top_k}; or leave it out"
        )


def _fetch(address: str, config: PretrainConfig, store: Store) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        folder, version = download(address, Path(scratch) / "model", config.tracking_uri, role="auxiliary")
        described = check_folder(folder, address=address, sequence_length=config.sequence_length)
        model = load_masked_lm(folder, address=address)  # its weights are complete, and of the right shapes
        try:
            _check_fit(config, model, folder=folder)
        except ConfigError as error:
            raise ConfigError(f"auxiliary {address}: {error}") from error
        digest = weights_digest(folder)
        key = content_key("auxiliaries", folder, digest=digest, tokenizer_digest=described["tokenizer_digest"])
        keep_copy(folder, store, key)
        tokenizer_key = f"tokenizers/{described['tokenizer_digest']}"
        if not store.has(tokenizer_key):
            load_tokenizer(folder).save_pretrained(Path(scratch) / "tokenizer")
            store.put_folder(Path(scratch) / "tokenizer", tokenizer_key)
    discriminator = outline(config, vocab_size=model.config.vocab_size, folder=store.get_folder(tokenizer_key))
    described |= {"vocab_size": model.config.vocab_size, **_price(model, discriminator, config)}
    return {"address": address, "key": key, "digest": digest, "registry": version, **described}


def check_folder(folder: Path, *, address: str, sequence_length: int) -> dict[str, Any]:
    """What the files say about a candidate, without loading its weights.

    Raises:
        AuxiliaryError: see fetch_candidates.
    """
    config = read_config(folder, what=f"auxiliary {address}")
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if model_type not in MASKED_LM_HEADS:
        raise AuxiliaryError(
            f"auxiliary {address} is of type {model_type!r}; those that can serve are {', '.join(MASKED_LM_HEADS)}"
        )
    if not any(name.endswith("ForMaskedLM") for name in architectures):
        raise AuxiliaryError(
            f"auxiliary {address} has no masked-LM head: its config names {', '.join(architectures) or 'no class'}, "
            "a ...ForMaskedLM is needed"
        )
    check_weights(folder, what=f"auxiliary {address}")
    usable = usable_positions(config)
    if usable is not None and usable < sequence_length:
        raise AuxiliaryError(
            f"auxiliary {address} has {usable} positions, fewer than sequence_length {sequence_length}"
        )
    try:
        tokenizer = load_tokenizer(folder)
    except DataError as error:
        raise AuxiliaryError(f"auxiliary {address} comes without a usable tokenizer: {error}") from error
    if num_ids(tokenizer) > config["vocab_size"]:
        raise AuxiliaryError(
            f"auxiliary {address} has logits for {config['vocab_size']} tokens, but its tokenizer has "
            f"{num_ids(tokenizer)}"
        )
    return {"model_type": model_type, "tokenizer_digest": tokenizer_digest(tokenizer)}


def load_masked_lm(folder: Path, *, address: str = "") -> PreTrainedModel:
    """The masked language model in a folder, from safetensors alone, running no code of its own.

    Raises:
        AuxiliaryError: weights are missing, of other shapes, or unreadable.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model, loaded = AutoModelForMaskedLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise AuxiliaryError(f"auxiliary {address or folder} cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(loaded["missing_keys"])
    if missing:
        hint = ""
        if any(name.startswith("lm_predictions.") for name in loaded["unexpected_keys"]):
            hint = '. Those that it has are of DeBERTa\'s own head: put "legacy": false into its config.json'
        raise AuxiliaryError(
            f"auxiliary {address or folder} lacks weights of its masked-LM: {', '.join(missing[:4])} ({len(missing)})"
            f"{hint}"
        )
    return model


def score_candidate(
    candidate: dict[str, Any], config: dict[str, Any], *, shard_keys: Sequence[str], store: Store
) -> dict[str, Any]:
    """The candidate with its held-out scores; `reason` says why if it is not eligible."""
    settings = PretrainConfig.from_dict(config)
    tokenizer_key = f"tokenizers/{candidate['tokenizer_digest']}"
    folders = {"shard_keys": shard_keys, "tokenizer_key": tokenizer_key, "store": store}
    heldout = open_dataset("heldout", settings, **folders)  # type: ignore[arg-type]
    train = open_dataset("train", settings, **folders)  # type: ignore[arg-type]
    model = load_masked_lm(store.get_folder(candidate["key"]), address=candidate["address"])
    freeze(model.to(device()))
    scores = score_masked_lm(model, heldout, counts=unigram_counts(train, model.config.vocab_size))
    reason = too_dear(candidate, settings)
    return {**candidate, **scores._asdict(), "ok": not reason, "reason": reason}


def _price(model: PreTrainedModel, discriminator: PreTrainedModel, config: PretrainConfig) -> dict[str, Any]:
    """Sizes, and FLOPs of forward passes."""
    length = config.sequence_length
    flops = forward_flops_per_token(model, sequence_length=length, head_fraction=config.mask_fraction)
    main_flops = forward_flops_per_token(discriminator, sequence_length=length)
    return {
        "num_layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "num_parameters": count_parameters(model),
        "flops_per_token": flops,
        "discriminator_flops_per_token": main_flops,
        "flops_fraction": flops / main_flops,
    }


def _check_fit(config: PretrainConfig, masked_lm: PreTrainedModel, *, folder: Path) -> None:
    check_attention(masked_lm, config.attention)
    if config.warm_start == "none" and config.method != "electra_gdes":
        return
    discriminator = outline(config, vocab_size=masked_lm.config.vocab_size, folder=folder)
    if config.warm_start != "none":
        check_warm_start(discriminator, masked_lm, with_layers=config.warm_start == "layers")
    if config.method == "electra_gdes":
        check_shared_embeddings(discriminator, masked_lm)


def outline(config: PretrainConfig, *, vocab_size: int, folder: Path) -> PreTrainedModel:
    """The main model without its weights; folder holds the tokenizer."""
    with torch.device("meta"):
        return build_discriminator(
            encoder_config(config, vocab_size=vocab_size, special_ids=special_ids(folder)), seed=config.seed
        )
