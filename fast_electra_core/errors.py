"""The errors a user can cause, each a ValueError that names the value, what is allowed and the next move.

FastElectraError (ValueError)
├── ConfigError           a parameter outside its range, an unknown name
├── DataError             text, GLUE files or stored corruption that cannot be used
│   └── StoreError        S3 does not answer, or refuses
├── AuxiliaryError        a model that cannot serve as auxiliary
├── CheckpointError       no usable checkpoint
├── TrackingError         the MLflow server does not answer, or refuses
├── LockError             another run holds what this one needs
└── NonFiniteLossError    loss or gradients were NaN or infinite, again and again

Interrupted is none of them: nothing has to be mended.
"""

import difflib
import errno
import os
from collections.abc import Iterable


class FastElectraError(ValueError):
    """Base of all errors that are the user's to mend."""


class ConfigError(FastElectraError):
    """A parameter is outside its range or names something unknown."""


class DataError(FastElectraError):
    """Text, task files or stored corruption are missing, unreadable or of the wrong form."""


class StoreError(DataError):
    """S3 does not answer or refuses."""


class AuxiliaryError(FastElectraError):
    """A model cannot serve as auxiliary."""


class CheckpointError(FastElectraError):
    """No checkpoint could be read or written."""


class TrackingError(FastElectraError):
    """The MLflow server does not answer or refuses."""


class LockError(FastElectraError):
    """Another run holds what this one needs."""


class GroupError(FastElectraError):
    """A machine that trains together with this one has ended."""


class NonFiniteLossError(FastElectraError):
    """Loss or gradients were NaN or infinite, in more steps in a row than may be left out.

    The first sentence says what was, those behind it what a run of its own can do.
    """


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint of the step it had reached is written."""


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of choices; the message offers the nearest right name.

    >>> check_choice("schedule", "exponental", ["exponential", "linear"])
    Traceback (most recent call last):
    fast_electra_core.errors.ConfigError: schedule must be one of exponential, linear; got 'exponental'. \
Did you mean 'exponential'?
    """
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def full_disk(error: Exception) -> str:
    """The first line of an error that says that a disk or a quota is full; empty if none does.

    >>> full_disk(OSError(28, "No space left on device"))
    '[Errno 28] No space left on device'
    """
    words = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
    return next((line for line in str(error).splitlines() if any(each in line for each in words)), "")
