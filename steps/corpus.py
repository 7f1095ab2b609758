"""A corpus address becomes pieces of text, grouped into shards of about equal size and identified by content.

Addresses: `pydocs`, a file, folder or glob, `s3://bucket/prefix`, `hub:NAME[/CONFIG]`. Nothing is tokenized.
"""

import contextlib
import dataclasses
import difflib
import glob
import hashlib
import importlib.metadata
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_electra_core.errors import DataError
from fast_electra_core.text import KNOWN_SUFFIXES, TextPiece, kind_of
from fast_electra_core.text_shards import Corpus as Corpus
from fast_electra_core.text_shards import TextFile, content_digest, corpus_of
from steps.console import ProgressBar
from steps.store import Store, s3_client

if TYPE_CHECKING:
    from datasets import Dataset

STORE_SCHEME = "store://"
"""Pieces in the store are named by key: its folder may be elsewhere on the machine that reads them."""
_CHUNK_BYTES = 1 << 20
_PYDOCS_FORMAT = 1  # raise it when fast_electra_core.pydocs changes what it writes


def resolve_corpus(corpus: str, *, store: Store, text_field: str, shard_megabytes: float) -> Corpus:
    """List, digest and cut the text at an address. `pydocs` and `hub:` texts are put into the store once.

    The address of a file, folder or glob becomes absolute, so that lineage can be followed from any folder.

    Raises:
        DataError: nothing there, no file of a known kind, no bytes; bucket or hub out of reach.
    """
    shard_bytes = max(1, int(shard_megabytes * 1e6))
    if corpus == "pydocs":
        found = _pydocs_files(store)
    elif corpus.startswith("hub:"):
        found = _hub_files(corpus, store=store, text_field=text_field, shard_bytes=shard_bytes)
    elif corpus.startswith("s3://"):
        found = _s3_files(corpus)
    else:
        found = _local_files(corpus)
        corpus = str(Path(corpus).expanduser().resolve())
    return corpus_of(corpus, found, shard_bytes=shard_bytes)


def list_files(address: str, *, kept_at: str | None, open_store: Callable[[], Store]) -> dict[str, str]:
    """Name -> content digest of the text files that are at a resolved corpus's address now. kept_at: a file's path
    where they are kept in the store, as `pydocs` and `hub:` texts are.

    Raises:
        DataError: nothing there any more, or out of reach.
    """
    if kept_at is not None:
        found = _stored_files(open_store(), kept_at.removeprefix(STORE_SCHEME).rpartition("/")[0])
    else:
        found = _s3_files(address) if address.startswith("s3://") else _local_files(address)
    return {file.name: file.digest for file in found if kind_of(file.name) and file.num_bytes}


def local_piece(piece: dict[str, Any], cache: Path, *, store: Store) -> TextPiece:
    """A piece of a shard with its file on this machine, for read_documents. Of an `s3://` object only the lines of the
    piece are downloaded into `cache`, under its ETag, once.

    Raises:
        DataError: the object is gone, or changed since the corpus was resolved.
    """
    found = TextPiece.from_dict(piece)
    if found.path.startswith(STORE_SCHEME):
        key, _, name = found.path.removeprefix(STORE_SCHEME).rpartition("/")
        return dataclasses.replace(found, path=str(store.get_folder(key) / name))
    if not found.path.startswith("s3://"):
        return found
    address, _, etag = found.path.rpartition("#")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    is_whole = found.start == 0 and found.end is None
    folder = cache / etag if is_whole else cache / etag / f"{found.start}-{found.end}"
    path = folder / Path(key).name
    if not path.is_file():
        _download(bucket, key, etag=etag, path=path, start=found.start, end=found.end)
    return dataclasses.replace(found, path=str(path), is_whole=is_whole)


def hub_candidates(address: str) -> list[tuple[str, str | None]]:
    """The (name, config) that a `hub:` address may mean, in the order to try them.

    >>> hub_candidates("hub:wikitext/wikitext-2-raw-v1")
    [('wikitext/wikitext-2-raw-v1', None), ('wikitext', 'wikitext-2-raw-v1')]

    Raises:
        DataError: not of the form hub:NAME, hub:ORG/NAME, hub:NAME/CONFIG or hub:ORG/NAME/CONFIG.
    """
    parts = address.removeprefix("hub:").split("/")
    if len(parts) > 3 or not all(parts):
        raise DataError(
            f"corpus {address!r} must be hub:NAME, hub:ORG/NAME, hub:NAME/CONFIG or hub:ORG/NAME/CONFIG, "
            "for example hub:wikitext/wikitext-2-raw-v1"
        )
    if len(parts) == 1:
        return [(parts[0], None)]
    if len(parts) == 2:
        return [("/".join(parts), None), (parts[0], parts[1])]
    return [("/".join(parts[:2]), parts[2])]


def _local_files(corpus: str) -> list[TextFile]:
    path = Path(corpus).expanduser().absolute()
    if path.is_file():
        return [_local_file(path, root=path.parent)]
    if path.is_dir():
        paths = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        shown = [entry for entry in paths if not _is_hidden(entry.relative_to(path)) and entry.is_file()]
        if not shown:
            raise DataError(f"corpus folder {corpus!r} holds no files; known are {KNOWN_SUFFIXES}")
        return [_local_file(entry, root=path) for entry in shown]
    if glob.has_magic(corpus):
        depth = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        root = Path(*path.parts[:depth])
        paths = list(root.glob("/".join(path.parts[depth:])))
        shown = [entry for entry in paths if not _is_hidden(entry.relative_to(root)) and entry.is_file()]
        if not shown:
            raise DataError(f"corpus pattern {corpus!r} matches no file; `**` stands for folders of any depth")
        return [_local_file(entry, root=root) for entry in shown]
    raise _missing(corpus, path)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _missing(corpus: str, path: Path) -> DataError:
    """Names the first part of the path that is missing, and what is called nearly so beside it."""
    while not path.parent.is_dir():
        path = path.parent
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return DataError(
        f"corpus {corpus!r}: there is no {path.name!r} in {path.parent}.{hint} Give pydocs, a file, folder "
        "or glob, s3://BUCKET/PREFIX or hub:NAME[/CONFIG]"
    )


def _local_file(path: Path, *, root: Path, stored_as: str | None = None) -> TextFile:
    """Reads the whole file for its digest, unless it is not text anyway."""
    content = ""
    if kind_of(path):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    name = path.relative_to(root).as_posix()
    address = f"{stored_as}/{name}" if stored_as else str(path)
    return TextFile(name=name, path=address, num_bytes=path.stat().st_size, digest=content)


def _stored_files(store: Store, key: str) -> list[TextFile]:
    folder = store.get_folder(key)
    names = sorted(entry for entry in folder.iterdir() if entry.is_file() and kind_of(entry))
    return [_local_file(path, root=folder, stored_as=f"{STORE_SCHEME}{key}") for path in names]


def _pydocs_files(store: Store) -> list[TextFile]:
    from fast_electra_core.pydocs import source_files, write_pydocs

    packages = {f"{package.name}=={package.version}" for package in importlib.metadata.distributions()}
    key = f"corpora/pydocs-{content_digest([_PYDOCS_FORMAT, platform.python_version(), *sorted(packages)])}"
    if not store.has(key):
        files = source_files()
        bar = ProgressBar(len(files), label="reading docstrings", unit="file")
        with bar, tempfile.TemporaryDirectory() as folder:
            write_pydocs(Path(folder) / "pydocs.txt", files, on_file=bar.update)
            store.put_folder(Path(folder), key)
    return _stored_files(store, key)


def _hub_files(address: str, *, store: Store, text_field: str, shard_bytes: int) -> list[TextFile]:
    """The rows of the hub's train split, as parquet in the store; fetched once and then kept."""
    key = f"corpora/hub-{content_digest([address, text_field, shard_bytes])}"
    if not store.has(key):
        dataset = _load_hub(address)
        if text_field not in dataset.column_names:
            columns = ", ".join(map(repr, dataset.column_names))
            raise DataError(f"corpus {address!r} has no column {text_field!r} (--text_field); it has {columns}")
        dataset = dataset.select_columns([text_field])
        count = max(1, math.ceil((dataset.data.nbytes or 0) / shard_bytes))
        count = min(count, max(1, len(dataset)))
        with tempfile.TemporaryDirectory() as folder:
            for index in range(count):
                rows = dataset.shard(num_shards=count, index=index, contiguous=True)
                rows.to_parquet(str(Path(folder) / f"part-{index:05}.parquet"))
            store.put_folder(Path(folder), key)
    return _stored_files(store, key)


def _load_hub(address: str) -> "Dataset":
    import datasets

    problem: Exception | None = None
    candidates = hub_candidates(address)
    for name, config in candidates:
        try:
            return datasets.load_dataset(name, config, split="train")
        except (OSError, ValueError, RuntimeError) as error:  # ConnectionError and "not found" are OSErrors
            problem = problem or error
    tried = " and ".join(f"{name} ({config})" if config else name for name, config in candidates)
    raise DataError(
        f"corpus {address!r} cannot be had from the hub (tried {tried}): {problem}. Check the name, the "
        "configuration and the network (HF_TOKEN for gated ones), or download the text and give its folder"
    ) from problem


def _s3_error(address: str, error: Exception) -> DataError:
    """What an answer of S3, or none, means for the user."""
    response: dict[str, Any] = getattr(error, "response", {})
    code = str(response["Error"]["Code"]) if "Error" in response else type(error).__name__
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
        f"S3 does not answer ({error}); check AWS_ACCESS_KEY_ID or AWS_PROFILE, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION "
        "and the network"
    )
    return DataError(f"{address}: {cause or away} [{code}]")


def _s3_files(corpus: str) -> list[TextFile]:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = corpus.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"corpus {corpus!r} names no bucket; give s3://BUCKET/PREFIX")
    try:
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [entry for page in pages for entry in page.get("Contents", [])]
    except (BotoCoreError, ClientError) as error:
        raise _s3_error(corpus, error) from error
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
    files = [file for file in files if not _is_hidden(Path(file.name))]
    if not files:
        raise DataError(f"corpus {corpus!r}: there is no object under the prefix {prefix!r} in bucket {bucket!r}")
    return files


def _download(bucket: str, key: str, *, etag: str, path: Path, start: int, end: int | None) -> None:
    """Fetch the lines of an object that start within [start, end), at the place that they have in it, and the byte
    before; all of them or none, and only of the version that the corpus was resolved with."""
    from botocore.exceptions import BotoCoreError, ClientError

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial")
    first = max(0, start - 1)
    behind = {"Range": f"bytes={first}-"} if first else {}
    try:
        body = s3_client().get_object(Bucket=bucket, Key=key, IfMatch=etag, **behind)["Body"]
        with contextlib.closing(body), partial.open("wb") as file:
            file.seek(first)  # what lies before takes no room
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                file.write(chunk)
                if end is not None and b"\n" in chunk[max(0, end - 1 - (file.tell() - len(chunk))) :]:
                    break  # that of the last line
        partial.replace(path)
    except (BotoCoreError, ClientError) as error:
        raise _s3_error(f"s3://{bucket}/{key}", error) from error
    finally:
        partial.unlink(missing_ok=True)
