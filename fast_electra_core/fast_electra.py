"""Fast-ELECTRA: replaced token detection where what replaces tokens is fixed beforehand.

Shapes: B sequences, L tokens per sequence.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fast_electra_core.corruption import Corruption, place
from fast_electra_core.curriculum import Curriculum, Smoothing
from fast_electra_core.losses import consistency_loss_sum, rtd_loss_sum, soft_rtd_targets
from fast_electra_core.methods import Batch, Method, Stats, Totals, add_detection_stats, detection_metrics
from fast_electra_core.models import detector_logits
from fast_electra_core.proposals import FrozenMaskedLm, Proposal
from fast_electra_core.randomness import fresh

_SECOND_DRAW = 2**61
"""Beyond all seeds of first draws, and still a seed."""


class FastElectra(Method):
    """Replaced token detection against a frozen auxiliary whose output is smoothed, less and less as training goes on;
    or against a proposal that knows no model, and has nothing to smooth.

    Fast-ELECTRA (arXiv 2310.07347), abstract. `Unverified:` the loss weight is ELECTRA's.
    """

    def __init__(
        self,
        discriminator: PreTrainedModel,
        proposal: Proposal | None,
        *,
        curriculum: Curriculum | None,
        rtd_weight: float,
        soft_target_share: float = 0.0,
        consistency_weight: float = 0.0,
    ) -> None:
        """proposal is None where every batch brings its corrupted_ids along, curriculum where nothing is smoothed.

        Raises:
            ValueError: soft targets without a masked language model to ask for them.
        """
        super().__init__()
        if soft_target_share and not isinstance(proposal, FrozenMaskedLm):
            raise ValueError("soft targets come from the frozen masked language model that draws, and there is none")
        self.discriminator = discriminator
        # Not an nn.Module, so its models are not this one's: train() must not wake their dropout, checkpoints and
        # optimizer must not hold them.
        self.proposal = proposal
        self._curriculum = curriculum
        self._rtd_weight = rtd_weight
        self._soft_target_share = soft_target_share
        self._consistency_weight = consistency_weight

    @property
    def last_smoothing(self) -> Smoothing:
        """What the curriculum descends to."""
        return self._curriculum.last if self._curriculum else Smoothing()

    @torch.no_grad()
    def corrupt(self, batch: Batch, smoothing: Smoothing) -> Corruption:
        """The batch with samples in the selected places: those it brings along, or fresh ones.

        Raises:
            ValueError: it brings none, and there is nothing to draw them from.
        """
        if batch.corrupted_ids is not None:
            return Corruption(batch.corrupted_ids, batch.corrupted_ids != batch.input_ids)
        if self.proposal is None:
            raise ValueError("without a proposal every batch must bring its corrupted_ids")
        return place(batch.input_ids, batch.selected(), self.proposal.sample(batch, smoothing))

    def loss(self, batch: Batch, totals: Totals, *, progress: float, stats: Stats) -> Tensor:
        smoothing = self._curriculum.at(progress) if self._curriculum else Smoothing()
        corruption, targets = self._corrupt_and_label(batch, smoothing)
        logits = detector_logits(self.discriminator, corruption.corrupted_ids, batch.documents)
        sums = {"rtd_loss": rtd_loss_sum(logits, targets)}
        loss = self._rtd_weight * sums["rtd_loss"] / totals.num_tokens
        if self._consistency_weight:
            sums["consistency_loss"] = self._disagreement(logits, batch, smoothing)
            unselected = totals.num_tokens - totals.num_selected
            loss = loss + self._consistency_weight * sums["consistency_loss"] / unselected
        add_detection_stats(stats, logits.detach(), corruption.is_replaced, batch.is_selected, **sums)
        return loss

    def _corrupt_and_label(self, batch: Batch, smoothing: Smoothing) -> tuple[Corruption, Tensor]:
        """The corruption, and the targets (B, L) of its detection."""
        if not self._soft_target_share:
            corruption = self.corrupt(batch, smoothing)
            return corruption, corruption.is_replaced
        assert isinstance(self.proposal, FrozenMaskedLm)
        draw = self.proposal.draw(batch, smoothing)
        corruption = place(batch.input_ids, batch.selected(), draw.ids)
        share = self._soft_target_share
        return corruption, soft_rtd_targets(corruption.is_replaced, batch.selected(), draw.doubt, share=share)

    def _disagreement(self, logits: Tensor, batch: Batch, smoothing: Smoothing) -> Tensor:
        """With the same tokens replaced by an independent draw: a second pass of auxiliary and detector."""
        again = batch._replace(
            sample_uniforms=fresh(batch.sample_uniforms),
            corrupted_ids=None,
            seed=batch.dropout_seed() + _SECOND_DRAW,  # not asked of the fresh numbers, which may be a GPU's
        )
        corrupted_ids = self.corrupt(again, smoothing).corrupted_ids
        others = detector_logits(self.discriminator, corrupted_ids, batch.documents)
        return consistency_loss_sum(logits, others, ~batch.is_selected)

    def summarise(self, sums: dict[str, float], *, progress: float) -> dict[str, float]:
        row = {"loss": sums["rtd_loss"] / sums["num_tokens"]}
        if self._consistency_weight:
            row["consistency_loss"] = sums["consistency_loss"] / (sums["num_tokens"] - sums["num_selected"])
        return {**row, **(self._curriculum.values_at(progress) if self._curriculum else {}), **detection_metrics(sums)}
