"""Text becomes token shards, each made once; broken text and full disks are told from finished shards."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import brought_from_s3, files_no_larger_than, write_text

from fast_electra_core.errors import ConfigError, DataError
from fast_electra_core.token_shards import read_manifest
from fast_electra_core.tokenizer import load_tokenizer
from steps import s3_text
from steps import tokenizer as tokenizer_module
from steps.config import resolve_auxiliary
from steps.corpus import resolve_corpus
from steps.dataset import open_dataset
from steps.store import Store
from steps.text_summary import summarise
from steps.tokenization import tokenize_shard
from steps.tokenizer import check_masking, prepare_tokenizer, special_ids

CONFIG = {
    "corpus": "text",
    "text_field": "text",
    "on_bad_text": "error",
    "heldout_fraction": 0.1,
    "vocab_size": 300,
    "sequence_length": 32,
    "batch_size": 8,
}


def shards_of(path: Path | str, store: Store, *, shard_megabytes: float = 1.0) -> list[dict[str, Any]]:
    return resolve_corpus(str(path), store=store, text_field="text", shard_megabytes=shard_megabytes).shards


def shard_of(path: Path, store: Store) -> dict[str, Any]:
    (shard,) = shards_of(path, store)
    return shard


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def tokenizer_key(text: Path, store: Store) -> str:
    return prepare_tokenizer("train", CONFIG, shards_of(text, store), store)


def tokenize(path: Path, tokenizer_key: str, store: Store, **changes: Any) -> dict[str, Any]:
    return tokenize_shard(shard_of(path, store), {**CONFIG, **changes}, tokenizer_key=tokenizer_key, store=store)


def test_a_trained_tokenizer_is_named_by_its_content(text: Path, store: Store, tmp_path: Path) -> None:
    first = prepare_tokenizer("train", CONFIG, shards_of(text, store), store)
    again = prepare_tokenizer("train", CONFIG, shards_of(text, store), Store(str(tmp_path / "elsewhere")))
    smaller = prepare_tokenizer("train", {**CONFIG, "vocab_size": 280}, shards_of(text, store), store)
    assert first == again
    assert first.startswith("tokenizers/")
    vocabularies = {len(load_tokenizer(store.get_folder(key))) for key in (first, smaller)}
    assert (first == smaller) == (len(vocabularies) == 1)


def packed(text: str, name: str) -> bytes:
    """The documents in a file of this name."""
    documents = text.split("\n\n")
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": documents}), sink, row_group_size=200)
        return bytes(sink.getvalue())
    if ".jsonl" in name:
        text = "\n".join(json.dumps({"text": document}) for document in documents)
    if name.endswith(".zst"):
        return bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    return compress(text.encode())


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "txt.gz", "txt.bz2", "jsonl.xz", "jsonl.zst", "parquet"])
def test_of_text_in_s3_a_tokenizer_reads_no_more_than_its_share_and_is_the_same(
    suffix: str, store: Store, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` is a pod with a small disk, and the text perhaps a thousand times as large."""
    monkeypatch.setattr(tokenizer_module, "_CHARACTERS_PER_ENTRY", 10)
    monkeypatch.setattr(s3_text, "_FIRST_BYTES", 1 << 14)
    name = f"a.{suffix}"
    content = packed(write_text(tmp_path / "large.txt", num_documents=12_000).read_text(), name)
    (tmp_path / name).write_bytes(content)
    s3.put_object(Bucket="bucket", Key=f"texts/{name}", Body=content)
    brought = brought_from_s3(monkeypatch)

    here, there = (
        prepare_tokenizer("train", CONFIG, shards_of(address, store, shard_megabytes=1.5), store)
        for address in (tmp_path / name, "s3://bucket/texts")
    )
    assert here == there
    assert 0 < sum(map(len, brought)) < 0.7 * len(content)  # bzip2 has blocks of 900 KB
    assert not list(store.folder.rglob(name))


def test_of_very_many_shards_some_are_read_for_a_tokenizer(
    text: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "_MAX_SAMPLED_SHARDS", 4)
    shards = shards_of(text, store, shard_megabytes=0.01)
    assert len(shards) > 8
    read: list[int] = []
    documents_of = tokenizer_module.documents_of

    def noted(shard: Any, *more: Any) -> Iterator[str]:
        read.append(shards.index(shard))
        return documents_of(shard, *more)

    monkeypatch.setattr(tokenizer_module, "documents_of", noted)
    prepare_tokenizer("train", CONFIG, shards, store)
    assert read == list(range(0, len(shards), -(-len(shards) // 4)))


def test_a_given_tokenizer_gets_the_key_of_the_same_one_trained(text: Path, store: Store, tokenizer_key: str) -> None:
    folder = store.get_folder(tokenizer_key)
    assert prepare_tokenizer(str(folder), CONFIG, shards_of(text, store), store) == tokenizer_key


def test_a_tilde_before_a_tokenizer_is_the_home(
    text: Path, store: Store, tokenizer_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--tokenizer=~/words` comes so from a shell, and from a file of defaults."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "words").symlink_to(store.get_folder(tokenizer_key))
    assert prepare_tokenizer("~/words", CONFIG, shards_of(text, store), store) == tokenizer_key


def test_a_tokenizer_that_is_not_there_is_said(text: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        prepare_tokenizer(str(tmp_path / "nowhere"), CONFIG, shards_of(text, store), store)


def test_the_tokens_of_a_shard_say_the_text(text: Path, store: Store, tokenizer_key: str) -> None:
    manifest = tokenize(text, tokenizer_key, store)
    folder = store.get_folder(manifest["key"])
    tokenizer = load_tokenizer(store.get_folder(tokenizer_key))
    documents: list[str] = []
    for part in ("train", "heldout"):
        ids = np.fromfile(folder / f"{part}.bin", dtype=manifest["dtype"])
        assert len(ids) == manifest[f"num_{part}_tokens"]
        assert ids[-1] == tokenizer.sep_token_id
        ends = np.flatnonzero(ids == tokenizer.sep_token_id)
        documents += [tokenizer.decode(ids[start:end]) for start, end in zip([0, *ends[:-1] + 1], ends, strict=True)]
    assert sorted(documents) == sorted(text.read_text().split("\n\n"))
    assert manifest["num_unknown"] == 0


def test_every_shard_of_a_corpus_is_its_own_and_together_they_are_all(
    text: Path, store: Store, tokenizer_key: str
) -> None:
    shards = shards_of(text, store, shard_megabytes=0.03)
    assert len(shards) > 2
    parts = [tokenize_shard(shard, CONFIG, tokenizer_key=tokenizer_key, store=store) for shard in shards]
    whole = tokenize(text, tokenizer_key, store)
    assert len({part["key"] for part in parts}) == len(parts)
    for name in ("num_documents", "num_train_tokens", "num_heldout_tokens"):
        assert sum(part[name] for part in parts) == whole[name]


def test_a_shard_that_is_there_is_not_made_again(text: Path, store: Store, tokenizer_key: str) -> None:
    shard = shard_of(text, store)
    first = tokenize_shard(shard, CONFIG, tokenizer_key=tokenizer_key, store=store)
    text.unlink()  # reading it again would fail
    assert tokenize_shard(shard, CONFIG, tokenizer_key=tokenizer_key, store=store) == first


@pytest.mark.parametrize("changed", [{"heldout_fraction": 0.2}, {"on_bad_text": "skip"}, {"text_field": "body"}])
def test_a_shard_made_otherwise_has_another_key(
    changed: dict[str, Any], text: Path, store: Store, tokenizer_key: str
) -> None:
    first = tokenize(text, tokenizer_key, store)
    assert tokenize(text, tokenizer_key, store, **changed)["key"] != first["key"]


def test_changed_text_has_another_key(text: Path, store: Store, tokenizer_key: str) -> None:
    first = tokenize(text, tokenizer_key, store)
    text.write_text(text.read_text() + " kara")
    assert tokenize(text, tokenizer_key, store)["key"] != first["key"]


def test_settings_that_do_not_matter_leave_the_key(text: Path, store: Store, tokenizer_key: str) -> None:
    first = tokenize(text, tokenizer_key, store)
    assert tokenize(text, tokenizer_key, store, sequence_length=64, batch_size=2, seed=5)["key"] == first["key"]


def test_the_special_ids_are_those_of_the_tokenizer(store: Store, tokenizer_key: str) -> None:
    folder = store.get_folder(tokenizer_key)
    tokenizer = load_tokenizer(folder)
    ids = special_ids(folder)
    names = tokenizer.convert_ids_to_tokens([ids.pad, ids.cls, ids.sep, ids.mask])
    assert names == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert set(ids.all_special) == {ids.pad, ids.cls, ids.sep, ids.mask, tokenizer.unk_token_id}


# Masking by words


@pytest.mark.parametrize("masking", ["tokens", "whole_words", "spans"])
def test_a_dataset_knows_the_words_where_masking_needs_them(
    masking: str, text: Path, store: Store, tokenizer_key: str
) -> None:
    config = resolve_auxiliary({"preset": "tiny", "masking": masking})
    shard = tokenize(text, tokenizer_key, store)
    dataset = open_dataset("train", config, shard_keys=[shard["key"]], tokenizer_key=tokenizer_key, store=store)
    tokens = load_tokenizer(store.get_folder(tokenizer_key)).convert_ids_to_tokens(range(300))
    known = None if dataset.continues_word is None else dataset.continues_word.tolist()
    assert known == (None if masking == "tokens" else [token.startswith("##") for token in tokens if token])


def test_whole_words_of_one_token_each_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kara", "moden"]))
    for masking in ("tokens", "spans"):
        check_masking(masking, path)
    with pytest.raises(
        ConfigError, match=r"masking whole_words has no effect: no token .* Give --masking tokens or spa"
    ):
        check_masking("whole_words", path)


# Text that is broken


def test_bytes_that_are_not_utf8_are_named_by_file_and_byte(tmp_path: Path, store: Store, tokenizer_key: str) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"kara moden\n\nkara \xff moden")
    with pytest.raises(DataError, match=r"latin\.txt.* 17\b.*--on_bad_text replace or --on_bad_text skip"):
        tokenize(path, tokenizer_key, store)
    assert tokenize(path, tokenizer_key, store, on_bad_text="replace")["num_documents"] == 2
    assert tokenize(path, tokenizer_key, store, on_bad_text="skip")["num_documents"] == 1


def test_a_line_of_jsonl_that_does_not_parse_is_named_by_file_and_line(
    tmp_path: Path, store: Store, tokenizer_key: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "kara moden"}\n{"text": "kara\n{"text": "moden"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: not JSON.*--on_bad_text"):
        tokenize(path, tokenizer_key, store)
    assert tokenize(path, tokenizer_key, store, on_bad_text="skip")["num_documents"] == 2


def test_documents_without_tokens_are_no_corpus(tmp_path: Path, store: Store, tokenizer_key: str) -> None:
    path = tmp_path / "blank.txt"
    path.write_text(" \n\n\x00\x01\n\n \t \n")
    manifest = tokenize(path, tokenizer_key, store)
    with pytest.raises(DataError, match="the documents of 'text' hold no tokens; is text_field right"):
        summarise([manifest], CONFIG)
    with pytest.raises(DataError, match="no "):
        prepare_tokenizer("train", CONFIG, shards_of(path, store), store)


def test_a_corpus_smaller_than_a_batch_says_what_it_holds_and_what_to_do(
    tmp_path: Path, store: Store, tokenizer_key: str
) -> None:
    path = tmp_path / "short.txt"
    path.write_text(" ".join(["kara"] * 100))
    manifest = tokenize(path, tokenizer_key, store)
    held = max(manifest["num_train_tokens"], manifest["num_heldout_tokens"])
    manifest |= {"num_train_tokens": held, "num_heldout_tokens": 0}  # whichever side the one document fell on
    with pytest.raises(DataError, match=r"3 sequences of 32: smaller than one batch of 8\. .* smaller --batch_size"):
        summarise([manifest], CONFIG)


def test_a_corpus_without_enough_held_out_text_says_so() -> None:
    manifest = {"num_documents": 9, "num_train_tokens": 9000, "num_heldout_tokens": 29, "num_unknown": 0}
    with pytest.raises(
        DataError,
        match=r"only 29 tokens are held out \(heldout_fraction 0\.1\).* of 9 chance .* --heldout_fr.*blank lines",
    ):
        summarise([{**manifest, "vocab_size": 300}], CONFIG)


def test_a_share_of_unknown_tokens_just_beyond_the_bound_is_not_rounded_to_it() -> None:
    manifest = {"num_documents": 9, "num_train_tokens": 900, "num_heldout_tokens": 100, "num_unknown": 204}
    with pytest.raises(
        DataError, match=r"20\.4% of the tokens are unknown to the tokenizer \(at most 20% is sensible\)"
    ):
        summarise([{**manifest, "vocab_size": 300}], CONFIG)


def test_a_tokenizer_of_another_script_is_noticed(tmp_path: Path, store: Store, tokenizer_key: str) -> None:
    path = tmp_path / "greek.txt"
    path.write_text("\n\n".join(f"αβγδ εζηθ ικλμ {number}" for number in range(200)), encoding="utf-8")
    with pytest.raises(DataError, match=r"100% of the tokens are unknown|of another language or script"):
        summarise([tokenize(path, tokenizer_key, store)], CONFIG)


# Disks and memory


def test_a_full_disk_leaves_no_shard_and_a_second_try_completes(text: Path, store: Store, tokenizer_key: str) -> None:
    with files_no_larger_than(16_000), pytest.raises(DataError, match=r"could not be written.*--store"):
        tokenize(text, tokenizer_key, store)
    assert store.list_keys("tokens") == []
    assert [path for path in store.folder.iterdir() if path.name.startswith("tmp")] == []
    manifest = tokenize(text, tokenizer_key, store)
    folder = store.get_folder(manifest["key"])
    assert (folder / "train.bin").stat().st_size == 2 * manifest["num_train_tokens"] > 16_000
    assert read_manifest(folder) == {key: value for key, value in manifest.items() if key != "key"}


def test_a_task_that_only_tokenizes_imports_neither_torch_nor_transformers(
    text: Path, store: Store, tokenizer_key: str
) -> None:
    plan = {"config": {**CONFIG, "store": store.root}, "tokenizer_key": tokenizer_key, "run_key": "runs/one"}
    code = (
        "import json, sys\nfrom steps import lifecycle\n"
        "plan, shard = json.loads(sys.argv[1])\n"
        "(manifest,) = lifecycle.tokenize(plan, [shard])\n"
        "print(manifest['num_documents'], *({'torch', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    arguments = json.dumps([plan, shard_of(text, store)])
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True)
    assert done.stdout.split() == ["400"], done.stdout + done.stderr  # the documents of write_text, and nothing else


def test_a_document_of_50_megabytes_is_tokenized_in_flat_memory(
    tmp_path: Path, text: Path, store: Store, tokenizer_key: str
) -> None:
    path = tmp_path / "huge.txt"
    with path.open("w") as file:
        for _ in range(500):  # one line, one document; the long word, one token, is for speed
            file.write(("kara moden " + "x" * 120 + " ") * 760)
    assert path.stat().st_size > 50e6
    (shard,) = shards_of(path, store, shard_megabytes=100.0)
    code = (
        "import json, resource, sys\n"
        "from steps.store import Store\nfrom steps.tokenization import tokenize_shard\n"
        "small, shard, config, key, root = json.loads(sys.argv[1])\n"
        "def peak():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "tokenize_shard(small, config, tokenizer_key=key, store=Store(root))\n"
        "before = peak()\n"
        "manifest = tokenize_shard(shard, config, tokenizer_key=key, store=Store(root))\n"
        "print(json.dumps([peak() - before, manifest['num_train_tokens'] + manifest['num_heldout_tokens']]))"
    )
    arguments = json.dumps([shard_of(text, store), shard, CONFIG, tokenizer_key, store.root])
    done = subprocess.run(
        [sys.executable, "-c", code, arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "RAYON_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    megabytes, num_tokens = json.loads(done.stdout)
    assert num_tokens > 1_000_000
    assert megabytes < 100, f"{megabytes:.0f} MB more for a document of 50 MB"


def test_a_store_key_cannot_be_a_path_out_of_it(text: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="leads out of the store"):
        tokenize(text, "../tokenizers", store)
