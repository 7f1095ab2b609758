"""Dropout kept on in a frozen model for the length of a forward pass, from a random state of its own."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel


@contextlib.contextmanager
def dropout_on(model: PreTrainedModel, rate: float, *, seed: int) -> Iterator[None]:
    """Within, every dropout of the model, hidden and attention, drops with probability `rate` in [0, 1), as a function
    of the seed in [0, 2**63) and the shapes. Afterwards the model is in evaluation mode and its rates, like the
    caller's random state, are as before.
    """
    places = [
        (module, name) for module in model.modules() for name in ("p", "attention_dropout") if _is_rate(module, name)
    ]
    before = [getattr(*place) for place in places]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            for place in places:
                setattr(*place, rate)
            model.train()
            yield
        finally:
            model.eval()
            for place, value in zip(places, before, strict=True):
                setattr(*place, value)


def _is_rate(module: nn.Module, name: str) -> bool:
    """nn.Dropout's p; and ModernBERT keeps that of its attention as a number."""
    if name == "p":
        return isinstance(module, nn.Dropout)
    return isinstance(getattr(module, name, None), int | float)
