"""The arms of a comparison: which settings differ from the rest, by name, on a grid, and at equal tokens or FLOPs.

An arm is written `NAME: KNOB=VALUE, KNOB=VALUE`; arms are separated by semicolons. A name alone is a method, or an arm
of one of the comparisons below. A grid is written `KNOB=VALUE,VALUE; KNOB=VALUE,...` and multiplies the arms; `xN` is N
times the value that the arm has anyway, `*` stands for each of the candidates in --auxiliary.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

from fast_electra_core.config import PretrainConfig, ScoringConfig, check_at_least
from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.fields import describe_fields
from fast_electra_core.method_knobs import METHODS, check_is_read, is_read

REFERENCE = "electra"
"""The arm that the others are tested against, where there is one of this name; else it is the first."""
UNTRAINED = "untrained"
"""The row of the same encoder without pre-training; no arm may have its name."""
EQUALS = ("tokens", "flops")


_Made = TypeVar("_Made")


class Comparison(NamedTuple):
    """A question as arms and a grid, both as they could be given on the command line."""

    question: str
    arms: str
    grid: str = ""


_NO_CURRICULUM = "no_curriculum: schedule=constant, temperature_start=1"
COMPARISONS: Mapping[str, Comparison] = {
    "paper_main": Comparison(
        "Does a frozen auxiliary with an annealed temperature do as well as joint training, for less?",
        f"electra; fast_electra; {_NO_CURRICULUM}; electra_decoupled; electra_gdes; mlm",
    ),
    "schedules": Comparison(
        "Does the shape of the curriculum matter, and is one needed?",
        "electra; exponential: schedule=exponential; exponential_exact: schedule=exponential_exact; "
        "linear: schedule=linear, temperature_decay=1; polynomial: schedule=polynomial, temperature_decay=0.5; "
        f"cosine: schedule=cosine, temperature_decay=1; step: schedule=step; {_NO_CURRICULUM}",
    ),
    "augmentations": Comparison(
        "Does it have to be the temperature that makes the task easy at first?",
        f"electra; fast_electra; {_NO_CURRICULUM}; dropout: temperature_start=1, auxiliary_dropout=0.3; "
        "unigram_mix: temperature_start=1, unigram_share=0.5; top_k: temperature_start=1, top_k=10; "
        "top_p: temperature_start=1, top_p=0.5",
    ),
    "model_free": Comparison(
        "What is the auxiliary worth against replacement without a model?",
        "electra; fast_electra; uniform; unigram; bigram",
    ),
    "auxiliary_size": Comparison(
        "How does the size of the auxiliary matter?",
        "electra; fast_electra",
        "auxiliary=*",
    ),
    "stability": Comparison(
        "Which methods stand a large learning rate?",
        f"electra; fast_electra; {_NO_CURRICULUM}; electra_decoupled",
        "learning_rate=x1,x2,x4,x8",
    ),
}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(PretrainConfig):
    """Arms that differ in a few settings each, all else alike (CompareFlow)."""

    LEFT_OUT: ClassVar[frozenset[str]] = frozenset({"keep_task_models", "promote", "promotion_margin", "waive_gates"})
    """A comparison registers nothing, so it would not read them."""

    keep_task_models: bool = False
    experiment: str = "fast-electra-comparison"
    """MLflow experiment."""
    comparison: str = "paper_main"
    """The question: paper_main, schedules, augmentations, model_free, auxiliary_size or stability; a
    set of arms and a grid."""
    arms: str = ""
    """Arms instead of the comparison's: `electra; fast_electra; late: temperature_decay=0.5, temperature_start=3`. A
    name alone is a method, or an arm of one of the comparisons. Every other parameter holds for all of them."""
    arm_grid: str = ""
    """Values that multiply the arms instead of the comparison's: `learning_rate=x1,x4; temperature_start=1.5,2`. xN is
    N times what the arm has anyway; auxiliary=* is each of the candidates."""
    pretrain_seeds: int = 3
    """Pre-trainings per arm, seeds seed .. seed+pretrain_seeds-1, the same for every arm. >= 1."""
    equal: str = "tokens"
    """What the arms have in common: tokens (num_steps each), or flops: each arm trains until it has cost what the
    reference arm costs at num_steps, the auxiliary's own training not counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("comparison", self.comparison, COMPARISONS)
        check_choice("equal", self.equal, EQUALS)
        check_at_least("pretrain_seeds", self.pretrain_seeds, 1)
        if self.corruption != "online":
            raise ConfigError(f"corruption must be online in a comparison, got {self.corruption}; leave it out")
        arms = list_arms(self)
        if len(arms) < 2:
            raise ConfigError(
                f"a comparison needs at least 2 arms, got {', '.join(arm.name for arm in arms) or 'none'}"
            )
        seen: dict[str, str] = {}
        for arm in arms:
            settings = self.of_arm(arm)
            same = seen.setdefault(settings.digest(), arm.name)
            if same != arm.name:
                raise ConfigError(f"arms {same} and {arm.name} have the same settings; leave one of the two out")
            for knob in (*arm.values, *(["initial_model"] if self.initial_model else ())):
                _named(arm, check_is_read, knob, settings.method)
            if self.equal == "flops" and "num_steps" in arm.values:
                raise ConfigError(f"arm {arm.name}: num_steps follows from equal=flops; leave one of the two out")

    def of_arm(self, arm: "Arm", *, turn: int = 0) -> PretrainConfig:
        """The config of one of the arm's runs, the turn-th of pretrain_seeds.

        Raises:
            ConfigError: the arm's settings do not fit; it names the arm.
        """
        values = {field.name: getattr(self, field.name) for field in fields(PretrainConfig)}
        return _named(arm, PretrainConfig, **{**values, **arm.values, "seed": self.seed + turn})


class Arm(NamedTuple):
    """What is compared with the others."""

    base: str
    """Its name without the grid: arms of one base differ by the grid alone."""
    values: dict[str, Any]
    """The settings in which it differs from what all arms share."""
    point: str = ""
    """Where on the grid it lies, as text."""

    @property
    def name(self) -> str:
        """The base's name and the point of the grid."""
        return f"{self.base} {self.point}".strip()


def _named(arm: Arm, make: Callable[..., _Made], *args: Any, **values: Any) -> _Made:
    """make(...), whose ConfigError says which arm it is about."""
    try:
        return make(*args, **values)
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name}: {error}") from error


def list_arms(config: CompareConfig) -> list[Arm]:
    """The arms, each with its values, in order. An arm is not multiplied by what its method does not read.

    Raises:
        ConfigError: a name is unknown or given twice, or a setting cannot be one of an arm.
    """
    comparison = COMPARISONS[config.comparison]
    bases = [_parse_arm(part) for part in _split(config.arms or comparison.arms, ";")]
    grid = config.arm_grid or ("" if config.arms else comparison.grid)
    methods = dict.fromkeys(base.values.get("method", config.method) for base in bases)
    for knob in _knobs(_split(grid, ";"), grid):
        if not any(is_read(knob, method) for method in methods):
            raise ConfigError(
                f"arm_grid: {knob} has no effect with the methods of the arms: {', '.join(methods)}. Leave it out"
            )
    arms = [
        _at(config, base, point)
        for base in bases
        for point in _points(grid, config, method=base.values.get("method", config.method))
    ]
    names = [arm.name for arm in arms]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ConfigError(f"arms must have different names, {repeated[0]!r} is there twice")
    return arms


def reference_of(arms: Sequence[Arm], arm: Arm) -> Arm:
    """The arm that `arm` is tested against: electra, or else the first, at the same point of the grid as far as its
    method reads what the grid is of."""
    bases = [each.base for each in arms]
    of_reference = [each for each in arms if each.base == (REFERENCE if REFERENCE in bases else bases[0])]
    ours = arm.point.split()
    return next((each for each in of_reference if set(each.point.split()) <= set(ours)), of_reference[0])


def _parse_arm(text: str) -> Arm:
    name, colon, settings = (piece.strip() for piece in text.partition(":"))
    if not name or any(not (letter.isalnum() or letter in "_-.") for letter in name):
        raise ConfigError(f"the name of an arm is made of letters, digits and _-., got {name!r} in {text!r}")
    if name == UNTRAINED:
        raise ConfigError(f"arms: {name!r} is the name of the encoder without pre-training; give the arm another")
    if colon:
        written = _split(settings, ",")
        _knobs(written, text)
        values = dict(_setting(each) for each in written)
        return Arm(name, {"method": name, **values} if name in METHODS else values)
    if name in METHODS:
        return Arm(name, {"method": name})
    known = _known_arms()
    if name not in known:
        raise ConfigError(
            f"arms: {name!r} is neither a method nor an arm of a comparison; known are "
            f"{', '.join([*METHODS, *known])}. An arm of your own says its settings: `{name}: temperature_start=3`"
        )
    return known[name]


def _knobs(parts: Sequence[str], text: str) -> list[str]:
    """The knobs that parts, `KNOB=...`, name. Raises ConfigError where the text has one twice."""
    names = [part.partition("=")[0].strip() for part in parts]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{repeated[0]} is there twice in {text!r}; leave one of them out")
    return names


def _known_arms() -> dict[str, Arm]:
    written = [part for each in COMPARISONS.values() for part in _split(each.arms, ";") if ":" in part]
    return {arm.base: arm for arm in map(_parse_arm, written)}


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = (piece.strip() for piece in text.partition("="))
    if not equals or not value:
        raise ConfigError(f"a setting of an arm is written KNOB=VALUE, got {text!r}")
    return name, _value(name, value)


# What all arms share, else they could not be compared: where things are, the text as it is cut, how scores are made.
_SHARED = {field.name for field in fields(ScoringConfig)} | {"seed", "corpus", "text_field", "heldout_fraction"}
_SHARED |= {"initial_model", "max_auxiliary_fraction"}  # one auxiliary is chosen for all arms that name none
_SHARED |= {"corpus_licence", "promote", "promotion_margin", "waive_gates"}  # a comparison registers nothing
_SHARED |= {
    "shard_megabytes",
    "sequence_length",
    "num_nodes",
    "processes_per_node",
    "sharding",
    "group_timeout_seconds",
    "max_skipped_steps",
    "keep_checkpoints",
    "milestone_every_steps",
    "corruption",
    "checkpoint_every_steps",
    "log_every_steps",
}


def _value(name: str, text: str) -> Any:
    known = describe_fields(PretrainConfig)
    check_choice("setting of an arm", name, [each for each in known if each not in _SHARED])
    kind = known[name].kind
    if kind is bool:
        check_choice(name, text, ("true", "false"))
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{name} must be {kind.__name__}, got {text!r}") from None


def _points(grid: str, config: CompareConfig, *, method: str) -> list[list[tuple[str, str]]]:
    """Each point as (knob, value as written), of the knobs that the method reads; one empty point if there are none."""
    axes = []
    for part in _split(grid, ";"):
        name, _, values = (piece.strip() for piece in part.partition("="))
        written = _split(values, ",")
        if not written:
            raise ConfigError(f"arm_grid is written KNOB=VALUE,VALUE, got {part!r}")
        if written == ["*"]:
            if name != "auxiliary":
                raise ConfigError(f"arm_grid: * stands for each auxiliary candidate, not for values of {name}")
            written = config.auxiliary_list()
        if is_read(name, method):
            axes.append([(name, value) for value in written])
    return [list(point) for point in itertools.product(*axes)]


def _at(config: CompareConfig, base: Arm, point: list[tuple[str, str]]) -> Arm:
    values = dict(base.values)
    for knob, text in point:
        before = values.get(knob, getattr(config, knob, None))
        values[knob] = _multiple(knob, text, before) if text.startswith("x") else _value(knob, text)
    shown = [
        f"{knob}={values[knob]:g}" if isinstance(values[knob], float) else f"{knob}={values[knob]}" for knob, _ in point
    ]
    return Arm(base.base, values, " ".join(shown))


def _multiple(knob: str, text: str, before: Any) -> Any:
    try:
        factor = float(text[1:])
    except ValueError:
        return _value(knob, text)  # a word that begins with an x
    if isinstance(before, bool) or not isinstance(before, int | float):
        raise ConfigError(f"arm_grid: {knob} is {before!r}, which {text} cannot multiply")
    return _value(knob, repr(type(before)(before * factor)))


def _split(text: str, separator: str) -> list[str]:
    return [piece.strip() for piece in text.split(separator) if piece.strip()]
