"""Text files grouped into shards of about equal size, by rules on names, sizes and contents alone.

A shard is what one tokenizing task reads.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Self

from fast_electra_core.errors import DataError
from fast_electra_core.text import KNOWN_SUFFIXES, TextPiece, compression_of, kind_of


@dataclass(frozen=True)
class TextFile:
    """A file of a corpus, here or remote."""

    name: str
    """Relative to the corpus."""
    path: str
    """Where it is: a local path or a remote address."""
    num_bytes: int
    digest: str
    """By content; whatever the files' keeper offers, so not comparable between keepers."""


@dataclass(frozen=True)
class Corpus:
    """The text of a run, as pieces in shards; every value is of a plain JSON type."""

    address: str
    digest: str
    """Hex, 16 characters, of relative file names and contents: the same text in another folder has it too."""
    num_bytes: int
    """As stored, so of compressed files the compressed size."""
    num_files: int
    num_ignored: int
    """Files left out because they are empty or their suffix is not known."""
    files: list[dict[str, Any]]
    """The fields of each TextFile that holds text, by name."""
    shards: list[dict[str, Any]]
    """Each {"pieces": [fields of TextPiece, path perhaps remote], "digest": hex}."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict."""
        return cls(**values)


def is_hidden(relative: PurePath) -> bool:
    """Whether a file that lies there below its corpus is none of it: a name on the way begins with a dot."""
    return any(part.startswith(".") for part in relative.parts)


def corpus_of(address: str, found: list[TextFile], *, shard_bytes: int) -> Corpus:
    """The corpus made of those of the files that are text.

    Raises:
        DataError: no file of a known kind, or no bytes.
    """
    known = sorted((file for file in found if kind_of(file.name)), key=lambda file: file.name)
    if not known:
        raise DataError(f"corpus {address!r}: none of its {len(found)} files is text; known are {KNOWN_SUFFIXES}")
    files = [file for file in known if file.num_bytes]
    if not files:
        raise DataError(f"corpus {address!r} is empty: {len(known)} files of 0 bytes. Give files that hold text")
    return Corpus(
        address=address,
        digest=content_digest([[file.name, file.digest] for file in files]),
        num_bytes=sum(file.num_bytes for file in files),
        num_files=len(files),
        num_ignored=len(found) - len(files),
        files=[dataclasses.asdict(file) for file in files],
        shards=_shards(files, shard_bytes),
    )


def content_digest(content: list[Any]) -> str:
    """Hex digest (16 characters) of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _shards(files: list[TextFile], shard_bytes: int) -> list[dict[str, Any]]:
    """Small files together up to `shard_bytes`; uncompressed .txt and .jsonl above that in byte ranges."""
    shards: list[list[tuple[TextFile, TextPiece]]] = [[]]
    num_bytes = 0
    for file in files:
        pieces = _cut(file, shard_bytes)
        if len(pieces) > 1:
            shards = [*shards, *([(file, piece)] for piece in pieces), []]
            num_bytes = 0
            continue
        if num_bytes + file.num_bytes > shard_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append((file, pieces[0]))
        num_bytes += file.num_bytes
    return [
        {
            "pieces": [piece.to_dict() for _, piece in shard],
            "digest": content_digest(
                [[file.digest, piece.kind, compression_of(file.name), piece.start, piece.end] for file, piece in shard]
            ),
        }
        for shard in shards
        if shard
    ]


def _cut(file: TextFile, shard_bytes: int) -> list[TextPiece]:
    kind = kind_of(file.name) or ""
    if kind == "parquet" or compression_of(file.name) is not None or file.num_bytes <= shard_bytes:
        return [TextPiece(path=file.path, start=0, end=None, kind=kind)]
    count = math.ceil(file.num_bytes / shard_bytes)
    bounds = [index * file.num_bytes // count for index in range(count + 1)]
    return [TextPiece(path=file.path, start=start, end=end, kind=kind) for start, end in itertools.pairwise(bounds)]
