"""Pure functions of progress: how far the curriculum still is from its end, the temperature, and the learning rate.

progress u is the fraction of optimiser steps done, in [0, 1].
"""

import math

SCHEDULES = ("exponential", "exponential_exact", "linear", "polynomial", "cosine", "step", "constant")


def remaining_at(progress: float, *, schedule: str, decay: float = 0.1) -> float:
    """Share r(u) of the way from start to end that is still to go: 1 at progress 0, never negative.

    With d = decay:

    ================== ==================================  ==============================
    schedule           r(u)                                what d means
    ================== ==================================  ==============================
    exponential        exp(-u / d)                         time constant
    exponential_exact  the same, rescaled so that r(1)     time constant
                       is exactly 0
    linear             max(0, 1 - u / d)                   progress at which 0 is reached
    polynomial         (1 - u) ** (1 / d)                  inverse of the power
    cosine             (1 + cos(pi min(1, u / d))) / 2     progress at which 0 is reached
    step               2 ** -floor(u / d)                  progress per halving
    constant           1                                   nothing
    ================== ==================================  ==============================

    Raises:
        ValueError: progress outside [0, 1]; decay not > 0; unknown schedule.

    >>> remaining_at(0.0, schedule="exponential", decay=0.1)
    1.0
    >>> round(remaining_at(0.1, schedule="exponential", decay=0.1), 4)
    0.3679
    >>> round(remaining_at(1.0, schedule="exponential", decay=0.1), 7)
    4.54e-05
    >>> remaining_at(0.0, schedule="exponential_exact"), remaining_at(1.0, schedule="exponential_exact")
    (1.0, 0.0)
    >>> remaining_at(0.25, schedule="linear", decay=0.5), remaining_at(0.5, schedule="linear", decay=0.5)
    (0.5, 0.0)
    >>> remaining_at(0.5, schedule="polynomial", decay=0.5), remaining_at(1.0, schedule="polynomial", decay=0.5)
    (0.25, 0.0)
    >>> remaining_at(0.25, schedule="cosine", decay=0.5), remaining_at(0.5, schedule="cosine", decay=0.5)
    (0.5, 0.0)
    >>> remaining_at(0.24, schedule="step", decay=0.25), remaining_at(0.25, schedule="step", decay=0.25)
    (1.0, 0.5)
    >>> remaining_at(0.3, schedule="step", decay=0.1)
    0.125
    >>> remaining_at(1.0, schedule="constant")
    1.0
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    if not (decay > 0 and math.isfinite(decay)):
        raise ValueError(f"temperature decay must be a finite number > 0, got {decay}")
    match schedule:
        case "exponential":
            return math.exp(-progress / decay)
        case "exponential_exact":
            last = math.expm1(-1.0 / decay)  # expm1: with exp, a long time constant would leave 0 / 0
            return (math.expm1(-progress / decay) - last) / -last
        case "linear":
            return max(0.0, 1.0 - progress / decay)
        case "polynomial":
            return float((1.0 - progress) ** (1.0 / decay))
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress / decay)))
        case "step":
            return float(2.0 ** -math.floor(progress / decay + 1e-9))  # 0.3 / 0.1 is just below 3
        case _:  # constant
            return 1.0


def temperature_at(progress: float, *, schedule: str, start: float, decay: float = 0.1, end: float = 1.0) -> float:
    """Temperature that divides the auxiliary's logits at `progress`: T(u) = end + (start - end) r(u), r as in
    remaining_at.

    Unverified: the exponential form and its defaults T0 = 2, d = 0.1 are remembered from Fast-ELECTRA
    (arXiv 2310.07347), whose full text could not be read; that it decays exponentially in the fraction of updates
    and ends near, but not at, 1 was read second-hand.

    Raises:
        ValueError: progress outside [0, 1]; start, decay or end not > 0; unknown schedule.

    >>> round(temperature_at(0.0, schedule="exponential", start=2.0, decay=0.1), 3)
    2.0
    >>> round(temperature_at(0.1, schedule="exponential", start=2.0, decay=0.1), 3)
    1.368
    >>> round(temperature_at(1.0, schedule="exponential", start=2.0, decay=0.1), 5)
    1.00005
    >>> temperature_at(1.0, schedule="exponential_exact", start=2.0, decay=0.1)
    1.0
    >>> temperature_at(0.25, schedule="linear", start=2.0, decay=0.5)
    1.5
    >>> temperature_at(0.5, schedule="polynomial", start=2.0, decay=0.5)
    1.25
    >>> temperature_at(0.25, schedule="cosine", start=2.0, decay=0.5)
    1.5
    >>> temperature_at(0.25, schedule="step", start=2.0, decay=0.1)
    1.25
    >>> temperature_at(1.0, schedule="constant", start=1.0)
    1.0
    """
    remaining = remaining_at(progress, schedule=schedule, decay=decay)
    for name, value in (("start", start), ("end", end)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"temperature {name} must be a finite number > 0, got {value}")
    return end + (start - end) * remaining


def learning_rate_at(step: int, *, peak: float, num_steps: int, warmup_fraction: float) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up times linear decay to 0.

    As in google-research/electra's optimization.py, the warm-up multiplies the decay, so the peak itself is
    approached and not quite reached.

    >>> learning_rate_at(0, peak=1.0, num_steps=100, warmup_fraction=0.1)
    0.1
    >>> learning_rate_at(9, peak=1.0, num_steps=100, warmup_fraction=0.1)
    0.91
    >>> learning_rate_at(99, peak=1.0, num_steps=100, warmup_fraction=0.1)
    0.01
    """
    warmup_steps = max(1, round(warmup_fraction * num_steps))
    decay = (num_steps - step) / num_steps
    return peak * decay * min(1.0, (step + 1) / warmup_steps)
