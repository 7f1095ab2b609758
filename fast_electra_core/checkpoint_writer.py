"""Checkpoints written beside training: a thread writes a copy, one at a time."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from fast_electra_core.checkpoint import Checkpoint, save_checkpoint

_logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes what it is given, and tells on_written of each folder; use it as a context manager.

    Training waits for the copy, and for the checkpoint before if that is still being written.
    """

    def __init__(
        self, root: Path, *, keep: int, milestone_every: int | None, on_written: Callable[[Path], None]
    ) -> None:
        """keep and milestone_every are save_checkpoint's."""
        self._root = root
        self._keep = keep
        self._milestone_every = milestone_every
        self._on_written = on_written
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """The checkpoint, as its tensors are now, is being written.

        Raises: as wait.
        """
        self.wait()
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in checkpoint.tensors.items()}
        copy = checkpoint._replace(tensors=tensors)
        self._thread = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """What was given is written.

        Raises:
            CheckpointError: it could not be. Also what on_written raises.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._error, self._thread = self._error, None, None
        if error is not None:
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            folder = save_checkpoint(self._root, checkpoint, keep=self._keep, milestone_every=self._milestone_every)
            self._on_written(folder)
        except Exception as error:  # raised where it is waited for
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as lost:
            if error is None:
                raise
            _logger.warning("%s", lost)  # the error on its way out matters more
