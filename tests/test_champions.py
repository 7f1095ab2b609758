"""Claims about who becomes champion where two processes decide at the same moment, on a real registry.

The moment is made: each process reads who is champion, waits until the other has read, and only then goes on to write.
"""

import faulthandler
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any

import pytest
from conftest import new_database

from steps import promotion, tracking
from steps.gates import Gate
from steps.promotion import Rule
from steps.tracking import champions

NAME = "fast-electra"
GATES = [Gate("finite", "pass", "every weight is finite")]
IF_BETTER = Rule("if_better", 0.005)
LOST = "another run made its model champion at the same moment"
_both: Any = None
"""The barrier that the two processes share."""


def _prepare(uri: str, barrier: Any) -> None:
    global _both
    tracking.connect(uri)
    # On a busy machine the winner may need longer for its alias than is waited; the other would enter what it finds.
    champions.WAIT_SECONDS = 100.0
    _both = barrier


def _when_both_have_read(module: Any, name: str) -> None:
    """The first call of module.name returns when the other process has made it too; later ones are as ever."""
    read = getattr(module, name)
    faulthandler.dump_traceback_later(100)  # where a process stands for which the other waits in vain

    def read_and_wait(*args: Any) -> Any:
        setattr(module, name, read)
        found = read(*args)
        _both.wait(200)
        faulthandler.cancel_dump_traceback_later()
        return found

    setattr(module, name, read_and_wait)


def settle_at_once(version: dict[str, Any]) -> dict[str, Any]:
    _when_both_have_read(tracking, "throne")
    return promotion.settle(version, GATES, IF_BETTER)


def settle_without_ledger(version: dict[str, Any]) -> dict[str, Any]:
    """As settle_at_once; before that, both have seen at the same moment that there is no ledger yet."""
    _when_both_have_read(champions, "_find_ledger")
    return settle_at_once(version)


def roll_back_at_once(name: str) -> tuple[str, str]:
    _when_both_have_read(tracking, "throne")
    return promotion.rollback(name)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from registry_toys import Registry  # here, as the processes have no use for torch

    uri = new_database(tmp_path_factory.mktemp("registry"))
    return Registry(uri, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def processes(registry: Any) -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, _prepare, (registry.uri, spawn.Barrier(2))) as pool:
        yield pool


@pytest.fixture(autouse=True)
def empty(registry: Any) -> None:
    """No version and no ledger."""
    tracking.connect(registry.uri)
    client = champions.mlflow_client()
    client.delete_registered_model(NAME)
    client.create_registered_model(NAME)
    while ledger := champions._find_ledger(NAME):  # two that opened one at the same moment have left two
        client.delete_run(ledger)


def version(registry: Any, gain: float) -> dict[str, Any]:
    """Of two versions the one with the larger gain is better by the rule."""
    made: dict[str, Any] = registry.version({"rte": {seed: 0.6 + gain * (1 + seed / 10) for seed in range(3)}})
    return made


def entries() -> list[tuple[str | None, str]]:
    return [(entry.version, entry.how) for entry in champions.throne(NAME).entries]


def at_once(pool: ProcessPoolExecutor, *calls: tuple[Callable[[Any], Any], Any]) -> list[Any]:
    futures = [pool.submit(function, given) for function, given in calls]
    wait(futures, 400)
    errors = [future.exception(0) for future in futures]
    for error in errors:  # not that the other waited in vain, where one says why
        if error and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result(0) for future in futures]


def test_of_two_first_versions_that_finish_at_once_the_better_is_champion_and_one_found_none_before_it(
    registry: Any, processes: ProcessPoolExecutor
) -> None:
    good, better = (version(registry, gain) for gain in (0.0, 0.05))
    found = at_once(processes, (settle_without_ledger, good), (settle_without_ledger, better))
    assert tracking.aliases(NAME)["champion"] == "2"
    (lost,) = [each for each in found if LOST in each["reason"]]
    if lost["version"] == "1":
        assert entries() == [("2", "promoted")]
        assert found[1]["reason"] == "champion: there was none"
        assert lost["reason"].startswith(f"challenger: {LOST} (there was none); decided again: against version 2: ")
    else:
        assert entries() == [("1", "promoted"), ("2", "promoted")]
        assert found[0]["reason"] == "champion: there was none"
        assert lost["reason"].startswith(f"champion: {LOST} (there was none); decided again: against version 1: ")


def test_of_two_that_beat_the_champion_at_once_the_loser_is_judged_against_the_winner_and_says_so(
    registry: Any, processes: ProcessPoolExecutor
) -> None:
    promotion.settle(version(registry, 0.0), GATES, IF_BETTER)
    good, better = (version(registry, gain) for gain in (0.05, 0.1))
    found = at_once(processes, (settle_at_once, good), (settle_at_once, better))
    assert tracking.aliases(NAME)["champion"] == better["version"] == "3"
    (lost,) = [each for each in found if LOST in each["reason"]]
    if lost["version"] == "2":
        assert entries() == [("1", "promoted"), ("3", "promoted")]
        start, _, end = lost["reason"].partition("; decided again: ")
        assert start.startswith(f"challenger: {LOST} (against version 1: mean difference +0.0550")
        assert end.startswith("against version 3: mean difference -0.0550")
    else:
        assert entries() == [("1", "promoted"), ("2", "promoted"), ("3", "promoted")]
        assert "decided again: against version 2: mean difference +0.0550" in lost["reason"]


def test_a_rollback_and_a_promotion_at_once_are_done_one_after_the_other(
    registry: Any, processes: ProcessPoolExecutor
) -> None:
    for gain in (0.0, 0.05):
        promotion.settle(version(registry, gain), GATES, IF_BETTER)
    best = version(registry, 0.1)
    settled, rolled = at_once(processes, (settle_at_once, best), (roll_back_at_once, NAME))
    before = [("1", "promoted"), ("2", "promoted")]
    if rolled == ("2", "1"):
        assert entries() == [*before, ("1", "restored"), ("3", "promoted")]
        assert LOST in settled["reason"] and "against version 1: mean difference +0.1100" in settled["reason"]
    else:
        assert rolled == ("3", "2")
        assert entries() == [*before, ("3", "promoted"), ("2", "restored")]
        assert settled["reason"].startswith("champion: against version 2")
    assert tracking.aliases(NAME)["champion"] == entries()[-1][0]


def test_a_champion_whose_process_died_before_it_had_the_alias_holds_up_nobody(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champions, "WAIT_SECONDS", 0.3)
    promotion.settle(version(registry, 0.0), GATES, IF_BETTER)
    good, better = (version(registry, gain) for gain in (0.05, 0.1))

    def die(name: str, number: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(champions, "_seat", die)
        promotion.settle(good, GATES, IF_BETTER)
    assert tracking.aliases(NAME)["champion"] == "1"
    found = promotion.settle(better, GATES, IF_BETTER)
    assert found["reason"].startswith("champion: against version 1: ")
    assert promotion.settle(good, GATES, IF_BETTER)["reason"].startswith("challenger: against version 3: ")
    assert entries() == [("1", "promoted"), ("2", "promoted"), ("1", "found"), ("3", "promoted")]


def test_an_alias_that_is_on_its_way_is_waited_for(registry: Any) -> None:
    promotion.settle(version(registry, 0.0), GATES, IF_BETTER)
    good, better = (version(registry, gain) for gain in (0.05, 0.1))
    seen = champions.throne(NAME)
    assert champions._write(seen.ledger, 2, good["version"], "promoted")  # the other has entered itself, no more
    late = threading.Timer(1.0, champions._seat, (NAME, good["version"]))
    late.start()
    found = promotion.settle(better, GATES, IF_BETTER)
    late.join()
    assert found["reason"].startswith("champion: against version 2: ")
    assert entries() == [("1", "promoted"), ("2", "promoted"), ("3", "promoted")]


def test_an_alias_that_another_process_enters_at_the_same_moment_is_set(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks for it and then inserts it: seen of two first versions, each of which set `challenger`."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    enter, tried = MlflowClient.set_registered_model_alias, []

    def second(client: Any, *given: str) -> None:
        tried.append(given)
        if len(tried) == 1:
            raise MlflowException(
                "(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.workspace, "
                "registered_model_aliases.name, registered_model_aliases.alias",
                error_code=BAD_REQUEST,
            )
        enter(client, *given)

    version = registry.version()
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", second)
    tracking.set_alias(version["name"], "entered", version["version"])
    assert tracking.aliases(version["name"])["entered"] == str(version["version"])
    assert len(tried) == 2
