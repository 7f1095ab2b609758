"""Metrics: one value per name and step, whatever is sent twice; and the thread that sends them."""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import TrackingError
from steps.tracking.connection import PATIENCE_SECONDS, ask, connected_uri, in_short, is_passing, mlflow_client

_MAX_METRICS = 1000  # MLflow refuses more in one batch
_log = logging.getLogger(__name__)


class Value(NamedTuple):
    """One number of one metric; timestamp in ms since 1970 is part of its identity at the server."""

    key: str
    value: float
    timestamp: int
    step: int


def log_metrics(run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log rows `{"step": int, name: number, ...}`; a metric that has a value at that step keeps it."""
    values = to_values(rows)
    seen = ask("read metrics", logged_steps, run_id, {value.key for value in values})
    _send(run_id, _unseen(values, seen))


def log_results(run_id: str, numbers: Mapping[str, float | None]) -> None:
    """Log what has come out so far, at step 0; of a run that was resumed what comes out last is what it says."""
    there = ask("read metrics", mlflow_client().get_run, run_id).data.metrics
    _send(run_id, [value for value in to_values([{"step": 0, **numbers}]) if there.get(value.key) != value.value])


def _send(run_id: str, values: list[Value]) -> None:
    for start in range(0, len(values), _MAX_METRICS):
        ask("log metrics", send_values, run_id, values[start : start + _MAX_METRICS])


class MetricsLogger:
    """Sends metric rows from a background thread, so that training never waits for the server.

    Rows leave the queue only when the server has confirmed them, and keep the time they were logged at, so a
    batch that is sent twice (its answer was lost) is stored once. Steps that an earlier attempt logged, or left in
    the spill file, are not logged again. Close it, or use it as a context manager. `log` alone never waits; `flush`
    and `close` do.
    """

    def __init__(
        self,
        run_id: str,
        *,
        spill: Path | None = None,
        send_every_seconds: float = 2.0,
        close_wait_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """spill: the .jsonl file for rows that the server would not take; the next MetricsLogger with the
        same file sends them first. By default `.fast_electra/unsent_metrics/RUN_ID.jsonl`."""
        mlflow_client()  # fails here, rather than in the thread, where no server was named
        self.run_id = run_id
        self._spill = spill or Path(".fast_electra", "unsent_metrics", f"{run_id}.jsonl")
        self._interval = send_every_seconds
        self._close_wait_seconds = close_wait_seconds
        self._pending = deque(_read_values(self._spill))
        self._seen: dict[str, set[int]] | None = None  # asked for by the thread, so that no server is waited for here
        self._refusal: Exception | None = None  # the server's last answer, where it was a refusal
        self._refused_for_good = self._flushing = self._stop = False
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send_forever, name="metrics", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Queue `{"step": int, name: number, ...}`; returns at once."""
        with self._changed:
            self._pending.extend(to_values([row]))

    def flush(self, wait_seconds: float = 5.0) -> bool:
        """Every row logged so far is at the server (True) or, after the wait, in the spill file (False)."""
        self._refused_for_good = False  # that was before: it is asked once more
        self._flushing = True
        self._wake.set()
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout=wait_seconds)
            self._flushing = False
            unsent = list(self._pending)
        if unsent:
            _write_values(self._spill, unsent)
        else:
            self._spill.unlink(missing_ok=True)
        return not unsent

    def close(self) -> None:
        """Everything is sent and the thread has ended.

        Raises:
            TrackingError: rows were not taken within close_wait_seconds; it names the file that has them.
        """
        sent = self.flush(self._close_wait_seconds)
        self._stop = True
        self._wake.set()
        if not sent:
            why = in_short(self._refusal) if self._refusal else "no answer"
            raise TrackingError(
                f"{connected_uri()} took no metrics of run {self.run_id} for {self._close_wait_seconds:g} s "
                f"({why}); {len(self._pending)} values are in {self._spill}. "
                "Start the server and run the step again: it sends them first"
            ) from self._refusal
        self._thread.join()

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
            return
        # Only logged: the error on its way out matters more.
        try:
            if not self.flush(min(5.0, self._close_wait_seconds)):
                _log.warning("%s unsent metrics are in %s", len(self._pending), self._spill)
        except OSError as error:
            _log.warning("%s unsent metrics could not be kept in %s: %s", len(self._pending), self._spill, error)
        self._stop = True
        self._wake.set()

    def _is_settled(self) -> bool:
        return not self._pending or self._refused_for_good or not self._thread.is_alive()

    def _send_forever(self) -> None:
        delay = 0.0
        while True:
            self._wake.clear()
            if self._stop:  # looked at behind the clearing: what is said before it is seen, what is said after it wakes
                return
            with self._changed:
                batch = list(islice(self._pending, _MAX_METRICS))
            self._refusal = self._try_to_send(batch) if batch else None
            with self._changed:
                for _ in batch if self._refusal is None else ():
                    self._pending.popleft()
                self._changed.notify_all()
            if self._refusal is not None:
                delay = min(max(2 * delay, 0.5), 30.0)
                self._wake.wait(0.5 if self._flushing else delay)
            else:
                delay = 0.0
                self._wake.wait(0.0 if self._flushing or len(batch) == _MAX_METRICS else self._interval)

    def _try_to_send(self, batch: list[Value]) -> Exception | None:
        from mlflow.exceptions import MlflowException

        try:
            if self._seen is None:
                self._seen = logged_steps(self.run_id)
            fresh = _unseen(batch, self._seen)
            send_values(self.run_id, fresh)
            for value in fresh:
                self._seen.setdefault(value.key, set()).add(value.step)
            self._refused_for_good = False
            return None
        except MlflowException as error:
            self._refused_for_good = not is_passing(error)
            refusal: Exception = error
            return refusal


def to_values(rows: Iterable[Mapping[str, Any]]) -> list[Value]:
    now = int(time.time() * 1000)
    return [
        Value(key, float(value), now, int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key != "step" and value is not None
    ]


def send_values(
    run_id: str,
    values: list[Value],
    model_id: str | None = None,
    datasets: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """datasets: by metric, name and digest of what it was measured on; MLflow notes it with a model's metrics."""
    from mlflow.entities import Metric

    on = datasets or {}
    entries = [Metric(*value, model_id, *on.get(value.key, (None, None))) for value in values]
    if entries:
        mlflow_client().log_batch(run_id, metrics=entries)


def values_at_last_steps(run_id: str, metrics: Mapping[str, float]) -> list[Value]:
    """metrics as values at the run's last step of each, so that linking them to a model adds no point to a curve."""
    client = mlflow_client()
    found = []
    for value in to_values([{"step": 0, **metrics}]):
        history = client.get_metric_history(run_id, value.key)
        last = max(history, key=lambda item: (item.step, item.timestamp), default=None)
        if last is not None:
            same = last.value == value.value
            value = value._replace(step=last.step, timestamp=last.timestamp if same else value.timestamp)
        found.append(value)
    return found


def logged_steps(run_id: str, keys: set[str] | None = None) -> dict[str, set[int]]:
    """Metric -> steps that have a value at the server; only the given metrics, or all."""
    client = mlflow_client()
    there = set(client.get_run(run_id).data.metrics)
    wanted = there if keys is None else there & keys
    return {key: {int(item.step) for item in client.get_metric_history(run_id, key)} for key in wanted}


def _unseen(values: Iterable[Value], seen: Mapping[str, set[int]]) -> list[Value]:
    """The first value of each metric at each step, where there is none yet."""
    fresh: dict[tuple[str, int], Value] = {}
    for value in values:
        if value.step not in seen.get(value.key, ()):
            fresh.setdefault((value.key, value.step), value)
    return list(fresh.values())


def _read_values(path: Path) -> list[Value]:
    if not path.exists():
        return []
    return [Value(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_values(path: Path, values: Iterable[Value]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    partial.replace(path)
