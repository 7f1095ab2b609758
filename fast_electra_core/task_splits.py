"""Where the splits of a task lie, by the form that its folder has: classic files, what `datasets` saved, Parquet."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import DataError
from fast_electra_core.glue import SPECS, TaskSpec
from fast_electra_core.task_rows import Parquet, Row, check_columns, listing, rows_of_dataset, rows_of_file

_MSR_TRAIN, _MSR_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"
_MSR_IDS = ("#1 ID", "#2 ID")
_MSR_DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")


class Split(NamedTuple):
    """One split of a task, not read yet."""

    where: str
    rows: Callable[[], Iterator[Row]]
    text_columns: tuple[str, ...]
    label_column: str
    has_label_ids: bool
    """Labels are ids already, as on the hub; otherwise words."""


def local_splits(root: Path, spec: TaskSpec) -> dict[str, Split]:
    """The splits in the task's folder below root, by "train", "dev SPLIT" and "test SPLIT", in this order.

    Raises:
        DataError: no such folder, file or split; names those that are there.
    """
    names = dict.fromkeys((*spec.folders, spec.name))
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        found = listing(path.name for path in _children(root) if path.is_dir())
        known = {name for each in (*SPECS.values(), spec) for name in (*each.folders, each.name)}
        above = f". If it is a task's own folder, give the one above: {root.parent}" if root.name in known else ""
        raise DataError(
            f"{root} has no folder {' or '.join(names)} for task {spec.name}; folders there: {found}{above}"
        )
    if (folder / "dataset_dict.json").is_file() and not spec.is_custom:  # whose files task.json names
        return saved_splits(spec, _load_from_disk(folder), str(folder))
    parquet = {path.name: path for path in sorted(folder.glob("*.parquet"))}
    if parquet and not spec.is_custom:
        return saved_splits(spec, _parquet_splits(parquet), str(folder))
    if spec.name == "mrpc" and (folder / _MSR_TRAIN).is_file() and not (folder / "train.tsv").is_file():
        return _msr_splits(spec, folder)
    return _file_splits(spec, folder)


def _file_splits(spec: TaskSpec, folder: Path) -> dict[str, Split]:
    train = [("train", spec.train_file)] if spec.train_file else []
    dev = [(f"dev {split}", name) for split, name in spec.dev_files]
    test = [(f"test {split}", name) for split, name in spec.test_files]
    required = [*train, *dev[:1]]
    found: dict[str, Split] = {}
    for split, name in [*train, *dev, *test]:
        path = folder / name
        if path.is_file():
            if split not in found:
                is_test = split.startswith("test")
                columns = () if is_test else spec.columns
                needed = spec.text_columns if is_test else (*spec.text_columns, spec.label_column)
                rows = functools.partial(rows_of_file, path, columns, needed)
                found[split] = Split(str(path), rows, spec.text_columns, spec.label_column, has_label_ids=False)
        elif (split, name) in required:
            raise DataError(
                f"task {spec.name} needs {name} in {folder}; files there: "
                f"{listing(child.name for child in _children(folder))}"
            )
    if not found:
        names = dict.fromkeys(name for _, name in spec.test_files)
        raise DataError(f"task {spec.name} needs {' or '.join(names)} in {folder}")
    return found


def _msr_splits(spec: TaskSpec, folder: Path) -> dict[str, Split]:
    """MRPC as Microsoft gives it: GLUE's dev set is the rows of the training file that a list of ids names."""
    ids = next((folder / name for name in _MSR_DEV_IDS if (folder / name).is_file()), None)
    if ids is None:
        raise DataError(
            f"{folder} holds {_MSR_TRAIN}, but neither train.tsv nor {' or '.join(_MSR_DEV_IDS)}, which names the rows "
            "of the dev set"
        )
    train, test = folder / _MSR_TRAIN, folder / _MSR_TEST
    needed = (*spec.text_columns, spec.label_column)
    rows: dict[str, tuple[Path, Callable[[], Iterator[Row]]]] = {
        "train": (train, functools.partial(_msr_rows, train, needed, ids, is_dev=False)),
        "dev dev": (train, functools.partial(_msr_rows, train, needed, ids, is_dev=True)),
    }
    if test.is_file():
        rows["test test"] = (test, functools.partial(rows_of_file, test, (), spec.text_columns))
    return {
        name: Split(str(path), read, spec.text_columns, spec.label_column, has_label_ids=False)
        for name, (path, read) in rows.items()
    }


def _msr_rows(path: Path, needed: tuple[str, ...], ids: Path, *, is_dev: bool) -> Iterator[Row]:
    dev = {tuple(line.split()) for line in ids.read_text(encoding="utf-8-sig").splitlines()}
    for row in rows_of_file(path, (), (*needed, *_MSR_IDS)):
        if (tuple(row.values.get(name) for name in _MSR_IDS) in dev) == is_dev:
            yield row


def saved_splits(spec: TaskSpec, found: Mapping[str, Any], where: str) -> dict[str, Split]:
    """Splits of a DatasetDict, or of Parquet files that look like one; labels are ids.

    Raises:
        DataError: a split or a column is missing; names those that are there.
    """
    wanted = {"train": "train"} if spec.train_file else {}
    for kind, hub, files in (("dev", "validation", spec.dev_files), ("test", "test", spec.test_files)):
        for split, _ in files:
            wanted[f"{kind} {split}"] = f"{hub}_{split}" if split in ("matched", "mismatched") else hub
    required = list(wanted)[:2] if spec.train_file else list(wanted)
    splits: dict[str, Split] = {}
    for split, name in wanted.items():
        if name not in found:
            if split in required:
                raise DataError(f"{where} has no split {name}, only {listing(found)}")
            continue
        at = f"{where}, {name}"
        texts = spec.hub_text_columns or spec.text_columns
        needed = texts if split.startswith("test") else (*texts, "label")
        check_columns(at, needed, found[name].column_names)
        rows = functools.partial(rows_of_dataset, found[name], at)
        splits[split] = Split(at, rows, texts, "label", has_label_ids=True)
    return splits


def _load_from_disk(folder: Path) -> Mapping[str, Any]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{folder} cannot be read as a DatasetDict saved to disk: {error}") from error
    return dict(found)


def _parquet_splits(paths: Mapping[str, Path]) -> dict[str, Parquet]:
    """train.parquet, train-00000-of-00002.parquet, ... by what stands before the first - or full stop."""
    grouped: dict[str, list[Path]] = {}
    for name, path in paths.items():
        grouped.setdefault(name.split(".")[0].split("-")[0], []).append(path)
    return {split: Parquet(parts) for split, parts in grouped.items()}


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; --glue takes one with a sub-folder per task (CoLA, SST-2, ...), an s3:// "
            "prefix, hub:NAME, or sample"
        )
    return list(folder.iterdir())
