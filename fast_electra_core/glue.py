"""What a task is: the nine of GLUE and its diagnostic set as one table.

`Example` is one sentence or pair with its label: a class id, or a float where the task is a regression.
Imports nothing but the standard library, because the configuration needs the names alone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fast_electra_core.errors import check_choice


@dataclass(frozen=True)
class TaskSpec:
    """Where a task's files lie, which columns matter, how it is scored. Its name is the hub's too."""

    name: str
    folders: tuple[str, ...]
    """Folder names in the classic form, GLUE's and after it ELECTRA's; the first that exists is used."""
    text_columns: tuple[str, ...]
    label_column: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    """Label words, in the order of their ids (the hub's order). Empty: a regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    reported: str = ""
    """The one metric that stands for the task; empty: the first of metrics."""
    columns: tuple[str, ...] = ()
    """Column names where train and dev have no header line. Empty: the first line names them."""
    train_file: str | None = "train.tsv"
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    """(split, file); the first is required, others are scored where they are present."""
    test_files: tuple[tuple[str, str], ...] = (("test", "test.tsv"),)
    """(split, file); unlabelled, and predicted where they are present."""
    hub_text_columns: tuple[str, ...] = ()
    """Where they differ from text_columns."""
    is_swap_doubled: bool = False
    """Whether ELECTRA also trains on each pair in the other order."""
    label_range: tuple[float, float] | None = None
    """Bounds of a regression's labels."""
    epochs: float = 3.0
    """ELECTRA's passes over the training set (google-research/electra, configure_finetuning.py)."""
    starts_from_mnli: bool = False
    """Whether RoBERTa, MosaicBERT and ModernBERT start this task from the encoder fine-tuned on mnli."""
    is_custom: bool = False
    """A task of the user's own, with a task.json."""

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        return max(1, len(self.labels))

    @property
    def main_metric(self) -> str:
        """The one metric ELECTRA reports: matthews for cola, spearman for stsb, accuracy for the others."""
        return self.reported or self.metrics[0]


_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_HUB_INFERENCE = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")
_COLA = ("source", "label", "star", "sentence")
_MNLI = (("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv"))
_MNLI_TEST = (("matched", "test_matched.tsv"), ("mismatched", "test_mismatched.tsv"))
# One split under the names that the file has in the wild.
_AX_TEST = (("test", "diagnostic.tsv"), ("test", "AX.tsv"), ("test", "test.tsv"))

# fmt: off
_SPECS = (
    TaskSpec("cola", ("CoLA",), ("sentence",), columns=_COLA, metrics=("matthews",)),
    TaskSpec("sst2", ("SST-2", "sst"), ("sentence",)),
    TaskSpec("mrpc", ("MRPC",), ("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1"),
             hub_text_columns=_PAIR, is_swap_doubled=True, starts_from_mnli=True),
    TaskSpec("stsb", ("STS-B", "sts"), _PAIR, "score", labels=(), metrics=("pearson", "spearman"), reported="spearman",
             is_swap_doubled=True, label_range=(0.0, 5.0), epochs=10.0, starts_from_mnli=True),
    TaskSpec("qqp", ("QQP",), _QUESTIONS, "is_duplicate", metrics=("accuracy", "f1")),
    TaskSpec("mnli", ("MNLI",), _PAIR, "gold_label", labels=_INFERENCE, dev_files=_MNLI, test_files=_MNLI_TEST,
             hub_text_columns=_HUB_INFERENCE),
    TaskSpec("qnli", ("QNLI",), ("question", "sentence"), labels=_ENTAILMENT),
    TaskSpec("rte", ("RTE",), _PAIR, labels=_ENTAILMENT, epochs=10.0, starts_from_mnli=True),
    TaskSpec("wnli", ("WNLI",), _PAIR),
    # The diagnostic set has no public training set: models trained on mnli answer it.
    TaskSpec("ax", ("AX", "diagnostic"), _PAIR, labels=_INFERENCE, metrics=("matthews",), train_file=None,
             dev_files=(), test_files=_AX_TEST, hub_text_columns=_HUB_INFERENCE),
)
# fmt: on
SPECS: Mapping[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
TASK_NAMES = tuple(spec.name for spec in _SPECS if spec.train_file is not None)
DIAGNOSTIC = "ax"


class Example(NamedTuple):
    """A sentence or pair; label is a class id, a float for a regression, or None where it is not known."""

    text_a: str
    text_b: str | None
    label: int | float | None


@dataclass(frozen=True)
class TaskData:
    """A task's examples. Splits of dev: dev, or matched and mismatched; of test: test, or the same two."""

    spec: TaskSpec
    train: list[Example]
    dev: dict[str, list[Example]]
    test: dict[str, list[Example]] = field(default_factory=dict)
    """Without labels, and left empty unless asked for."""
    num_skipped: int = 0
    """Rows left out because they were broken and `on_bad_row="skip"`."""

    @property
    def name(self) -> str:
        return self.spec.name


def task_spec(task: str) -> TaskSpec:
    """The spec of one of GLUE's tasks, or of its diagnostic set. Raises ConfigError for an unknown name."""
    check_choice("task", task, SPECS)
    return SPECS[task]


def summarise_task(data: TaskData) -> dict[str, Any]:
    """{"train": n, "dev": {split: n}, "test": {split: n}, "num_skipped": n, "digest": hex 16}.

    The digest is over the labelled texts in order: the same data from another source has the same.
    """
    digest = hashlib.sha256()
    for split, examples in {"train": data.train, **data.dev}.items():
        digest.update(f"{split} {len(examples)}\n".encode())
        for example in examples:
            digest.update(repr(tuple(example)).encode())
    return {
        "train": len(data.train),
        "dev": {split: len(examples) for split, examples in data.dev.items()},
        "test": {split: len(examples) for split, examples in data.test.items()},
        "num_skipped": data.num_skipped,
        "digest": digest.hexdigest()[:16],
    }
