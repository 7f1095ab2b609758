"""Reading tasks: GLUE's classic .tsv form, what `datasets` saved (Arrow or Parquet), the hub, and tasks of one's own.

Whatever the form, a wrong row is named by file and line, and may be skipped and counted.
"""

import contextlib
import csv
import difflib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import ConfigError, DataError, check_choice
from fast_electra_core.glue import (
    SPECS,
    TASK_FILE,
    Example,
    TaskData,
    TaskSpec,
    custom_spec,
    summarise_task,
    task_spec,
)

BAD_ROW_CHOICES = ("error", "skip")


class _Row(NamedTuple):
    where: str
    values: Mapping[str, Any]
    fault: str = ""
    """What is wrong with a row that could not be taken apart."""


class _Split(NamedTuple):
    """One split of a task, not read yet."""

    where: str
    rows: Callable[[], Iterator[_Row]]
    text_columns: tuple[str, ...]
    label_column: str
    has_label_ids: bool
    """Labels are ids already, as on the hub; otherwise words."""


def spec_of(root: Path, task: str) -> TaskSpec:
    """The spec of one of GLUE's tasks, or of the task that root/TASK/task.json describes.

    Raises:
        ConfigError: neither; offers the nearest of GLUE's names and of the folders with a task.json.
    """
    if task in SPECS:
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
    whose names begin with their split (train, validation, test). For a task of one's own, see glue.custom_spec.
    `on_bad_row="skip"` leaves broken rows of train and dev out and counts them (classic QQP has some).

    Raises:
        DataError: something is missing; a row has a wrong column count, label or text (names file and line).
    """
    check_choice("on_bad_row", on_bad_row, BAD_ROW_CHOICES)
    spec = spec_of(root, task)
    return _read(spec, _local_splits(root, spec), on_bad_row=on_bad_row, with_test=with_test)


def read_hub_task(name: str, task: str, *, with_test: bool = False) -> TaskData:
    """The same from the hub, e.g. name nyu-mll/glue.

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
    splits = _saved_splits(spec, found, f"hub dataset {name} ({task})")
    return _read(spec, splits, on_bad_row="error", with_test=with_test)


def check_task_folder(
    root: Path, tasks: Sequence[str], *, on_bad_row: str, with_test: bool = False
) -> dict[str, dict[str, Any]]:
    """Reads every task wholly; per task what summarise_task says. Raises DataError as read_task does."""
    for task in tasks:  # what is missing shows before minutes go into reading what is there
        _local_splits(root, spec_of(root, task))
    return {task: summarise_task(read_task(root, task, on_bad_row=on_bad_row, with_test=with_test)) for task in tasks}


def _read(spec: TaskSpec, splits: Mapping[str, _Split], *, on_bad_row: str, with_test: bool) -> TaskData:
    train: list[Example] = []
    dev: dict[str, list[Example]] = {}
    test: dict[str, list[Example]] = {}
    num_skipped = 0
    for name, split in splits.items():
        kind, _, part = name.partition(" ")
        if kind == "test" and not with_test:
            continue
        examples: list[Example] = []
        for row in split.rows():
            example = _example(row, split, spec, with_label=kind != "test")
            if isinstance(example, Example):
                examples.append(example)
            elif kind == "test":
                raise DataError(f"{example}. Mend the line: the leaderboard wants an answer to every one")
            elif on_bad_row == "error":
                raise DataError(f"{example}. Mend or delete the line, or skip such lines with --on_bad_text skip")
            else:
                num_skipped += 1
        if not examples:
            raise DataError(f"{split.where} holds no examples")
        if kind == "train":
            train = examples
        else:
            (dev if kind == "dev" else test)[part] = examples
    return TaskData(spec, train, dev, test, num_skipped)


def _example(row: _Row, split: _Split, spec: TaskSpec, *, with_label: bool) -> Example | str:
    """The row's example, or a sentence that says what is wrong with it."""
    if row.fault:
        return f"{row.where}: {row.fault}"
    needed = (*split.text_columns, split.label_column) if with_label else split.text_columns
    missing = [name for name in needed if name not in row.values]
    if missing:
        return f"{row.where}: no {', '.join(missing)}; there: {_listing(row.values)}"
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


# Where a task's splits are


def _local_splits(root: Path, spec: TaskSpec) -> dict[str, _Split]:
    """By "train", "dev SPLIT" and "test SPLIT", in this order."""
    names = dict.fromkeys((*spec.folders, spec.name))
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f"{root} has no folder {' or '.join(names)} for task {spec.name}; folders there: "
            f"{_listing(path.name for path in _children(root) if path.is_dir())}"
        )
    if (folder / "dataset_dict.json").is_file():
        return _saved_splits(spec, _load_from_disk(folder), str(folder))
    parquet = {path.name: path for path in sorted(folder.glob("*.parquet"))}
    if parquet and not spec.is_custom:
        return _saved_splits(spec, _parquet_splits(parquet), str(folder))
    return _file_splits(spec, folder)


def _file_splits(spec: TaskSpec, folder: Path) -> dict[str, _Split]:
    train = [("train", spec.train_file)] if spec.train_file else []
    dev = [(f"dev {split}", name) for split, name in spec.dev_files]
    test = [(f"test {split}", name) for split, name in spec.test_files]
    required = [*train, *dev[:1]]
    found: dict[str, _Split] = {}
    for split, name in [*train, *dev, *test]:
        path = folder / name
        if path.is_file():
            if split not in found:
                is_test = split.startswith("test")
                columns = () if is_test else spec.columns
                needed = spec.text_columns if is_test else (*spec.text_columns, spec.label_column)
                rows = functools.partial(_rows_of_file, path, columns, needed)
                found[split] = _Split(str(path), rows, spec.text_columns, spec.label_column, has_label_ids=False)
        elif (split, name) in required:
            raise DataError(
                f"task {spec.name} needs {name} in {folder}; files there: "
                f"{_listing(child.name for child in _children(folder))}"
            )
    if not found:
        names = dict.fromkeys(name for _, name in spec.test_files)
        raise DataError(f"task {spec.name} needs {' or '.join(names)} in {folder}")
    return found


def _saved_splits(spec: TaskSpec, found: Mapping[str, Any], where: str) -> dict[str, _Split]:
    """Splits of a DatasetDict, or of Parquet files that look like one."""
    wanted = {"train": "train"} if spec.train_file else {}
    for kind, hub, files in (("dev", "validation", spec.dev_files), ("test", "test", spec.test_files)):
        for split, _ in files:
            wanted[f"{kind} {split}"] = f"{hub}_{split}" if split in ("matched", "mismatched") else hub
    required = list(wanted)[:2] if spec.train_file else list(wanted)
    splits: dict[str, _Split] = {}
    for split, name in wanted.items():
        if name not in found:
            if split in required:
                raise DataError(f"{where} has no split {name}, only {_listing(found)}")
            continue
        at = f"{where}, {name}"
        texts = spec.hub_text_columns or spec.text_columns
        needed = texts if split.startswith("test") else (*texts, "label")
        _check_columns(at, needed, found[name].column_names)
        rows = functools.partial(_rows_of_dataset, found[name], at)
        splits[split] = _Split(at, rows, texts, "label", has_label_ids=True)
    return splits


def _load_from_disk(folder: Path) -> Mapping[str, Any]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{folder} cannot be read as a DatasetDict saved to disk: {error}") from error
    return dict(found)


class _Parquet:
    """Parquet files of one split, with the face of a dataset."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    @property
    def column_names(self) -> list[str]:
        with _parquet_file(self._paths[0]) as file:
            return list(file.schema_arrow.names)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for path in self._paths:
            with _parquet_file(path) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _parquet_splits(paths: Mapping[str, Path]) -> dict[str, _Parquet]:
    """train.parquet, train-00000-of-00002.parquet, ... by what stands before the first - or full stop."""
    grouped: dict[str, list[Path]] = {}
    for name, path in paths.items():
        grouped.setdefault(name.split(".")[0].split("-")[0], []).append(path)
    return {split: _Parquet(parts) for split, parts in grouped.items()}


# Rows


def _rows_of_file(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[_Row]:
    """columns: the names, where the file has no header; needed: those that there must be."""
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".csv":
        return _csv_rows(path)
    if path.suffix == ".parquet":
        return _rows_of_dataset(_Parquet([path]), str(path))
    if path.suffix == ".tsv":
        return _tsv_rows(path, columns, needed)
    raise DataError(f"{path}: task files are .tsv, .csv, .jsonl or .parquet")


def _tsv_rows(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[_Row]:
    lines = _decode(path).removesuffix("\n").split("\n")  # not splitlines: U+0085 and its like occur in sentences
    lines = [line.removesuffix("\r") for line in lines]
    first = 1
    if not columns:
        columns, first = tuple(lines[0].split("\t")), 2
        _check_columns(str(path), needed, columns)
    if lines[first - 1 :] == [""]:
        return
    for number, line in enumerate(lines[first - 1 :], start=first):
        cells = line.split("\t")
        fault = ""
        if len(cells) != len(columns):
            fault = f"{len(columns)} tab-separated columns expected ({', '.join(columns)}), got {len(cells)}"
        yield _Row(f"{path}, line {number}", dict(zip(columns, cells, strict=False)), fault)


def _csv_rows(path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(_decode(path).splitlines(keepends=True), strict=True)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
        is_wrong = None in values or None in values.values()
        fault = f"{len(reader.fieldnames or ())} comma-separated columns expected" if is_wrong else ""
        yield _Row(f"{path}, line {reader.line_num}", values, fault)


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            yield _Row(where, {}, f"not JSON: {error}")
            continue
        yield _Row(where, values) if isinstance(values, dict) else _Row(where, {}, "no JSON object")


def _rows_of_dataset(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[_Row]:
    for number, values in enumerate(rows):
        yield _Row(f"{where}, row {number}", values)


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: not UTF-8 (byte {error.start})") from error


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
