"""Whether the text can be read at all, found out in `start` by the reader that tokenizing uses."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast_electra_core.text import TextPiece, check_documents, compression_of
from fast_electra_core.text_shards import Corpus
from steps.corpus import open_piece
from steps.store import Store

WHOLLY_CHECKED_BYTES = 256 << 20
"""A corpus up to this size is read wholly (50 to 80 MB/s); of a larger one no more than this."""
EDGE_BYTES = 1 << 20
"""Read at each end of every file of a larger corpus; less where there are so many files that it adds up."""
MAX_OBJECTS = 8
"""Looked into of a larger corpus in S3: for each there are requests to wait for."""


def check_text(corpus: Corpus, *, text_field: str, on_bad_text: str, store: Store) -> None:
    """The text can be decoded, its lines of .jsonl parsed, and its field or column is there.

    Of a corpus above WHOLLY_CHECKED_BYTES only the first and the last EDGE_BYTES of each file are read, only the first
    of compressed files and .parquet, and in S3 only that of MAX_OBJECTS, evenly: what is wrong elsewhere is said by
    `tokenize`.

    Raises:
        DataError: the text cannot be read; in the words in which `tokenize` would say it.
    """
    pieces = [piece for shard in corpus.shards for piece in shard["pieces"]]
    check = functools.partial(check_documents, text_field=text_field, on_bad_text=on_bad_text)
    if corpus.num_bytes <= WHOLLY_CHECKED_BYTES:
        for piece in pieces:
            part, open_file = open_piece(piece, store=store)
            check(part, open_file=open_file)
        return
    edge_bytes = min(EDGE_BYTES, WHOLLY_CHECKED_BYTES // (2 * corpus.num_files))
    objects = [piece for piece in pieces if _is_object(piece) and not piece["start"]]
    for piece in objects[:: math.ceil(len(objects) / MAX_OBJECTS) or 1]:
        beginning, open_file = open_piece(piece, store=store)
        check(beginning, max_characters=edge_bytes, open_file=open_file)
    for piece in pieces:
        if not _is_object(piece):
            for part in _edges(piece, edge_bytes, store):
                check(part, max_characters=edge_bytes)


def _is_object(piece: dict[str, Any]) -> bool:
    return str(piece["path"]).startswith("s3://")


def _edges(piece: dict[str, Any], edge_bytes: int, store: Store) -> Iterator[TextPiece]:
    """The parts of a piece that lie at an end of its file, which is on this machine."""
    whole, _ = open_piece(piece, store=store)
    if whole.kind == "parquet" or compression_of(whole.path):
        yield whole
        return
    file_bytes = Path(whole.path).stat().st_size
    last_start = max(0, file_bytes - edge_bytes)
    end = file_bytes if whole.end is None else whole.end
    if whole.start < edge_bytes:
        yield dataclasses.replace(whole, end=min(end, edge_bytes))
    if end > last_start and end > edge_bytes:
        yield dataclasses.replace(whole, start=max(whole.start, last_start, edge_bytes))
