"""What the machine does while a run works: MLflow's system metrics, under its names, sent as all metrics are."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast_electra_core.errors import TrackingError
from steps.tracking.connection import ask, mlflow_client
from steps.tracking.metrics import MetricsLogger, logged_steps

_PREFIX = "system/"  # the UI has a tab of its own for these
_ALWAYS_THERE = f"{_PREFIX}cpu_utilization_percentage"
_CLOSE_WAIT_SECONDS = 10.0
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def system_metrics(run_id: str, *, spill: Path, every_seconds: float = 10.0) -> Iterator[None]:
    """Inside, the machine's use of processors, memory, disk, network and NVIDIA GPUs is logged to the run, every so
    many seconds and once at the end.

    A value's step is the second since the run was opened, so that what a resumed step logs follows on, and nothing is
    there twice. MLflow's own monitor counts from 0 and stops for good when the server is away once; here the values
    wait, at last in the file spill, and whatever happens to them the work inside goes on.
    """
    opened = ask(f"find the run {run_id}", mlflow_client().get_run, run_id).info.start_time / 1000
    logged = ask(f"read the metrics of run {run_id}", logged_steps, run_id, {_ALWAYS_THERE}).get(_ALWAYS_THERE, ())
    first = max(time.time() - opened, *(step + 1 for step in logged), 0)  # the clock may have been set back meanwhile
    started = time.monotonic()
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        logger = MetricsLogger(run_id, spill=spill, close_wait_seconds=_CLOSE_WAIT_SECONDS)
        stack.callback(_close, logger)
        monitors = _monitors()
        _sample(monitors)  # the first answer on the processors is about no time at all

        def watch() -> None:
            is_over, last = False, -1
            while not is_over:
                is_over = stop.wait(every_seconds)
                if (second := int(first + time.monotonic() - started)) > last:
                    logger.log({"step": second, **_sample(monitors)})
                    last = second

        thread = threading.Thread(target=watch, name="system metrics", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(RuntimeError):  # MLflow's word for: no NVIDIA GPU here
        monitors.append(GPUMonitor())
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"{_PREFIX}{name}": value for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values


def _close(logger: MetricsLogger) -> None:
    try:
        logger.close()
    except TrackingError as error:  # the machine's load is worth a warning, not the work
        _logger.warning("%s", error)
