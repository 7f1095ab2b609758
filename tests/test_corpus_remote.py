"""Text that is elsewhere: the hub and S3; both kept here once fetched, both clear about what went wrong."""

import dataclasses
import functools
import gzip
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from botocore.response import StreamingBody
from conftest import HUB_HTTP_ERROR, brought_from_s3
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra_core.errors import ConfigError, DataError
from fast_electra_core.text import TextPiece, read_documents
from steps import s3_text
from steps.corpus import Corpus, hub_candidates, resolve_corpus
from steps.store import Store
from steps.tokenization import documents_of


def resolve(address: object, store: Store, *, shard_megabytes: float = 1.0) -> Corpus:
    return resolve_corpus(str(address), store=store, text_field="text", shard_megabytes=shard_megabytes)


def texts(corpus: Corpus, store: Store) -> list[str]:
    config = {"text_field": "text", "on_bad_text": "error"}
    return [text for shard in corpus.shards for text in documents_of(shard, config, store)]


# The hub


@pytest.mark.parametrize(
    "address, candidates",
    [
        ("hub:wikitext", [("wikitext", None)]),
        ("hub:org/name", [("org/name", None), ("org", "name")]),
        ("hub:org/name/config-v1", [("org/name", "config-v1")]),
    ],
)
def test_hub_addresses_name_a_data_set_and_perhaps_a_configuration(
    address: str, candidates: list[tuple[str, str | None]]
) -> None:
    assert hub_candidates(address) == candidates


@pytest.mark.parametrize("address", ["hub:", "hub:a//b", "hub:a/b/c/d", "hub:a/"])
def test_hub_addresses_of_another_form_are_refused(address: str, store: Store) -> None:
    with pytest.raises(DataError, match="must be hub:NAME"):
        resolve(address, store)


class FakeHub:
    """Holds one data set, `wikitext` with the configuration `small`, as the hub would give it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []

    def load_dataset(self, name: str, config: str | None, *, split: str) -> datasets.Dataset:
        self.calls.append((name, config))
        if (name, config, split) != ("wikitext", "small", "train"):
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return datasets.Dataset.from_dict({"text": [f"row {i} " + "x" * 90 for i in range(50)], "n": [*range(50)]})


def test_hub_texts_are_kept_in_the_store_as_parquet_shards(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    corpus = resolve("hub:wikitext/small", store, shard_megabytes=0.002)
    assert hub.calls == [("wikitext/small", None), ("wikitext", "small")]
    assert [text.split()[1] for text in texts(corpus, store)] == [str(i) for i in range(50)]
    assert corpus.address == "hub:wikitext/small"
    assert corpus.num_files == 3  # 50 rows of about 100 bytes in shards of 2000
    assert resolve("hub:wikitext/small", store, shard_megabytes=0.002) == corpus
    assert len(hub.calls) == 2


def test_hub_texts_without_the_column_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", FakeHub().load_dataset)
    with pytest.raises(DataError, match=r"has no column 'body' .* it has 'text', 'n'"):
        resolve_corpus("hub:wikitext/small", store=store, text_field="body", shard_megabytes=1.0)


def test_a_hub_out_of_reach_is_said_with_the_next_move(tmp_path: Path) -> None:
    code = (
        "from steps.corpus import resolve_corpus\nfrom steps.store import Store\n"
        f"store = Store({str(tmp_path)!r})\n"
        "resolve_corpus('hub:org/name', store=store, text_field='text', shard_megabytes=1.0)"
    )
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
    )
    assert run.returncode == 1
    message = run.stderr.splitlines()[-1]
    assert "DataError: corpus 'hub:org/name' cannot be had from the hub (tried org/name and org (name))" in message
    assert "download the text and give its folder" in message


def test_a_connection_to_the_hub_that_breaks_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise HUB_HTTP_ERROR("peer closed connection")

    monkeypatch.setattr(datasets, "load_dataset", breaks)
    with pytest.raises(
        DataError, match=r"'hub:name' cannot be had from the hub \(tried name\): peer closed connection"
    ):
        resolve("hub:name", store)


# S3


def put(s3: Any, **objects: str) -> None:
    for key, body in objects.items():
        s3.put_object(Bucket="bucket", Key=key, Body=body.encode())


def test_an_s3_prefix_is_listed_whole_and_read_where_it_is(s3: Any, store: Store) -> None:
    put(s3, **{"data/b.txt": "beta", "data/deep/a#1.txt": "alpha", "data/x.pdf": "no", "data/.h.txt": "no"})
    put(s3, **{"data/": "", "data2/c.txt": "gamma"})
    corpus = resolve("s3://bucket/data", store)
    assert corpus.address == "s3://bucket/data"
    assert texts(corpus, store) == ["beta", "alpha"]
    assert (corpus.num_files, corpus.num_ignored, corpus.num_bytes) == (2, 1, 9)
    assert list(store.folder.rglob("*.txt")) == []


def test_s3_lists_of_more_than_one_page_are_read_to_the_end(
    s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{f"many/{index}.txt": "x" for index in range(7)})

    def small_pages(params: dict[str, Any], **_: object) -> None:
        params["query_string"]["max-keys"] = 3

    client = s3_text.s3_client()
    client.meta.events.register("before-call.s3.ListObjectsV2", small_pages)
    monkeypatch.setattr(s3_text, "s3_client", lambda: client)
    assert resolve("s3://bucket/many", store).num_files == 7
    client.close()


def test_an_s3_object_a_whole_bucket_and_a_partial_name_are_addresses(s3: Any, store: Store) -> None:
    put(s3, **{"data/part-1.txt": "one", "data/part-2.txt": "two", "e.txt": "three"})
    names = ["s3://bucket/data/part-1.txt", "s3://bucket/data/part-", "s3://bucket", "s3://bucket/data/"]
    assert [resolve(name, store).num_files for name in names] == [1, 2, 3, 2]


@pytest.mark.parametrize(
    "corpus", ["s3://bucket", "s3://bucket/", "s3://bucket/my", "s3://bucket/my/store", "s3://bucket/my/sto"]
)
def test_a_prefix_that_holds_the_store_is_refused(corpus: str, s3: Any) -> None:
    for key in ("my/text/a.txt", "my/store2/b.txt"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"text\n")
    s3.put_object(Bucket="bucket", Key="my/store/runs/curve.jsonl", Body=b"{}\n")
    mine = Store("s3://bucket/my/store")
    with pytest.raises(DataError, match=f"corpus '{corpus}' holds the store 's3://bucket/my/store', whose files would"):
        resolve(corpus, mine)
    for beside in ("s3://bucket/my/text", "s3://bucket/my/store2", "s3://bucket/my/store/runs"):
        assert resolve(beside, mine).num_files == 1


def test_the_s3_digest_follows_content_not_prefix(s3: Any, store: Store) -> None:
    put(s3, **{"one/a.txt": "alpha", "two/a.txt": "alpha", "three/a.txt": "other"})
    digests = [resolve(f"s3://bucket/{name}", store).digest for name in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]


def test_s3_objects_that_changed_or_vanished_are_refused(s3: Any, store: Store) -> None:
    put(s3, **{"data/a.txt": "alpha"})
    corpus = resolve("s3://bucket/data", store)
    put(s3, **{"data/a.txt": "changed"})
    with pytest.raises(DataError, match=r"s3://bucket/data/a\.txt: the object changed since the run began"):
        texts(corpus, store)
    s3.delete_object(Bucket="bucket", Key="data/a.txt")
    with pytest.raises(DataError, match=r"s3://bucket/data/a\.txt: the object is gone"):
        texts(corpus, store)


@pytest.mark.parametrize("shard_bytes", [7, 60, 61, 70, 199, 500])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_of_a_large_s3_object_a_piece_fetches_its_own_lines(
    name: str, shard_bytes: int, s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task reads one piece of perhaps a thousand. Lines of 1 to 150 bytes, the last without its newline."""
    monkeypatch.setattr(s3_text, "_FIRST_BYTES", 16)
    monkeypatch.setattr(s3_text, "_MOST_BYTES", 64)
    words = [letter * (1 + index**3 % 97) for index, letter in enumerate("abcdefghijklmnopqrstuv")]
    lines = [json.dumps({"text": word}) for word in words] if name == "a.jsonl" else [f"{word}\n" for word in words]
    data = "\n".join(lines).encode()
    s3.put_object(Bucket="bucket", Key=name, Body=data)
    corpus = resolve(f"s3://bucket/{name}", store, shard_megabytes=shard_bytes / 1e6)
    brought = brought_from_s3(monkeypatch)
    found = []
    for shard in corpus.shards:
        (piece,) = shard["pieces"]
        start, end = piece["start"], piece["end"] or len(data)
        brought.clear()
        found += texts(dataclasses.replace(corpus, shards=[shard]), store)
        newline = data.find(b"\n", end - 1)  # the end of the last line that begins within
        needed = len(data) if newline < 0 else newline + 1
        assert b"".join(brought) == data[max(0, start - 1) :][: len(b"".join(brought))]
        assert len(b"".join(brought)) < needed - start + 1 + 64
    assert found == words


def of_client(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Any]:
    """What texts are asked for by from now on, each answer being what `change` makes of it."""
    client, asked = s3_text.s3_client(), list[Any]()
    really = client.get_object

    def get_object(**what: Any) -> dict[str, Any]:
        asked.append(what["Range"])
        return change(really(**what))

    monkeypatch.setattr(client, "get_object", get_object)
    monkeypatch.setattr(s3_text, "s3_client", lambda: client)
    return asked


class OneObject:
    """A client of a bucket that holds one object, without a server in between."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def get_object(self, *, Range: str, **named: str) -> dict[str, Any]:
        start, last = map(int, Range.removeprefix("bytes=").split("-"))
        assert start < len(self.content), "S3 refuses a range that begins behind the end"
        body = io.BytesIO(self.content[start : last + 1])
        return {"ContentRange": f"bytes {start}-{last}/{len(self.content)}", "Body": body}


LINES = st.lists(
    st.sampled_from(["", "a", "kara", "日本語", "ümläut ", "😀" * 9, "x " * 40, "\t"]), min_size=1, max_size=20
)


@given(
    lines=LINES,
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
    ends=st.booleans(),
    kind=st.sampled_from(["txt", "jsonl"]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    first_bytes=st.integers(1, 40),
    most_bytes=st.integers(1, 90),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pieces_of_an_object_are_those_of_a_file_by_requests_of_any_size(
    lines: list[str], newline: str, ends: bool, kind: str, cuts: list[int], first_bytes: int, most_bytes: int
) -> None:
    rows = [json.dumps({"text": line}, ensure_ascii=False) for line in lines] if kind == "jsonl" else lines
    content = (newline.join(rows) + newline * ends).encode() or b"x"
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(content)}), len(content)]

    def pieces(open_file: Callable[[str], io.BufferedReader]) -> list[list[str]]:
        read = functools.partial(read_documents, text_field="text", on_bad_text="error", open_file=open_file)
        return [list(read(TextPiece(f"a.{kind}", *piece, kind))) for piece in itertools.pairwise(bounds)]

    sizes = {"_FIRST_BYTES": first_bytes, "_MOST_BYTES": most_bytes}
    with mock.patch.multiple(s3_text, _client=lambda process: OneObject(content), **sizes):
        found = pieces(lambda path: s3_text.open_object("s3://bucket/a#etag"))
    assert found == pieces(lambda path: io.BufferedReader(io.BytesIO(content)))
    words = [word for document in itertools.chain(*found) for word in document.split()]
    assert words == (content.decode() if kind == "txt" else " ".join(lines)).split()


@given(
    num_bytes=st.integers(1, 256),
    turns=st.lists(
        st.tuples(st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]), st.integers(0, 280), st.integers(0, 90)),
        max_size=8,
    ),
    first_bytes=st.integers(1, 40),
    most_bytes=st.integers(1, 90),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_an_object_is_read_here_and_there_as_a_file_is(
    num_bytes: int, turns: list[tuple[int, int, int]], first_bytes: int, most_bytes: int
) -> None:
    """As .parquet is, of which the end comes first."""
    content = bytes(range(num_bytes))
    file = io.BytesIO(content)
    sizes = {"_FIRST_BYTES": first_bytes, "_MOST_BYTES": most_bytes}
    with mock.patch.multiple(s3_text, _client=lambda process: OneObject(content), **sizes):
        found = s3_text.open_object("s3://bucket/a#etag")
        assert found.seek(0, io.SEEK_END) == file.seek(0, io.SEEK_END)
        for whence, distance, size in turns:
            place = distance if whence != io.SEEK_END else -min(distance, len(content))
            assert found.seek(place, whence) == file.seek(place, whence) == found.tell()
            assert found.read(size) == file.read(size)
            assert found.readline(size) == file.readline(size)


@pytest.mark.parametrize(
    "broken_off",
    [
        IncompleteReadError(actual_bytes=1, expected_bytes=5),
        ReadTimeoutError(endpoint_url="http://s3"),
        ResponseStreamingError(error="reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_of_s3_that_breaks_off_is_asked_for_again_and_not_for_ever(
    broken_off: Exception, s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{"a.txt": "alpha"})
    corpus = resolve("s3://bucket/a.txt", store)
    monkeypatch.setattr(s3_text, "_PAUSES", (0, 0))
    broken = [2]

    def breaks(answer: dict[str, Any]) -> dict[str, Any]:
        broken[0] -= 1
        return {**answer, "Body": Broken()} if broken[0] >= 0 else answer

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise broken_off

    of_client(monkeypatch, breaks)
    assert texts(corpus, store) == ["alpha"]
    broken[0] = 3
    with pytest.raises(DataError, match=rf"s3://bucket/a\.txt: S3 does not answer .*\[{type(broken_off).__name__}\]"):
        texts(corpus, store)


def test_an_answer_of_s3_that_is_cut_short_without_a_word_is_not_the_objects_end(
    s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a proxy gives no length, and closes."""
    put(s3, **{"a.txt": "alpha\n\nbeta"})
    corpus = resolve("s3://bucket/a.txt", store)
    monkeypatch.setattr(s3_text, "_PAUSES", (0, 0))
    lengths = iter([7, 0])

    def cut(answer: dict[str, Any]) -> dict[str, Any]:
        length = next(lengths, None)
        return {**answer, "Body": StreamingBody(io.BytesIO(answer["Body"].read(length) if length != 0 else b""), None)}

    asked = of_client(monkeypatch, cut)
    assert texts(corpus, store) == ["alpha", "beta"]
    assert len(asked) == 3


def test_an_s3_that_knows_no_ranges_is_said(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, **{"a.txt": "alpha"})
    corpus = resolve("s3://bucket/a.txt", store)
    of_client(monkeypatch, lambda answer: {name: answer[name] for name in answer if name != "ContentRange"})
    with pytest.raises(DataError, match=r"s3://bucket/a\.txt: the server gives the whole object .* copy the text to a"):
        texts(corpus, store)


def test_an_s3_that_is_silent_is_waited_for_by_its_client_alone(
    s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks eight times, and waits a minute each time."""
    put(s3, **{"a.txt": "alpha"})
    corpus = resolve("s3://bucket/a.txt", store)
    monkeypatch.setattr(s3_text, "_PAUSES", (0, 0))

    def silent(answer: dict[str, Any]) -> dict[str, Any]:
        raise ReadTimeoutError(endpoint_url="http://s3")

    asked = of_client(monkeypatch, silent)
    with pytest.raises(DataError, match=r"s3://bucket/a\.txt: S3 does not answer \(Read timeout"):
        texts(corpus, store)
    assert len(asked) == 1


def test_a_long_column_in_s3_is_asked_for_part_by_part(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held once, not also as an answer; and an answer that breaks off costs a part."""
    words = [f"{index:09}" for index in range(1000)]
    pq.write_table(pa.table({"text": words}), found := io.BytesIO(), compression="none", use_dictionary=False)
    s3.put_object(Bucket="bucket", Key="a.parquet", Body=found.getvalue())
    corpus = resolve("s3://bucket/a.parquet", store)
    monkeypatch.setattr(s3_text, "_FIRST_BYTES", 500)
    monkeypatch.setattr(s3_text, "_MOST_BYTES", 2000)
    brought = brought_from_s3(monkeypatch)
    assert texts(corpus, store) == words
    assert max(map(len, brought)) <= 2000


def test_a_line_of_a_piece_in_s3_is_named_by_its_byte(s3: Any, store: Store) -> None:
    """The lines before it are not there to be counted."""
    put(s3, **{"a.jsonl": '{"text": "a"}\n' * 5 + "bad\n"})
    with pytest.raises(DataError, match=r"a\.jsonl, line at byte 70: not JSON"):
        texts(resolve("s3://bucket/a.jsonl", store, shard_megabytes=4e-5), store)


def test_a_line_of_a_compressed_object_is_named_by_its_number(s3: Any, store: Store) -> None:
    """Its byte would be one of the text that comes of it; and all lines before are read anyway."""
    s3.put_object(Bucket="bucket", Key="a.jsonl.gz", Body=gzip.compress(b'{"text": "a"}\n' * 5 + b"bad\n"))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz, line 6: not JSON"):
        texts(resolve("s3://bucket/a.jsonl.gz", store), store)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.parquet"])
def test_a_damaged_object_is_named_by_its_address(name: str, s3: Any, store: Store) -> None:
    put(s3, **{f"data/{name}": "damaged"})
    with pytest.raises(DataError, match=rf"^s3://bucket/data/{name} is cut short or damaged"):
        texts(resolve("s3://bucket/data", store), store)


def test_many_small_objects_are_read_by_one_client(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make one takes longer than to read a small object."""
    put(s3, **{f"data/{index}.txt": str(index) for index in range(5)})
    corpus = resolve("s3://bucket/data", store)
    made, s3_client = list[Any](), s3_text.s3_client
    monkeypatch.setattr(s3_text, "s3_client", lambda: made.append(s3_client()) or made[-1])
    assert texts(corpus, store) == ["0", "1", "2", "3", "4"]
    assert len(made) == 1


def test_missing_buckets_and_prefixes_are_named(s3: Any, store: Store) -> None:
    with pytest.raises(DataError, match="s3://nowhere/data: the bucket does not exist"):
        resolve("s3://nowhere/data", store)
    with pytest.raises(DataError, match="no object under the prefix 'nothing' in bucket 'bucket'"):
        resolve("s3://bucket/nothing", store)
    with pytest.raises(DataError, match="names no bucket"):
        resolve("s3://", store)


def test_denied_access_is_named(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied:
        def get_paginator(self, name: str) -> "Denied":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, name)

    monkeypatch.setattr(s3_text, "s3_client", Denied)
    with pytest.raises(DataError, match="access is denied; check the credentials"):
        resolve("s3://bucket/data", store)


def test_missing_credentials_are_named(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials of earlier clients
    with pytest.raises(DataError, match=r"\(Unable to locate credentials\); check AWS_ACCESS_KEY_ID or AWS_PROFILE,"):
        resolve("s3://bucket/data", store)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidObjectState"])
def test_what_s3_refuses_while_text_is_read_is_not_called_silence(
    code: str, s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{"a.txt": "alpha"})
    corpus = resolve("s3://bucket/a.txt", store)

    def refuses(answer: dict[str, Any]) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": code, "Message": "its words"}}, "GetObject")

    of_client(monkeypatch, refuses)
    with pytest.raises(DataError, match=rf"s3://bucket/a\.txt: S3 refuses \(.*{code}.*its words\); .*\[{code}\]"):
        texts(corpus, store)


def test_credentials_that_are_gone_when_text_is_read_are_named(
    s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{"a.txt": "alpha"})
    corpus = resolve("s3://bucket/a.txt", store)
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(
        DataError, match=r"s3://bucket/a\.txt: .*\(The config profile \(elsewhere\) could not be found\)"
    ):
        texts(corpus, store)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "METAFLOW_S3_ENDPOINT_URL"])
def test_an_endpoint_that_is_no_address_is_named(
    name: str, s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, "localhost:9000")
    message = rf"{name} must be like http://HOST:PORT or https://HOST .*, got 'localhost:9000'"
    with pytest.raises(ConfigError, match=message):
        resolve("s3://bucket/data", store)
    with pytest.raises(ConfigError, match=message):
        Store("s3://bucket/store").has("key")
