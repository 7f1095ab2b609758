"""Arms: what is written becomes the settings that were meant, and what cannot be meant is refused."""

from typing import Any

import pytest

from fast_electra_core.arms import COMPARISONS, CompareConfig, list_arms, reference_of
from fast_electra_core.errors import ConfigError


def arms_of(**values: Any) -> dict[str, dict[str, Any]]:
    return {arm.name: arm.values for arm in list_arms(CompareConfig(**values))}


def test_an_arm_is_a_method_or_one_of_a_comparison_or_its_settings() -> None:
    arms = arms_of(arms="electra; no_curriculum; late: temperature_decay=0.5, temperature_start=3, num_layers=2")
    assert arms == {
        "electra": {"method": "electra"},
        "no_curriculum": {"schedule": "constant", "temperature_start": 1.0},
        "late": {"temperature_decay": 0.5, "temperature_start": 3.0, "num_layers": 2},
    }


def test_settings_of_an_arm_named_as_a_method_are_added_to_the_method() -> None:
    arms = arms_of(arms="electra: rtd_weight=20; fast_electra")
    assert arms["electra"] == {"method": "electra", "rtd_weight": 20.0}


def test_a_grid_multiplies_the_arms_and_x_multiplies_the_value_that_an_arm_has() -> None:
    arms = arms_of(
        arms="electra; own: learning_rate=0.01", arm_grid="learning_rate=x1,x4; num_steps=5,x2", learning_rate=0.002,
        num_steps=10,
    )  # fmt: skip
    assert [(values["learning_rate"], values["num_steps"]) for values in arms.values()] == [
        (0.002, 5), (0.002, 20), (0.008, 5), (0.008, 20), (0.01, 5), (0.01, 20), (0.04, 5), (0.04, 20),
    ]  # fmt: skip
    assert list(arms)[1] == "electra learning_rate=0.002 num_steps=20"


def test_a_star_stands_for_each_candidate() -> None:
    arms = arms_of(comparison="auxiliary_size", auxiliary="a, b")
    assert [values["auxiliary"] for values in arms.values()] == ["a", "b", "a", "b"]


def test_every_arm_is_tested_against_joint_electra_at_its_own_point_of_the_grid_else_against_the_first() -> None:
    arms = list_arms(CompareConfig(arms="fast_electra; electra", arm_grid="learning_rate=1e-3,2e-3"))
    assert [reference_of(arms, arm).name for arm in arms] == [
        "electra learning_rate=0.001",
        "electra learning_rate=0.002",
    ] * 2
    arms = list_arms(CompareConfig(arms="no_curriculum; cosine"))
    assert {reference_of(arms, arm).name for arm in arms} == {"no_curriculum"}


def test_an_arm_is_not_multiplied_by_what_its_method_does_not_read() -> None:
    grid = "temperature_start=1.5,3; learning_rate=1e-3,2e-3"
    arms = list_arms(CompareConfig(arms="electra; fast_electra", arm_grid=grid))
    assert [arm.name for arm in arms] == [
        "electra learning_rate=0.001",
        "electra learning_rate=0.002",
        "fast_electra temperature_start=1.5 learning_rate=0.001",
        "fast_electra temperature_start=1.5 learning_rate=0.002",
        "fast_electra temperature_start=3 learning_rate=0.001",
        "fast_electra temperature_start=3 learning_rate=0.002",
    ]
    assert reference_of(arms, arms[5]) == arms[1]


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_every_arm_of_a_comparison_is_a_config_that_differs_from_the_others(comparison: str) -> None:
    config = CompareConfig(comparison=comparison, auxiliary="a,b")
    configs = [config.of_arm(arm).to_dict() for arm in list_arms(config)]
    assert len(configs) >= 3
    assert all(one != other for i, one in enumerate(configs) for other in configs[:i])


def test_the_runs_of_an_arm_differ_in_the_seed_alone_and_arms_share_the_seeds() -> None:
    config = CompareConfig(seed=7)
    electra, fast = list_arms(config)[:2]
    first, second = (config.of_arm(electra, turn=turn).to_dict() for turn in (0, 2))
    assert {name for name in first if first[name] != second[name]} == {"seed"}
    assert (first["seed"], second["seed"]) == (7, 9)
    assert config.of_arm(fast, turn=2).seed == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"comparison": "paper"}, "comparison must be one of paper_main, schedules.*Did you mean 'paper_main'"),
        ({"equal": "time"}, "equal must be one of tokens, flops; got 'time'"),
        ({"pretrain_seeds": 0}, "pretrain_seeds must be >= 1, got 0"),
        ({"corruption": "offline"}, "corruption must be online in a comparison, got offline"),
        ({"arms": "electra"}, "a comparison needs at least 2 arms, got electra"),
        ({"arms": " ; "}, "a comparison needs at least 2 arms, got none"),
        ({"arms": "electra; a: num_layers=2; b: num_layers=2"}, "arms a and b have the same settings; leave one "),
        ({"schedule": "constant", "temperature_start": 1.0}, "arms fast_electra and no_curriculum have the same sett"),
        ({"arms": "electra; elektra"}, "'elektra' is neither a method nor an arm of a comp"),
        ({"arms": "a/b: seed=1; electra"}, r"letters, digits and _-\., got 'a/b'"),
        ({"arms": "a: temperature_start; electra"}, "written KNOB=VALUE, got 'temperature_start'"),
        ({"arms": "a: temprature_start=2; electra"}, "must be one of .*Did you mean 'temperature_start'"),
        ({"arms": "a: seed=2; electra"}, "setting of an arm must be one of .*got 'seed'"),
        ({"arms": "a: max_auxiliary_fraction=0.1; electra"}, "one of .*got 'max_auxiliary_fraction'"),
        ({"arms": "electra; mlm", "initial_model": "m"}, "arm mlm: initial_model has no effect with method mlm"),
        ({"arms": "a: promote=never; electra"}, "setting of an arm must be one of .*got 'promote'"),
        ({"arms": "a: num_layers=2.5; electra"}, "num_layers must be int, got '2.5'"),
        ({"arms": "electra: temperature_start=3; mlm"}, "arm electra: temperature_start has no effect with "),
        ({"arms": "a: temperature_start=-1; electra"}, "arm a: temperature_start must be > 0, got -1"),
        ({"arms": "electra; a: num_steps=5", "equal": "flops"}, "arm a: num_steps follows from equal=flops"),
        ({"arms": "a: num_steps=5; a: num_steps=6"}, "different names, 'a' is there twice"),
        ({"arm_grid": "learning_rate"}, "arm_grid is written KNOB=VALUE,VALUE, got 'learning_rate'"),
        ({"arm_grid": "num_layers=*"}, r"\* stands for each auxiliary candidate, not for values of num_layers"),
        ({"arm_grid": "schedule=x2"}, "schedule is 'exponential', which x2 cannot multiply"),
        ({"arm_grid": "learning_rate=xyz"}, "learning_rate must be float, got 'xyz'"),
        ({"arms": "untrained: num_layers=2; electra"}, "'untrained' is the name of the encoder without pre-training"),
        ({"arms": "a: dropout=0, dropout=0.1; electra"}, "dropout is there twice in 'a: dropout=0, dropout=0.1'"),
        ({"arm_grid": "dropout=0; dropout=0.1"}, "dropout is there twice in 'dropout=0; dropout=0.1'"),
        (
            {"arms": "electra; mlm", "arm_grid": "learning_rate=x1,x2; temperature_decay=0.1,0.2"},
            "arm_grid: temperature_decay has no effect with the methods of the arms: electra, mlm. Leave it out",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**values)
