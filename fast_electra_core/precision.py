"""In which precision a device trains."""

import torch

from fast_electra_core.errors import ConfigError


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Within, matrix products are computed in bf16 if `uses_bf16` says so; the weights stay in float32.

    Raises: as uses_bf16.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to run in bf16 autocast.

    Raises:
        ConfigError: bf16 was asked for where it is slower than fp32.
    """
    if precision == "fp32":
        return False
    has_fast_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_fast_bf16:
        raise ConfigError(
            f"precision bf16 is refused on {device.type}: without hardware for it a step is 2-3 times slower than "
            "in fp32. Use --precision auto or fp32"
        )
    return has_fast_bf16
