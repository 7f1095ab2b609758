"""What a person sees in the terminal: progress and log lines.

Long work shows a live bar where there is a terminal, a line now and then where there is none.

Metaflow captures what a step prints, line by line, so a bar drawn there would never move. It is drawn on the
controlling terminal itself.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

LINE_EVERY_SECONDS = 30.0
_logger = logging.getLogger(__name__)


class ProgressBar:
    """A bar over `total` steps that shows the newest metrics; use it as a context manager."""

    def __init__(self, total: int, *, label: str, initial: int = 0, unit: str = "step") -> None:
        self._total = total
        self._label = label
        self._done = initial
        self._metrics = ""
        self._terminal = _open_terminal()
        self._last_line = time.monotonic()
        self._started, self._initial = self._last_line, initial
        self._bar = (
            tqdm(total=total, initial=initial, desc=label, unit=unit, file=self._terminal, dynamic_ncols=True)
            if self._terminal
            else None
        )

    def update(self, done: int) -> None:
        """`done` of the total are done."""
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._bar is None and (now - self._last_line >= LINE_EVERY_SECONDS or done == self._total):
            self._last_line = now
            self._print_line(now)

    def show(self, **metrics: float) -> None:
        """Show these metrics from now on."""
        self._metrics = ", ".join(f"{name} {value:,.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._metrics, refresh=False)

    def _print_line(self, now: float) -> None:
        speed = (self._done - self._initial) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / speed if speed else float("inf")
        metrics = f"{self._metrics}, " if self._metrics else ""
        _logger.info(
            "%s: %d/%d (%.0f %%), %s%.0f s left",
            self._label, self._done, self._total, 100 * self._done / self._total, metrics, left,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._terminal is not None:
            self._terminal.close()


def progress_lines(label: str) -> Callable[[int, Mapping[str, float]], None]:
    """For work that shares the terminal with others of its kind: a line now and then, from the step (0-based) and its
    metrics, of which `num_steps` and `loss` are shown."""
    started = last = time.monotonic()

    def show(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_SECONDS:
            return
        last, done = now, step + 1
        left = (now - started) * (metrics["num_steps"] - done) / done
        _logger.info("%s: %d/%d, loss %.4g, %.0f s left", label, done, metrics["num_steps"], metrics["loss"], left)

    return show


def _open_terminal() -> TextIO | None:
    try:
        return Path("/dev/tty").open("w", encoding="utf-8")
    except OSError:  # no controlling terminal: a cluster, a cron job, CI
        return None


def show_log_lines() -> None:
    """Log lines, of others warnings alone, reach standard error from here on: there Metaflow picks them up."""
    # Other libraries' bars would be one line of noise each: Metaflow captures output line by line.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line at every try; ours says once that a server is away
    for name in ("steps", "fast_electra_core"):
        logging.getLogger(name).setLevel(logging.INFO)
