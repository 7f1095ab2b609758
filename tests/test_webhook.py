"""Claims about steps/webhook.py and the exit hooks, on a real HTTP server: what is posted, how often, never where."""

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from webhook_receiver import Receiver

from fast_electra_core.errors import ConfigError
from steps import retrain_hook, webhook


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01, 0.01))
    made = Receiver()
    monkeypatch.setenv(webhook.WEBHOOK, f"{made.url}\n")  # as a Secret out of a file has it
    yield made
    made.close()


OUTCOME = {"way": "continue", "words": "RetrainFlow/7: the champion was continued"}
DONE = SimpleNamespace(pathspec="RetrainFlow/7", data=SimpleNamespace(outcome=OUTCOME))


def test_a_run_that_has_succeeded_is_told_with_its_outcome(
    receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    retrain_hook.tell_success(DONE)
    ((path, kind, content),) = receiver.got
    assert (path, kind) == ("/T0KEN", "application/json")
    assert content == {
        "flow": "RetrainFlow", "run": "RetrainFlow/7", "status": "succeeded", "outcome": OUTCOME,
        "text": "RetrainFlow/7: the champion was continued",
    }  # fmt: skip
    assert capsys.readouterr().out == "told the webhook (200, attempt 1)\n"


class Failed(list[Any]):
    pathspec = "RetrainFlow/8"


def test_a_run_that_has_failed_is_told_with_its_error(receiver: Receiver) -> None:
    error = ValueError("UnicodeDecodeError: invalid start byte\n\nthe cause of:\n\nDataError: may.txt is not UTF-8\n")
    tasks = [SimpleNamespace(exception=None), SimpleNamespace(exception=error)]
    retrain_hook.tell_failure(Failed([tasks]))
    content = receiver.got[0][2]
    assert (content["status"], content["outcome"]) == ("failed", None)
    assert content["text"] == "RetrainFlow/8 failed: DataError: may.txt is not UTF-8"


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        (["LockError: freed", "DataError: may.txt", "LockError: freed"], ": DataError: may.txt"),
        (["LockError: freed", "LockError: taken over"], ": LockError: taken over"),
        (["DataError: of a later step", "DataError: of the first"], ": DataError: of the first"),  # newest first
        ([" \n"], ""),
        ([], ""),
    ],
)
def test_a_run_that_has_failed_is_told_with_the_refusal_and_not_with_what_followed_from_it(
    errors: list[str], told: str, receiver: Receiver
) -> None:
    retrain_hook.tell_failure(Failed([[SimpleNamespace(exception=ValueError(each)) for each in errors]]))
    assert receiver.got[0][2]["text"] == f"RetrainFlow/8 failed{told}"


def test_without_metadata_the_end_is_told_without_details(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RUN_PATHSPEC", "RetrainFlow/argo-retrainflow-x1")
    retrain_hook.tell_success(None)
    retrain_hook.tell_success(SimpleNamespace(pathspec="RetrainFlow/9"))  # it has no data
    assert [content["run"] for _, _, content in receiver.got] == ["RetrainFlow/argo-retrainflow-x1", "RetrainFlow/9"]
    assert all(content["outcome"] is None and "succeeded" in content["text"] for _, _, content in receiver.got)


@pytest.mark.parametrize(
    ("statuses", "attempts", "words"),
    [
        ([503, 500, 200], 3, "told the webhook (200, attempt 3)"),
        ([429, 204], 2, "told the webhook (204, attempt 2)"),
        ([500], 4, "not told: it answered 500, after 4 attempts"),
        ([404], 1, "not told: it answered 404, after 1 attempt"),
    ],
)
def test_only_what_may_pass_is_tried_again_and_not_for_ever(
    receiver: Receiver, statuses: list[int], attempts: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.02, 0.04))
    pauses: list[float] = []
    monkeypatch.setattr(webhook, "time", SimpleNamespace(sleep=pauses.append))  # its own: other threads sleep, too
    receiver.statuses = statuses
    assert webhook.post(receiver.url, {}) == words
    assert len(receiver.got) == attempts
    assert pauses == [0.01, 0.02, 0.04][: attempts - 1]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status, 200]
    assert webhook.post(receiver.url, {}) == f"not told: it answered {status}, after 1 attempt"
    assert [path for path, _, _ in receiver.got] == ["/T0KEN"]


def test_the_url_is_in_nothing_that_is_said(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.close()
    assert webhook.post(receiver.url, {}) == "not told: no answer (URLError), after 4 attempts"
    for url in (
        "ftp://hooks.example/T0KEN",
        "hooks.example/T0KEN",
        "http://[T0KEN",
        "http://a b/T0KEN",
        "http:///T0KEN",
    ):
        monkeypatch.setenv(webhook.WEBHOOK, url)
        with pytest.raises(
            ConfigError, match="must be an http:// or https:// URL; what it holds is not shown"
        ) as caught:
            webhook.url_given()
        assert "T0KEN" not in str(caught.value)
        retrain_hook.tell_success(DONE)
    assert "T0KEN" not in "".join(capsys.readouterr())


def test_without_a_url_nothing_is_sent_and_nothing_said(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(webhook.WEBHOOK)
    retrain_hook.tell_success(DONE)
    retrain_hook.tell_failure(None)
    assert receiver.got == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(("said", "what"), [(b"220 mail.example ESMTP\r\n", "BadStatusLine"), (b"", "TimeoutError")])
def test_an_answer_that_is_not_http_or_does_not_come_is_no_answer(
    said: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "PAUSES", ())
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)
                has_ended.wait(5)

        has_ended = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        words = webhook.post(f"http://127.0.0.1:{server.getsockname()[1]}/T0KEN", {})
        has_ended.set()
        thread.join()
    assert words == f"not told: no answer ({what}), after 1 attempt"
