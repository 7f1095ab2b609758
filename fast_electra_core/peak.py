"""What a device can do at its best."""

import time
from collections.abc import Callable

import torch

from fast_electra_core.precision import uses_bf16

_SHAPE = (512, 768, 3072)  # rows, in and out of a feed-forward layer at base size
_SHAPE_ON_GPU = (4096, 4096, 4096)
_TURNS = 4
_PRODUCTS_ON_GPU = 20  # a turn with fewer measures how long it takes to ask for one


def gemm_flops_per_second(
    device: torch.device, precision: str = "auto", *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of the best of a few products of large matrices, with this process's threads and in the precision that
    training has there; takes a tenth of a second on a core of a CPU, and 100 MB of a GPU. clock gives seconds."""
    is_gpu = device.type == "cuda"
    rows, inner, columns = _SHAPE_ON_GPU if is_gpu else _SHAPE
    products = _PRODUCTS_ON_GPU if is_gpu else 1
    dtype = torch.bfloat16 if uses_bf16(precision, device) else torch.float32
    rng = torch.Generator(device).manual_seed(0)  # the process's own stays as it is
    left = torch.randn(rows, inner, device=device, dtype=dtype, generator=rng)
    right = torch.randn(inner, columns, device=device, dtype=dtype, generator=rng)
    times = []
    for _ in range(_TURNS):
        _wait(device)
        started = clock()
        for _ in range(products):
            left @ right
        _wait(device)
        times.append(clock() - started)
    return 2 * rows * inner * columns * products / min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
