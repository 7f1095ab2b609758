"""Tensors to a device, without the wait for what the device has still to do."""

import torch
from torch import Tensor


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; if it comes from the CPU, by way of memory from which a GPU copies while the CPU goes
    on. From other memory the copy would wait until the GPU has done all that it was given before."""
    if device.type != "cpu" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # what is pinned stays as it is
    return tensor.to(device, non_blocking=True)
