"""What the coming steps need, made while the present one computes."""

import functools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
_AHEAD = 2
"""Items that wait to be taken: one hides what an item costs, the second that not all cost the same."""


def made_ahead(make: Callable[[int], Item], steps: range, *, device: torch.device) -> Generator[Item]:
    """make(step) for each of `steps`, in order, by a thread that is up to two items ahead. Closing it ends the thread.

    A thread and no processes: arithmetic of tensors and arrays lets go of the interpreter, and nothing has to be sent.
    What `make` raises is raised where its item is asked for.

    device is what the items are for.
    """
    coming: deque[Future[Item]] = deque()
    # CUDA's current device is a thread's own, and by itself the first GPU: pinned memory would take some of it, too.
    begin = functools.partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=begin)
    try:
        coming.extend(pool.submit(make, step) for step in steps[:_AHEAD])
        for index in range(len(steps)):
            item = coming.popleft().result()
            if index + _AHEAD < len(steps):
                coming.append(pool.submit(make, steps[index + _AHEAD]))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
