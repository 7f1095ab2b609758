"""Tokenizers: the same text gives the same vocabulary, what is saved is what is loaded, ids are right."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fast_electra_core import encoding
from fast_electra_core.encoding import DocumentEncoder, encode_documents
from fast_electra_core.errors import AuxiliaryError, DataError
from fast_electra_core.tokenizer import (
    SPECIAL_TOKENS,
    load_tokenizer,
    num_ids,
    tokenizer_digest,
    train_tokenizer,
    word_continuations,
)

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Training a tokenizer: tokens, tokenizers, tokenized!",
    "Café Zürich, naïve déjà-vu; 北京 (Beijing) 2021.",
] * 5
VOCABULARY = [*SPECIAL_TOKENS, "hello", "world", "##s", ",", "un", "##able"]


def vocabulary_file(folder: Path, entries: list[str]) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(entries) + "\n", encoding="utf-8")
    return path


def encode(tokenizer: PreTrainedTokenizerFast, *texts: str) -> list[list[int]]:
    return [ids.tolist() for ids in encode_documents(tokenizer.backend_tokenizer, iter(texts))]


def test_special_tokens_have_the_first_ids() -> None:
    tokenizer = train_tokenizer(iter(SENTENCES), vocab_size=300)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (0, 1, 4)


def test_training_is_uncased_and_covers_its_own_text() -> None:
    tokenizer = train_tokenizer(iter(SENTENCES), vocab_size=300)
    assert encode(tokenizer, "THE FOX café") == encode(tokenizer, "the fox cafe")
    assert all(tokenizer.unk_token_id not in ids for ids in encode(tokenizer, *SENTENCES))
    assert tokenizer.tokenize("training fox") == ["training", "fox"]
    assert not {"##,", "##;", "##北"} & set(tokenizer.get_vocab())  # words of their own, which nothing goes on with


def test_the_alphabet_is_that_of_the_whole_text_not_of_its_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BATCH_DOCUMENTS", 1)
    tokenizer = train_tokenizer(iter(["abc cab", "xyz"]), vocab_size=300)
    assert [tokenizer.unk_token_id in ids for ids in encode(tokenizer, "abc", "xyz", "q")] == [False, False, True]


def test_the_vocabulary_has_the_size_asked_for_or_less() -> None:
    varied = [f"word{index} {chr(0x400 + index)}{chr(0x401 + index)}" for index in range(200)]
    assert len(train_tokenizer(iter(varied), vocab_size=256)) == 256
    assert len(train_tokenizer(iter(["a b"]), vocab_size=256)) < 20


def test_every_process_trains_the_same_vocabulary() -> None:
    code = (
        "from fast_electra_core.tokenizer import *\n"
        "texts = [f'w{i * 7919 % 1009} {chr(0x400 + i)}{chr(0x401 + i)} pre{i}suf' for i in range(500)]\n"
        "print(tokenizer_digest(train_tokenizer(iter(texts), vocab_size=600)))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    digests = [run.communicate()[0] for run in runs]
    assert digests[0] and digests[0] == digests[1]


def test_a_text_without_words_trains_no_tokenizer() -> None:
    with pytest.raises(DataError, match="the corpus holds no words; give more text"):
        train_tokenizer(iter(["  ", ""]), vocab_size=300)


def test_a_saved_tokenizer_is_loaded_by_auto_tokenizer_with_the_same_content(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(SENTENCES), vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    loaded = [
        AutoTokenizer.from_pretrained(tmp_path),
        load_tokenizer(tmp_path),
        load_tokenizer(str(tmp_path)),
    ]
    assert {tokenizer_digest(other) for other in loaded} == {tokenizer_digest(tokenizer)}
    assert [encode(other, *SENTENCES) for other in loaded] == [encode(tokenizer, *SENTENCES)] * 3


def test_pairs_get_separators_and_token_types(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    encoded = tokenizer("hello", "worlds")
    # [CLS] hello [SEP] world ##s [SEP]
    assert encoded["input_ids"] == [2, 5, 3, 6, 7, 3]
    assert encoded["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_a_vocabulary_file_does_not_turn_everything_into_unknowns(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    assert encode(tokenizer, "Hello, worlds unable", "zebra", "") == [[5, 8, 6, 7, 9, 10], [1], []]


def test_a_folder_with_only_a_vocabulary_equals_the_file(tmp_path: Path) -> None:
    path = vocabulary_file(tmp_path, VOCABULARY)
    assert tokenizer_digest(load_tokenizer(tmp_path)) == tokenizer_digest(load_tokenizer(path))


def test_case_follows_the_vocabulary_unless_the_folder_says_otherwise(tmp_path: Path) -> None:
    path = vocabulary_file(tmp_path, [*VOCABULARY, "Hello"])
    assert encode(load_tokenizer(path), "Hello hello") == [[11, 5]]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert encode(load_tokenizer(tmp_path), "Hello hello") == [[5, 5]]
    vocabulary_file(tmp_path, [*VOCABULARY, "cafe", "café", "北", "##京"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"strip_accents": False}))
    assert encode(load_tokenizer(tmp_path), "café") == [[12]]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenize_chinese_chars": False}))
    assert encode(load_tokenizer(tmp_path), "café 北京") == [[11, 13, 14]]


def test_a_cased_tokenizer_stays_cased_when_saved(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, [*VOCABULARY, "Hello"]))
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_digest(load_tokenizer(tmp_path / "saved")) == tokenizer_digest(tokenizer)


def test_the_digest_tells_content_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    digest = tokenizer_digest(tokenizer)
    tokenizer(["hello", "hello world"], padding=True, truncation=True, max_length=3)
    tokenizer.model_max_length = 7
    assert tokenizer_digest(tokenizer) == digest
    assert len(digest) == 16
    swapped = [*VOCABULARY[:-2], "##able", "un"]
    assert tokenizer_digest(load_tokenizer(vocabulary_file(tmp_path, swapped))) != digest
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    vocabulary_file(tmp_path, VOCABULARY)
    assert tokenizer_digest(load_tokenizer(tmp_path)) != digest


def test_the_digest_tells_what_is_put_around_a_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    digest = tokenizer_digest(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    assert tokenizer("hello")["input_ids"] == [5]
    bare = tokenizer_digest(tokenizer)
    assert bare != digest
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A", pair="$A [SEP] $B", special_tokens=[("[SEP]", 3)]
    )
    assert tokenizer("hello")["input_ids"] == [5]
    assert tokenizer_digest(tokenizer) not in (bare, digest)


def test_the_digest_tells_an_added_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    digest = tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["worlds"])
    assert encode(tokenizer, "worlds") == [[len(VOCABULARY)]]
    assert tokenizer_digest(tokenizer) != digest


@pytest.mark.parametrize("entry", ["\u2028", "\x85", "\x0b", " "])
def test_an_entry_that_ends_lines_elsewhere_moves_no_id(entry: str, tmp_path: Path) -> None:
    """bert-base-chinese has one; transformers' own reader knows the ends of lines of files alone."""
    vocabulary = load_tokenizer(vocabulary_file(tmp_path, [*VOCABULARY[:7], entry, *VOCABULARY[8:]])).get_vocab()
    assert (vocabulary[entry], vocabulary[VOCABULARY[8]]) == (7, 8)


def test_an_id_that_is_nobodys_counts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, [*VOCABULARY, "", "last"]))
    assert (len(tokenizer), num_ids(tokenizer)) == (len(VOCABULARY) + 1, len(VOCABULARY) + 2)
    assert word_continuations(tokenizer).nonzero()[0].tolist() == [VOCABULARY.index("##s"), VOCABULARY.index("##able")]


def test_documents_are_encoded_in_order_and_unbounded_whatever_the_state(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    tokenizer(["hello"], padding="max_length", truncation=True, max_length=3)
    found = list(
        encode_documents(tokenizer.backend_tokenizer, (f"{'hello ' * (count % 9)}world" for count in range(3000)))
    )
    assert [len(ids) for ids in found] == [count % 9 + 1 for count in range(3000)]
    assert found[2].tolist() == [5, 5, 6]
    assert tokenizer.backend_tokenizer.truncation is not None  # the one given is as it was
    assert found[0].dtype == np.uint32


def test_special_tokens_spelled_out_in_text_are_ordinary_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, [*VOCABULARY, "[", "]", "mask"]))
    assert encode(tokenizer, "hello [MASK]") == [[5, 11, 13, 12]]
    assert tokenizer("hello [MASK]", add_special_tokens=False)["input_ids"] == [5, 4]


def test_encoding_pulls_documents_batch_by_batch(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary_file(tmp_path, VOCABULARY))
    pulled: list[int] = []

    def documents() -> "list[str]":
        for index in range(100):
            pulled.append(index)
            yield "hello " * 50_000  # 300,000 characters

    next(encode_documents(tokenizer.backend_tokenizer, documents()))
    assert len(pulled) == 4


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As ModernBERT's: no normaliser, bytes as letters, special tokens at the end of the vocabulary."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        iter(SENTENCES), trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


@pytest.mark.parametrize("kind", ["trained", "cased", "byte_level"])
def test_what_is_saved_encodes_without_transformers_as_transformers_encodes_it(kind: str, tmp_path: Path) -> None:
    made = {
        "trained": lambda: train_tokenizer(iter(SENTENCES), vocab_size=300),
        "cased": lambda: load_tokenizer(vocabulary_file(tmp_path, [*VOCABULARY, "Hello"])),
        "byte_level": byte_level_tokenizer,
    }
    made[kind]().save_pretrained(tmp_path / "saved")
    loaded, encoder = load_tokenizer(tmp_path / "saved"), DocumentEncoder(tmp_path / "saved")
    texts = [*SENTENCES[:3], "Hello hellos, unable", "", "~ \u2603"]
    expected = loaded(texts, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in encoder.encode(texts)] == expected
    assert (encoder.separator_id, encoder.unknown_id) == (loaded.sep_token_id, loaded.unk_token_id)
    assert encoder.vocab_size == len(loaded)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_was_cut_short_is_named_with_the_next_move(name: str, tmp_path: Path) -> None:
    train_tokenizer(iter(SENTENCES), vocab_size=300).save_pretrained(tmp_path)
    whole = (tmp_path / name).read_text()
    (tmp_path / name).write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"the tokenizer in {tmp_path} cannot be read: .*Delete the folder"):
        DocumentEncoder(tmp_path)


def test_a_tokenizer_whose_files_do_not_agree_is_named(tmp_path: Path) -> None:
    train_tokenizer(iter(SENTENCES), vocab_size=300).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "sep_token": "<other>"}))
    with pytest.raises(DataError, match=r"no entry for its special token '<other>'"):
        DocumentEncoder(tmp_path)


@given(lengths=st.lists(st.integers(0, 12), max_size=30), characters=st.integers(1, 20), documents=st.integers(1, 5))
def test_documents_reach_the_library_many_at_once_and_never_more_than_a_batch(
    lengths: list[int], characters: int, documents: int
) -> None:
    texts = ["x" * length for length in lengths]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "BATCH_CHARACTERS", characters)
        patched.setattr(encoding, "BATCH_DOCUMENTS", documents)
        batches = list(encoding.in_batches(iter(texts)))
    assert [document for batch in batches for document in batch] == texts

    def is_full(batch: list[str]) -> bool:
        return len(batch) >= documents or sum(map(len, batch)) >= characters

    assert all(is_full(batch) for batch in batches[:-1])
    assert not any(is_full(batch[:-1]) for batch in batches)


def test_places_without_a_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer at .*gone: there is no such file or folder"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(DataError, match="the folder holds nothing"):
        load_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"the folder holds model\.safetensors"):
        load_tokenizer(tmp_path)


def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a WordPiece vocabulary: \[MASK\] missing among its 10"):
        load_tokenizer(vocabulary_file(tmp_path, [token for token in VOCABULARY if token != "[MASK]"]))
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(DataError, match="not a vocabulary: byte 6 is not UTF-8"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is not JSON"):
        load_tokenizer(tmp_path)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer's file"):
        load_tokenizer(tmp_path)


def test_remote_code_is_refused(tmp_path: Path) -> None:
    train_tokenizer(iter(SENTENCES), vocab_size=300).save_pretrained(tmp_path)
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(DataError, match="cannot be loaded without running foreign code"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_fast_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tokenizer(iter(SENTENCES), vocab_size=300).save_pretrained(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: object())
    with pytest.raises(DataError, match="is a object, not a fast one"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_mask_token_cannot_serve(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(AuxiliaryError, match="has no pad_token, cls_token, sep_token, mask_token"):
        load_tokenizer(tmp_path)


WORDS = "the quick brown foxes jumped over tokenizers and retokenized the brownest words"


def wordpiece() -> PreTrainedTokenizerFast:
    """Of letters, and the pieces that go on with a word."""
    return train_tokenizer(iter([" ".join(WORDS)]), vocab_size=300)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's, RoBERTa's and ModernBERT's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """As ALBERT's and DeBERTaV3's."""
    backend = Tokenizer(models.Unigram())
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]  # type: ignore[no-untyped-call]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)  # type: ignore[no-untyped-call]
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["[UNK]", "[PAD]"], unk_token="[UNK]", show_progress=False
    )
    backend.train_from_iterator([WORDS] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("make", [wordpiece, byte_level, sentencepiece])
def test_tokens_joined_where_one_continues_a_word_are_the_words_of_the_text(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make()
    continues = word_continuations(tokenizer)
    ids = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    words: list[str] = []
    for index, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if continues[index] and words:  # nothing comes before the text's first token
            words[-1] += token.removeprefix("##")
        else:
            words.append(token.lstrip("Ġ▁"))
    assert words == WORDS.split()
    assert len(ids) > len(words)
    assert not continues[tokenizer.all_special_ids].any()


def test_white_space_of_any_kind_begins_a_word_in_byte_level_bpe() -> None:
    tokenizer = byte_level()
    continues = word_continuations(tokenizer)
    ids = tokenizer("a\nb\tc\rd,e", add_special_tokens=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["a", "Ċ", "b", "ĉ", "c", "č", "d", ",", "e"]
    assert [bool(continues[index]) for index in ids] == [token not in "Ċĉč" for token in tokens]


def test_a_token_that_was_added_continues_nothing() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["brownest"])
    (index,) = tokenizer("brownest", add_special_tokens=False)["input_ids"]
    assert index == len(tokenizer) - 1
    assert not word_continuations(tokenizer)[index]


def test_one_entry_a_word_continues_nothing() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    assert word_continuations(PreTrainedTokenizerFast(tokenizer_object=backend)).tolist() == [False] * 3


def test_a_tokenizer_whose_words_cannot_be_told_is_refused() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    with pytest.raises(DataError, match=r"is not known for this BPE tokenizer, only for WordPiece.*--masking tokens"):
        word_continuations(PreTrainedTokenizerFast(tokenizer_object=backend))
