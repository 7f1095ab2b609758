"""The GLUE tasks as one table, and readers for their classic .tsv form and for the hub's.

`Example` is one sentence or pair with its label: a class id, or a float where the task is a regression.
Imports nothing but the standard library, because the configuration needs the names alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import DataError, check_choice

BAD_ROW_CHOICES = ("error", "skip")
MAX_SIMILARITY = 5.0  # STS-B's labels lie in [0, 5]


@dataclass(frozen=True)
class TaskSpec:
    """Where a task's files lie, which columns matter, how it is scored. Its name is the hub's too."""

    name: str
    folders: tuple[str, ...]
    """Folder names in the classic form; the first that exists is used."""
    text_columns: tuple[str, ...]
    label_column: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    """Label words, in the order of their ids (the hub's order). Empty: a regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    columns: tuple[str, ...] = ()
    """Column names where train and dev have no header line. Empty: the first line names them."""
    train_file: str | None = "train.tsv"
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    """(split, file); the first is required, others are scored where they are present."""
    test_files: tuple[str, ...] = ("test.tsv",)
    hub_text_columns: tuple[str, ...] = ()
    """Where they differ from text_columns."""
    is_swap_doubled: bool = False
    """Whether ELECTRA also trains on each pair in the other order."""

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        return max(1, len(self.labels))


_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_HUB_INFERENCE = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")
_COLA = ("source", "label", "star", "sentence")
_MNLI = (("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv"))

# fmt: off
_SPECS = (
    TaskSpec("cola", ("CoLA",), ("sentence",), columns=_COLA, metrics=("matthews",)),
    TaskSpec("sst2", ("SST-2",), ("sentence",)),
    TaskSpec("mrpc", ("MRPC",), ("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1"),
             hub_text_columns=_PAIR, is_swap_doubled=True),
    TaskSpec("stsb", ("STS-B",), _PAIR, "score", labels=(), metrics=("pearson", "spearman"),
             is_swap_doubled=True),
    TaskSpec("qqp", ("QQP",), _QUESTIONS, "is_duplicate", metrics=("accuracy", "f1")),
    TaskSpec("mnli", ("MNLI",), _PAIR, "gold_label", labels=_INFERENCE, dev_files=_MNLI,
             test_files=("test_matched.tsv", "test_mismatched.tsv"), hub_text_columns=_HUB_INFERENCE),
    TaskSpec("qnli", ("QNLI",), ("question", "sentence"), labels=_ENTAILMENT),
    TaskSpec("rte", ("RTE",), _PAIR, labels=_ENTAILMENT),
    TaskSpec("wnli", ("WNLI",), _PAIR),
    # The diagnostic set has no public labels: it is for models trained on mnli.
    TaskSpec("ax", ("AX", "diagnostic"), _PAIR, labels=_INFERENCE, metrics=("matthews",), train_file=None,
             dev_files=(), test_files=("diagnostic.tsv",), hub_text_columns=_HUB_INFERENCE),
)
# fmt: on
SPECS: Mapping[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
TASK_NAMES = tuple(spec.name for spec in _SPECS if spec.train_file is not None)


class Example(NamedTuple):
    """A sentence or pair; label is a class id, or a float for a regression."""

    text_a: str
    text_b: str | None
    label: int | float


@dataclass(frozen=True)
class TaskData:
    """A task's training and development examples. dev's keys: dev, or matched and mismatched."""

    name: str
    train: list[Example]
    dev: dict[str, list[Example]]
    num_skipped: int = 0
    """Rows left out because they were broken and `on_bad_row="skip"`."""


def task_spec(task: str) -> TaskSpec:
    """The spec of a trainable task. Raises ConfigError for an unknown name."""
    check_choice("task", task, TASK_NAMES)
    return SPECS[task]


def task_files(root: Path, task: str) -> dict[str, Path]:
    """The files that read_task reads, by split ("train" first), under root's folder for the task.

    Raises:
        DataError: the folder or a required file is missing; names the folders or files that there are.
    """
    spec = task_spec(task)
    folder = next((root / name for name in spec.folders if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f"{root} has no folder {' or '.join(spec.folders)} for task {task}; folders there: "
            f"{_listing(path.name for path in _children(root) if path.is_dir())}"
        )
    files = {"train": folder / str(spec.train_file)}
    for index, (split, name) in enumerate(spec.dev_files):
        if index == 0 or (folder / name).is_file():
            files[split] = folder / name
    for path in files.values():
        if not path.is_file():
            raise DataError(
                f"task {task} needs {path.name} in {folder}; files there: "
                f"{_listing(path.name for path in _children(folder))}"
            )
    return files


def read_task(root: Path, task: str, *, on_bad_row: str = "error") -> TaskData:
    """All train and dev examples of a task in the classic form: a folder per task, tab-separated, no quoting.

    A byte order mark, CRLF and a missing final newline are fine. `on_bad_row="skip"` leaves broken rows out
    and counts them (classic QQP has some).

    Raises:
        DataError: something is missing; a row has a wrong column count or label (names file and line).
    """
    check_choice("on_bad_row", on_bad_row, BAD_ROW_CHOICES)
    spec = task_spec(task)
    splits: dict[str, list[Example]] = {}
    num_skipped = 0
    for split, path in task_files(root, task).items():
        examples: list[Example] = []
        for row in _read_rows(path, spec):
            if isinstance(row, Example):
                examples.append(row)
            elif on_bad_row == "error":
                raise DataError(f"{row}. Mend or delete the line, or skip such lines with --on_bad_text skip")
            else:
                num_skipped += 1
        if not examples:
            raise DataError(f"{path} holds no examples")
        splits[split] = examples
    train = splits.pop("train")
    return TaskData(task, train, splits, num_skipped)


def read_hub_task(name: str, task: str) -> TaskData:
    """The same from the hub (or a local folder that `datasets` understands), e.g. name nyu-mll/glue.

    Raises:
        DataError: not reachable or not there; a split or column missing; a label outside the task's.
    """
    import datasets

    spec = task_spec(task)
    try:
        found = datasets.load_dataset(name, task)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"hub dataset {name} ({task}) cannot be loaded: {error}. Give a folder with "
            f"{spec.folders[0]}/train.tsv, or `--glue sample`, which needs no download"
        ) from error
    names = {"train": "train", "dev": "validation"}  # and matched: validation_matched
    data: dict[str, list[Example]] = {}
    for split in ("train", *dict(spec.dev_files)):
        hub_split = names.get(split, f"validation_{split}")
        if hub_split not in found:
            raise DataError(f"hub dataset {name} ({task}) has no split {hub_split}, only {_listing(found)}")
        where = f"hub dataset {name} ({task}, {hub_split})"
        texts = spec.hub_text_columns or spec.text_columns
        _check_columns(where, (*texts, "label"), found[hub_split].column_names)
        data[split] = [_hub_example(row, spec, f"{where}, row {n}") for n, row in enumerate(found[hub_split])]
        if not data[split]:
            raise DataError(f"{where} holds no examples")
    return TaskData(task, data.pop("train"), data)


def check_task_folder(root: Path, tasks: Sequence[str], *, on_bad_row: str) -> dict[str, dict[str, Any]]:
    """Reads every task wholly; per task what summarise_task says. Raises DataError as read_task does."""
    for task in tasks:  # what is missing shows before minutes go into reading what is there
        task_files(root, task)
    return {task: summarise_task(read_task(root, task, on_bad_row=on_bad_row)) for task in tasks}


def summarise_task(data: TaskData) -> dict[str, Any]:
    """{"train": n, "dev": {split: n}, "num_skipped": n, "digest": hex 16}.

    The digest is over texts and labels in order: the same data from another source has the same.
    """
    digest = hashlib.sha256()
    for split, examples in {"train": data.train, **data.dev}.items():
        digest.update(f"{split} {len(examples)}\n".encode())
        for example in examples:
            digest.update(repr(tuple(example)).encode())
    return {
        "train": len(data.train),
        "dev": {split: len(examples) for split, examples in data.dev.items()},
        "num_skipped": data.num_skipped,
        "digest": digest.hexdigest()[:16],
    }


def _read_rows(path: Path, spec: TaskSpec) -> Iterator[Example | str]:
    """Examples, and for a broken row a sentence that says what is wrong with it."""
    lines = _decode(path).removesuffix("\n").split("\n")  # not splitlines: U+0085 and its like occur in sentences
    lines = [line.removesuffix("\r") for line in lines]
    columns, first = spec.columns, 1
    if not columns:
        columns, first = tuple(lines[0].split("\t")), 2
        _check_columns(str(path), (*spec.text_columns, spec.label_column), columns)
    text_at = [columns.index(name) for name in spec.text_columns]
    label_at = columns.index(spec.label_column)
    if lines[first - 1 :] == [""]:
        return
    for number, line in enumerate(lines[first - 1 :], start=first):
        cells = line.split("\t")
        if len(cells) != len(columns):
            yield (
                f"{path}, line {number}: {len(columns)} tab-separated columns expected "
                f"({', '.join(columns)}), got {len(cells)}"
            )
            continue
        label = _parse_label(cells[label_at], spec)
        if label is None:
            got = cells[label_at]
            yield f"{path}, line {number}: {spec.label_column} must be {_allowed(spec)}, got {got!r}"
            continue
        texts = [cells[index] for index in text_at]
        yield Example(texts[0], texts[1] if len(texts) > 1 else None, label)


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: not UTF-8 (byte {error.start})") from error


def _parse_label(word: str, spec: TaskSpec) -> int | float | None:
    if not spec.is_regression:
        return spec.labels.index(word) if word in spec.labels else None
    try:
        value = float(word)
    except ValueError:
        return None
    return value if 0.0 <= value <= MAX_SIMILARITY else None


def _hub_example(row: Mapping[str, Any], spec: TaskSpec, where: str) -> Example:
    label = row["label"]
    allowed = _allowed(spec) if spec.is_regression else f"0 .. {len(spec.labels) - 1}"
    is_similarity = isinstance(label, float) and 0.0 <= label <= MAX_SIMILARITY
    if not (is_similarity if spec.is_regression else label in range(len(spec.labels))):
        raise DataError(f"{where}: label must be {allowed}, got {label!r}")
    texts = [row[name] for name in spec.hub_text_columns or spec.text_columns]
    return Example(texts[0], texts[1] if len(texts) > 1 else None, label)


def _allowed(spec: TaskSpec) -> str:
    return f"a number in [0, {MAX_SIMILARITY:g}]" if spec.is_regression else f"one of {', '.join(spec.labels)}"


def _check_columns(where: str, needed: Iterable[str], present: Iterable[str]) -> None:
    present = list(present)
    missing = [name for name in needed if name not in present]
    if missing:
        raise DataError(f"{where} has no column {', '.join(missing)}; columns there: {_listing(present)}")


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; --glue takes one with a sub-folder per task (CoLA, SST-2, ...)")
    return list(folder.iterdir())


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
