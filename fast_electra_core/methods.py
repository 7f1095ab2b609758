"""What is trained, and on which loss: what all methods share, and masked language modelling.

Fast-ELECTRA is in fast_electra.py, the joint rivals are in electra.py.

A method is a module whose trainable parameters are all that an optimizer sees. Its `loss` adds to the sums of `Stats`
without waiting for the device.

Shapes: B sequences, L tokens per sequence, N selected tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fast_electra_core.losses import masked_lm_loss_sum
from fast_electra_core.models import compile_layers, masked_logits
from fast_electra_core.selection import Selection, find_selected
from fast_electra_core.transfer import onto


class Batch(NamedTuple):
    """Sequences and everything random about them."""

    input_ids: Tensor
    """(B, L) int64."""
    is_selected: Tensor
    """(B, L) bool: chosen to be replaced or masked."""
    sample_uniforms: Tensor
    """(B, L) float64 in [0, 1): picks the replacement."""
    corrupted_ids: Tensor | None = None
    """(B, L) int64: input_ids with replacements that were drawn ahead of training; None: they are drawn now."""
    is_masked: Tensor | None = None
    """(B, L) bool: of the selected, those that a masked language model sees as [MASK]; None: all of them."""
    documents: Tensor | None = None
    """(B, L) int64: the document that each token is of, and sees; None: it sees the whole sequence."""
    selection: Selection | None = None
    """is_selected as indices; None: they are looked for when they are needed."""
    seed: int | None = None
    """What `dropout_seed` says; None: it is computed when it is needed."""

    def selected(self) -> Selection:
        """Where the selected tokens are. Waits for a GPU that the batch did not come to by `to`."""
        return find_selected(self.is_selected) if self.selection is None else self.selection

    def dropout_seed(self) -> int:
        """A seed of 61 bits for dropout in a frozen model, out of the numbers of the first sequence's first and last
        position, which serve nothing else in packed text: a pure function of the run's seed, epoch and sequence. Waits
        as `selected` does."""
        if self.seed is not None:
            return self.seed
        ends = torch.stack([self.sample_uniforms[0, 0], self.sample_uniforms[0, -1]])
        first, last = (ends.double() * 2.0**32).long().tolist()
        return int((first << 29) ^ last)

    def masked_ids(self, mask_token_id: int) -> Tensor:
        """(B, L) int64: input_ids as a masked language model sees them."""
        is_masked = self.is_selected if self.is_masked is None else self.is_masked
        return self.input_ids.masked_fill(is_masked, mask_token_id)

    def pinned(self) -> "Batch":
        """The batch, or what `rows` takes of it, in memory from which a GPU copies while the CPU goes on."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, with what the CPU has to know of it: nothing has to be waited for, now or later."""
        selection = Selection._make(onto(each, device) for each in self.selected())
        there = self._each(lambda tensor: onto(tensor, device))
        return there._replace(selection=selection, seed=self.dropout_seed())

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` sequences."""
        return [self.rows(slice(first, first + size)) for first in range(0, len(self.input_ids), size)]

    def rows(self, which: slice) -> "Batch":
        """Some of the sequences."""
        return self._each(lambda tensor: tensor[which])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """All (B, L) tensors changed alike, without what is computed from them."""
        return Batch(
            change(self.input_ids),
            change(self.is_selected),
            change(self.sample_uniforms),
            None if self.corrupted_ids is None else change(self.corrupted_ids),
            None if self.is_masked is None else change(self.is_masked),
            None if self.documents is None else change(self.documents),
        )


class Totals(NamedTuple):
    """Counts over the whole batch, which micro-batches divide their sums by."""

    num_tokens: int
    num_selected: int
    """Of all processes' rows; a number and no tensor, so that no device is waited for."""


Stats = dict[str, Tensor]
"""Sums since the last log row, each () float64."""


class ParameterSet(NamedTuple):
    """Parameters that train together: clipped to one norm, at one learning rate."""

    prefix: str
    """Of the names under which the set's gradient norm and learning rate are logged."""
    parameters: list[nn.Parameter]
    learning_rate_factor: float
    """What the run's learning rate is multiplied by."""


class Method(nn.Module, ABC):
    """A way to pre-train: loss, and the numbers worth logging."""

    def parameter_sets(self) -> list[ParameterSet]:
        """All trainable parameters, each once: one set, unless a method keeps some apart."""
        return [ParameterSet("", trainable_parameters(self), 1.0)]

    def forward(self, batch: Batch, totals: Totals, *, progress: float) -> tuple[Tensor, Stats]:
        """The loss and its stats, so that what wraps a module's forward pass wraps it: FSDP may hand on a copy of the
        dict that it is given."""
        stats: Stats = {}
        return self.loss(batch, totals, progress=progress, stats=stats), stats

    def finish(self) -> None:
        """Training is over: the main model becomes what is to be saved, where it is not that already."""

    def checkpoint_activations(self) -> None:
        """From now on each layer's activations are computed again in the backward pass, wherever a model is in training
        mode. Dropout's random numbers, too, are those of the first time."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module.base_model is not module:
                module.activation_checkpointing_enable()
                module.config.use_cache = False  # an encoder has none, but transformers would warn that it goes

    def compile_layers(self, *, backend: str = "inductor") -> None:
        """From now on each layer that is trained runs as torch.compile's backend makes it, whole or not at all."""
        compile_layers(self, backend=backend)

    @abstractmethod
    def loss(self, batch: Batch, totals: Totals, *, progress: float, stats: Stats) -> Tensor:
        """The micro-batch's share of the whole batch's loss, (); adds to stats."""

    @abstractmethod
    def summarise(self, sums: dict[str, float], *, progress: float) -> dict[str, float]:
        """One row of metrics out of the sums of the steps since the last one."""


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """In the module's order, shared ones once."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class MaskedLanguageModel(Method):
    """Predict the selected tokens, shown as [MASK] but for those that are kept: how an auxiliary is made, and
    BERT as a rival.

    Departs from BERT (arXiv 1810.04805, sec. 3.1), which shows 80 % of them as [MASK], 10 % as another token and 10 %
    as they are.
    """

    def __init__(self, model: PreTrainedModel, *, mask_token_id: int) -> None:
        super().__init__()
        self.model = model
        self._mask_token_id = mask_token_id

    def loss(self, batch: Batch, totals: Totals, *, progress: float, stats: Stats) -> Tensor:
        logits = masked_logits(self.model, batch.masked_ids(self._mask_token_id), batch.selected(), batch.documents)
        return self._loss_sum(logits, batch, stats) / totals.num_selected

    def _loss_sum(self, logits: Tensor, batch: Batch, stats: Stats) -> Tensor:
        original_ids = batch.selected().pick(batch.input_ids)
        loss_sum = masked_lm_loss_sum(logits, original_ids)
        _add(
            stats,
            masked_loss=loss_sum,
            num_correct=(logits.argmax(dim=1) == original_ids).sum(),
            num_selected=batch.is_selected.sum(),
        )
        return loss_sum

    def summarise(self, sums: dict[str, float], *, progress: float) -> dict[str, float]:
        return {
            "loss": sums["masked_loss"] / sums["num_selected"],
            "masked_accuracy": sums["num_correct"] / sums["num_selected"],
        }


def add_detection_stats(
    stats: Stats, logits: Tensor, is_replaced: Tensor, is_selected: Tensor, **losses: Tensor
) -> None:
    """Add the counts that detection_metrics needs, from tensors (B, L), and the given sums of losses, each ()."""
    is_flagged = logits > 0
    _add(
        stats,
        num_tokens=torch.full((), is_replaced.numel(), device=logits.device),
        num_selected=is_selected.sum(),
        num_replaced=is_replaced.sum(),
        num_flagged=is_flagged.sum(),
        num_caught=(is_flagged & is_replaced).sum(),
        **losses,
    )


def detection_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Share replaced (of all tokens, and of the selected), recall of both classes, precision; 0 / 0 counts as 0."""
    num_original = sums["num_tokens"] - sums["num_replaced"]
    false_alarms = sums["num_flagged"] - sums["num_caught"]
    return {
        "replaced_fraction": sums["num_replaced"] / sums["num_tokens"],
        "replaced_of_selected": _ratio(sums["num_replaced"], sums["num_selected"]),
        "recall_replaced": _ratio(sums["num_caught"], sums["num_replaced"]),
        "recall_original": _ratio(num_original - false_alarms, num_original),
        "precision_replaced": _ratio(sums["num_caught"], sums["num_flagged"]),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _add(stats: Stats, **values: Tensor) -> None:
    for name, value in values.items():
        value = value.detach().double()
        stats[name] = stats[name] + value if name in stats else value
