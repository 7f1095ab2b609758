"""What of the machine a task takes: its cores, its GPU."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OF_A_POD = ("METAFLOW_KUBERNETES_WORKLOAD", "AWS_BATCH_JOB_ID")
"""Set where Metaflow has started the task on a machine of its own."""


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, less what a container's quota takes away. >= 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):  # not Linux, or an older cgroup: no quota is known
        return bound
    return bound if quota == "max" else max(1, min(bound, int(quota) // int(period)))


def device() -> "torch.device":
    """This process's GPU, where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def take_gpu(index: int | None) -> None:
    """Of several GPUs this process computes on the one that the index-th task of a fan-out has, counted round, so that
    tasks on one machine do not all take the first; None: on that which it has."""
    import torch

    if index is not None and torch.cuda.device_count() > 1:
        torch.cuda.set_device(index % torch.cuda.device_count())


def share_cores(num_tasks: int, *, of_one_task: bool = False) -> None:
    """PyTorch uses this task's share of the cores, of so many tasks that run side by side unless each has a machine of
    its own; or, of_one_task, of so many of its processes. With more threads than cores they would wait for one another;
    OMP_NUM_THREADS, where it is set, holds."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    is_alone = not of_one_task and any(name in os.environ for name in _OF_A_POD)
    torch.set_num_threads(max(1, num_cores() // (1 if is_alone else num_tasks)))
