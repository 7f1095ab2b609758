"""Text in S3: listed, and read where it is. An object is named `s3://BUCKET/KEY#ETAG`."""

import contextlib
import functools
import io
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fast_electra_core.errors import DataError
from fast_electra_core.text_shards import TextFile, is_hidden
from steps.store import s3_client, s3_code

_FIRST_BYTES, _MOST_BYTES = 1 << 18, 1 << 22
"""What a request brings: at least, the first at a place; at most."""
_PAUSES = (0.5, 1.0, 2.0)
"""Seconds between requests for the same."""


def list_objects(corpus: str) -> list[TextFile]:
    """The objects at an address, of any kind.

    Raises:
        DataError: there is none, or the bucket is out of reach.
    """
    bucket, _, prefix = corpus.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"corpus {corpus!r} names no bucket; give s3://BUCKET/PREFIX")
    with _asking(corpus):
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [entry for page in pages for entry in page.get("Contents", [])]
    folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    # `data/wiki` means the object or folder of that name; failing that, all that begins so (`data/wiki2`).
    exact = [entry for entry in objects if entry["Key"] == prefix or entry["Key"].startswith(folder)]
    root = folder if exact and exact[0]["Key"] != prefix else prefix[: prefix.rfind("/") + 1]
    files = [
        TextFile(
            name=entry["Key"].removeprefix(root),
            path=f"s3://{bucket}/{entry['Key']}#{entry['ETag'].strip(chr(34))}",
            num_bytes=entry["Size"],
            digest=f"{entry['ETag'].strip(chr(34))}:{entry['Size']}",
        )
        for entry in exact or objects
        if not entry["Key"].endswith("/")
    ]
    files = [file for file in files if not is_hidden(Path(file.name))]
    if not files:
        raise DataError(f"corpus {corpus!r}: there is no object under the prefix {prefix!r} in bucket {bucket!r}")
    return files


def open_object(piece: str) -> io.BufferedReader:
    """An object, to be read where it is, as far as it is asked for; nothing of it comes to this disk.

    Raises:
        DataError: where it is read: it is gone, or changed since it was listed; S3 is out of reach.
    """
    return io.BufferedReader(_Object(piece), _FIRST_BYTES)


@functools.lru_cache(maxsize=1)
def _client(process: int) -> Any:
    """One for all the objects that a process reads: to make it takes longer than to read a small one."""
    return s3_client()


class _Object(io.RawIOBase):
    """Asks for a little, and for twice as much each time that it is read on."""

    def __init__(self, piece: str) -> None:
        self._address, self._named = _split(piece)
        with _asking(self._address):
            self._client = _client(os.getpid())
        self._position = 0
        self._num_bytes: int | None = None
        """Known by the first answer."""
        self._held = memoryview(b"")
        """What is there from the position on."""
        self._ahead = _FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self._num_bytes is None:
            self._get(0, 1)
        position = offset + {io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes or 0}.get(whence, 0)
        if position != self._position:
            self._position, self._held, self._ahead = position, memoryview(b""), _FIRST_BYTES
        return position

    def readinto(self, buffer: Any) -> int:
        is_at_end = self._num_bytes is not None and self._position >= self._num_bytes
        if not self._held and len(buffer) and not is_at_end:
            num_bytes = min(max(len(buffer), self._ahead), _MOST_BYTES)
            self._held = memoryview(self._get(self._position, self._position + num_bytes))
            self._ahead = min(2 * self._ahead, _MOST_BYTES)
        data, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _get(self, start: int, end: int) -> bytes:
        """What there is of the range, of which the first byte must be there."""
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        with _asking(self._address):
            for pause in _PAUSES:
                body = self._ask(start, end)
                try:
                    return self._read(body, start, end)
                except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                    time.sleep(pause)  # the client itself asks again only where no answer begins
            return self._read(self._ask(start, end), start, end)

    def _ask(self, start: int, end: int) -> Any:
        """The body of the answer."""
        answer = self._client.get_object(**self._named, Range=f"bytes={start}-{end - 1}")
        if "ContentRange" not in answer:
            answer["Body"].close()
            raise DataError(
                f"{self._address}: the server gives the whole object where a part of it is asked for, so text there "
                "cannot be read in place; copy the text to a folder and give that as --corpus"
            )
        self._num_bytes = int(answer["ContentRange"].rpartition("/")[2])
        return answer["Body"]

    def _read(self, body: Any, start: int, end: int) -> bytes:
        from botocore.exceptions import IncompleteReadError

        with contextlib.closing(body):
            data = bytes(body.read())
        num_bytes = min(end, self._num_bytes or 0) - start
        if len(data) < num_bytes:  # where no length was given, nothing else tells
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=num_bytes)
        return data


def _split(piece: str) -> tuple[str, dict[str, str]]:
    """Of `s3://BUCKET/KEY#ETAG` what a message shows, and how a request names that version of the object alone."""
    address, _, etag = piece.rpartition("#")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return address, {"Bucket": bucket, "Key": key, "IfMatch": etag}


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    """Raises DataError where S3 refuses or does not answer."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _s3_error(address, error) from error


def _s3_error(address: str, error: Exception) -> DataError:
    """What an answer of S3, or none, means for the user."""
    answered = s3_code(error)
    code = answered or type(error).__name__
    causes: Iterable[tuple[str, set[str]]] = [
        (
            "the bucket does not exist; check its name and AWS_ENDPOINT_URL",
            {"NoSuchBucket", "ParamValidationError"},
        ),
        (
            "access is denied; check the credentials and the bucket's policy",
            {"AccessDenied", "403", "Forbidden"},
        ),
        ("the object is gone; start the run again", {"NoSuchKey", "404"}),
        ("the object changed since the run began; start the run again", {"PreconditionFailed", "412"}),
    ]
    cause = next((text for text, codes in causes if code in codes), None)
    away = (
        f"S3 {'refuses' if answered else 'does not answer'} ({error}); check AWS_ACCESS_KEY_ID or AWS_PROFILE, "
        "AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network"
    )
    return DataError(f"{address}: {cause or away} [{code}]")
