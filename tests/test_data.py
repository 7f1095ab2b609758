"""Shards hold every token once, sequences cross their borders, and the order is a pure function of the step."""

import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import SPECIAL_IDS

from fast_electra_core.data import TokenDataset, batch_index_at, is_ordinary
from fast_electra_core.errors import DataError
from fast_electra_core.token_shards import Ids, read_manifest, write_shard

DOCUMENTS = st.lists(st.lists(st.integers(5, 99), max_size=30), max_size=8)


def write(folder: Path, documents: list[list[int]], *, vocab_size: int = 100, heldout_fraction: float = 0.0) -> Path:
    folder.mkdir()
    write_shard(
        folder,
        (np.array(document, dtype=np.int64) for document in documents),
        separator_id=3,
        unknown_id=1,
        vocab_size=vocab_size,
        heldout_fraction=heldout_fraction,
    )
    return folder


def dataset(folders: list[Path], *, part: str = "train", sequence_length: int = 8) -> TokenDataset:
    return TokenDataset(folders, part, sequence_length=sequence_length, special_ids=SPECIAL_IDS)


def documents_of(folders: list[Path], part: str) -> list[tuple[int, ...]]:
    """The documents of a part, taken apart at the separators by hand."""
    stream = [int(token) for folder in folders for token in np.fromfile(folder / f"{part}.bin", dtype="<u2")]
    found: list[tuple[int, ...]] = []
    current: list[int] = []
    for token in stream:
        if token == 3:
            found.append(tuple(current))
            current = []
        else:
            current.append(token)
    assert not current
    return found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shards=st.lists(DOCUMENTS, min_size=1, max_size=4), sequence_length=st.integers(8, 40))
def test_sequences_are_the_stream_cut_in_order_across_shard_borders(
    shards: list[list[list[int]]], sequence_length: int
) -> None:
    stream = [token for documents in shards for document in documents if document for token in [*document, 3]]
    body = sequence_length - 2
    with tempfile.TemporaryDirectory() as root:
        folders = [write(Path(root) / str(index), documents) for index, documents in enumerate(shards)]
        data = dataset(folders, sequence_length=sequence_length)
        sequences = [data.sequence(index).tolist() for index in range(len(data))]
    assert data.num_tokens == len(stream)
    assert sequences == [[2, *stream[first : first + body], 3] for first in range(0, len(stream) - body + 1, body)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shards=st.lists(DOCUMENTS, min_size=1, max_size=4), sequence_length=st.integers(8, 40))
def test_sequences_are_packed_so_that_nothing_is_padding(shards: list[list[list[int]]], sequence_length: int) -> None:
    """What ModernBERT calls unpadded: documents of any length, not one position spent on padding."""
    with tempfile.TemporaryDirectory() as root:
        folders = [write(Path(root) / str(index), documents) for index, documents in enumerate(shards)]
        data = dataset(folders, sequence_length=sequence_length)
        for index in range(len(data)):
            sequence = data.sequence(index)
            assert len(sequence) == sequence_length
            assert not (sequence == SPECIAL_IDS.pad).any()


def test_a_sequence_may_span_more_than_two_shards(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(index), [[10 + index]]) for index in range(4)]
    assert dataset(folders, sequence_length=10).sequence(0).tolist() == [2, 10, 3, 11, 3, 12, 3, 13, 3, 3]


def test_batches_stack_sequences_as_int64(tmp_path: Path) -> None:
    data = dataset([write(tmp_path / "shard", [list(range(5, 25))])], sequence_length=8)
    batch = data.batch(torch.tensor([2, 0]))
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[2, 17, 18, 19, 20, 21, 22, 3], [2, 5, 6, 7, 8, 9, 10, 3]]


@pytest.mark.parametrize(("vocab_size", "dtype", "largest"), [(65_536, "<u2", 65_535), (65_537, "<u4", 65_536)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(
    vocab_size: int, dtype: str, largest: int, tmp_path: Path
) -> None:
    folder = write(tmp_path / "shard", [[5, largest, 7, 8, 9]], vocab_size=vocab_size)
    assert read_manifest(folder)["dtype"] == dtype
    assert (folder / "train.bin").stat().st_size == 6 * np.dtype(dtype).itemsize
    assert dataset([folder]).sequence(0).tolist() == [2, 5, largest, 7, 8, 9, 3, 3]


def test_the_manifest_counts_and_digests_what_was_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "shard", [[5, 1, 1], [], [7]])
    manifest = read_manifest(folder)
    digest = hashlib.sha256(np.array([5, 1, 1, 3, 7, 3], dtype="<u2").tobytes()).hexdigest()
    assert manifest == {
        "num_documents": 2,  # the empty one leaves nothing behind
        "num_train_tokens": 6,
        "num_heldout_tokens": 0,
        "num_unknown": 2,
        "vocab_size": 100,
        "dtype": "<u2",
        "sha256": {"train.bin": digest, "heldout.bin": hashlib.sha256(b"").hexdigest()},
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shards=st.lists(DOCUMENTS, min_size=2, max_size=3), heldout_fraction=st.floats(0.0, 0.5))
def test_held_out_documents_are_never_trained_on_and_duplicates_stay_on_one_side(
    shards: list[list[list[int]]], heldout_fraction: float
) -> None:
    shards[-1] = shards[-1] + shards[0]  # the same documents again, elsewhere
    with tempfile.TemporaryDirectory() as root:
        folders = [
            write(Path(root) / str(index), documents, heldout_fraction=heldout_fraction)
            for index, documents in enumerate(shards)
        ]
        train, heldout = documents_of(folders, "train"), documents_of(folders, "heldout")
    assert not set(train) & set(heldout)
    assert sorted(train + heldout) == sorted(tuple(document) for shard in shards for document in shard if document)


def test_about_the_asked_share_of_documents_is_held_out(tmp_path: Path) -> None:
    documents = [[5 + index % 90, 5 + index // 90] for index in range(4000)]
    folder = write(tmp_path / "shard", documents, heldout_fraction=0.1)
    assert len(documents_of([folder], "heldout")) == pytest.approx(400, abs=4 * np.sqrt(4000 * 0.1 * 0.9))


def test_nothing_is_held_out_at_fraction_0(tmp_path: Path) -> None:
    folder = write(tmp_path / "shard", [[index] for index in range(5, 95)])
    assert len(dataset([folder], part="heldout")) == 0


def test_a_sequence_outside_the_dataset_is_refused(tmp_path: Path) -> None:
    data = dataset([write(tmp_path / "shard", [[5] * 11])])
    assert len(data) == 2
    with pytest.raises(IndexError, match="sequence 2 of 2"):
        data.sequence(2)
    with pytest.raises(IndexError, match="sequence -1 of 2"):
        data.sequence(-1)


def test_a_shard_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a token shard: it has no manifest.json. Tokenize again."):
        read_manifest(tmp_path)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of 5 training tokens, so 10 bytes, and no held-out ones."""
    return write(tmp_path / "shard", [[7, 8], [9]])


def mend(folder: Path) -> str:
    return re.escape(f"Delete the folder {folder} and run again; in a run that has begun, `resume tokenize`")


@pytest.mark.parametrize("size, held", [(9, "holds 9 bytes"), (12, "holds 12 bytes"), (None, "is missing")])
def test_a_shard_whose_tokens_are_not_as_many_as_its_manifest_says_is_refused(
    size: int | None, held: str, shard: Path
) -> None:
    file = shard / "train.bin"
    assert file.stat().st_size == 10
    if size is None:
        file.unlink()
    else:
        file.write_bytes(bytes(size))
    message = rf"^{file} {held}, 10 are expected by its manifest\. {mend(shard)}$"
    with pytest.raises(DataError, match=message):
        read_manifest(shard)
    with pytest.raises(DataError, match=message):
        dataset([shard])


@pytest.mark.parametrize(
    "content, problem",
    [
        (b'{"num_documents": 2, "num_tr', "JSONDecodeError: Unterminated string"),
        (b"", "JSONDecodeError: Expecting value"),
        (b"\xff\xfe", "UnicodeDecodeError: .*0xff"),
        (b"[]", "TypeError: "),
        (b'{"dtype": "<u2", "num_train_tokens": 5}', "KeyError: 'num_heldout_tokens'"),
        (b'{"dtype": "<f8", "num_train_tokens": 5, "num_heldout_tokens": 0}', "KeyError: '<f8'"),
    ],
)
def test_a_damaged_manifest_is_named_with_what_to_do(content: bytes, problem: str, shard: Path) -> None:
    (shard / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{shard}/manifest\.json is damaged: {problem}.*\. {mend(shard)}$"):
        read_manifest(shard)


def visited(num_steps: int, *, batch_size: int, num_sequences: int = 13, seed: int = 4) -> list[tuple[int, int]]:
    """(epoch, sequence) of each sequence in the order of training."""
    steps = [
        batch_index_at(step, batch_size=batch_size, num_sequences=num_sequences, seed=seed) for step in range(num_steps)
    ]
    return [pair for index in steps for pair in zip(index.epoch.tolist(), index.sequence.tolist(), strict=True)]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(num_sequences=st.integers(1, 20), batch_size=st.integers(6, 50), seed=st.integers(0, 2**60 - 1))
def test_each_epoch_visits_every_sequence_once(num_sequences: int, batch_size: int, seed: int) -> None:
    """Also where a batch straddles two epochs, or holds several."""
    num_steps = -(-3 * num_sequences // batch_size)
    pairs = visited(num_steps, batch_size=batch_size, num_sequences=num_sequences, seed=seed)[: 3 * num_sequences]
    assert [epoch for epoch, _ in pairs] == [epoch for epoch in range(3) for _ in range(num_sequences)]
    for epoch in range(3):
        assert sorted(sequence for own, sequence in pairs if own == epoch) == list(range(num_sequences))


def test_another_batch_size_visits_the_same_order() -> None:
    """NVIDIA's iterator drops data silently when the world size changes."""
    assert visited(6, batch_size=5) == visited(30, batch_size=1) == visited(2, batch_size=15)


def test_the_order_differs_between_epochs_and_seeds() -> None:
    """The lineage of the HF Trainer resumes in a wrong order after the first epoch."""
    first, second = visited(1, batch_size=13), visited(2, batch_size=13)[13:]
    assert [sequence for _, sequence in first] != [sequence for _, sequence in second]
    assert first != visited(1, batch_size=13, seed=5)


def test_an_empty_dataset_has_no_order() -> None:
    with pytest.raises(DataError, match="the corpus is smaller than one sequence; give more text or a smaller"):
        batch_index_at(0, batch_size=4, num_sequences=0, seed=0)


def test_special_tokens_and_padding_are_not_ordinary() -> None:
    ids = torch.tensor([[2, 5, 1, 99, 3, 0], [2, 4, 6, 7, 8, 3]])
    assert is_ordinary(ids, SPECIAL_IDS).tolist() == [
        [False, True, False, True, False, False],
        [False, False, True, True, True, False],
    ]


def test_documents_may_be_arrays_of_any_integer_type(tmp_path: Path) -> None:
    folder = tmp_path / "shard"
    folder.mkdir()
    small: Ids = np.array([5, 6, 7, 8, 9], dtype=np.uint16)
    write_shard(folder, [small], separator_id=3, unknown_id=1, vocab_size=100, heldout_fraction=0.0)
    assert dataset([folder]).sequence(0).tolist() == [2, 5, 6, 7, 8, 9, 3, 3]
