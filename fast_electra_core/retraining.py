"""What a scheduled retraining is: a main model that goes on, on new text, from the one that is champion."""

from dataclasses import dataclass, fields

from fast_electra_core.config import PretrainConfig, check_at_least
from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.method_knobs import FIXED, is_read
from fast_electra_core.schedules import temperature_at

CURRICULA = ("restarted", "continued")
REPLAY_PARTS = 10_000
"""A replayed fraction is a whole number of these: shares are counted in integers, so that no rounding moves them."""
_ALONG_THE_SCHEDULE = {"auxiliary_dropout": 0.0, "unigram_share": 0.0, "top_k": None, "top_p": 1.0}


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(PretrainConfig):
    """A champion to be continued on the text that has come since (RetrainFlow). Without a champion a main model is
    trained from scratch, on all the text, as by PretrainFlow."""

    method: str = "fast_electra"
    """What replaces tokens, the same in every run: fast_electra (frozen auxiliary, annealed temperature); or uniform,
    unigram, bigram: no model, but every ordinary token alike, as often as in the text, or what has followed the left
    neighbour there. These take of the auxiliary the tokenizer, and what warm_start says."""
    initial_model: str = ""
    """What a run that finds no champion starts from, instead of random weights: `models:/NAME@alias` or
    `models:/NAME/VERSION`, a folder or `s3://` prefix, `hub:NAME`. Empty: none. Otherwise it is the champion."""
    min_new_tokens: int = 100_000
    """With fewer new tokens than this nothing is trained, and the run ends at once; to a first model all tokens are
    new. >= 1."""
    continue_steps: int | None = None
    """Optimiser steps of a run that continues a champion. None: num_steps. >= 1."""
    replay_fraction: float = 0.25
    """Share of the sequences that are drawn from text that the champion has seen before, against forgetting; the rest
    is new. A multiple of 0.0001 in [0, 1); 0: none."""
    curriculum: str = "restarted"
    """The temperature schedule of a run that continues a champion: restarted from temperature_start, or continued: it
    stays where the schedule has ended."""
    max_auxiliary_drift: float = 1.0
    """The champion's auxiliary is kept while its masked loss on the new text is above that on the old by no more than
    this, in nats; beyond it another one of --auxiliary is chosen, and the text is refused if none keeps the bound.
    >= 0."""
    lock_minutes: float = 60.0
    """How long the lock that keeps a second run out outlives its last sign of life; running steps renew it all along.
    More than a task of the cluster may have to wait for its machine. >= 0.05."""
    wait_for_lock_seconds: float = 0.0
    """How long to wait for a run that holds the lock; 0: end at once, and say who holds it. >= 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("curriculum", self.curriculum, CURRICULA)
        for name, least in (
            ("min_new_tokens", 1), ("max_auxiliary_drift", 0), ("lock_minutes", 0.05), ("wait_for_lock_seconds", 0),
        ):  # fmt: skip
            check_at_least(name, getattr(self, name), least)
        if self.continue_steps is not None:
            check_at_least("continue_steps", self.continue_steps, 1)
        parts = self.replay_fraction * REPLAY_PARTS
        if not 0 <= self.replay_fraction < 1 or abs(parts - round(parts)) > 1e-6:
            raise ConfigError(f"replay_fraction must be a multiple of 0.0001 in [0, 1), got {self.replay_fraction}")
        self._check_what_cannot_be_continued()

    def _check_what_cannot_be_continued(self) -> None:
        if self.method not in FIXED:
            raise ConfigError(
                f"method must be one of {', '.join(FIXED)} in a retraining, got {self.method}: what replaces tokens "
                "must be the same before and after, or their held-out losses could not be compared"
            )
        if self.corruption != "online":
            raise ConfigError(f"corruption must be online in a retraining, got {self.corruption}; leave it out")
        if self.curriculum == "continued" and not is_read("schedule", self.method):
            raise ConfigError(f"curriculum has no effect with method {self.method}; leave --curriculum out")

    def continued(self, *, champion: str, generation: int) -> PretrainConfig:
        """The config of the run that continues the champion (its address); generation counts such runs since the last
        one from scratch, from 1, and moves the seed, so that no replay repeats the last one's masks and order."""
        values = {field.name: getattr(self, field.name) for field in fields(PretrainConfig)}
        values |= {
            "initial_model": champion,
            "warm_start": "none",
            "num_steps": self.num_steps if self.continue_steps is None else self.continue_steps,
            "seed": (self.seed + generation) % 2**60,
        }
        if self.curriculum == "continued":
            last = temperature_at(
                1.0,
                schedule=self.schedule,
                start=self.temperature_start,
                decay=self.temperature_decay,
                end=self.temperature_end,
            )
            values |= {"schedule": "constant", "temperature_start": last, **_ALONG_THE_SCHEDULE}
        return PretrainConfig(**values)
