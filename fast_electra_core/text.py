"""Text files as a stream of cleaned documents, with memory that does not grow with file or document.

.txt holds documents separated by blank lines, .jsonl one object a line, .parquet a column; .txt and .jsonl
may be compressed. Documents beyond MAX_SEGMENT_CHARACTERS come in segments, cut at a line, else at a blank.
"""

import bz2
import codecs
import dataclasses
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

from fast_electra_core.errors import DataError

MAX_SEGMENT_CHARACTERS = 1 << 16
KINDS = ("txt", "jsonl", "parquet")
COMPRESSIONS = ("gz", "bz2", "xz", "zst")
KNOWN_SUFFIXES = ".txt, .jsonl (each also with .gz, .bz2, .xz or .zst behind) and .parquet"

OpenFile = Callable[[str], io.BufferedReader]
"""Opens what lies at a path, in place of the file system."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNCLEAN_ASCII = bytes(code for code in range(128) if (code < 32 and code not in b"\t\n") or code == 127)
_NEWLINE = ord("\n")
_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LOOKED_AT = 1024
"""Bytes at a file's beginning by which UTF-16 is told."""
_OFFER = "Mend the file, or go on with --on_bad_text replace or --on_bad_text skip"


@dataclass(frozen=True)
class TextPiece:
    """A local file, or the lines of it that start within [start, end)."""

    path: str
    start: int
    """Byte offset; 0 for whole files."""
    end: int | None
    """Byte offset, None for the end of the file; only uncompressed .txt and .jsonl have ranges."""
    kind: str
    """txt, jsonl or parquet."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict."""
        return cls(**values)


def kind_of(path: str | Path) -> str | None:
    """txt, jsonl or parquet by the name's suffixes, None for any other file.

    >>> kind_of("a.jsonl.gz"), kind_of("a.parquet"), kind_of("a.pdf"), kind_of("a.parquet.gz")
    ('jsonl', 'parquet', None, None)
    """
    suffixes = [suffix[1:].lower() for suffix in Path(path).suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if compressed:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    return kind if kind in KINDS and not (compressed and kind == "parquet") else None


def compression_of(path: str | Path) -> str | None:
    """gz, bz2, xz or zst by the name's last suffix, else None."""
    suffix = Path(path).suffix[1:].lower()
    return suffix if suffix in COMPRESSIONS else None


def read_documents(
    piece: TextPiece, *, text_field: str, on_bad_text: str, open_file: OpenFile | None = None
) -> Iterator[str]:
    """The documents that start in `piece`, cleaned, none of them blank; long ones in segments.

    Every line of a file is read exactly once over adjacent ranges. Cleaned means: no byte order mark,
    newlines are "\\n", no control characters, no lone surrogates.

    on_bad_text: error; replace (bytes that are not UTF-8 become U+FFFD) or skip (their line is dropped). With
        either, .jsonl lines without text in `text_field` are skipped.
    open_file: where the file is not a local one.

    Raises:
        DataError: file missing, unknown suffix, damaged compression, not UTF-8 (UTF-16 whatever on_bad_text is), no
            such field or column.
    """
    for document in _raw_documents(piece, text_field=text_field, on_bad_text=on_bad_text, open_file=open_file):
        yield from _segments(document)


def check_documents(
    piece: TextPiece,
    *,
    text_field: str,
    on_bad_text: str,
    max_characters: int | None = None,
    open_file: OpenFile | None = None,
) -> None:
    """Read as read_documents does, the first `max_characters` of the piece or all of it, and keep nothing.

    Raises: as read_documents, with the same words.
    """
    left = math.inf if max_characters is None else max_characters
    for document in _raw_documents(piece, text_field=text_field, on_bad_text=on_bad_text, open_file=open_file):
        left -= len(document)
        if left <= 0:
            return


def _raw_documents(piece: TextPiece, *, text_field: str, on_bad_text: str, open_file: OpenFile | None) -> Iterator[str]:
    """The documents as they lie in the file, neither cleaned nor cut. Raises as read_documents."""
    path = piece.path
    if kind_of(path) is None:
        raise DataError(f"{path}: unknown suffix {''.join(Path(path).suffixes)!r}; known are {KNOWN_SUFFIXES}")
    if open_file is None and not Path(path).is_file():
        raise DataError(f"there is no file {path}; was it moved after the run began?")
    reader = {"txt": _read_txt, "jsonl": _read_jsonl, "parquet": _read_parquet}[piece.kind]
    try:
        yield from reader(piece, text_field=text_field, on_bad_text=on_bad_text, open_file=open_file)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # bz2 and pyarrow's zstd report damage as OSErrors that no system call made, so without an errno.
        if error.errno is None:
            raise _damaged(path, error) from error
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _damaged(path: str, error: Exception) -> DataError:
    return DataError(f"{path} is cut short or damaged: {error}. Copy the file again")


def clean_text(text: str) -> str:
    """The text without control characters and lone surrogates, with "\\n" for every kind of line break."""
    if text.isascii():  # most text is: one look in C
        data = text.encode("ascii")
        if len(data.translate(None, _UNCLEAN_ASCII)) == len(data):
            return text.strip()
    text = _LINE_BREAKS.sub("\n", text)
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", text)).strip()


def _segments(document: str) -> Iterator[str]:
    """The document cleaned, in segments of at most MAX_SEGMENT_CHARACTERS."""
    text = clean_text(document)
    start = 0
    while len(text) - start > MAX_SEGMENT_CHARACTERS:
        end = start + MAX_SEGMENT_CHARACTERS
        cut = text.rfind("\n", start, end)
        cut = cut if cut > start else text.rfind(" ", start, end)
        cut = cut if cut > start else end
        segment = text[start:cut].strip()
        if segment:
            yield segment
        start = cut
    segment = text[start:].strip()
    if segment:
        yield segment


def _read_txt(piece: TextPiece, *, text_field: str, on_bad_text: str, open_file: OpenFile | None) -> Iterator[str]:
    """Documents between blank lines. A long one is given out in segments."""
    held: list[str] = []
    num_held = 0
    with _open(piece.path, open_file) as stream:
        _check_not_utf_16(stream, piece)
        for offset, data in _lines(stream, piece, limit=MAX_SEGMENT_CHARACTERS):
            try:
                line = data.decode("utf-8")
            except UnicodeDecodeError:
                made = _decode(data, path=piece.path, where="offset", base=offset, on_bad_text=on_bad_text)
                if made is None:
                    continue
                line = made
            is_blank = line.isspace()
            if held and (is_blank or num_held + len(line) > MAX_SEGMENT_CHARACTERS):
                yield "".join(held)
                held, num_held = [], 0
            if not is_blank:
                held.append(line)
                num_held += len(line)
    if held:
        yield "".join(held)


def _read_jsonl(piece: TextPiece, *, text_field: str, on_bad_text: str, open_file: OpenFile | None) -> Iterator[str]:
    with _open(piece.path, open_file) as stream:
        _check_not_utf_16(stream, piece)
        for index, (offset, data) in enumerate(_lines(stream, piece, limit=None)):
            line = _decode(data, path=piece.path, where="offset", base=offset, on_bad_text=on_bad_text)
            if line is None or not line.strip():
                continue
            problem, text = _text_of(line.removeprefix("\ufeff"), text_field)
            if problem and on_bad_text == "error":
                is_counted = open_file is None or not piece.start
                where = f"line {_lines_before(piece) + index + 1}" if is_counted else f"line at byte {offset}"
                raise DataError(f"{piece.path}, {where}: {problem}. {_OFFER} (both leave the line out)")
            yield text


def _text_of(line: str, text_field: str) -> tuple[str, str]:
    """What is wrong with a line of .jsonl ("" if nothing), and its text."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})", ""
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object", ""
    if text_field not in row:
        fields = ", ".join(map(repr, list(row)[:8])) or "none"
        return f"no field {text_field!r} (--text_field); the fields there are: {fields}", ""
    if not isinstance(row[text_field], str):
        return f"the field {text_field!r} holds {row[text_field]!r:.40}, not a string", ""
    return "", row[text_field]


def _read_parquet(piece: TextPiece, *, text_field: str, on_bad_text: str, open_file: OpenFile | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = piece.path
    try:
        source = path if open_file is None else open_file(path)
        with pq.ParquetFile(source, pre_buffer=False) as file:  # by default it holds the whole file
            schema = file.schema_arrow
            if text_field not in schema.names:
                names = ", ".join(map(repr, schema.names))
                raise DataError(f"{path} has no column {text_field!r} (--text_field); its columns are {names}")
            if schema.names.count(text_field) > 1:
                raise DataError(f"{path} has several columns {text_field!r} (--text_field); rename all but one")
            if not _is_text(schema.field(text_field).type):
                held = schema.field(text_field).type
                raise DataError(f"{path}: the column {text_field!r} (--text_field) holds {held}, not strings")
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                # As bytes, so that values that are not UTF-8 go the way of all others.
                for data in batch.column(0).cast(pa.large_binary()).to_pylist():
                    row += 1
                    where = f"row {row}, offset"
                    yield _decode(data or b"", path=path, where=where, base=0, on_bad_text=on_bad_text) or ""
    except pa.ArrowInvalid as error:
        raise _damaged(path, error) from error


def _is_text(arrow_type: Any) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if pa.types.is_dictionary(arrow_type):  # a category
        arrow_type = arrow_type.value_type
    return any(is_one(arrow_type) for is_one in kinds)


def _decode(data: bytes, *, path: str, where: str, base: int, on_bad_text: str) -> str | None:
    """The text; None for bytes that are not UTF-8 if those are skipped. `base`: the first byte's offset."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if on_bad_text == "replace":
            return data.decode("utf-8", errors="replace")
        if on_bad_text == "skip":
            return None
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at {where} {base + error.start}. {_OFFER}"
        ) from error


def _check_not_utf_16(stream: io.BufferedReader, piece: TextPiece) -> None:
    """Raises DataError where the file begins as UTF-16 does: with its mark, or with NULs as every other byte.

    Nothing of such a file could be kept: replaced, it is every other letter; skipped, it is nothing. Without a mark
    only letters of Latin-1 are told, whose other byte is NUL.
    """
    if piece.start:
        return
    data = stream.peek(_LOOKED_AT)[:_LOOKED_AT]
    nuls = [data[parity::2].count(0) for parity in (0, 1)]
    if data.startswith(_UTF_16):
        encoding = "UTF-16"
    elif 0 in nuls and 4 * sum(nuls) > len(data):  # some NULs are in text that is none
        encoding = "UTF-16BE" if nuls[0] else "UTF-16LE"
    else:
        return
    raise DataError(f"{piece.path} is UTF-16, not UTF-8: iconv -f {encoding} -t UTF-8 FILE > NEW makes UTF-8 of it")


def _open(path: str, open_file: OpenFile | None = None) -> io.BufferedReader:
    """The file's uncompressed bytes."""
    compression = compression_of(path)
    if compression is None:
        return Path(path).open("rb") if open_file is None else open_file(path)
    source = path if open_file is None else open_file(path)
    if compression == "zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(source, compression="zstd"))
    # A GzipFile is as good as raw to BufferedReader, whose readline is C.
    return io.BufferedReader(cast(io.RawIOBase, _DECOMPRESSORS[compression](source)))


def _lines(stream: IO[bytes], piece: TextPiece, *, limit: int | None) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line with its newline) of the lines that start within the piece's range.

    A line longer than `limit` bytes comes in parts, cut behind a blank, else between two characters.
    """
    offset = _seek_first_line(stream, piece.start)
    end = math.inf if piece.end is None else piece.end
    readline, at_most = stream.readline, -1 if limit is None else limit
    rest = b""
    is_line_start = True
    while offset < end or not is_line_start:
        data = rest + readline(at_most - len(rest)) if rest else readline(at_most)
        rest = b""
        if not data:
            return
        is_line_start = data[-1] == _NEWLINE
        if not is_line_start and len(data) == limit:
            cut = _cut_before(data)
            data, rest = data[:cut], data[cut:]
        yield offset, data
        offset += len(data)


def _cut_before(data: bytes) -> int:
    """Where to cut over-long data: behind its last blank, else before its last, perhaps cut character."""
    cut = data.rfind(b" ") + 1
    if cut:
        return cut
    cut = len(data) - 1
    while cut > len(data) - 4 and 0x80 <= data[cut] < 0xC0:
        cut -= 1
    return cut


def _seek_first_line(stream: IO[bytes], start: int) -> int:
    """Move to the first line that starts at or after byte `start`; return its offset."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    while True:
        skipped = stream.readline(MAX_SEGMENT_CHARACTERS)
        if not skipped or skipped.endswith(b"\n"):
            return stream.tell()


def _lines_before(piece: TextPiece) -> int:
    """Number of lines that start before the piece's range."""
    if piece.start == 0:
        return 0
    whole = dataclasses.replace(piece, start=0, end=piece.start)
    with _open(piece.path) as stream:
        return sum(1 for _ in _lines(stream, whole, limit=None))
