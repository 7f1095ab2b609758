"""What is new in a corpus is told by content: a rename, a copy or a touched date is not new text."""

import json
from pathlib import Path

import pytest

from fast_electra_core.corpus_changes import SeenFile, compare_corpus
from fast_electra_core.errors import DataError
from fast_electra_core.text_shards import TextFile
from steps.corpus import resolve_corpus
from steps.corpus_record import record_of
from steps.store import Store


def here(name: str, digest: str) -> TextFile:
    return TextFile(name=name, path=f"/text/{name}", num_bytes=9, digest=digest)


def seen(**digests: str) -> list[SeenFile]:
    return [SeenFile(f"{name}.txt", 9, digest) for name, digest in digests.items()]


def names(files: list[TextFile]) -> list[str]:
    return [file.name for file in files]


def test_each_file_is_sorted_by_what_became_of_it() -> None:
    changes = compare_corpus(
        [here("same.txt", "s"), here("unknown.txt", "z"), here("rewritten.txt", "r2"), here("copy.txt", "s")],
        seen(same="s", rewritten="r1", lost="l", an_old="o", later="t", before="b"),
    )
    assert names(changes.kept) == ["same.txt"]
    assert names(changes.new) == ["unknown.txt"]
    assert names(changes.changed) == ["rewritten.txt"]
    assert names(changes.duplicates) == ["copy.txt"]
    assert changes.gone == ["an_old.txt", "before.txt", "later.txt", "lost.txt"]
    assert names(changes.unseen) == ["rewritten.txt", "unknown.txt"]


def test_a_renamed_file_is_not_new() -> None:
    changes = compare_corpus([here("b.txt", "x")], seen(a="x"))
    assert changes.unseen == []
    assert names(changes.duplicates) == ["b.txt"] and changes.gone == ["a.txt"]


def test_two_files_of_one_content_that_were_both_seen_are_both_kept() -> None:
    """As a model from PretrainFlow has, which trains on every file."""
    changes = compare_corpus([here("a.txt", "x"), here("b.txt", "x")], seen(a="x", b="x"))
    assert names(changes.kept) == ["a.txt", "b.txt"] and changes.duplicates == changes.unseen == []


def test_of_two_new_files_with_one_content_one_is_trained_on() -> None:
    changes = compare_corpus([here("b.txt", "x"), here("a.txt", "x")], [])
    assert names(changes.unseen) == ["a.txt"] and names(changes.duplicates) == ["b.txt"]


def test_a_file_that_is_rewritten_and_put_back_is_seen_in_both_its_contents() -> None:
    both = [SeenFile("a.txt", 9, "first"), SeenFile("a.txt", 9, "second")]
    assert compare_corpus([here("a.txt", "first")], both).unseen == []
    assert compare_corpus([here("a.txt", "second")], both).unseen == []


def test_digests_of_two_kinds_are_refused_instead_of_calling_everything_new() -> None:
    with pytest.raises(DataError, match="known by ETags of S3 objects, what the champion saw by SHA-256 of files"):
        compare_corpus([here("a.txt", "abc:9")], seen(a="f00"))
    moved = compare_corpus([here("a.txt", "abc:9")], seen(a="f00", b="abc:9"))  # it has seen text of both kinds
    assert names(moved.duplicates) == ["a.txt"]
    assert compare_corpus([], seen(a="f00")).gone == ["a.txt"]


def test_the_record_of_a_run_holds_every_file_and_shard_after_those_of_the_model_it_continues(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "b.txt").write_text("two words")
    (tmp_path / "text" / "ignored.bin").write_bytes(b"\0")
    corpus = resolve_corpus(
        str(tmp_path / "text"), store=Store(str(tmp_path / "store")), text_field="text", shard_megabytes=1.0
    )
    earlier = {"files": [{"name": "a.txt", "num_bytes": 1, "digest": "d"}], "shards": [{"key": "tokens/old"}]}
    plan = {"corpus": corpus.to_dict(), "tokenizer_key": "tokenizers/t", "seen": earlier}
    manifest = {"key": "tokens/new", "num_train_tokens": 2, "num_heldout_tokens": 0, "num_documents": 1}
    record = record_of(plan, [manifest])
    digest = "a03f1d611645eb53ad16c1af546ca0792dc884505bab57ede80f4dad6b911d3a"  # from sha256sum
    assert record["files"] == [*earlier["files"], {"name": "b.txt", "num_bytes": 9, "digest": digest}]
    assert [shard["key"] for shard in record["shards"]] == ["tokens/old", "tokens/new"]
    assert record["shards"][1]["num_train_tokens"] == 2
    json.dumps(record)
