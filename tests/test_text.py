"""Reading text: every line once, nothing but text, flat memory, and errors that name the place."""

import bz2
import gzip
import json
import lzma
import random
import tracemalloc
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra_core.errors import DataError
from fast_electra_core.text import (
    MAX_SEGMENT_CHARACTERS,
    TextPiece,
    clean_text,
    compression_of,
    kind_of,
    read_documents,
)

PLAIN = "First document,\ntwo lines.\n\nSecond: café 北京.\n"
DOCUMENTS = ["First document,\ntwo lines.", "Second: café 北京."]
ROWS = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in DOCUMENTS)
SMALL = settings(max_examples=60, deadline=None)


def read(path: Path, *, text_field: str = "text", on_bad_text: str = "error") -> list[str]:
    piece = TextPiece(path=str(path), start=0, end=None, kind=kind_of(path) or "txt")
    return list(read_documents(piece, text_field=text_field, on_bad_text=on_bad_text))


def read_ranges(path: Path, bounds: list[int]) -> list[str]:
    pieces = [
        TextPiece(path=str(path), start=start, end=end, kind=kind_of(path) or "")
        for start, end in zip(bounds, [*bounds[1:], None], strict=True)
    ]
    return [text for piece in pieces for text in read_documents(piece, text_field="text", on_bad_text="error")]


def write_zst(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(data)


def write_compressed(path: Path, data: bytes) -> None:
    """As the file's suffix says."""
    if path.suffix == ".zst":
        write_zst(path, data)
    else:
        kind = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[path.suffix]
        path.write_bytes(kind.compress(data))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name, content", [("a.txt", PLAIN), ("a.jsonl", ROWS), ("A.JSONL", ROWS)])
def test_text_and_json_lines_give_the_same_documents(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize("name, content", [("a.txt", PLAIN), ("a.jsonl", ROWS)])
def test_compressed_files_give_the_same_documents(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    (tmp_path / f"{name}.bz2").write_bytes(bz2.compress(data))
    (tmp_path / f"{name}.xz").write_bytes(lzma.compress(data))
    write_zst(tmp_path / f"{name}.zst", data)
    found = [read(tmp_path / f"{name}.{suffix}") for suffix in ("gz", "bz2", "xz", "zst")]
    assert found == [DOCUMENTS] * 4


def test_parquet_gives_the_column_without_nulls_and_blanks(tmp_path: Path) -> None:
    table = pa.table({"body": [DOCUMENTS[0], None, "  ", DOCUMENTS[1]], "n": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_field="body") == DOCUMENTS
    for as_others_write in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(table.cast(pa.schema({"body": as_others_write, "n": pa.int64()})), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", text_field="body") == DOCUMENTS


def test_byte_order_mark_windows_newlines_and_control_characters_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\nt\x00wo\x07\r\n\r\nthree\r\n")
    assert read(tmp_path / "a.txt") == ["one\ntwo", "three"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one\\u0000\\r\\ntwo"}\r\n')
    assert read(tmp_path / "a.jsonl") == ["one\ntwo"]


def test_lone_surrogates_of_json_become_replacement_characters() -> None:
    assert clean_text(json.loads('"a\\ud800b"')) == "a�b"


def test_each_character_is_kept_dropped_or_made_a_newline_by_its_kind_in_unicode() -> None:
    """What breaks a line is Unicode's standard (annex 14: BK, CR, LF, NL), what is a control its category Cc."""
    characters = [chr(code) for code in range(0x10000)]
    expected = []
    for character in characters:
        if character in "\n\r\v\f\x85\u2028\u2029":
            expected.append("a\nb")
        elif unicodedata.category(character) == "Cs":
            expected.append("a\ufffdb")
        elif (unicodedata.category(character) == "Cc" and character != "\t") or character == "\ufeff":
            expected.append("ab")
        else:
            expected.append(f"a{character}b")
    assert [clean_text(f"a{character}b") for character in characters] == expected


def test_a_document_of_a_segments_length_is_one_whatever_blanks_are_around_it(tmp_path: Path) -> None:
    for text in ("a" * (MAX_SEGMENT_CHARACTERS - 2) + " b", "é" * (MAX_SEGMENT_CHARACTERS - 2) + " b"):
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"\n {text} \n"}))
        assert read(tmp_path / "a.jsonl") == [text]


def test_a_long_document_is_cut_at_the_last_line_that_fits_or_else_at_the_last_blank(tmp_path: Path) -> None:
    line, rest = "a b" * (MAX_SEGMENT_CHARACTERS // 4), "c d" * (MAX_SEGMENT_CHARACTERS // 8)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"{line}\n{rest}"}))
    assert read(tmp_path / "a.jsonl") == [line, rest]
    words = ["e" * (MAX_SEGMENT_CHARACTERS // 2 - 1), "f" * (MAX_SEGMENT_CHARACTERS // 2 - 1), "g", "h"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": " ".join(words)}))
    assert read(tmp_path / "a.jsonl") == [f"{words[0]} {words[1]}", "g h"]


def test_documents_stay_whole_however_many_come_before_them(tmp_path: Path) -> None:
    documents = [f"first line of {index}\nsecond line of {index}" for index in range(4000)]
    assert sum(map(len, documents)) > 2 * MAX_SEGMENT_CHARACTERS
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    assert read(tmp_path / "a.txt") == documents


def test_of_a_long_documents_lines_as_many_as_fit_are_together(tmp_path: Path) -> None:
    first, second, third, fourth = (
        character * (number * MAX_SEGMENT_CHARACTERS // 10)
        for character, number in zip("abcd", (6, 3, 3, 2), strict=True)
    )
    (tmp_path / "a.txt").write_text("\n".join((first, second, third, fourth)))
    assert read(tmp_path / "a.txt") == [f"{first}\n{second}", f"{third}\n{fourth}"]


def test_documents_without_text_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n\t\n\nonly\n\n \x00 \n")
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": " \\n "}\n{"text": "only"}\n')
    assert read(tmp_path / "a.txt") == ["only"]
    assert read(tmp_path / "a.jsonl") == ["only"]


@SMALL
@given(
    lines=st.lists(st.text(alphabet="aé北 ", max_size=12), max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=5),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_adjacent_ranges_read_every_line_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], cuts: list[int], newline: str
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_bytes("".join(f"{line}{newline}" for line in lines).encode())
    found = read_ranges(path, sorted({0, *cuts}))
    # Where a document is cut depends on the ranges; its lines do not.
    assert [line.strip() for text in found for line in text.split("\n")] == [
        line.strip() for line in lines if line.strip()
    ]


@SMALL
@given(cuts=st.lists(st.integers(0, 400), max_size=6), count=st.integers(0, 9))
def test_adjacent_ranges_read_every_json_line_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], count: int
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {index}"}) + "\n" for index in range(count)))
    assert read_ranges(path, sorted({0, *cuts})) == [f"document {index}" for index in range(count)]


def test_a_line_that_begins_where_a_range_ends_is_the_next_ranges(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')  # lines of 14 bytes
    for cut in (13, 14, 15):
        assert read_ranges(tmp_path / "a.jsonl", [0, cut]) == ["a", "b"]
    first = TextPiece(path=str(tmp_path / "a.jsonl"), start=0, end=14, kind="jsonl")
    assert list(read_documents(first, text_field="text", on_bad_text="error")) == ["a"]


def test_ranges_of_a_line_longer_than_all_ranges_read_it_once(tmp_path: Path) -> None:
    words = "wörd " * 40_000  # 240,000 bytes in one line
    (tmp_path / "a.txt").write_text(words + "\nend\n", encoding="utf-8")
    found = read_ranges(tmp_path / "a.txt", [0, 60_000, 130_000, 200_000])
    assert " ".join(" ".join(found).split()) == (words + "end")


@pytest.mark.parametrize("unit", ["x", "é", "北", "😀", "word ", "line of words\n"])
def test_long_documents_come_in_whole_characters_and_bounded_segments(tmp_path: Path, unit: str) -> None:
    text = unit * (400_000 // len(unit.encode()))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    for name in ("a.txt", "a.jsonl"):
        found = read(tmp_path / name)
        assert max(map(len, found)) <= MAX_SEGMENT_CHARACTERS
        assert "".join("".join(found).split()) == "".join(text.split())
        assert not any(word in {"wo", "wor", "rd", "d", "li", "lin"} for part in found for word in part.split())


@pytest.mark.parametrize("unit", [b"0123456789abcdef", b"a line of words " * 63 + b"a line of words\n"])
def test_memory_stays_flat_for_one_document_of_50_megabytes(tmp_path: Path, unit: bytes) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(50):
            file.write(unit * (2**20 // len(unit)))
    piece = TextPiece(path=str(tmp_path / "a.txt"), start=0, end=None, kind="txt")
    tracemalloc.start()
    num_characters = sum(len(text) for text in read_documents(piece, text_field="text", on_bad_text="error"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_characters > 49 * 2**20
    assert peak < 4 * 2**20


def test_of_a_parquet_file_a_row_group_is_held_and_not_the_file(tmp_path: Path) -> None:
    texts = [random.Random(row).randbytes(500).hex() for row in range(20_000)]  # 20 MB that do not compress to nothing
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=500)
    piece = TextPiece(path=str(tmp_path / "a.parquet"), start=0, end=None, kind="parquet")
    before, peak = pa.total_allocated_bytes(), 0
    for _ in read_documents(piece, text_field="text", on_bad_text="error"):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 1000 < peak < 4e6


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbfgood\nbad \xff here\nlast\n"  # the byte 0xff is the 13th: offset 12
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=rf"{name} is not UTF-8: byte 0xff at offset 12.*on_bad_text replace"):
        read(tmp_path / name)
    assert read(tmp_path / name, on_bad_text="replace") == ["good\nbad � here\nlast"]
    assert read(tmp_path / name, on_bad_text="skip") == ["good\nlast"]


def test_bytes_of_json_lines_that_are_not_utf8_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a"}\n{"text": "\xff"}\n'
    )  # lines of 14 bytes; the 11th of the second
    with pytest.raises(DataError, match="byte 0xff at offset 24"):
        read(tmp_path / "a.jsonl")


def test_a_long_line_that_has_no_character_to_be_cut_before_is_read_to_its_end(tmp_path: Path) -> None:
    count = 2 * MAX_SEGMENT_CHARACTERS + 10
    (tmp_path / "a.txt").write_bytes(b"\x80" * count)
    assert "".join(read(tmp_path / "a.txt", on_bad_text="replace")) == "\ufffd" * count
    assert read(tmp_path / "a.txt", on_bad_text="skip") == []


def test_parquet_values_that_are_not_utf8_are_named_by_row(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00\x05\x00\x00\x00")
    column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"ok\xffno"))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="byte 0xff at row 2, offset 0"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", on_bad_text="skip") == ["ok"]


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"text": "a"', "not JSON"),
        ('{"body": "a"}', "no field 'text' .--text_field.; the fields there are: 'body'"),
        ('{"text": 7}', "the field 'text' holds 7, not a string"),
        ('["text"]', "a list, not an object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_json_lines_without_text_are_named_by_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one"}}\n\n{line}\n{{"text": "two"}}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: {problem}"):
        read(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl", on_bad_text="skip") == ["one", "two"]
    assert read(tmp_path / "a.jsonl", on_bad_text="replace") == ["one", "two"]


def test_line_numbers_count_from_the_start_of_the_file_in_a_later_range(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 5 + "bad\n")
    with pytest.raises(DataError, match="line 6: not JSON"):
        read_ranges(tmp_path / "a.jsonl", [0, 20])


def test_missing_columns_and_columns_without_strings_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text' .--text_field.; its columns are 'body', 'n'"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"the column 'n' .* holds int64, not strings"):
        read(tmp_path / "a.parquet", text_field="n")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"several columns 'text' .--text_field.; rename all but one"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_truncated_compressed_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    data = "".join(f"line {index * 7919 % 10007}\n" for index in range(50_000)).encode()
    write_compressed(path, data)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=f"a.txt.{suffix} is cut short or damaged"):
        read(path)


@pytest.mark.parametrize("place", [20, -100], ids=["beginning", "end"])
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_with_a_few_other_bytes_are_refused(tmp_path: Path, suffix: str, place: int) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    data = "".join(f"line {index * 7919 % 10007}\n" for index in range(5_000)).encode()
    write_compressed(path, data)
    damaged = bytearray(path.read_bytes())
    at = place % len(damaged)
    damaged[at : at + 16] = bytes(16)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=f"a.txt.{suffix} is cut short or damaged"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zst", "a.parquet"])
def test_files_that_are_not_what_their_suffix_says_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("plain text " * 100)
    with pytest.raises(DataError, match=f"{name} is cut short or damaged"):
        read(tmp_path / name)


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone\.txt"):
        read(tmp_path / "gone.txt")
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"unknown suffix '\.pdf'; known are \.txt, \.jsonl .* \.parquet"):
        read(tmp_path / "a.pdf")


def test_unreadable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read(tmp_path / "a.txt")


def test_kinds_are_told_by_suffix() -> None:
    names = ["a.txt", "a.b.JSONL.GZ", "a.parquet", "a.parquet.gz", "a.gz", "txt", "a.txt.old"]
    assert [kind_of(name) for name in names] == ["txt", "jsonl", "parquet", None, None, None, None]
    assert [compression_of(name) for name in ("a.txt", "a.txt.ZST")] == [None, "zst"]


def test_pieces_survive_json() -> None:
    piece = TextPiece(path="a.txt", start=3, end=None, kind="txt")
    assert TextPiece.from_dict(json.loads(json.dumps(piece.to_dict()))) == piece


def compressed(data: bytes, name: str) -> bytes:
    """As the last suffix of the name says."""
    if name.endswith(".zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())
    return gzip.compress(data) if name.endswith(".gz") else data


@pytest.mark.parametrize("on_bad_text", ["error", "replace", "skip"])
@pytest.mark.parametrize("name", ["notes.txt", "notes.jsonl", "notes.txt.gz", "notes.txt.zst"])
@pytest.mark.parametrize(
    ("mark", "encoding", "named"),
    [
        (b"\xff\xfe", "utf-16-le", "UTF-16"),  # iconv reads the mark
        (b"\xfe\xff", "utf-16-be", "UTF-16"),
        (b"", "utf-16-le", "UTF-16LE"),  # valid UTF-8, each letter followed by a NUL
        (b"", "utf-16-be", "UTF-16BE"),
    ],
)
def test_utf_16_is_named_with_what_mends_it_whatever_is_done_with_bad_bytes(
    mark: bytes, encoding: str, named: str, name: str, on_bad_text: str, tmp_path: Path
) -> None:
    """Replaced it would be one document of every other letter, skipped none; without a mark one document, too."""
    path = tmp_path / name
    text = '{"text": "one"}\n\n{"text": "two, longer than the kilobyte that is looked at"}\n' + " \n" * 600
    path.write_bytes(compressed(mark + text.encode(encoding), name))
    with pytest.raises(DataError, match=rf"{name} is UTF-16, not UTF-8: iconv -f {named} -t UTF-8 FILE > NEW makes"):
        read(path, on_bad_text=on_bad_text)


@pytest.mark.parametrize(
    "data", [b"one\x00two\x00 and three", b"\x00\x00\x00\x00one", b"one\x00two\x00three\x00four\x00"]
)
def test_some_nul_bytes_are_no_utf_16(data: bytes, tmp_path: Path) -> None:
    """They are control characters, which are left out."""
    (tmp_path / "a.txt").write_bytes(data)
    assert read(tmp_path / "a.txt") == [data.replace(b"\x00", b"").decode()]


def test_a_value_of_parquet_is_no_file_that_iconv_could_mend(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\x00\x00\x00\x00\x03\x00\x00\x00\x05\x00\x00\x00")
    column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"\xff\xfexok"))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="byte 0xff at row 1, offset 0"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", on_bad_text="skip") == ["ok"]
