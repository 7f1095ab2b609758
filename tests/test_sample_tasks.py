"""The embedded tasks: deterministic, GLUE-shaped, not leaking, nearly balanced, learnable."""

import re
import statistics
from collections import Counter

import pytest

from fast_electra_core import sample_tasks
from fast_electra_core.errors import ConfigError
from fast_electra_core.glue import SPECS, TASK_NAMES, Example, TaskData
from fast_electra_core.sample_tasks import sample_task

CLASS_TASKS = [task for task in TASK_NAMES if task != "stsb"]
PAIR_TASKS = [task for task in CLASS_TASKS if task not in ("cola", "sst2")]


def texts(examples: list[Example]) -> set[tuple[str, str | None]]:
    return {(example.text_a, example.text_b) for example in examples}


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_has_the_shape_of_the_real_one(task: str) -> None:
    data = sample_task(task, num_train=60, num_dev=20)
    spec = SPECS[task]
    assert len(data.train) == 60
    assert {split: len(examples) for split, examples in data.dev.items()} == {s: 20 for s, _ in spec.dev_files}
    assert all((example.text_b is not None) == (len(spec.text_columns) == 2) for example in data.train)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_no_example_occurs_twice_in_train_or_dev(task: str) -> None:
    data = sample_task(task)
    everything = [example for examples in (data.train, *data.dev.values()) for example in examples]
    assert len(data.train) == {"cola": 1000, "sst2": 1000, "mrpc": 2000, "stsb": 2000}.get(task, 4000)
    assert len(texts(everything)) == len(everything)


def test_the_same_seed_gives_the_same_task_and_another_seed_another() -> None:
    assert sample_task("rte", seed=3) == sample_task("rte", seed=3)
    assert texts(sample_task("rte", seed=3).train) != texts(sample_task("rte", seed=4).train)


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_classes_are_within_ten_points_of_balance_but_not_on_it(task: str) -> None:
    data = sample_task(task)
    even = 1 / len(SPECS[task].labels)
    for examples in (data.train, *data.dev.values()):
        shares = [n / len(examples) for n in Counter(example.label for example in examples).values()]
        assert len(shares) == len(SPECS[task].labels)
        assert 0 < max(abs(share - even) for share in shares) < 0.1


def test_similarity_counts_the_parts_that_agree() -> None:
    data = sample_task("stsb")
    assert {example.label for example in data.train} == {n / 2 for n in range(11)}
    assert all(example.text_a == example.text_b for example in data.train if example.label == 5)
    halves = [example for example in data.train if example.label == 4.5]
    assert halves
    for example in halves:  # one word differs: a synonym
        pairs = zip(example.text_a.split(), str(example.text_b).split(), strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_mismatched_inference_speaks_of_other_things_than_train() -> None:
    data = sample_task("mnli")
    subjects = [{example.text_a.split()[1] for example in split} for split in data.dev.values()]
    trained = {example.text_a.split()[1] for example in data.train}
    assert subjects[0] <= trained
    assert not subjects[1] & trained


def accuracy_of_bag_of_words(data: TaskData, *, of_second: bool = False) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def shown(examples: list[Example]) -> list[str]:
        return [str(example.text_b) if of_second else example.text_a for example in examples]

    bag = CountVectorizer()
    model = LogisticRegression(max_iter=1000)
    dev = data.dev[data.spec.dev_files[0][0]]
    model.fit(bag.fit_transform(shown(data.train)), [e.label for e in data.train])
    return float(model.score(bag.transform(shown(dev)), [e.label for e in dev]))


def test_a_bag_of_words_learns_sentiment_but_not_all_of_it() -> None:
    assert 0.7 < accuracy_of_bag_of_words(sample_task("sst2")) < 0.95


def test_a_bag_of_words_does_not_tell_grammar() -> None:
    assert accuracy_of_bag_of_words(sample_task("cola")) < 0.62


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_neither_text_of_a_pair_tells_the_label_alone(task: str) -> None:
    data = sample_task(task)
    # In mnli what is denied is never entailed, what is not denied never contradicted.
    bound = 0.70 if task == "mnli" else 0.62
    assert accuracy_of_bag_of_words(data, of_second=True) < bound
    assert accuracy_of_bag_of_words(data) < 0.62


def shared_fraction(example: Example) -> float:
    """Of the second text's words, those that stand in the first."""
    first, second = (set(re.findall(r"[a-z]+", str(text).lower())) for text in (example.text_a, example.text_b))
    return len(first & second) / len(second)


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_texts_that_agree_share_more_words(task: str) -> None:
    agrees = {"mnli": (0, 2), "qnli": (0,), "rte": (0,)}.get(task, (1,))
    train = sample_task(task).train
    agreeing = [shared_fraction(example) for example in train if example.label in agrees]
    others = [shared_fraction(example) for example in train if example.label not in agrees]
    assert statistics.fmean(agreeing) > statistics.fmean(others) + 0.15


def words_of(text: str | None) -> list[str]:
    return str(text).rstrip(".").split()


def test_what_is_entailed_repeats_the_text_but_for_the_adjective_and_the_kind_of_thing() -> None:
    kinds = {thing: kind for kind, things in sample_tasks._CODE.kinds.items() for thing in things}
    for example in sample_task("rte").train:  # The SUBJECT VERBS a ADJECTIVE THING PLACE.
        (_, subject, verb, _, _, thing, *place), told = words_of(example.text_a), words_of(example.text_b)
        is_same = told[1:3] == [subject, verb] and told[4] in (thing, kinds[thing]) and told[5:] == place
        assert is_same == (example.label == 0)


def test_contradictions_deny_what_was_said_and_entailments_repeat_it() -> None:
    for example in sample_task("mnli").train:
        (_, subject, verb, _, things, *place), told = words_of(example.text_a), words_of(example.text_b)
        if example.label == 0:
            assert told == ["The", subject, verb, things, *place]
        elif example.label == 2:
            assert told[:4] == ["The", subject, "does", "not"]
            assert told[5:] == ["any", things, *place]
        else:
            assert told[1] != subject
            assert told[6 if told[2:4] == ["does", "not"] else 3] != things


def test_the_pronoun_stands_for_what_was_told_of_first() -> None:
    for example in sample_task("wnli").train:  # The THING was REASON, so the SUBJECT EVENT it PLACE.
        _, thing, *rest = words_of(example.text_a)
        clause = " ".join(rest[rest.index("so") + 1 :])
        meant = clause.replace(" it ", f" the {thing} ")
        assert (example.text_b == f"{meant[0].upper()}{meant[1:]}.") == (example.label == 1)


@pytest.mark.parametrize(("name", "number"), [("num_train", 0), ("num_dev", -1)])
def test_numbers_below_one_are_refused(name: str, number: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be >= 1, got {number}"):
        sample_task("rte", **{name: number})


def test_more_examples_than_the_grammar_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("_TOPICS", "_DEGREES", "_ENDINGS"):
        monkeypatch.setattr(sample_tasks, words, ("",))
    with pytest.raises(ConfigError, match="sample task sst2 has not 1000 different examples; ask for fewer"):
        sample_task("sst2")


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="task must be one of"):
        sample_task("ax")
