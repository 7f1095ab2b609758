"""The embedded tasks: deterministic, GLUE-shaped, not leaking, nearly balanced, learnable."""

from collections import Counter

import pytest

from fast_electra_core import sample_tasks
from fast_electra_core.errors import ConfigError
from fast_electra_core.glue import SPECS, TASK_NAMES, Example, TaskData
from fast_electra_core.sample_tasks import sample_task

CLASS_TASKS = [task for task in TASK_NAMES if task != "stsb"]


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
    assert len(data.train) == 1000
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


def accuracy_of_bag_of_words(data: TaskData) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    bag = CountVectorizer()
    model = LogisticRegression(max_iter=1000)
    model.fit(bag.fit_transform([e.text_a for e in data.train]), [e.label for e in data.train])
    dev = data.dev["dev"]
    return float(model.score(bag.transform([e.text_a for e in dev]), [e.label for e in dev]))


def test_a_bag_of_words_learns_sentiment_but_not_all_of_it() -> None:
    assert 0.7 < accuracy_of_bag_of_words(sample_task("sst2")) < 0.95


def test_a_bag_of_words_does_not_tell_grammar() -> None:
    assert accuracy_of_bag_of_words(sample_task("cola")) < 0.62


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
