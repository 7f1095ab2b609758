"""Where the time of a training goes."""

import contextlib
import time
from collections.abc import Iterator, Mapping


class Stopwatch:
    """Seconds of a whole and of its named parts, over all attempts at it: by a clock that nobody can set."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._before = 0.0
        self._parts: dict[str, float] = {}

    def go_on_from(self, seconds: float, parts: Mapping[str, float]) -> None:
        """Add what an earlier attempt took."""
        self._before += seconds
        for name, value in parts.items():
            self._add(name, value)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside counts as `name`, too."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - started)

    @property
    def seconds(self) -> float:
        """Since the watch was made, and before."""
        return self._before + time.perf_counter() - self._started

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by name; a copy."""
        return dict(self._parts)

    def _add(self, name: str, seconds: float) -> None:
        self._parts[name] = self._parts.get(name, 0.0) + seconds
