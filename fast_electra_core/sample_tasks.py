"""GLUE-shaped tasks made from a small grammar, for machines without data: the "sample" tasks, not GLUE.

All nine names in the shapes of the real ones. The label follows from the text; every example follows from
(task, seed). Most words are those of Python's docstrings.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.glue import TASK_NAMES, Example, TaskData, task_spec

_Texts = tuple[str, str | None]


class _Verb(NamedTuple):
    base: str
    third: str
    past: str


class _Words(NamedTuple):
    subjects: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]]
    """Hypernym -> things of that kind."""
    places: tuple[str, ...]


class _Fact(NamedTuple):
    subject: str
    verb: _Verb
    adjective: str
    thing: str
    place: str


# fmt: off
_CODE = _Words(
    ("function", "method", "module", "class", "parser", "server", "client", "script", "thread", "command"),
    {"sequence": ("list", "tuple", "string"), "number": ("integer", "float", "fraction"),
     "container": ("array", "mapping", "queue"), "document": ("file", "page", "table"),
     "program": ("test", "package", "plugin")},
    ("in the loop", "at the end", "in memory", "before the call", "on the first line", "without an error"))
_WORLD = _Words(
    ("teacher", "doctor", "woman", "man", "child", "farmer", "driver", "artist", "student", "king"),
    {"animal": ("dog", "horse", "bird"), "vehicle": ("car", "truck", "train"),
     "building": ("house", "school", "hotel"), "tool": ("hammer", "rope", "saw"),
     "plant": ("tree", "flower", "rose")},
    ("in the city", "at the river", "in the morning", "after the war", "near the road", "during the winter"))
_ADJECTIVES = ("new", "large", "small", "simple", "local", "old", "special", "common", "single", "whole")
_SYNONYMS = (  # groups of verbs that may stand for each other
    (_Verb("create", "creates", "created"), _Verb("build", "builds", "built")),
    (_Verb("remove", "removes", "removed"), _Verb("delete", "deletes", "deleted")),
    (_Verb("change", "changes", "changed"), _Verb("modify", "modifies", "modified")),
    (_Verb("check", "checks", "checked"), _Verb("test", "tests", "tested")),
    (_Verb("find", "finds", "found"), _Verb("locate", "locates", "located")),
    (_Verb("show", "shows", "shown"), _Verb("display", "displays", "displayed")),
    (_Verb("save", "saves", "saved"), _Verb("store", "stores", "stored")),
    (_Verb("need", "needs", "needed"), _Verb("require", "requires", "required")))
_VERBS = tuple(verb for group in _SYNONYMS for verb in group)
_TOPICS = ("documentation", "interface", "method", "example", "module", "error message", "result", "code")
_GOOD = ("good", "useful", "clear", "fast", "efficient", "correct", "safe", "reliable", "helpful", "accurate")
_BAD = ("bad", "slow", "broken", "wrong", "useless", "unsafe", "inconsistent", "invalid", "odd", "unclear")
_DEGREES = ("", "very ", "really ", "quite ", "always ", "often ", "usually ", "still ")
_ENDINGS = ("", " in practice", " for new users", " on this platform", " in most cases", " since version 2")
_EVENTS = ("could not load", "did not accept", "could not hold")
_REASONS = ("too slow", "too old", "not ready", "too large", "missing", "damaged", "too strict", "invalid", "too small")
# fmt: on


def sample_task(task: str, *, seed: int = 0, num_train: int | None = None, num_dev: int = 200) -> TaskData:
    """The sample task of that name. No dev example is in train; classes are near balance, not on it.

    num_train: None makes 1000 sentences or 4000 pairs, which take longer to learn; 2000 where ELECTRA doubles them.

    Raises:
        ConfigError: unknown task, a number < 1, or more examples than the grammar has sentences.
    """
    check_choice("task", task, TASK_NAMES)
    spec = task_spec(task)
    if num_train is None:
        num_train = 1000 if len(spec.text_columns) == 1 else 2000 if spec.is_swap_doubled else 4000
    for name, number in (("num_train", num_train), ("num_dev", num_dev)):
        if number < 1:
            raise ConfigError(f"{name} must be >= 1, got {number}")
    rng = random.Random(f"{task} {seed}")
    seen: set[_Texts] = set()
    train = _make_split(task, num_train, rng, _CODE, seen)
    dev = {}
    for split, _ in spec.dev_files:
        words = _WORLD if split == "mismatched" else _CODE
        dev[split] = _make_split(task, num_dev, rng, words, seen)
    return TaskData(spec, train, dev)


def _make_split(task: str, number: int, rng: random.Random, words: _Words, seen: set[_Texts]) -> list[Example]:
    examples: list[Example] = []
    for label in _draw_labels(task, number, rng):
        for _ in range(200):
            texts = _MAKERS[task](rng, words, label)
            if texts not in seen:
                break
        else:
            raise ConfigError(f"sample task {task} has not {number} different examples; ask for fewer")
        seen.add(texts)
        examples.append(Example(*texts, label))
    return examples


def _draw_labels(task: str, number: int, rng: random.Random) -> list[int | float]:
    spec = task_spec(task)
    labels: list[int | float] = []
    if spec.is_regression:
        labels += [rng.randrange(11) / 2 for _ in range(number)]
    else:
        share = 1 / len(spec.labels) + 0.04  # of class 1: real tasks are not balanced to the example either
        others = [label for label in range(len(spec.labels)) if label != 1]
        num_first = round(share * number)
        labels += [1] * num_first
        labels += [others[index % len(others)] for index in range(number - num_first)]
    rng.shuffle(labels)
    return labels


def _cola(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    base, third, _ = fact.verb
    modal = rng.choice(("", "", "can ", "will "))
    subject, verb = f"the {fact.subject}", modal + base if modal else third
    if not modal and rng.random() < 0.4 and fact.subject != "class":
        subject, verb = f"{subject}s", base
    article, adjective, thing = _a(f"{fact.adjective} {fact.thing}").split()
    error = rng.randrange(4) if label == 0 else None
    if error == 0:  # "The functions creates a new list", "The function can creates a new list"
        verb = verb.replace(third, base) if third in verb else verb.replace(base, third)
    if error == 3:
        subject = f"{subject.removeprefix('the ')} the"
    parts = (subject, verb, article, adjective, thing)
    order = {1: (0, 2, 1, 3, 4), 2: (0, 1, 4, 2, 3)}.get(error or 0, range(5))
    return _sentence(f"{' '.join(parts[index] for index in order)} {fact.place}"), None


def _sst2(rng: random.Random, words: _Words, label: float) -> _Texts:
    is_negated = rng.random() < 0.2
    feelings = _GOOD if (label == 1) != is_negated else _BAD
    first, second = rng.sample(feelings, 2)
    text = f"the {rng.choice(_TOPICS)} is {'not ' if is_negated else rng.choice(_DEGREES)}{first}"
    if rng.random() < 0.4:
        text += f"{' or ' if is_negated else ' and '}{second}"
    return text + rng.choice(_ENDINGS) + " .", None


def _mrpc(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    other = fact if label == 1 else _another(rng, words, fact, _Fact._fields)
    is_passive = rng.random() < 0.5
    if not is_passive or rng.random() < 0.5:
        other = other._replace(verb=_synonym(rng, other.verb))
    texts = [_active(fact), (_passive if is_passive else _active)(other)]
    rng.shuffle(texts)
    return texts[0], texts[1]


def _stsb(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    cost = 5 - label  # one point for each part that differs, half a point for a synonym
    is_synonym = cost != int(cost)
    parts = [part for part in _Fact._fields if not (is_synonym and part == "verb")]
    other = _alter(rng, words, fact, rng.sample(parts, int(cost)))
    if is_synonym:
        other = other._replace(verb=_synonym(rng, fact.verb))
    return _active(fact), _active(other)


def _qqp(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    other = _reworded(rng, fact if label == 1 else _another(rng, words, fact, ("verb", "adjective", "thing", "place")))
    forms = ("How do I {}?", "What is the best way to {}?", "How can one {}?", "Is there a way to {}?")
    questions = [
        form.format(f"{fact.verb.base} {_a(f'{fact.adjective} {fact.thing}')} {fact.place}")
        for form, fact in zip(rng.sample(forms, 2), (fact, other), strict=True)
    ]
    return questions[0], questions[1]


def _qnli(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    questions = (
        (f"What does the {fact.subject} {fact.verb.base} {fact.place}?", ("subject", "verb", "place")),
        (f"Where is the {fact.adjective} {fact.thing} {fact.verb.past}?", ("verb", "thing", "adjective")),
        (f"What {fact.verb.third} the {fact.adjective} {fact.thing}?", ("verb", "thing", "adjective")),
    )
    question, asked = rng.choice(questions)
    # not_entailment: about something else than what is asked for
    told = _reworded(rng, fact if label == 0 else _alter(rng, words, fact, asked))
    return question, (_passive if rng.random() < 0.5 else _active)(told)


def _mnli(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    told = _alter(rng, words, fact, ("subject", "verb", "thing", "place")) if label == 1 else fact
    is_denied = label == 2 or (label == 1 and rng.random() < 0.5)
    verb = f"does not {told.verb.base} any" if is_denied else told.verb.third
    premise = f"the {fact.subject} {fact.verb.third} {fact.adjective} {fact.thing}s {fact.place}"
    return _sentence(premise), _sentence(f"the {told.subject} {verb} {told.thing}s {told.place}")


def _rte(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact = _fact(rng, words)
    told = fact if label == 0 else _another(rng, words, fact, ("subject", "verb", "thing", "place"), at_least=3)
    thing = told.thing if rng.random() < 0.8 else _kind(words, told.thing)
    return _active(fact), _sentence(f"the {told.subject} {told.verb.third} {_a(thing)} {told.place}")


def _wnli(rng: random.Random, words: _Words, label: float) -> _Texts:
    fact, event = _fact(rng, words), rng.choice(_EVENTS)
    text = f"the {fact.thing} was {rng.choice(_REASONS)}, so the {fact.subject} {event} it {fact.place}"
    told = fact if label == 1 else _alter(rng, words, fact, ("subject", "thing", "place"))
    return _sentence(text), _sentence(f"the {told.subject} {event} the {told.thing} {told.place}")


# fmt: off
_MAKERS: dict[str, Callable[[random.Random, _Words, float], _Texts]] = {
    "cola": _cola, "sst2": _sst2, "mrpc": _mrpc, "stsb": _stsb, "qqp": _qqp,
    "mnli": _mnli, "qnli": _qnli, "rte": _rte, "wnli": _wnli,
}
# fmt: on


def _fact(rng: random.Random, words: _Words) -> _Fact:
    parts: dict[str, Any] = {part: rng.choice(_choices(words, part)) for part in _Fact._fields}
    return _Fact(**parts)


def _choices(words: _Words, part: str) -> Sequence[Any]:
    choices: dict[str, Sequence[Any]] = {
        "subject": words.subjects,
        "verb": _VERBS,
        "adjective": _ADJECTIVES,
        "thing": [thing for things in words.kinds.values() for thing in things],
        "place": words.places,
    }
    return choices[part]


def _alter(rng: random.Random, words: _Words, fact: _Fact, parts: Sequence[str]) -> _Fact:
    """The fact with each of these parts replaced; a verb never by a synonym."""
    for part in parts:
        old = getattr(fact, part)
        same = _group(old) if part == "verb" else (old,)
        new: Any = rng.choice([choice for choice in _choices(words, part) if choice not in same])
        fact = fact._replace(**{part: new})
    return fact


def _another(rng: random.Random, words: _Words, fact: _Fact, parts: Sequence[str], *, at_least: int = 2) -> _Fact:
    """One that differs in two or more of these parts: in a single one, models of a few million tokens miss it."""
    return _alter(rng, words, fact, rng.sample(parts, rng.randint(at_least, len(parts))))


def _reworded(rng: random.Random, fact: _Fact) -> _Fact:
    """The same, half the time with another verb of the same meaning."""
    return fact._replace(verb=_synonym(rng, fact.verb)) if rng.random() < 0.5 else fact


def _group(verb: _Verb) -> tuple[_Verb, ...]:
    return next(group for group in _SYNONYMS if verb in group)


def _synonym(rng: random.Random, verb: _Verb) -> _Verb:
    return rng.choice([other for other in _group(verb) if other != verb])


def _kind(words: _Words, thing: str) -> str:
    return next(kind for kind, things in words.kinds.items() if thing in things)


def _active(fact: _Fact) -> str:
    return _sentence(f"the {fact.subject} {fact.verb.third} {_a(f'{fact.adjective} {fact.thing}')} {fact.place}")


def _passive(fact: _Fact) -> str:
    return _sentence(f"{_a(f'{fact.adjective} {fact.thing}')} is {fact.verb.past} by the {fact.subject} {fact.place}")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
