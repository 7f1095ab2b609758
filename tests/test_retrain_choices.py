"""What a retraining makes of plain values: which auxiliary serves, what was tried, what tasks scored, the lock."""

import copy
from pathlib import Path
from typing import Any

import pytest
from registry_toys import sheet_of

from fast_electra_core.retraining import RetrainConfig
from steps import forgetting, promotion, retrain, retrain_news, tracking
from steps.lock import Lock
from steps.retrain_auxiliary import keep_or_replace
from steps.store import Store


def candidate(drift: float, *, kept: bool = False, reason: str = "") -> dict[str, Any]:
    losses = {"old_masked_loss": 2.0, "masked_loss": 2.0 + drift}
    return {"drift": drift, "is_kept": kept, "ok": not reason, "reason": reason, **losses}


@pytest.mark.parametrize(
    ("scored", "changes", "ok"),
    [
        ([candidate(0.5, kept=True), candidate(0.0)], {}, [True, False]),  # better ones are not needed
        ([candidate(0.6, kept=True), candidate(0.5), candidate(0.6)], {}, [False, True, False]),
        ([candidate(0.1, kept=True, reason="too dear"), candidate(0.2)], {}, [False, True]),
        ([candidate(9.0, kept=True), candidate(0.0)], {"method": "unigram"}, [True, False]),
        ([candidate(0.1, kept=True), candidate(0.2)], {"ensemble_size": 2, "auxiliary": "a,b"}, [True, True]),
        ([candidate(0.1, kept=True), candidate(0.6, kept=True), candidate(0.2)],
         {"ensemble_size": 2, "auxiliary": "a,b"}, [True, False, True]),
    ],
)  # fmt: skip
def test_the_champions_auxiliary_is_kept_if_it_is_whole_may_be_chosen_and_keeps_the_bound(
    scored: list[dict[str, Any]], changes: dict[str, Any], ok: list[bool]
) -> None:
    config = RetrainConfig(max_auxiliary_drift=0.5, **changes)
    plan = {"old_shard_keys": ["a"], "retrain": config.to_dict()}
    found = keep_or_replace(plan, copy.deepcopy(scored))
    assert [each["ok"] for each in found] == ok
    assert [bool(each["reason"]) for each in found] == [not each for each in ok]
    assert keep_or_replace({**plan, "old_shard_keys": []}, scored) == scored  # a first model: there is nothing to keep


def test_a_run_that_died_before_it_decided_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, dict[str, str]] = {"7": {}, "8": {}}
    listed = [{"name": "fast-electra", "version": number} for number in tags]
    monkeypatch.setattr(tracking, "find_versions", lambda *_: listed)
    info = {f"models:/fast-electra/{number}": {"version": number, "tags": tags[number]} for number in tags}
    monkeypatch.setattr(tracking, "model_version_info", info.__getitem__)
    assert retrain_news.earlier_trial("x") is None
    tags["8"][promotion.REASON_TAG] = "challenger: promote never"
    found = retrain_news.earlier_trial("x")
    assert found is not None and found["version"] == "8"


@pytest.mark.parametrize(("seeds", "before"), [((0, 1), 0.625), ((0,), None)])
def test_tasks_before_are_the_champions_means_where_it_was_scored_alike(
    seeds: tuple[int, ...], before: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0: 0.5, 1: 0.75}
    theirs = sheet_of({"rte": {seed: scores[seed] for seed in seeds}})
    monkeypatch.setattr(promotion, "sheet_of", lambda version: theirs)
    (row,) = forgetting.tasks({}, sheet_of({"rte": {0: 0.25, 1: 0.5}}))
    assert row == {"task": "rte", "metric": "accuracy", "before": before, "after": 0.375}


def begins_by(config: RetrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets the lock has something to do, which is not looked for."""
    monkeypatch.setattr(retrain, "resolve_retrain", lambda given: config)
    monkeypatch.setattr(tracking, "check_server", lambda *_: None)
    monkeypatch.setattr(retrain, "_plan", lambda *_, **__: {"way": "scratch"})
    monkeypatch.setattr(retrain, "_begun", lambda plan, given: plan)


def test_a_run_that_was_killed_in_its_first_step_is_resumed_by_one_that_has_another_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins_by(RetrainConfig(store=str(tmp_path / "store"), lock_minutes=60), monkeypatch)
    assert retrain.begin_retrain({}, flow="RetrainFlow", run_id="1") == {"way": "scratch"}
    waiting = retrain.begin_retrain({}, flow="RetrainFlow", run_id="2")["reason"]
    assert "RetrainFlow/1 since" in waiting and "if it was killed, `resume --origin-run-id` with its id goes" in waiting
    assert retrain.begin_retrain({}, flow="RetrainFlow", run_id="3", resumes="1") == {"way": "scratch"}


def test_a_lock_lives_for_its_minutes_and_is_waited_for_as_long_as_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RetrainConfig(store=str(tmp_path / "store"), lock_minutes=0.05, wait_for_lock_seconds=0.5)
    lock = retrain._lock_of(config, owner="RetrainFlow/1")
    assert (lock.lifetime_seconds, lock.owner) == (3.0, "RetrainFlow/1")
    assert Lock(Store(config.store), retrain.LOCK_NAME, owner="another/run", lifetime_seconds=0.2).acquire() is None
    begins_by(config, monkeypatch)
    assert retrain.begin_retrain({}, flow="RetrainFlow", run_id="1") == {"way": "scratch"}
    held = Lock(Store(config.store), retrain.LOCK_NAME, owner="RetrainFlow/2", lifetime_seconds=1.0).acquire()
    assert held is not None and held.owner == "RetrainFlow/1"
