"""Text that cannot be read is said in `start`, in the words of `tokenize`, without reading a large corpus wholly."""

import bz2
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys import save_auxiliary

from fast_electra_core.errors import DataError
from steps import planning, text_check
from steps.corpus import Corpus, resolve_corpus
from steps.store import Store
from steps.text_check import check_text
from steps.tokenization import documents_of

GOOD = b"kara moden\n\n"


def resolve(path: Path | str, store: Store, *, shard_megabytes: float = 1.0) -> Corpus:
    return resolve_corpus(str(path), store=store, text_field="text", shard_megabytes=shard_megabytes)


def check(path: Path | str, store: Store, *, on_bad_text: str = "error", shard_megabytes: float = 1.0) -> None:
    corpus = resolve(path, store, shard_megabytes=shard_megabytes)
    check_text(corpus, text_field="text", on_bad_text=on_bad_text, store=store)


def said_by_tokenizing(corpus: Corpus, store: Store) -> str:
    """The error of reading every piece in full, as the tokenize step does."""
    with pytest.raises(DataError) as caught:
        for shard in corpus.shards:
            list(documents_of(shard, {"text_field": "text", "on_bad_text": "error"}, store))
    return str(caught.value)


def parquet(**columns: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


ROW = json.dumps({"text": "kara"}).encode() + b"\n"
BAD: dict[str, tuple[bytes, str]] = {
    "latin.txt": (GOOD * 10 + b"k\xe4ra", "byte 0xe4 at offset 121. Mend the file, or go on with --on_bad_text"),
    "latin.txt.gz": (gzip.compress(GOOD * 10 + b"k\xe4ra"), "byte 0xe4 at offset 121. Mend the file, or go on with"),
    "cut.txt.bz2": (bz2.compress(GOOD * 10)[:-9], "is cut short or damaged"),
    "latin.jsonl": (
        ROW + b'{"text": "k\xe4ra"}\n',
        "byte 0xe4 at offset 28. Mend the file, or go on with --on_bad_text",
    ),
    "half.jsonl": (ROW * 3 + b'{"text": "ka\n' + ROW, "half.jsonl, line 4: not JSON"),
    "body.jsonl": (ROW + b'{"body": "kara"}\n', "body.jsonl, line 2: no field 'text' (--text_field); the fields there"),
    "body.parquet": (parquet(body=["kara"]), "has no column 'text' (--text_field); its columns are 'body'"),
}


@pytest.mark.parametrize("shard_megabytes", [1.0, 1e-5], ids=["one piece", "pieces of 10 bytes"])
@pytest.mark.parametrize("name", BAD)
def test_text_that_cannot_be_read_is_said_in_the_words_of_tokenizing(
    name: str, shard_megabytes: float, tmp_path: Path, store: Store
) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        check(tmp_path / name, store, shard_megabytes=shard_megabytes)
    assert words in str(caught.value)
    corpus = resolve(tmp_path / name, store, shard_megabytes=shard_megabytes)
    assert str(caught.value) == said_by_tokenizing(corpus, store)


def test_bad_bytes_are_no_error_where_they_are_to_be_replaced_or_skipped(tmp_path: Path, store: Store) -> None:
    (tmp_path / "latin.txt").write_bytes(GOOD + b"k\xe4ra")
    check(tmp_path / "latin.txt", store, on_bad_text="replace")
    check(tmp_path / "latin.txt", store, on_bad_text="skip")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A corpus is large from 1001 bytes on, and of its files the first and last 100 bytes are read."""
    monkeypatch.setattr(text_check, "WHOLLY_CHECKED_BYTES", 1000)
    monkeypatch.setattr(text_check, "EDGE_BYTES", 100)
    yield


LINES = [f"line number {index:07}" for index in range(100)]  # with its newline 20 bytes each, 2000 in all


@pytest.mark.parametrize("shard_megabytes", [1.0, 7e-5], ids=["one piece", "pieces of 70 bytes"])
@pytest.mark.parametrize("bad_line, is_said", [(0, True), (4, True), (50, False), (96, True), (99, True)])
def test_of_a_large_corpus_both_ends_of_each_file_are_read(
    bad_line: int, is_said: bool, shard_megabytes: float, small_limits: None, tmp_path: Path, store: Store
) -> None:
    lines = [line.encode() + b"\n" for line in LINES]
    lines[bad_line] = b"line number 00000\xe4\xe4\n"
    path = tmp_path / "large.txt"
    path.write_bytes(b"".join(lines))
    if not is_said:
        check(path, store, shard_megabytes=shard_megabytes)
        return
    with pytest.raises(DataError, match=f"byte 0xe4 at offset {20 * bad_line + 17}"):
        check(path, store, shard_megabytes=shard_megabytes)


def test_a_line_of_a_large_jsonl_is_named_by_its_number_in_the_file(
    small_limits: None, tmp_path: Path, store: Store
) -> None:
    rows = [json.dumps({"text": line}) for line in LINES]
    rows[98] = "{"
    (tmp_path / "large.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"large\.jsonl, line 99: not JSON"):
        check(tmp_path / "large.jsonl", store)


def test_files_so_many_that_their_ends_add_up_are_read_less_of(
    small_limits: None, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(10):  # 1000 bytes may be read: 50 at each end of ten files
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{index}.txt").write_text("\n\n".join(LINES))
    read: list[tuple[int, int | None]] = []
    monkeypatch.setattr(text_check, "check_documents", lambda part, **_: read.append((part.start, part.end)))
    check(tmp_path / "texts", store)
    size = 20 * 100 + 98  # two newlines behind each line but the last
    assert read == [(0, 50), (size - 50, None)] * 10


@pytest.mark.parametrize("bad_line, is_said", [(0, True), (99, False)])
def test_of_a_large_compressed_file_the_beginning_is_read(
    bad_line: int, is_said: bool, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_check, "WHOLLY_CHECKED_BYTES", 100)
    lines = [line.encode() + b"\n\n" for line in LINES]
    lines[bad_line] = b"\xe4\n"
    path = tmp_path / "large.txt.gz"
    path.write_bytes(gzip.compress(b"".join(lines)))
    assert path.stat().st_size > 100
    if not is_said:
        check(path, store)
        return
    with pytest.raises(DataError, match="byte 0xe4 at offset 0"):
        check(path, store)


@pytest.mark.parametrize("name", ["texts/03.jsonl", "texts/12.jsonl"])
def test_of_a_large_corpus_in_s3_the_beginnings_of_some_files_are_read_and_not_kept(
    name: str, small_limits: None, s3: Any, store: Store
) -> None:
    """Of 16 files every second."""
    rows = "\n".join(json.dumps({"text": line}) for line in LINES)
    for index in range(16):
        s3.put_object(Bucket="bucket", Key=f"texts/{index:02}.jsonl", Body=rows.encode())
    check("s3://bucket/texts", store, shard_megabytes=1e-3)
    s3.put_object(Bucket="bucket", Key=name, Body=rows.replace("text", "txt").encode())
    if name == "texts/03.jsonl":
        check("s3://bucket/texts", store, shard_megabytes=1e-3)
    else:
        said = r"s3://bucket/texts/12\.jsonl, line 1: no field 'text' \(--text_field\); the fields .*: 'txt'"
        with pytest.raises(DataError, match=said):
            check("s3://bucket/texts", store, shard_megabytes=1e-3)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("flow", ["PretrainFlow", "AuxiliaryFlow"])
def test_start_refuses_text_that_tokenizing_could_not_read(
    flow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_auxiliary(tmp_path / "auxiliary", ["kara moden"])
    (tmp_path / "latin.txt").write_bytes(b"k\xe4ra")
    given: dict[str, Any] = {"preset": "tiny", "corpus": "latin.txt", "store": "store"}
    given["tracking_uri"] = "sqlite:///mlflow.db"
    begin = planning.begin_auxiliary
    if flow == "PretrainFlow":
        given["auxiliary"] = "auxiliary"
        begin = planning.begin_pretrain
    else:
        save_auxiliary(tmp_path / "tokenizer", ["kara moden"])
        given["tokenizer"] = "tokenizer"  # one that is trained would stumble over the text in any case
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8: byte 0xe4 at offset 1\. .*--on_bad_text replace"):
        begin(given, flow=flow, run_id="1")
