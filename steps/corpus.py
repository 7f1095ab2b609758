"""A corpus address becomes pieces of text, grouped into shards of about equal size and identified by content.

Addresses: `pydocs`, a file, folder or glob, `s3://bucket/prefix`, `hub:NAME[/CONFIG]`. Nothing is tokenized.
"""

import dataclasses
import difflib
import glob
import hashlib
import importlib.metadata
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fast_electra_core.errors import DataError
from fast_electra_core.text import KNOWN_SUFFIXES, OpenFile, TextPiece, kind_of
from fast_electra_core.text_shards import Corpus as Corpus
from fast_electra_core.text_shards import TextFile, content_digest, corpus_of, is_hidden
from steps.console import ProgressBar
from steps.s3_text import list_objects, open_object
from steps.store import Store

if TYPE_CHECKING:
    from datasets import Dataset

STORE_SCHEME = "store://"
"""Pieces in the store are named by key: its folder may be elsewhere on the machine that reads them."""
_PYDOCS_FORMAT = 1  # raise it when fast_electra_core.pydocs changes what it writes


def resolve_corpus(
    corpus: str, *, store: Store, text_field: str, shard_megabytes: float, artifacts: Path | None = None
) -> Corpus:
    """List, digest and cut the text at an address. `pydocs` and `hub:` texts are put into the store once.

    The address of a file, folder or glob becomes absolute, so that lineage can be followed from any folder.
    artifacts: MLflow's folder on this machine, which no more than the store is to be taken for text.

    Raises:
        DataError: nothing there, no file of a known kind, no bytes; bucket or hub out of reach; the store in it.
    """
    shard_bytes = max(1, int(shard_megabytes * 1e6))
    if corpus == "pydocs":
        found = _pydocs_files(store)
    elif corpus.startswith("hub:"):
        found = _hub_files(corpus, store=store, text_field=text_field, shard_bytes=shard_bytes)
    elif corpus.startswith("s3://"):
        found = list_objects(corpus)
        if store.is_s3:
            _check_apart(corpus, [file.path for file in found], {"store": store.root})
    else:
        root, paths = _local_paths(corpus)
        corpus = str(Path(corpus).expanduser().resolve())
        ours = {"store": store.folder, "folder of MLflow's artifacts": artifacts}
        places = {name: str(folder.resolve()) for name, folder in ours.items() if folder}
        _check_apart(corpus, [str(path) for path in paths], places)
        found = [_local_file(path, root=root) for path in paths]
    return corpus_of(corpus, found, shard_bytes=shard_bytes)


def list_files(address: str, *, kept_at: str | None, open_store: Callable[[], Store]) -> dict[str, str]:
    """Name -> content digest of the text files that are at a resolved corpus's address now. kept_at: a file's path
    where they are kept in the store, as `pydocs` and `hub:` texts are.

    Raises:
        DataError: nothing there any more, or out of reach.
    """
    if kept_at is not None:
        found = _stored_files(open_store(), kept_at.removeprefix(STORE_SCHEME).rpartition("/")[0])
    elif address.startswith("s3://"):
        found = list_objects(address)
    else:
        root, paths = _local_paths(address)
        found = [_local_file(path, root=root) for path in paths]
    return {file.name: file.digest for file in found if kind_of(file.name) and file.num_bytes}


def open_piece(piece: dict[str, Any], *, store: Store) -> tuple[TextPiece, OpenFile | None]:
    """A piece of a shard, and how its file is opened if it is not on this machine: what read_documents asks for. An
    `s3://` object is read where it is, as far as it is asked for, and not kept.

    Raises, of S3 where it is read:
        DataError: the object is gone, or changed since the corpus was resolved.
    """
    found = TextPiece.from_dict(piece)
    if found.path.startswith("s3://"):
        return dataclasses.replace(found, path=found.path.rpartition("#")[0]), lambda _: open_object(found.path)
    if found.path.startswith(STORE_SCHEME):
        key, _, name = found.path.removeprefix(STORE_SCHEME).rpartition("/")
        return dataclasses.replace(found, path=str(store.get_folder(key) / name)), None
    return found, None


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


def _check_apart(corpus: str, paths: Sequence[str], ours: Mapping[str, str]) -> None:
    """What runs leave behind is not among the text, unless a place inside of theirs was named.

    Raises:
        DataError: a folder or prefix holds one of `ours`, {what it is: where}, or a pattern reaches into it.
    """
    folder = f"{corpus.rstrip('/')}/"
    for what, place in ours.items():
        inside = f"{place}/"
        if folder.startswith(inside) and folder != inside:
            continue
        is_below = inside.startswith(folder) and not is_hidden(PurePath(inside.removeprefix(folder)))
        if is_below or any(path.startswith(inside) for path in paths):
            raise DataError(
                f"corpus {corpus!r} holds the {what} {place!r}, whose files would be taken for text. Give the folder, "
                "prefix or pattern of the text alone"
            )


def _local_paths(corpus: str) -> tuple[Path, list[Path]]:
    """The files at an address, and the folder below which they have their names."""
    path = Path(corpus).expanduser().absolute()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        root = path.resolve()
        paths, problem = _files_below(root), f"folder {corpus!r} holds no files; known are {KNOWN_SUFFIXES}"
    elif glob.has_magic(corpus):
        depth = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        root = Path(*path.parts[:depth]).resolve()
        paths = root.glob("/".join(path.parts[depth:]))
        problem = f"pattern {corpus!r} matches no file; `**` stands for folders of any depth"
    else:
        raise _missing(corpus, path)
    shown = [entry for entry in paths if not is_hidden(entry.relative_to(root)) and entry.is_file()]
    if not shown:
        raise DataError(f"corpus {problem}")
    return root, shown


def _files_below(root: Path) -> Iterator[Path]:
    """Links to folders are followed, but no folder is read twice: one may lead back up."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()  # of two ways to a folder the first by name, on every machine
        yield from (Path(folder, name) for name in names)


def _missing(corpus: str, path: Path) -> DataError:
    """Names the first part of the path that is missing, and what is called nearly so beside it."""
    if path.exists():
        return DataError(
            f"corpus {corpus!r} is neither a file nor a folder. Text is read more than once, so not from a pipe: write "
            "it to a file"
        )
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
        except Exception as error:  # among them those of its HTTP library, whichever that is
            problem = problem or error
    tried = " and ".join(f"{name} ({config})" if config else name for name, config in candidates)
    raise DataError(
        f"corpus {address!r} cannot be had from the hub (tried {tried}): {problem}. Check the name, the "
        "configuration and the network (HF_TOKEN for gated ones), or download the text and give its folder"
    ) from problem
