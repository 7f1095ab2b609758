"""Where a run keeps its files between steps: a folder, or an s3:// prefix with a local copy.

A key is a relative path such as `tokens/3f2a…/shard-0003`; it names a folder of files. Folders appear whole or not at
all: locally by a rename, in S3 by a marker object that is written last. With S3 a local copy bears its marker only
when S3 has the folder, too.
"""

import contextlib
import errno
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast_electra_core.errors import ConfigError, DataError, StoreError

_MARKER = ".complete"


class Store:
    """Folders by key, below a local folder or an s3:// prefix."""

    def __init__(self, root: str) -> None:
        """root is a folder (made if missing) or `s3://bucket/prefix`.

        Raises:
            ConfigError: a folder that cannot be made or written, or another address than an s3 one with a bucket.
        """
        if "://" in root and not root.startswith("s3://"):
            raise ConfigError(f"store must be a folder or s3://BUCKET/PREFIX, got {root!r}")
        self.root = root.rstrip("/")
        self.is_s3 = root.startswith("s3://")
        if self.is_s3:
            self._bucket, _, self._prefix = root.removeprefix("s3://").strip("/").partition("/")
            if not self._bucket:
                raise ConfigError(f"store must be s3://BUCKET/PREFIX, got {root!r}")
            self.folder = cache_folder() / self._bucket / self._prefix
        else:
            self.folder = Path(root).expanduser().absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ConfigError(f"store {root!r} cannot be written: {error}. Give another --store") from error

    def path(self, key: str) -> Path:
        """The local folder of a key; it need not exist."""
        path = (self.folder / key).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ConfigError(f"key {key!r} leads out of the store")
        return path

    def address(self, key: str) -> str:
        """Where the key's folder is for others: a path or an s3:// address."""
        return f"{self.root}/{key}" if self.is_s3 else str(self.path(key))

    def has(self, key: str) -> bool:
        """Whether the key's folder is complete: in S3, where the store is there.

        Raises:
            StoreError: S3 does not say.
        """
        if not self.is_s3:
            return (self.path(key) / _MARKER).is_file()
        return f"{key}/{_MARKER}" in self._list(f"{key}/{_MARKER}")

    def put_folder(self, local: Path, key: str) -> str:
        """Copy a folder's files under the key, replacing what was there, unless it is the same to the byte; returns its
        address.

        Raises:
            StoreError: S3 does not take it; the key is not complete then.
            OSError: the disk does not.
        """
        target = self.path(key)
        if local.resolve() != target:
            with _partial(target) as partial:
                _copy(local, partial)
                if not self.is_s3:
                    (partial / _MARKER).touch()
                _give_name(partial, target)
        if self.is_s3:
            self._upload(target, key)
        (target / _MARKER).touch()
        return self.address(key)

    def get_folder(self, key: str, *, anew: bool = False) -> Path:
        """The key's folder, downloaded if it is only in S3; anew: whatever there is of it on this machine.

        Raises:
            DataError: there is none.
            StoreError: S3 does not give it.
        """
        target = self.path(key)
        if anew and self.is_s3:
            (target / _MARKER).unlink(missing_ok=True)
        if (target / _MARKER).is_file():
            return target
        if not self.has(key):
            raise DataError(
                f"{self.address(key)} is missing or incomplete; put it back, or `resume STEP` from the step "
                "that makes it, `resume start` where that is not plain"
            )
        self._download(key, target)
        return target

    def list_keys(self, prefix: str) -> list[str]:
        """Keys of the complete folders directly below a prefix, sorted."""
        local = {f"{prefix}/{path.parent.name}" for path in self.path(prefix).glob(f"*/{_MARKER}")}
        if not self.is_s3:
            return sorted(local)
        names = (name.removeprefix(f"{prefix}/") for name in self._list(f"{prefix}/"))
        folders = (name.removesuffix(f"/{_MARKER}") for name in names if name.endswith(f"/{_MARKER}"))
        return sorted(f"{prefix}/{folder}" for folder in folders if "/" not in folder)

    def delete(self, key: str) -> None:
        """Remove the key's folder, the marker first.

        Raises:
            StoreError: S3 does not let it go.
        """
        (self.path(key) / _MARKER).unlink(missing_ok=True)
        if self.is_s3:
            names = sorted(self._list(f"{key}/"), key=lambda name: not name.endswith(_MARKER))
            with self._of_s3("delete", key):
                for name in names:
                    self._client().delete_object(Bucket=self._bucket, Key=self._object(name))
        shutil.rmtree(self.path(key), ignore_errors=True)

    def _upload(self, folder: Path, key: str) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MARKER)
        names = [f"{key}/{path.relative_to(folder).as_posix()}" for path in files]
        replaced = set(self._list(f"{key}/")) - {*names, f"{key}/{_MARKER}"}
        with self._of_s3("write", key):
            for path, name in zip(files, names, strict=True):
                self._client().upload_file(str(path), self._bucket, self._object(name))
            self._client().put_object(Bucket=self._bucket, Key=self._object(f"{key}/{_MARKER}"), Body=b"")
            for name in sorted(replaced):
                self._client().delete_object(Bucket=self._bucket, Key=self._object(name))

    def _download(self, key: str, target: Path) -> None:
        names = self._list(f"{key}/")
        with _partial(target) as partial, self._of_s3("read", key):
            for name in names:
                path = (partial / name.removeprefix(f"{key}/")).resolve()
                if not path.is_relative_to(partial.resolve()):
                    raise DataError(f"object {name!r} leads out of its folder and is refused")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._client().download_file(self._bucket, self._object(name), str(path))
            _give_name(partial, target)

    def _list(self, prefix: str) -> list[str]:
        """Names below the store's prefix that begin so."""
        start = len(self._prefix) + 1 if self._prefix else 0
        with self._of_s3("list", prefix):
            pages = self._client().get_paginator("list_objects_v2")
            pages = pages.paginate(Bucket=self._bucket, Prefix=self._object(prefix))
            return [item["Key"][start:] for page in pages for item in page.get("Contents", [])]

    @contextlib.contextmanager
    def _of_s3(self, doing: str, key: str) -> Iterator[None]:
        """What S3, or its client, says is a StoreError."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StoreError(
                f"cannot {doing} {self.address(key)}: {error}. Is there a bucket {self._bucket}, may these credentials "
                "read and write there, does S3 answer? Mend it and resume, or give another --store"
            ) from error

    def _object(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _client(self) -> Any:
        return s3_client()


def cache_folder() -> Path:
    """Where this machine's copies of what is in S3 lie."""
    return Path(os.environ.get("FAST_ELECTRA_CACHE", str(Path(tempfile.gettempdir()) / "fast_electra_cache")))


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:  # a list of what was said of each file
        raise OSError(error.args[0][0][2]) from error


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A folder's name beside the target, to be made and given the target's; what is left of it goes."""
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    finally:  # a full disk is not to stay full
        shutil.rmtree(partial, ignore_errors=True)


def _give_name(partial: Path, target: Path) -> None:
    """The target is what partial was; one of the same files stays, for others may be reading them. Several processes
    may do this at once."""
    while True:
        try:
            partial.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _has_same_files(partial, target):
            if (partial / _MARKER).is_file():
                (target / _MARKER).touch()
            return
        replaced = target.parent / f".{target.name}.{os.getpid()}.replaced"
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            target.rename(replaced)
        shutil.rmtree(replaced, ignore_errors=True)


def _has_same_files(one: Path, other: Path) -> bool:
    """All but the marker, to the byte."""
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != _MARKER}
        for folder in (one, other)
    ]
    try:
        return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])
    except FileNotFoundError:  # being replaced by another process
        return False


def s3_client() -> Any:
    """A boto3 S3 client with retries; its endpoint may be set by AWS_ENDPOINT_URL or METAFLOW_S3_ENDPOINT_URL.

    Raises:
        ConfigError: an endpoint that is no address.
    """
    import boto3
    from botocore.config import Config
    from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

    name = "AWS_ENDPOINT_URL" if os.environ.get("AWS_ENDPOINT_URL") else "METAFLOW_S3_ENDPOINT_URL"
    endpoint = os.environ.get(name) or None
    if endpoint and not (is_valid_endpoint_url(endpoint) or is_valid_ipv6_endpoint_url(endpoint)):
        raise ConfigError(
            f"{name} must be like http://HOST:PORT or https://HOST (no _ in HOST), got {endpoint!r}; mend it and resume"
        )
    retries = Config(retries={"mode": "standard", "max_attempts": 8})
    return boto3.client("s3", endpoint_url=endpoint, config=retries)


def s3_code(error: Exception) -> str:
    """The code of the error that S3 answered; empty where it did not answer."""
    response: dict[str, Any] = getattr(error, "response", None) or {}  # None of a connection that broke
    return str(response["Error"]["Code"]) if "Error" in response else ""


def download_prefix(address: str, destination: Path, *, suffixes: tuple[str, ...]) -> Path:
    """Download the objects directly below an s3:// prefix that end in one of the suffixes; returns destination.

    Raises:
        DataError: the bucket cannot be read, or there is no such object.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    destination.mkdir(parents=True, exist_ok=True)
    found = 0
    try:
        client = s3_client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                name = item["Key"].removeprefix(prefix)
                if "/" not in name and name.endswith(suffixes):
                    client.download_file(bucket, item["Key"], str(destination / name))
                    found += 1
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise DataError(f"{address} cannot be read: {error}") from error
    if not found:
        raise DataError(f"{address} holds no file ending in {', '.join(suffixes)}")
    return destination
