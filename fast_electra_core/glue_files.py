"""Reading tasks: GLUE's classic .tsv form, what `datasets` saved (Arrow or Parquet), the hub, and tasks of one's own.

Whatever the form, a wrong row is named by file and line, and may be skipped and counted.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.custom_task import TASK_FILE, custom_spec
from fast_electra_core.errors import ConfigError, DataError, check_choice
from fast_electra_core.glue import (
    SPECS,
    Example,
    TaskData,
    TaskSpec,
    summarise_task,
    task_spec,
)
from fast_electra_core.task_rows import Row, listing
from fast_electra_core.task_splits import Split, local_splits, saved_splits

BAD_ROW_CHOICES = ("error", "skip")


def spec_of(root: Path, task: str) -> TaskSpec:
    """The spec of one of GLUE's tasks, or of the task that root/TASK/task.json describes.

    Raises:
        ConfigError: neither; offers the nearest of GLUE's names and of the folders with a task.json.
        DataError: a task.json in a folder named as one of GLUE's tasks; as custom_spec.
    """
    if task in SPECS:
        if (root / task / TASK_FILE).is_file():
            raise DataError(
                f"{root / task / TASK_FILE} is in the way: {task} is GLUE's own; for a task of yours by its "
                f"{TASK_FILE}, rename the folder"
            )
        return task_spec(task)
    if (root / task / TASK_FILE).is_file() and Path(task).name == task:
        return custom_spec(root / task)
    own = sorted(path.parent.name for path in root.glob(f"*/{TASK_FILE}"))
    near = difflib.get_close_matches(task, [*SPECS, *own], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"tasks must be of {', '.join([*SPECS, *own])}; got {task!r}.{hint} A task of your own needs "
        f"{root / task / TASK_FILE}"
    )


def read_task(root: Path, task: str, *, on_bad_row: str = "error", with_test: bool = False) -> TaskData:
    """All examples of a task that lies under root in a folder of its own.

    The folder, by one of the names the task is known by, holds the classic .tsv files (no quoting; a byte order mark,
    CRLF and a missing final newline are fine), or what `datasets` saved: `DatasetDict.save_to_disk`, or Parquet files
    whose names begin with their split (train, validation, test). For a task of one's own, see custom_task.custom_spec.
    `on_bad_row="skip"` leaves broken rows of train and dev out and counts them (classic QQP has some).

    Raises:
        DataError: something is missing; a row has a wrong column count, label or text (names file and line).
    """
    check_choice("on_bad_row", on_bad_row, BAD_ROW_CHOICES)
    spec = spec_of(root, task)
    return _read(spec, local_splits(root, spec), on_bad_row=on_bad_row, with_test=with_test)


def read_hub_task(name: str, task: str, *, with_test: bool = False) -> TaskData:
    """The same from the hub, e.g. name nyu-mll/glue.

    Raises:
        DataError: not reachable or not there; a split or column missing; a label outside the task's.
    """
    import datasets

    spec = task_spec(task)
    try:
        found = datasets.load_dataset(name, task)
    except Exception as error:  # among them those of its HTTP library, whichever that is
        raise DataError(
            f"hub dataset {name} ({task}) cannot be loaded: {error}. Give a folder with "
            f"{spec.folders[0]}/train.tsv, or `--glue sample`, which needs no download"
        ) from error
    splits = saved_splits(spec, found, f"hub dataset {name} ({task})")
    return _read(spec, splits, on_bad_row="error", with_test=with_test)


def check_task_folder(
    root: Path, tasks: Sequence[str], *, on_bad_row: str, with_test: bool = False
) -> dict[str, dict[str, Any]]:
    """Reads every task wholly; per task what summarise_task says. Raises DataError as read_task does."""
    for task in tasks:  # what is missing shows before minutes go into reading what is there
        local_splits(root, spec_of(root, task))
    return {task: summarise_task(read_task(root, task, on_bad_row=on_bad_row, with_test=with_test)) for task in tasks}


def _read(spec: TaskSpec, splits: Mapping[str, Split], *, on_bad_row: str, with_test: bool) -> TaskData:
    found: dict[str, dict[str, list[Example]]] = {"train": {}, "dev": {}, "test": {}}
    num_skipped = 0
    for name, split in splits.items():
        kind, _, part = name.partition(" ")
        if kind == "test" and not with_test:
            continue
        examples, fault, num_faults = _examples(split, spec, with_label=kind != "test")
        if fault and (kind == "test" or on_bad_row == "error"):
            more = f" ({num_faults - 1} more such rows)" if num_faults > 1 else ""
            move = "Mend or delete the line, or skip such lines with --on_bad_text skip"
            if kind == "test":
                move = "Mend the line: the leaderboard wants an answer to every one"
            raise DataError(f"{fault}{more}. {move}")
        if not examples:
            raise DataError(f"{split.where} holds no examples")
        num_skipped += num_faults
        found[kind][part] = examples
    return TaskData(spec, found["train"].get("", []), found["dev"], found["test"], num_skipped)


class _Found(NamedTuple):
    examples: list[Example]
    fault: str
    """The first broken row, with where it is; empty: none is."""
    num_faults: int


def _examples(split: Split, spec: TaskSpec, *, with_label: bool) -> _Found:
    examples: list[Example] = []
    fault, num_faults = "", 0
    for row in split.rows():
        example = _example(row, split, spec, with_label=with_label)
        if isinstance(example, Example):
            examples.append(example)
        else:
            fault, num_faults = fault or example, num_faults + 1
    return _Found(examples, fault, num_faults)


def _example(row: Row, split: Split, spec: TaskSpec, *, with_label: bool) -> Example | str:
    """The row's example, or a sentence that says what is wrong with it."""
    if row.fault:
        return f"{row.where}: {row.fault}"
    needed = (*split.text_columns, split.label_column) if with_label else split.text_columns
    missing = [name for name in needed if name not in row.values]
    if missing:
        return f"{row.where}: no {', '.join(missing)}; there: {listing(row.values)}"
    texts = [row.values[name] for name in split.text_columns]
    for name, text in zip(split.text_columns, texts, strict=True):
        if not isinstance(text, str):
            return f"{row.where}: {name} must be text, got {text!r}"
    label = None
    if with_label:
        value = row.values[split.label_column]
        label = _label(value, spec, is_id=split.has_label_ids)
        if label is None:
            allowed = f"0 .. {len(spec.labels) - 1}" if split.has_label_ids and spec.labels else _allowed(spec)
            return f"{row.where}: {split.label_column} must be {allowed}, got {value!r}"
    return Example(texts[0], texts[1] if len(texts) > 1 else None, label)


def _label(value: Any, spec: TaskSpec, *, is_id: bool) -> int | float | None:
    if spec.is_regression:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        low, high = spec.label_range or (float("-inf"), float("inf"))
        return number if low <= number <= high and abs(number) != float("inf") else None
    if is_id:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return value if is_number and 0 <= value < len(spec.labels) else None
    word = json.dumps(value) if isinstance(value, bool | int) else value
    return spec.labels.index(word) if word in spec.labels else None


def _allowed(spec: TaskSpec) -> str:
    if not spec.is_regression:
        return f"one of {', '.join(spec.labels)}"
    return f"a number in [{spec.label_range[0]:g}, {spec.label_range[1]:g}]" if spec.label_range else "a number"
