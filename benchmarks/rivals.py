"""A step as others take it: transformers' modules in a plain loop, and the package electra-pytorch.

Each has joint ELECTRA's generator and discriminator of the shapes given, in float32 without dropout, and the optimizer
that its users would take, torch's AdamW as it is.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ElectraForMaskedLM, ElectraForPreTraining, PretrainedConfig

from fast_electra_core.methods import Batch

Step = Callable[[Batch], None]
HAS_ELECTRA_PYTORCH = importlib.util.find_spec("electra_pytorch") is not None
HOW_TO_GET_IT = "pip install --no-deps electra-pytorch"
"""Its own requirement, transformers 3.0.2, is for its examples alone."""
_IGNORED = -100


def transformers_loop(shape: PretrainedConfig, generator_shape: PretrainedConfig, *, mask_token_id: int) -> Step:
    """Logits of all positions, both losses by the models themselves, torch.multinomial at the masked positions."""
    generator, discriminator = ElectraForMaskedLM(generator_shape), ElectraForPreTraining(shape)
    discriminator.electra.embeddings = generator.electra.embeddings  # tied, as ELECTRA has them
    models = nn.ModuleList([generator, discriminator])
    optimizer = torch.optim.AdamW(models.parameters(), lr=5e-4)

    def step(batch: Batch) -> None:
        is_masked = batch.is_selected
        predicted = generator(
            input_ids=batch.input_ids.masked_fill(is_masked, mask_token_id),
            labels=batch.input_ids.masked_fill(~is_masked, _IGNORED),
        )
        probabilities = predicted.logits[is_masked].detach().softmax(dim=-1)
        corrupted_ids = batch.input_ids.masked_scatter(is_masked, torch.multinomial(probabilities, 1))
        detected = discriminator(input_ids=corrupted_ids, labels=(corrupted_ids != batch.input_ids).long())
        _update(predicted.loss + 50.0 * detected.loss, models, optimizer)

    return step


def electra_pytorch(
    shape: PretrainedConfig, generator_shape: PretrainedConfig, *, mask_token_id: int, special_ids: tuple[int, ...]
) -> Step:
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
        mask_token_id=mask_token_id,
        pad_token_id=shape.pad_token_id,
        mask_prob=0.15,
        mask_ignore_token_ids=list(special_ids),
    )
    optimizer = torch.optim.AdamW(both.parameters(), lr=5e-4)

    def step(batch: Batch) -> None:
        _update(both(batch.input_ids).loss, both, optimizer)

    return step


def _update(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
