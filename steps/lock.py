"""A lock with an expiry, so that two runs that overlap do not spoil each other; in S3 or in a local folder.

It is one small JSON file that names its owner, who renews it while it works (`holding`). When it has not been renewed
for its whole lifetime, because its owner was killed, the next one takes it over. In S3 it is written by conditional
puts (If-None-Match for a new one, If-Match for one that is there), and its age is the difference of two times of the
server, so the clocks of the machines do not matter. In a folder it appears by a link, which fails where there is a
file, as O_EXCL does, but with its content; one that is there is changed under flock. Its age is told by the machine's
steady clock, where the same machine has written it, so that it does not matter if the time of day is set; on another
machine it is the difference of two times of the file system.

An owner is a run, not a process: any step of the run, a retried or resumed one too, renews the same lock.
"""

import contextlib
import email.utils
import fcntl
import functools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fast_electra_core.errors import LockError
from steps.store import Store, s3_client, s3_code

_POLL_SECONDS = 2.0
_MAX_REFUSALS = 20
"""So often another one can have been quicker. A store that refuses for another reason would else be asked for ever."""
_CONDITION_FAILED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """What a lock file says, and how old it is."""

    owner: str
    lifetime_seconds: float
    age_seconds: float
    """Since it was last renewed."""
    since: str
    """When its owner took it, in words."""
    tag: str
    """Changes with every write."""

    @property
    def is_stale(self) -> bool:
        """Whether its owner has given no sign of life for the whole lifetime."""
        return self.age_seconds > self.lifetime_seconds

    def __str__(self) -> str:
        left = max(0.0, self.lifetime_seconds - self.age_seconds)
        return (
            f"{self.owner} since {self.since} (last sign of life {self.age_seconds:.0f} s ago; "
            f"unless renewed it expires in {left:.0f} s)"
        )


class _Place(Protocol):
    """Where a lock file is. Each write is atomic and conditional on the tag of what is there (None: nothing)."""

    def read(self) -> Held | None: ...
    def write(self, content: bytes, *, over: str | None) -> bool: ...
    def remove(self, *, over: str) -> bool: ...


class Lock:
    """The lock of a name in a store, as one owner sees it."""

    def __init__(
        self, store: Store, name: str, *, owner: str, lifetime_seconds: float, resumes: str | None = None
    ) -> None:
        """owner: of a run; the machine is added to it in what others read. resumes: the run that it goes on with, whose
        lock it takes over: that one has ended, or is to."""
        self._place: _Place = _InS3(store, name) if store.is_s3 else _InFolder(store, name)
        self.owner, self.lifetime_seconds, self._resumes = owner, lifetime_seconds, resumes
        self.name = name

    def acquire(self, *, wait_seconds: float = 0.0) -> Held | None:
        """None: it is ours (again). Otherwise who holds it, after the wait.

        Raises:
            LockError: the store cannot be read or written, or takes no conditional write.
        """
        deadline, refusals = time.monotonic() + wait_seconds, 0
        while True:
            held = self._place.read()
            if held is None or held.owner in (self.owner, self._resumes) or held.is_stale:
                if held and held.owner != self.owner:
                    _logger.warning("the lock %s is taken over: it was held by %s", self.name, held)
                if self._place.write(self._content(held), over=held.tag if held else None):
                    return None
                refusals += 1
                if refusals == _MAX_REFUSALS:
                    raise LockError(
                        f"the lock {self.name} was refused {refusals} times in a row, though nobody else held it. The "
                        "store must know writes on a condition (If-Match, If-None-Match), as S3 does; set --store to "
                        "one that does"
                    )
                continue  # another one was quicker; see who
            left = deadline - time.monotonic()
            if left <= 0:
                return held
            time.sleep(min(_POLL_SECONDS, left))

    def renew(self) -> None:
        """Say that its owner is alive.

        Raises:
            LockError: another one holds it: ours had expired.
        """
        held = self.acquire()
        if held is not None:
            raise self._lost(f"had expired and is now held by {held}")

    def release(self) -> None:
        """It is free, if it was ours; otherwise nothing changes."""
        held = self._place.read()
        if held and held.owner == self.owner:
            self._place.remove(over=held.tag)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Renewed at once, all along, and at the end. What is freed meanwhile stays free.

        Raises:
            LockError: another one holds it, at the beginning or at the end; or it was freed in between.
        """
        self.renew()
        done = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(done,), name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self._prolong()

    def _prolong(self) -> None:
        """Renew what is still there and ours."""
        while (held := self._place.read()) and held.owner == self.owner:
            if self._place.write(self._content(held), over=held.tag):
                return
        if held:
            raise self._lost(f"had expired and is now held by {held}")
        raise self._lost(
            "was freed meanwhile: by a task of this run, which was refused and says why, or by another run that "
            "had taken it over and has ended"
        )

    def _lost(self, how: str) -> LockError:
        return LockError(
            f"the lock {self.name} of {self.owner} {how}. Nothing more is done. "
            "Raise --lock_minutes above the longest time that a task waits for its machine"
        )

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(self.lifetime_seconds / 4):
            try:
                self._prolong()
            except Exception as error:  # whatever it is, the next turn may go well, before the lock expires;
                _logger.warning("%s", error)  # else `holding` raises it at the end, before anything comes of the work

    def _content(self, held: Held | None) -> bytes:
        ours = held is not None and held.owner == self.owner
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        content = {
            "owner": self.owner,
            "machine": socket.gethostname(),
            "since": held.since if ours and held else now,
            "renewed": now,
            "boot": _boot_id(),
            "steady_ns": time.monotonic_ns(),  # also makes no two writes alike, so that each has a tag of its own
            "lifetime_seconds": self.lifetime_seconds,
        }
        return json.dumps(content).encode()


def _held(content: bytes, *, age_seconds: float, tag: str) -> Held:
    """What a lock file says; one that cannot be read is somebody's all the same, for an hour."""
    try:
        said: dict[str, Any] = json.loads(content)
        return Held(said["owner"], float(said["lifetime_seconds"]), age_seconds, said["since"], tag)
    except (ValueError, KeyError, TypeError):
        return Held("an unknown owner", 3600.0, age_seconds, "an unknown time", tag)


def _steady_age(content: bytes) -> float | None:
    """Seconds since a lock file was written, by the clock that nobody sets; None if this machine, since it was last
    started, has not written it."""
    try:
        said: dict[str, Any] = json.loads(content)
        is_ours = bool(said["boot"]) and said["boot"] == _boot_id()
        return (time.monotonic_ns() - int(said["steady_ns"])) / 1e9 if is_ours else None
    except (ValueError, KeyError, TypeError):
        return None


@functools.cache
def _boot_id() -> str:
    """Of this machine since it was started; empty where the system gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class _InFolder:
    def __init__(self, store: Store, name: str) -> None:
        self._path = store.path(f"locks/{name}.json")
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> Held | None:
        try:
            with self._path.open("rb") as file:
                content, changed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        age = _steady_age(content)
        if age is None:
            age = max(0.0, self._now() - changed)
        return _held(content, age_seconds=age, tag=content.decode(errors="replace"))

    def _now(self) -> float:
        """What the file system, which has dated the lock, takes for the time."""
        clock = self._path.with_suffix(".clock")
        clock.touch()
        return clock.stat().st_mtime

    def write(self, content: bytes, *, over: str | None) -> bool:
        if over is None:
            return self._create(content)
        return self._change(over, lambda partial: (partial.write_bytes(content), partial.replace(self._path)))

    def remove(self, *, over: str) -> bool:
        return self._change(over, lambda partial: self._path.unlink())

    def _create(self, content: bytes) -> bool:
        """Whole or not at all: a link appears with its content, and fails where there is a file, as O_EXCL does."""
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            partial.write_bytes(content)
            os.link(partial, self._path)
            return True
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)

    def _change(self, over: str, change: Callable[[Path], object]) -> bool:
        with self._path.with_suffix(".guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            held = self.read()
            if held is None or held.tag != over:
                return False
            change(self._path.with_suffix(".partial"))
            return True


class _InS3:
    def __init__(self, store: Store, name: str) -> None:
        bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
        self._where = {"Bucket": bucket, "Key": f"{prefix}/locks/{name}.json".lstrip("/")}

    def read(self) -> Held | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = s3_client().get_object(**self._where)
            content = answer["Body"].read()
        except (BotoCoreError, ClientError) as error:
            if s3_code(error) in ("NoSuchKey", "404"):
                return None
            raise self._error(error) from error
        now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - answer["LastModified"]).total_seconds()
        return _held(content, age_seconds=max(0.0, age), tag=answer["ETag"])

    def write(self, content: bytes, *, over: str | None) -> bool:
        if over is None:
            return self._put(content, IfNoneMatch="*")
        # Ceph (16.2) gives the tag in quotes, as S3 does, and compares what it is asked for without them.
        return self._put(content, IfMatch=over) or self._put(content, IfMatch=over.strip('"'))

    def _put(self, content: bytes, **condition: str) -> bool:
        return self._try(lambda client: client.put_object(**self._where, Body=content, **condition))

    def remove(self, *, over: str) -> bool:
        # Ceph (16.2) passes the condition over: between the look and the removal another may have taken what expired.
        return self._try(lambda client: client.delete_object(**self._where, IfMatch=over))

    def _try(self, call: Callable[[Any], object]) -> bool:
        """Whether the condition held."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            call(s3_client())
            return True
        except (BotoCoreError, ClientError) as error:
            if s3_code(error) in _CONDITION_FAILED:
                return False
            raise self._error(error) from error

    def _error(self, error: Exception) -> LockError:
        return LockError(
            f"the lock s3://{self._where['Bucket']}/{self._where['Key']} cannot be read or written: {error}. Check the "
            "credentials and the bucket's policy: s3:GetObject, s3:PutObject and s3:DeleteObject are needed"
        )
