"""Tasks of a user's own, described by a `task.json` beside their files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.errors import DataError
from fast_electra_core.glue import TaskSpec

CLASS_METRICS = ("accuracy", "f1", "macro_f1", "matthews")
REGRESSION_METRICS = ("pearson", "spearman")
TASK_FILE = "task.json"
_KEYS = ("text", "label", "labels", "metrics", "train", "dev", "test", "epochs")


def custom_spec(folder: Path) -> TaskSpec:
    """The spec of a task of one's own, from `task.json` in its folder, whose name is the task's:

    {"text": ["premise", "hypothesis"], "label": "label", "labels": ["entailment", "contradiction"],
     "metrics": ["accuracy"], "train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl", "epochs": 3}

    text: one or two columns. labels: the label values as text, in the order of their ids; left out: a regression.
    metrics: the first stands for the task; of accuracy, f1 (of the second label), macro_f1, matthews; for a regression
    pearson, spearman. test and epochs may be left out. Files: .tsv (a header, no quoting), .csv (a header, quotes),
    .jsonl or .parquet.

    Raises:
        DataError: the folder's name is none that scores can bear, the file cannot be parsed, or a value is missing,
            unknown or wrong; says which.
    """
    if not re.fullmatch(r"[\w .:-]+", folder.name):  # it is part of its metrics' names, and MLflow takes no more
        raise DataError(
            "a task's name must have letters, digits, spaces, _, -, . and : alone, "
            f"got {folder.name!r}; rename the folder {folder}"
        )
    given = _TaskFile(folder / TASK_FILE)
    is_regression = "labels" not in given.values
    metrics = REGRESSION_METRICS if is_regression else CLASS_METRICS
    why = ": without labels it is a regression" if is_regression else ""
    return TaskSpec(
        folder.name,
        (folder.name,),
        given.words("text", least=1, most=2),
        given.word("label") if "label" in given.values else "label",
        labels=() if is_regression else given.words("labels", least=2, most=1000),
        metrics=given.choices("metrics", metrics, why) if "metrics" in given.values else metrics[:1],
        train_file=given.file("train"),
        dev_files=(("dev", given.file("dev")),),
        test_files=(("test", given.file("test")),) if "test" in given.values else (),
        epochs=given.number("epochs") if "epochs" in given.values else 3.0,
        is_custom=True,
    )


class _TaskFile:
    """A task.json; each method gives a value of the kind it is named for, or raises a DataError that names the key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values = self._read()

    def _read(self) -> Mapping[str, Any]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{self._path} holds no object; the keys are {', '.join(_KEYS)}")
        unknown = sorted(set(values) - set(_KEYS))
        if unknown:
            raise DataError(f"{self._path}: unknown key {unknown[0]!r}; the keys are {', '.join(_KEYS)}")
        return values

    def words(self, key: str, *, least: int, most: int) -> tuple[str, ...]:
        found = self.values.get(key, [])
        is_list = isinstance(found, list) and all(isinstance(word, str) for word in found)
        if not is_list or not least <= len(found) <= most or len(set(found)) < len(found):
            raise DataError(f"{self._path}: {key} must be a list of {least} to {most} different words, got {found!r}")
        return tuple(found)

    def choices(self, key: str, allowed: tuple[str, ...], why: str) -> tuple[str, ...]:
        found = self.words(key, least=1, most=len(allowed))
        for word in found:
            if word not in allowed:
                raise DataError(f"{self._path}: {key} must be of {', '.join(allowed)}, got {word!r}{why}")
        return found

    def word(self, key: str) -> str:
        found = self.values.get(key)
        if not isinstance(found, str) or not found:
            raise DataError(f"{self._path}: {key} must be a name, got {found!r}")
        return found

    def file(self, key: str) -> str:
        name = self.word(key)
        if Path(name).name != name:
            raise DataError(f"{self._path}: {key} must be a file beside it, got {name!r}")
        return name

    def number(self, key: str) -> float:
        found = self.values.get(key)
        if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
            raise DataError(f"{self._path}: {key} must be a number > 0, got {found!r}")
        return float(found)
