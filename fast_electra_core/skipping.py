"""Steps whose loss or gradient is not finite: they change nothing, are noted with their batch, and are bounded."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_electra_core.data import BatchIndex
from fast_electra_core.errors import NonFiniteLossError
from fast_electra_core.methods import Stats

_logger = logging.getLogger(__name__)


class Skipper:
    """Leaves out the steps that are not finite, without waiting for the device in between.

    Every process of a group sees the same sums and gradients, so all leave out the same steps.
    """

    def __init__(self, max_in_a_row: int, *, batch_of: Callable[[int], BatchIndex], note: Path | None) -> None:
        """batch_of tells a step's sequences; note is the .jsonl file that gets a line for each step left out."""
        self._max_in_a_row = max_in_a_row
        self._batch_of = batch_of
        self._note = note
        self._unseen: list[tuple[int, Tensor]] = []
        self.in_a_row = 0
        """Steps left out up to the last one that `look` has seen."""

    def sift(self, step: int, optimizer: torch.optim.Optimizer, stats: Stats) -> Stats:
        """stats, each (), as float64, with how many steps they are of; where one is not finite, zeros, and the
        optimizer's next step changes nothing. The optimizer must be a fused one, which skips on the device."""
        values = torch.stack([value.double() for value in stats.values()])
        is_sound = values.isfinite().all()
        self._unseen.append((step, is_sound))
        # What a GradScaler uses for the same end; no rate is changed and no moment moved.
        optimizer.grad_scale, optimizer.found_inf = None, (~is_sound).float()  # type: ignore[attr-defined]
        kept = torch.where(is_sound, values, 0.0)
        counts = {"num_steps": is_sound.double(), "num_skipped": (~is_sound).double()}
        return dict(zip(stats, kept.unbind(), strict=True)) | counts

    def look(self) -> None:
        """Notes the steps left out since the last look. Waits for the device.

        Raises:
            NonFiniteLossError: there were more in a row than may be.
        """
        if not self._unseen:
            return
        steps, flags = zip(*self._unseen, strict=True)
        self._unseen = []
        for step, is_sound in zip(steps, torch.stack(flags).tolist(), strict=True):  # device sync
            self.in_a_row = 0 if is_sound else self.in_a_row + 1
            if not is_sound:
                self._say(step)
            if self.in_a_row > self._max_in_a_row:
                raise NonFiniteLossError(
                    f"loss or gradient was not finite in step {step}, as in the {self.in_a_row - 1} before it: "
                    f"{self._max_in_a_row} in a row may be left out (--max_skipped_steps). The checkpoint before is "
                    f"kept{f', the batches are in {self._note}' if self._note else ''}. Start a new run with a lower "
                    "--learning_rate or a longer --warmup_fraction"
                )

    def check_weights(self, tensors: dict[str, Tensor]) -> None:
        """Behind a step that was left out: it was the batch's fault, not the weights'.

        Raises:
            NonFiniteLossError: weights or moments are not finite, so every further step would be left out.
        """
        bad = [name for name, value in tensors.items() if self.in_a_row and not bool(value.isfinite().all())]
        if bad:
            raise NonFiniteLossError(
                f"{bad[0]} is not finite. The checkpoint before is kept. Resume from it; where that ends the same way, "
                "start a new run with a lower --learning_rate or a longer --warmup_fraction"
            )

    def _say(self, step: int) -> None:
        batch = self._batch_of(step)
        entry: dict[str, Any] = {"step": step, "epoch": batch.epoch.tolist(), "sequence": batch.sequence.tolist()}
        if self._note is None:
            return
        _logger.warning("step %d is left out: its loss or gradient is not finite; its batch is in %s", step, self._note)
        line = json.dumps(entry)
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            with self._note.open("a") as file:
                file.write(f"{line}\n")
        except OSError as error:  # a full disk, say: the training is worth more than the note
            _logger.warning("%s could not be written (%s); its line would be %s", self._note, error.strerror, line)
