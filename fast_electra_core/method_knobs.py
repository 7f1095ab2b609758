"""The ways to pre-train, by name, and which of them read the knobs that not all read."""

from collections.abc import Mapping

from fast_electra_core.errors import ConfigError

MODEL_FREE = ("uniform", "unigram", "bigram")
FIXED = ("fast_electra", *MODEL_FREE)
"""Replaced token detection where what replaces tokens does not learn."""
METHODS = (*FIXED, "electra", "electra_decoupled", "electra_gdes", "mlm")
_FROZEN = ("fast_electra",)
_APART = ("electra_decoupled", "electra_gdes")
_WITH_A_MASKED_LM = tuple(method for method in METHODS if method not in MODEL_FREE)
_DETECTING = tuple(method for method in METHODS if method != "mlm")
_WITH_A_GENERATOR = tuple(method for method in _WITH_A_MASKED_LM if method in _DETECTING)
_READERS: Mapping[str, tuple[str, ...]] = {
    "schedule": _FROZEN,
    "temperature_start": _FROZEN,
    "temperature_decay": _FROZEN,
    "temperature_end": _FROZEN,
    "auxiliary_dropout": _FROZEN,
    "unigram_share": _FROZEN,
    "top_k": _FROZEN,
    "top_p": _FROZEN,
    "ensemble_size": _FROZEN,
    "soft_target_share": _FROZEN,
    "consistency_weight": FIXED,
    "max_auxiliary_fraction": _WITH_A_GENERATOR,
    "keep_fraction": _WITH_A_MASKED_LM,
    "rtd_weight": _DETECTING,
    "initial_model": _DETECTING,
    "generator_learning_rate": _APART,
}


OFF_BY_DEFAULT = (
    "generator_learning_rate", "ensemble_size", "auxiliary_dropout", "unigram_share", "top_k", "top_p",
    "soft_target_share", "consistency_weight", "keep_fraction",
)  # fmt: skip
"""Those whose default does nothing, so that any other value is refused with a method that does not read it."""


def is_read(knob: str, method: str) -> bool:
    """Whether the method's training depends on the knob.

    >>> is_read("rtd_weight", "electra"), is_read("rtd_weight", "mlm"), is_read("num_steps", "mlm")
    (True, False, True)
    """
    return method in _READERS.get(knob, METHODS)


def check_is_read(knob: str, method: str) -> None:
    """The method reads the knob that was given.

    Raises:
        ConfigError: it does not; names both, and the methods that do.
    """
    if not is_read(knob, method):
        readers = _READERS[knob]
        raise ConfigError(
            f"{knob} has no effect with method {method}; the methods that read it: {', '.join(readers)}. "
            f"Leave --{knob} out, or give another --method"
        )
