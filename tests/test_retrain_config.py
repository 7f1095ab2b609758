"""What a retraining may be told, and how the run that continues a champion follows from it."""

from typing import Any

import pytest

from fast_electra_core.errors import ConfigError
from fast_electra_core.presets import PRETRAIN_PRESETS
from fast_electra_core.retraining import RetrainConfig
from steps.config import resolve_retrain


def config_of(**given: Any) -> RetrainConfig:
    return resolve_retrain({"preset": "tiny", **given})


def test_the_run_that_continues_starts_from_the_champion_alone_and_draws_otherwise_than_the_one_before() -> None:
    config = config_of(num_steps=100, continue_steps=7, warm_start="embeddings", seed=5)
    first, second = (config.continued(champion="models:/m/3", generation=number) for number in (1, 2))
    assert (first.initial_model, first.warm_start, first.num_steps) == ("models:/m/3", "none", 7)
    assert (first.seed, second.seed) == (6, 7)
    assert config_of(seed=2**60 - 1).continued(champion="m", generation=1).seed == 0  # the greatest that there is
    assert config_of(num_steps=100).continued(champion="m", generation=1).num_steps == 100


def test_a_restarted_curriculum_begins_again_and_a_continued_one_stays_where_it_has_ended() -> None:
    along = {"auxiliary_dropout": 0.1, "unigram_share": 0.2, "top_k": 9, "top_p": 0.9}
    given = {"schedule": "exponential", "temperature_start": 2.0, "temperature_decay": 0.5, **along}
    restarted = config_of(**given).continued(champion="m", generation=1)
    assert (restarted.schedule, restarted.temperature_start, restarted.top_k) == ("exponential", 2.0, 9)
    continued = config_of(**given, curriculum="continued").continued(champion="m", generation=1)
    # T(1) = 1 + (2 - 1) exp(-1 / 0.5)
    assert continued.schedule == "constant"
    ended = {"auxiliary_dropout": 0.0, "unigram_share": 0.0, "top_k": None, "top_p": 1.0}
    assert {name: getattr(continued, name) for name in along} == ended
    assert continued.temperature_start == pytest.approx(1.1353352832366127)
    assert continued.temperature_end == 1.0
    colder = config_of(**given, temperature_end=0.5, curriculum="continued").continued(champion="m", generation=1)
    assert colder.temperature_start == pytest.approx(0.7030029248549191)  # 0.5 + (2 - 0.5) exp(-1 / 0.5)


def test_presets_are_those_of_pretraining() -> None:
    assert config_of().hidden_size == PRETRAIN_PRESETS["tiny"]["hidden_size"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"min_new_tokens": 0}, "min_new_tokens must be >= 1, got 0"),
        ({"continue_steps": 0}, "continue_steps must be >= 1, got 0"),
        ({"replay_fraction": 1.0}, r"replay_fraction must be a multiple of 0\.0001 in \[0, 1\), got 1\.0"),
        ({"replay_fraction": 0.00005}, "replay_fraction must be a multiple"),
        ({"replay_fraction": -0.1}, "replay_fraction must be a multiple"),
        ({"max_auxiliary_drift": -1.0}, "max_auxiliary_drift must be >= 0, got -1"),
        ({"lock_minutes": 0.0}, r"lock_minutes must be >= 0\.05, got 0"),
        ({"wait_for_lock_seconds": -1.0}, "wait_for_lock_seconds must be >= 0, got -1"),
        ({"curriculum": "continue"}, "curriculum must be one of restarted, continued; .*Did you mean 'continued'"),
        ({"method": "electra"}, "method must be one of fast_electra, uniform, unigram, bigram in a retraining, got el"),
        ({"corruption": "offline"}, "corruption must be online in a retraining, got offline"),
        ({"method": "uniform", "curriculum": "continued"}, "curriculum has no effect with method uniform"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**given)
