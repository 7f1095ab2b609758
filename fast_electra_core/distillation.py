"""A masked language model that learns from a larger one's whole output as well as from the text.

Hinton et al., "Distilling the knowledge in a neural network" (arXiv 1503.02531), sec. 2.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary, D the teacher's width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fast_electra_core.corruption import chunks
from fast_electra_core.methods import Batch, MaskedLanguageModel, Stats
from fast_electra_core.models import freeze, masked_hidden, vocabulary_logits

# Rows of the teacher's logits at a time: on a GPU with 50,000 tokens of vocabulary and float32, 100 MB a copy; on a CPU
# fewer stay in its caches, and are still enough for the product that makes them (docs/LOG.md, 2026-11-27).
_CHUNK_ROWS = {"cpu": 64, "cuda": 512}


def distillation_loss_sum(
    logits: Tensor, teacher_logits_of: Callable[[slice], Tensor], *, temperature: float
) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(logits / T)), in nats, summed over rows: 0 where the two agree.

    logits (N, V) are the student's, and alone get a gradient; teacher_logits_of gives the teacher's of some rows, so
    that never more than a chunk of them is in memory. T² keeps the gradient's size about the same for every T.
    """
    loss: Tensor = _Distillation.apply(logits, teacher_logits_of, temperature)  # type: ignore[no-untyped-call]
    return loss


class _Distillation(torch.autograd.Function):
    """The gradient is T · (softmax(logits / T) - softmax(teacher / T)): known with the loss, and kept instead of what
    autograd would keep to compute it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher_logits_of: Callable[[slice], Tensor], temperature: float) -> Tensor:
        gradient = torch.empty_like(logits)
        loss = torch.zeros((), device=logits.device)
        for rows in chunks(len(logits), logits.device, _CHUNK_ROWS):
            student = (logits[rows].float() / temperature).log_softmax(dim=1)
            teacher = (teacher_logits_of(rows).float() / temperature).log_softmax(dim=1)
            target = teacher.exp()
            loss += temperature**2 * (target * (teacher - student)).sum()
            gradient[rows] = (temperature * (student.exp() - target)).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


class DistilledMaskedLM(MaskedLanguageModel):
    """Predict the selected tokens, and what a frozen teacher makes of them: (1 - a) · MLM + a · T² · KL."""

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        share: float,
        temperature: float,
        mask_token_id: int,
    ) -> None:
        """teacher is frozen here; its vocabulary must be the model's. share is a, in (0, 1]; temperature is T, > 0."""
        super().__init__(model, mask_token_id=mask_token_id)
        freeze(teacher)
        self._frozen = (teacher,)  # in a tuple, as FastElectra keeps its auxiliary
        self._share = share
        self._temperature = temperature

    @property
    def teacher(self) -> PreTrainedModel:
        """The frozen masked language model that is learnt from."""
        return self._frozen[0]

    def _loss_sum(self, logits: Tensor, batch: Batch, stats: Stats) -> Tensor:
        masked_sum = super()._loss_sum(logits, batch, stats)
        with torch.no_grad():
            masked_ids = batch.masked_ids(self._mask_token_id)
            hidden = masked_hidden(self.teacher, masked_ids, batch.selected(), batch.documents)  # (N, D)
        distilled_sum = distillation_loss_sum(
            logits, lambda rows: vocabulary_logits(self.teacher, hidden[rows]), temperature=self._temperature
        )
        value = distilled_sum.detach().double()
        stats["distillation_loss"] = stats["distillation_loss"] + value if "distillation_loss" in stats else value
        return (1 - self._share) * masked_sum + self._share * distilled_sum

    def summarise(self, sums: dict[str, float], *, progress: float) -> dict[str, float]:
        return {
            **super().summarise(sums, progress=progress),
            "distillation_loss": sums["distillation_loss"] / sums["num_selected"],
        }
