"""One run at a time: the lock names its owner, outlives a pause, and is taken over from an owner that was killed."""

import datetime
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from botocore.response import StreamingBody
from conftest import files_no_larger_than

from fast_electra_core.errors import LockError
from steps import lock as lock_module
from steps.lock import Lock
from steps.store import Store

LIFETIME = 2.0
HOLD = """
import sys, time
from steps.lock import Lock
from steps.store import Store
store, owner, lifetime, seconds = sys.argv[1:]
lock = Lock(Store(store), "retrain", owner=owner, lifetime_seconds=float(lifetime))
held = lock.acquire()
print("ours" if held is None else f"held by {held.owner}", flush=True)
if held is None:
    with lock.holding():
        time.sleep(float(seconds))
    lock.release()
"""


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return "s3://bucket/store"


def lock_of(root: str, owner: str, *, lifetime: float = LIFETIME) -> Lock:
    return Lock(Store(root), "retrain", owner=owner, lifetime_seconds=lifetime)


class Worker:
    """A process that takes the lock, says so in its first word, works for so long and releases it."""

    def __init__(self, root: str, owner: str, *, seconds: float, lifetime: float = LIFETIME) -> None:
        words = [sys.executable, "-c", HOLD, root, owner, str(lifetime), str(seconds)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def first_word(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        self.process.communicate(timeout=60)
        return self.process.returncode


def test_a_second_run_is_told_who_holds_the_lock_and_gets_it_once_it_is_released(root: str) -> None:
    first, second = lock_of(root, "RetrainFlow/1"), lock_of(root, "RetrainFlow/2")
    assert first.acquire() is None
    held = second.acquire()
    assert held is not None and held.owner == "RetrainFlow/1" and not held.is_stale
    assert re.fullmatch(
        r"RetrainFlow/1 since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(last sign of life \d s ago; unless renewed it "
        r"expires in \d s\)",
        str(held),
    )
    second.release()  # what is another's stays
    started = time.monotonic()
    assert second.acquire(wait_seconds=0.2) is not None
    assert 0.2 <= time.monotonic() - started < lock_module._POLL_SECONDS
    assert lock_of(f"{root}/of-another", "RetrainFlow/2").acquire() is None
    first.release()
    assert second.acquire() is None


def test_any_step_of_the_run_that_holds_it_may_take_it_again(root: str) -> None:
    assert lock_of(root, "RetrainFlow/1").acquire() is None
    again = lock_of(root, "RetrainFlow/1")
    assert again.acquire() is None
    with again.holding():
        assert lock_of(root, "RetrainFlow/2").acquire() is not None


def test_a_run_that_resumes_another_takes_its_lock_and_no_others(root: str) -> None:
    killed, another = lock_of(root, "RetrainFlow/1"), lock_of(root, "RetrainFlow/2")
    resumed = Lock(Store(root), "retrain", owner="RetrainFlow/3", lifetime_seconds=LIFETIME, resumes="RetrainFlow/1")
    assert killed.acquire() is None
    assert resumed.acquire() is None
    held = another.acquire()
    assert held is not None and held.owner == "RetrainFlow/3"
    with pytest.raises(LockError, match="is now held by RetrainFlow/3"):  # were it alive after all
        killed.renew()
    resumed.release()
    assert another.acquire() is None
    held = resumed.acquire()
    assert held is not None and held.owner == "RetrainFlow/2"


def test_a_run_that_works_longer_than_the_lock_lives_keeps_it_and_one_that_waits_gets_it_after(root: str) -> None:
    worker = Worker(root, "RetrainFlow/1", seconds=2.5 * LIFETIME)
    assert worker.first_word() == "ours"
    started = time.monotonic()
    assert lock_of(root, "RetrainFlow/2").acquire(wait_seconds=60) is None
    assert time.monotonic() - started > 2 * LIFETIME
    assert worker.end() == 0


def test_the_lock_of_a_run_that_was_killed_is_taken_over_when_it_expires_and_not_before(root: str) -> None:
    worker = Worker(root, "RetrainFlow/1", seconds=600)
    assert worker.first_word() == "ours"
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.end() == -signal.SIGKILL
    other = lock_of(root, "RetrainFlow/2")
    assert other.acquire() is not None
    assert other.acquire(wait_seconds=60) is None
    assert other.acquire() is None


def test_a_run_whose_lock_was_taken_over_is_stopped_before_anything_comes_of_its_work(root: str) -> None:
    slow = lock_of(root, "RetrainFlow/1", lifetime=1.0)
    assert slow.acquire() is None
    time.sleep(2.5)  # S3 tells time in seconds
    assert lock_of(root, "RetrainFlow/2").acquire() is None
    with pytest.raises(
        LockError, match=r"of RetrainFlow/1 had expired and is now held by RetrainFlow/2 .*lock_minutes"
    ):
        slow.holding().__enter__()
    slow.release()
    assert lock_of(root, "RetrainFlow/3").acquire() is not None


def test_a_lock_that_is_freed_while_a_task_holds_it_stays_free(root: str) -> None:
    """Another task of the run was refused, or another run took the lock over and has ended."""
    task, other = (lock_of(root, "RetrainFlow/1", lifetime=1.0) for _ in range(2))
    message = "the lock retrain of RetrainFlow/1 was freed meanwhile: by a task of this run, .* has ended"
    with pytest.raises(LockError, match=message), task.holding():
        other.release()
        time.sleep(0.6)  # the thread renews every quarter of a second
    assert lock_of(root, "RetrainFlow/2").acquire() is None


def test_a_run_whose_lock_is_taken_over_while_it_works_is_stopped_at_its_end_and_leaves_it(root: str) -> None:
    task = lock_of(root, "RetrainFlow/1", lifetime=1.0)
    with pytest.raises(LockError, match="had expired and is now held by RetrainFlow/2"), task.holding():
        task.release()
        assert lock_of(root, "RetrainFlow/2", lifetime=60).acquire() is None
        time.sleep(0.6)  # the thread renews every quarter of a second
    held = lock_of(root, "RetrainFlow/3").acquire()
    assert held is not None and held.owner == "RetrainFlow/2"


def test_of_two_that_find_nothing_there_at_once_one_gets_it(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one's write must fail, though it has read that the lock was free."""
    first, second = lock_of(root, "RetrainFlow/1"), lock_of(root, "RetrainFlow/2")
    read = second._place.read
    answers = iter([lambda: None])
    monkeypatch.setattr(second._place, "read", lambda: next(answers, read)())
    assert first.acquire() is None
    held = second.acquire()
    assert held is not None and held.owner == "RetrainFlow/1"


def test_of_two_that_find_the_same_stale_lock_one_takes_it_over(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = lock_of(root, "RetrainFlow/0", lifetime=1.0)
    assert dead.acquire() is None
    time.sleep(2.5)
    first, second = lock_of(root, "RetrainFlow/1"), lock_of(root, "RetrainFlow/2")
    stale, read = second._place.read(), second._place.read
    assert stale is not None and stale.is_stale
    answers = iter([lambda: stale])
    monkeypatch.setattr(second._place, "read", lambda: next(answers, read)())
    assert first.acquire() is None
    held = second.acquire()
    assert held is not None and held.owner == "RetrainFlow/1"


def test_what_another_one_has_taken_over_meanwhile_is_not_released(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at whose the lock is and its removal it became another's."""
    slow, quick = lock_of(root, "RetrainFlow/1"), lock_of(root, "RetrainFlow/2")
    assert slow.acquire() is None
    ours, read = slow._place.read(), slow._place.read
    slow.release()
    assert quick.acquire() is None
    answers = iter([lambda: ours])
    monkeypatch.setattr(slow._place, "read", lambda: next(answers, read)())
    slow.release()
    assert lock_of(root, "RetrainFlow/3").acquire() is not None


def test_of_five_processes_at_once_one_gets_the_lock_of_a_folder(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    workers = [Worker(root, f"RetrainFlow/{number}", seconds=6, lifetime=60) for number in range(5)]
    words = [worker.first_word() for worker in workers]
    (winner,) = [number for number, word in enumerate(words) if word == "ours"]
    assert words.count(f"held by RetrainFlow/{winner}") == 4
    for worker in workers:
        assert worker.end() == 0
    assert lock_of(root, "RetrainFlow/9").acquire() is None


@pytest.mark.parametrize("content", [b"{cut sho", b"{}", b"[]", b"\xff\xfe", b'{"boot": null, "steady_ns": 1}'])
def test_a_lock_file_that_cannot_be_read_is_somebodys_for_an_hour(content: bytes, root: str) -> None:
    place = lock_of(root, "RetrainFlow/1")._place
    assert place.write(content, over=None)
    held = lock_of(root, "RetrainFlow/1").acquire()
    assert held is not None and held.owner == "an unknown owner" and held.lifetime_seconds == 3600


def test_who_takes_a_lock_over_says_from_whom_and_who_renews_its_own_says_nothing(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    slow = lock_of(root, "RetrainFlow/1", lifetime=1.0)
    assert slow.acquire() is None
    slow.renew()
    assert caplog.messages == []
    time.sleep(2.5)  # S3 tells time in seconds
    assert lock_of(root, "RetrainFlow/2").acquire() is None
    (message,) = caplog.messages
    assert re.fullmatch(
        r"the lock retrain is taken over: it was held by RetrainFlow/1 since .* UTC \(last sign of life \d+ s ago; "
        r"unless renewed it expires in 0 s\)",
        message,
    )


def test_when_the_work_is_over_nothing_renews_the_lock_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = lock_of(str(tmp_path / "store"), "RetrainFlow/1", lifetime=0.4)
    read, reading = lock._place.read, threading.Event()

    def slowly() -> Any:
        if threading.current_thread().name == "lock":
            reading.set()
            time.sleep(0.5)
        return read()

    monkeypatch.setattr(lock._place, "read", slowly)
    with lock.holding():
        assert reading.wait(30)
    assert "lock" not in [thread.name for thread in threading.enumerate()]


def test_an_error_of_the_work_comes_before_that_the_lock_was_lost(root: str) -> None:
    task = lock_of(root, "RetrainFlow/1", lifetime=60)
    with pytest.raises(ValueError, match="no text"), task.holding():
        task.release()
        raise ValueError("no text")


def test_of_two_tasks_of_a_run_that_renew_its_lock_at_once_both_go_on(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one renews it between this one's look at it and its write, which fails."""
    task, other = (lock_of(root, "RetrainFlow/1", lifetime=60) for _ in range(2))
    with task.holding():
        before = task._place.read()
        other.renew()
        answers, read = iter([lambda: before]), task._place.read
        monkeypatch.setattr(task._place, "read", lambda: next(answers, read)())
    assert task._place.read() not in (None, before)


def test_what_was_freed_meanwhile_is_neither_renewed_nor_freed_again(root: str) -> None:
    lock = lock_of(root, "RetrainFlow/1")
    assert lock.acquire() is None
    held = lock._place.read()
    assert held is not None
    lock.release()
    assert not lock._place.write(b"{}", over=held.tag) and not lock._place.remove(over=held.tag)
    assert lock._place.read() is None


def test_who_changes_the_lock_of_a_folder_waits_for_another_that_does(tmp_path: Path) -> None:
    lock = lock_of(str(tmp_path), "RetrainFlow/1")
    assert lock.acquire() is None
    before = (tmp_path / "locks" / "retrain.json").read_bytes()
    renewing = threading.Thread(target=lock.renew)
    with (tmp_path / "locks" / "retrain.guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        renewing.start()
        renewing.join(0.5)
        assert (tmp_path / "locks" / "retrain.json").read_bytes() == before
    renewing.join(30)
    assert (tmp_path / "locks" / "retrain.json").read_bytes() != before


def test_a_folder_without_room_gets_no_half_lock_and_keeps_the_one_it_has(tmp_path: Path) -> None:
    lock, file = lock_of(str(tmp_path), "RetrainFlow/1"), tmp_path / "locks" / "retrain.json"
    with files_no_larger_than(10), pytest.raises(OSError, match="File too large"):
        lock.acquire()
    assert list(file.parent.iterdir()) == []
    assert lock.acquire() is None
    before = file.read_bytes()
    with files_no_larger_than(10), pytest.raises(OSError, match="File too large"):
        lock.renew()
    assert file.read_bytes() == before


def test_who_takes_the_lock_of_a_folder_or_does_not_leaves_no_other_file(tmp_path: Path) -> None:
    first, second = lock_of(str(tmp_path), "RetrainFlow/1"), lock_of(str(tmp_path), "RetrainFlow/2")
    assert first.acquire() is None and second.acquire() is not None
    assert not second._place.write(b"{}", over=None)
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["retrain.json"]


def test_a_bucket_that_is_not_there_is_named(s3: Any) -> None:
    with pytest.raises(LockError, match=r"s3://nowhere/locks/retrain\.json cannot be read or written: .*NoSuchBucket"):
        lock_of("s3://nowhere", "RetrainFlow/1").acquire()


def test_a_server_that_is_away_for_a_while_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock = lock_of(str(tmp_path / "store"), "RetrainFlow/1", lifetime=2.0)
    assert lock.acquire() is None
    read, failures = lock._place.read, iter([True])

    def read_or_fail() -> Any:
        if next(failures, False):
            raise OSError("the network is down")
        return read()

    with lock.holding():
        monkeypatch.setattr(lock._place, "read", read_or_fail)
        time.sleep(0.8)  # the thread renews every half a second
    assert "the network is down" in caplog.text


@pytest.mark.parametrize("operation", ["get_object", "put_object"])
def test_a_connection_to_s3_that_breaks_is_said(operation: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(**what: Any) -> Any:
        raise ConnectionClosedError(endpoint_url="http://s3")

    client = lock_module.s3_client()
    monkeypatch.setattr(client, operation, breaks)
    monkeypatch.setattr(lock_module, "s3_client", lambda: client)
    with pytest.raises(LockError, match="cannot be read or written: Connection was closed before we received a valid"):
        lock_of("s3://bucket/store", "RetrainFlow/1").acquire()


class Refusing:
    """A client whose every request S3 answers by this code."""

    def __init__(self, code: str) -> None:
        self._code = code

    def get_object(self, **what: Any) -> Any:
        raise ClientError({"Error": {"Code": self._code, "Message": "no"}}, "request")

    put_object = delete_object = get_object


@pytest.mark.parametrize("code", ["PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"])
def test_a_write_that_another_one_was_quicker_than_is_none_whichever_way_s3_says_so(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """412 where the lock is there or is another, 409 where both write at once, 404 where it was removed meanwhile."""
    monkeypatch.setattr(lock_module, "s3_client", lambda: Refusing(code))
    place = lock_module._InS3(Store("s3://bucket/store"), "retrain")
    assert not place.write(b"{}", over=None)
    assert not place.write(b"{}", over="tag")
    assert not place.remove(over="tag")


@pytest.mark.parametrize("code", ["AccessDenied", "403", "NoSuchBucket", "SlowDown"])
def test_what_s3_refuses_for_another_reason_is_no_lost_race(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "s3_client", lambda: Refusing(code))
    place = lock_module._InS3(Store("s3://bucket/store"), "retrain")
    for call in (place.read, lambda: place.write(b"{}", over=None), lambda: place.remove(over="tag")):
        with pytest.raises(LockError, match=rf"s3://bucket/store/locks/retrain\.json cannot be .*{code}.*policy"):
            call()


@pytest.mark.parametrize("code", ["NoSuchKey", "404"])
def test_a_lock_that_is_not_in_s3_is_free(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "s3_client", lambda: Refusing(code))
    assert lock_module._InS3(Store("s3://bucket/store"), "retrain").read() is None


@pytest.mark.parametrize(("seconds", "age"), [(90, 90.0), (-1, 0.0)])
def test_a_lock_in_s3_is_as_old_as_the_server_says_and_never_younger_than_now(
    seconds: int, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime(2024, 2, 29, 12, 0, 0, tzinfo=datetime.UTC)
    answer = {
        "Body": io.BytesIO(b'{"owner": "RetrainFlow/1", "lifetime_seconds": 60, "since": "noon"}'),
        "ETag": "tag",
        "LastModified": now - datetime.timedelta(seconds=seconds),
        "ResponseMetadata": {"HTTPHeaders": {"date": "Thu, 29 Feb 2024 12:00:00 GMT"}},
    }
    monkeypatch.setattr(lock_module, "s3_client", lambda: SimpleNamespace(get_object=lambda **_: answer))
    held = lock_module._InS3(Store("s3://bucket"), "retrain").read()
    assert held == lock_module.Held("RetrainFlow/1", 60.0, age, "noon", "tag")


@pytest.mark.parametrize(("over", "condition"), [(None, {"IfNoneMatch": "*"}), ("tag", {"IfMatch": "tag"})])
def test_what_is_written_to_s3_is_conditional_on_what_was_read(
    over: str | None, condition: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    client = SimpleNamespace(put_object=lambda **what: asked.append(what), delete_object=lambda **w: asked.append(w))
    monkeypatch.setattr(lock_module, "s3_client", lambda: client)
    place = lock_module._InS3(Store("s3://bucket"), "retrain")
    assert place.write(b"{}", over=over) and place.remove(over="tag")
    where = {"Bucket": "bucket", "Key": "locks/retrain.json"}
    assert asked == [{**where, "Body": b"{}", **condition}, {**where, "IfMatch": "tag"}]


def test_a_store_that_compares_tags_without_their_quotes_has_locks_all_the_same(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ceph's gateway does (16.2)."""
    asked: list[str] = []

    def compare(params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]] | None:
        condition = params["headers"].get("If-Match", "bare")
        asked.append(condition)
        if condition.startswith('"'):
            refused = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}
            return SimpleNamespace(status_code=412), refused
        if condition != "bare":
            params["headers"]["If-Match"] = f'"{condition}"'  # for moto, which compares with them
        return None

    client = lock_module.s3_client()
    client.meta.events.register("before-call.s3.PutObject", compare)
    monkeypatch.setattr(lock_module, "s3_client", lambda: client)
    first, second = lock_of("s3://bucket/store", "RetrainFlow/1"), lock_of("s3://bucket/store", "RetrainFlow/2")
    assert first.acquire() is None
    first.renew()
    held = second.acquire()
    assert held is not None and held.owner == "RetrainFlow/1"
    assert asked[0] == "bare" and asked[1].strip('"') == asked[2] and len(asked) == 3
    first.release()
    assert second.acquire() is None


def test_a_store_that_refuses_every_write_on_a_condition_is_not_asked_for_ever(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = lock_of("s3://bucket/store", "RetrainFlow/1")
    assert lock.acquire() is None
    monkeypatch.setattr(lock_module._InS3, "_put", lambda *_, **__: False)
    with pytest.raises(LockError, match=r"retrain was refused 20 times in a row, .*If-Match.*set --store"):
        lock.renew()


def test_an_answer_of_s3_that_breaks_off_costs_a_warning_and_not_the_lock(
    s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock = lock_of("s3://bucket/store", "RetrainFlow/1", lifetime=2.0)
    assert lock.acquire() is None
    client, answers = lock_module.s3_client(), list[str]()
    really = client.get_object

    def get_object(**what: Any) -> Any:
        answer = really(**what)
        answers.append(answer["ETag"])
        return {**answer, "Body": StreamingBody(io.BytesIO(b'{"own'), 200)} if len(answers) == 2 else answer

    monkeypatch.setattr(client, "get_object", get_object)
    monkeypatch.setattr(lock_module, "s3_client", lambda: client)
    with lock.holding():
        time.sleep(1.3)  # the thread renews every half a second
    assert len(set(answers)) >= 3
    assert "cannot be read or written: 5 read, but total bytes expected is 200" in caplog.text


def test_the_file_says_who_where_and_since_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_of(str(tmp_path), "RetrainFlow/1")
    assert lock.acquire() is None
    first = json.loads((tmp_path / "locks" / "retrain.json").read_text())
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2099, 1, 1, 0, 0, 0, 3, 1, 0)))
    lock.renew()
    second = json.loads((tmp_path / "locks" / "retrain.json").read_text())
    assert first["owner"] == "RetrainFlow/1" and first["machine"] == os.uname().nodename
    assert first["lifetime_seconds"] == LIFETIME
    assert first["since"] == second["since"] != second["renewed"] == "2099-01-01 00:00:00 UTC"
    assert first["steady_ns"] < second["steady_ns"]


HOUR = 3600.0


def set_clock(monkeypatch: pytest.MonkeyPatch, folder: Path, *, by: float) -> None:
    """As if the time of day had been set after the lock was written: it is another now, and the file is that much
    older or younger."""
    now, file = time.time, folder / "locks" / "retrain.json"
    written = file.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: now() + by)
    os.utime(file, (written - by, written - by))


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_a_clock_that_is_set_makes_no_lock_of_a_folder_older_or_younger(
    by: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lock_of(str(tmp_path), "RetrainFlow/1", lifetime=0.6).acquire() is None
    set_clock(monkeypatch, tmp_path, by=by)
    held = lock_of(str(tmp_path), "RetrainFlow/2").acquire()
    assert held is not None and 0 <= held.age_seconds < 0.6
    time.sleep(0.7)
    assert lock_of(str(tmp_path), "RetrainFlow/2").acquire() is None


@pytest.mark.parametrize("boot", ["another", ""])
def test_on_another_machine_the_file_system_tells_a_locks_age_and_not_the_machines_clock(
    boot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "" is a system that does not say when it was started."""
    monkeypatch.setattr(lock_module, "_boot_id", lambda: boot)
    assert lock_of(str(tmp_path), "RetrainFlow/1").acquire() is None
    monkeypatch.setattr(lock_module, "_boot_id", lambda: "" if boot == "" else "ours")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + HOUR)
    held = lock_of(str(tmp_path), "RetrainFlow/2").acquire()
    assert held is not None and held.age_seconds < LIFETIME
    written = now() - LIFETIME - 1
    os.utime(tmp_path / "locks" / "retrain.json", (written, written))
    assert lock_of(str(tmp_path), "RetrainFlow/2").acquire() is None


def test_a_lock_of_another_machine_that_is_younger_than_now_is_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file system's clock was set back."""
    assert lock_of(str(tmp_path), "RetrainFlow/1").acquire() is None
    monkeypatch.setattr(lock_module, "_boot_id", lambda: "another")
    written = time.time() + HOUR
    os.utime(tmp_path / "locks" / "retrain.json", (written, written))
    held = lock_of(str(tmp_path), "RetrainFlow/2").acquire()
    assert held is not None and held.age_seconds == 0


def test_a_system_that_does_not_say_when_it_was_started_has_no_boot_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "Path", lambda _: Path("/nowhere"))
    assert lock_module._boot_id.__wrapped__() == ""
