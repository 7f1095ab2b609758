"""How much easier than the auxiliary's best the task is made, over the course of training.

Everything is annealed along one shape, that of the temperature: schedules.remaining_at.
"""

from typing import NamedTuple

from fast_electra_core.schedules import remaining_at, temperature_at


class Smoothing(NamedTuple):
    """What is done to the auxiliary's output at one moment; the defaults do nothing."""

    temperature: float = 1.0
    """Divides the logits. > 0."""
    dropout: float = 0.0
    """Dropout in the auxiliary. [0, 1)."""
    unigram_share: float = 0.0
    """Share of the unigram distribution in the mixture. [0, 1]."""
    top_k: int | None = None
    """Only the k likeliest tokens are drawn. >= 1; None: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn. (0, 1]."""


class Curriculum(NamedTuple):
    """The parameters of a run's curriculum; see the fields of the same meaning in config.PretrainConfig."""

    schedule: str
    start: float
    """Temperature at progress 0. > 0."""
    decay: float
    end: float
    """Temperature that it descends to. > 0."""
    dropout: float = 0.0
    unigram_share: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    vocab_size: int = 0
    """What top_k grows to; not needed without it."""

    def at(self, progress: float) -> Smoothing:
        """The smoothing at progress in [0, 1].

        >>> Curriculum("linear", 2.0, 0.5, 1.0, unigram_share=0.4).at(0.25)
        Smoothing(temperature=1.5, dropout=0.0, unigram_share=0.2, top_k=None, top_p=1.0)
        >>> Curriculum("linear", 1.0, 1.0, 1.0, top_k=10, top_p=0.5, vocab_size=1000).at(0.5)
        Smoothing(temperature=1.0, dropout=0.0, unigram_share=0.0, top_k=100, top_p=0.75)
        """
        schedule, decay = self.schedule, self.decay
        temperature = temperature_at(progress, schedule=schedule, start=self.start, decay=decay, end=self.end)
        return self._annealed(temperature, remaining_at(progress, schedule=schedule, decay=decay))

    @property
    def last(self) -> Smoothing:
        """The smoothing that the schedule descends to, whether or not it gets there: what text is scored with.

        >>> Curriculum("constant", 2.0, 0.1, 1.0, dropout=0.1, top_k=3, vocab_size=9).last == Smoothing()
        True
        """
        return self._annealed(self.end, 0.0)

    def values_at(self, progress: float) -> dict[str, float]:
        """The numbers worth a curve: the temperature, and what else is on.

        >>> Curriculum("constant", 2.0, 0.1, 1.0, top_k=3, vocab_size=9).values_at(0.5)
        {'temperature': 2.0, 'top_k': 3.0}
        """
        now = self.at(progress)
        on = {
            "auxiliary_dropout": (self.dropout, now.dropout),
            "unigram_share": (self.unigram_share, now.unigram_share),
            "top_k": (self.top_k, float(now.top_k or self.vocab_size)),
            "top_p": (self.top_p < 1.0, now.top_p),
        }
        return {"temperature": now.temperature, **{name: value for name, (is_on, value) in on.items() if is_on}}

    def _annealed(self, temperature: float, remaining: float) -> Smoothing:
        return Smoothing(
            temperature=temperature,
            dropout=self.dropout * remaining,
            unigram_share=self.unigram_share * remaining,
            top_k=self._top_k(remaining),
            top_p=1.0 - (1.0 - self.top_p) * remaining,
        )

    def _top_k(self, remaining: float) -> int | None:
        """Geometric: each equal share of the way multiplies k by the same factor."""
        if self.top_k is None:
            return None
        k = round(self.top_k * (self.vocab_size / self.top_k) ** (1.0 - remaining))
        return k if k < self.vocab_size else None
