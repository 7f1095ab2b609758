"""The loss as others compute it: transformers' modules in a plain loop, and the package electra-pytorch.

Each has joint ELECTRA's generator and discriminator of the shapes given.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ElectraForMaskedLM, ElectraForPreTraining, PretrainedConfig

from fast_electra_core.data import SpecialIds
from fast_electra_core.methods import Batch

Rival = tuple[nn.Module, Callable[[Batch], Tensor]]
"""All that is trained, and its loss on a batch."""
HAS_ELECTRA_PYTORCH = importlib.util.find_spec("electra_pytorch") is not None
HOW_TO_GET_IT = "pip install --no-deps electra-pytorch"
"""Its own requirement, transformers 3.0.2, is for its examples alone."""
_IGNORED = -100


def transformers_loop(shape: PretrainedConfig, generator_shape: PretrainedConfig, *, special_ids: SpecialIds) -> Rival:
    """Logits of all positions, both losses by the models themselves, torch.multinomial at the masked positions."""
    generator, discriminator = ElectraForMaskedLM(generator_shape), ElectraForPreTraining(shape)
    discriminator.electra.embeddings = generator.electra.embeddings  # tied, as ELECTRA has them

    def loss_of(batch: Batch) -> Tensor:
        is_masked = batch.is_selected
        predicted = generator(
            input_ids=batch.input_ids.masked_fill(is_masked, special_ids.mask),
            labels=batch.input_ids.masked_fill(~is_masked, _IGNORED),
        )
        probabilities = predicted.logits[is_masked].detach().softmax(dim=-1)
        corrupted_ids = batch.input_ids.masked_scatter(is_masked, torch.multinomial(probabilities, 1))
        detected = discriminator(input_ids=corrupted_ids, labels=(corrupted_ids != batch.input_ids).long())
        loss: Tensor = predicted.loss + 50.0 * detected.loss
        return loss

    return nn.ModuleList([generator, discriminator]), loss_of


def electra_pytorch(shape: PretrainedConfig, generator_shape: PretrainedConfig, *, special_ids: SpecialIds) -> Rival:
    """`electra_pytorch.Electra` around transformers' encoders, as its README shows it."""
    from electra_pytorch import Electra

    class Logits(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids=input_ids).logits
            return logits

    generator, discriminator = ElectraForMaskedLM(generator_shape), ElectraForPreTraining(shape)
    discriminator.electra.embeddings = generator.electra.embeddings
    both = Electra(
        Logits(generator),
        Logits(discriminator),
        mask_token_id=special_ids.mask,
        pad_token_id=special_ids.pad,
        mask_prob=0.15,
        mask_ignore_token_ids=list(special_ids.all_special),
    )
    return both, lambda batch: both(batch.input_ids).loss
