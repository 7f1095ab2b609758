"""Toy models, ids and data that several test files build."""

import functools
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, PreTrainedModel

from fast_electra_core.corruption import Corruption
from fast_electra_core.curriculum import Curriculum, Smoothing
from fast_electra_core.data import SpecialIds, TokenDataset
from fast_electra_core.electra import DecoupledElectra, DisentangledElectra, Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.methods import Batch, MaskedLanguageModel
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.sample_tasks import sample_task
from fast_electra_core.token_shards import Ids, write_shard
from fast_electra_core.tokenizer import train_tokenizer

MASK = 4
SPECIAL_IDS = SpecialIds(cls=2, sep=3, mask=MASK, pad=0, all_special=(0, 1, 2, 3, 4))
FALLING = Curriculum("exponential", 2.0, 0.1, 1.0)
METHODS = ["masked_lm", "fast_electra", "electra", "electra_decoupled", "electra_gdes"]


def electra_config(vocab_size: int, *, dropout: float = 0.0, **changes: Any) -> ElectraConfig:
    """One layer of width 8 with two heads."""
    shape = {"embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 12, "max_position_embeddings": 16}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return ElectraConfig(**{"vocab_size": vocab_size, **shape, **dropouts, **changes})


JOINT = {"electra": Electra, "electra_decoupled": DecoupledElectra, "electra_gdes": DisentangledElectra}


def method_of(
    name: str,
    discriminator: PreTrainedModel,
    masked_lm: PreTrainedModel,
    *,
    curriculum: Curriculum = FALLING,
    **more: Any,
) -> Any:
    """One of METHODS, as its paper weighs the losses."""
    if name == "masked_lm":
        return MaskedLanguageModel(masked_lm, mask_token_id=MASK)
    if name == "fast_electra":
        proposal = FrozenMaskedLm([masked_lm], mask_token_id=MASK)
        return FastElectra(discriminator, proposal, curriculum=curriculum, rtd_weight=50.0, **more)
    return JOINT[name](discriminator, masked_lm, rtd_weight=50.0, mask_token_id=MASK, **more)


def corrupt_at(method: Any, temperature: float) -> Callable[[Batch], Corruption]:
    """How a method of replaced token detection corrupts a batch at that temperature."""
    if isinstance(method, FastElectra):
        return functools.partial(method.corrupt, smoothing=Smoothing(temperature))
    return functools.partial(method.corrupt, temperature=temperature)


def dataset_of(folder: Path, documents: Iterable[Ids], *, vocab_size: int, sequence_length: int) -> TokenDataset:
    """The documents written as one shard into the folder, all of them for training."""
    folder.mkdir(exist_ok=True)
    write_shard(folder, documents, separator_id=3, unknown_id=1, vocab_size=vocab_size, heldout_fraction=0.0)
    return TokenDataset([folder], "train", sequence_length=sequence_length, special_ids=SPECIAL_IDS)


def save_auxiliary(folder: Path, documents: Iterable[str]) -> Path:
    """An untrained masked language model of one layer, with a tokenizer that knows the documents."""
    tokenizer = train_tokenizer(iter(documents), vocab_size=300)
    tokenizer.save_pretrained(folder)
    ElectraForMaskedLM(electra_config(len(tokenizer), max_position_embeddings=512)).save_pretrained(folder)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """The weights in the folder are what change makes of them, in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def save_detector(folder: Path, **shape: Any) -> Path:
    """An untrained detector, of width 32 if no shape is given, with a tokenizer that knows the sample task sst2."""
    tokenizer = train_tokenizer((example.text_a for example in sample_task("sst2").train), vocab_size=300)
    tokenizer.save_pretrained(folder)
    sizes = {"embedding_size": 16, "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 512}
    torch.manual_seed(1)
    config = electra_config(len(tokenizer), dropout=0.1, **{**sizes, **shape})
    ElectraForPreTraining(config).save_pretrained(folder)
    return folder


class Terminal(io.StringIO):
    """Takes what a progress bar draws; `shown` has it once the bar is closed."""

    shown = ""

    def close(self) -> None:
        self.shown = self.getvalue()
        super().close()
