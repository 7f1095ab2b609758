"""Rows of task files: tab-separated as GLUE has it, .csv, .jsonl, Parquet; each row knows where it stood.

Files are read line by line: MNLI's training set with its parses is half a gigabyte.
"""

import codecs
import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fast_electra_core.errors import DataError


class Row(NamedTuple):
    """One row by column names. where: file and line, for messages."""

    where: str
    values: Mapping[str, Any]
    fault: str = ""
    """What is wrong with a row that could not be taken apart."""


def rows_of_file(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[Row]:
    """The file's rows, by its suffix. columns: the names, where it has no header; needed: those that there must be.

    Raises:
        DataError: another suffix; a header that is not UTF-8; a needed column is missing; quotes or Parquet that do not
            parse.
    """
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".csv":
        return _csv_rows(path, needed)
    if path.suffix == ".parquet":
        return rows_of_dataset(Parquet([path]), str(path))
    if path.suffix in (".tsv", ".txt"):
        return _tsv_rows(path, columns, needed)
    raise DataError(f"{path}: task files are .tsv, .csv, .jsonl or .parquet")


def rows_of_dataset(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[Row]:
    """The rows of a dataset, numbered from 0."""
    for number, values in enumerate(rows):
        yield Row(f"{where}, row {number}", values)


def check_columns(where: str, needed: Iterable[str], present: Iterable[str]) -> None:
    """Raises DataError, with the columns there are, unless all that are needed are among them."""
    present = list(present)
    missing = [name for name in needed if name not in present]
    if missing:
        raise DataError(f"{where} has no column {', '.join(missing)}; columns there: {listing(present)}")


def listing(names: Iterable[str]) -> str:
    """The names in order, or `none`."""
    return ", ".join(sorted(names)) or "none"


class Parquet:
    """Parquet files of one split, with the face of a dataset. Raises DataError where one cannot be read."""

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


def _tsv_rows(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[Row]:
    lines = _lines(path)
    if not columns:
        columns = tuple(_header(path, lines).split("\t"))
        check_columns(str(path), needed, columns)
    for line in _without_blank_end(lines):
        cells = line.text.split("\t")
        fault = line.fault
        if not fault and len(cells) != len(columns):
            fault = f"{len(columns)} tab-separated columns expected ({', '.join(columns)}), got {len(cells)}"
        yield Row(f"{path}, line {line.number}", dict(zip(columns, cells, strict=False)), fault)


def _csv_rows(path: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    lines = _lines(path)
    header = f"{_header(path, lines)}\n"
    faults: dict[int, str] = {}

    def texts() -> Iterator[str]:
        yield header
        for line in lines:
            if line.fault:
                faults[line.number] = line.fault
            yield f"{line.text}\n"

    reader = csv.reader(texts(), strict=True)
    columns: list[str] = []
    while True:
        first = reader.line_num + 1  # where the row begins: a quoted newline may carry it further
        where = f"{path}, line {first}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{where}: {error}") from error
        if not columns:
            columns = cells
            check_columns(f"{path}, whose columns are separated by commas,", needed, columns)
        elif cells:  # not a blank line
            found = [faults[number] for number in range(first, reader.line_num + 1) if number in faults]
            if not found and len(cells) != len(columns):
                found = [f"{len(columns)} comma-separated columns expected, got {len(cells)}"]
            yield Row(where, dict(zip(columns, cells, strict=False)), found[0] if found else "")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for line in _lines(path):
        if not line.text.strip():
            continue
        where = f"{path}, line {line.number}"
        if line.fault:
            yield Row(where, {}, line.fault)
            continue
        try:
            values = json.loads(line.text)
        except ValueError as error:
            yield Row(where, {}, f"not JSON: {error}")
            continue
        yield Row(where, values) if isinstance(values, dict) else Row(where, {}, "no JSON object")


class _Line(NamedTuple):
    number: int
    """From 1."""
    text: str
    """Without the newline."""
    fault: str = ""


def _lines(path: Path) -> Iterator[_Line]:
    """Only \\n ends a line: U+0085 and its like occur in sentences."""
    start = 0
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            line = content.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield _Line(number, line.decode())
            except UnicodeDecodeError as error:
                at = start + content.index(line) + error.start
                yield _Line(number, line.decode(errors="replace"), f"not UTF-8 (byte {at})")
            start += len(content)


def _header(path: Path, lines: Iterator[_Line]) -> str:
    line = next(lines, _Line(1, ""))
    if line.fault:
        raise DataError(f"{path}, line 1: {line.fault}")
    return line.text


def _without_blank_end(lines: Iterable[_Line]) -> Iterator[_Line]:
    """All lines but the empty ones at the end: an empty one between others is a broken row."""
    blank = []
    for line in lines:
        if not line.text:
            blank.append(line)
            continue
        yield from blank
        blank = []
        yield line
