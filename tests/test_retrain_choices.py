"""What a retraining makes of plain values: which auxiliary serves, what was tried, what tasks scored, the lock."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from registry_toys import sheet_of

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import AuxiliaryError, DataError, LockError, TrackingError
from fast_electra_core.retraining import RetrainConfig
from fast_electra_core.text_shards import TextFile, corpus_of
from steps import (
    delivery,
    forgetting,
    promotion,
    retrain,
    retrain_auxiliary,
    retrain_news,
    retrain_report,
    scoring,
    text_check,
    tokenization,
    tracking,
)
from steps.lock import Lock
from steps.retrain_auxiliary import keep_or_replace
from steps.retrain_news import Champion
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
        ([candidate(0.6, kept=True, reason="too dear"), candidate(0.2)], {}, [False, True]),
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
    assert all(
        each["reason"] == before["reason"] for each, before in zip(found, scored, strict=True) if before["reason"]
    )
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


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"tracking_uri": "http://127.0.0.1:5000", "experiment": "weekly", "store": "/elsewhere"}, True),
        ({"corpus": "/data/text", "lock_minutes": 90.0, "wait_for_lock_seconds": 5.0}, True),
        ({"seeds": 7}, False),
    ],
)
def test_where_things_lie_and_how_long_is_waited_makes_no_trial_another_one(
    change: dict[str, Any], is_same: bool
) -> None:
    champion = retrain_news.Champion({"name": "fast-electra", "version": "1", "tags": {}}, {}, [])
    corpus = {"digest": "ab"}
    plan = {"candidates": [{"digest": "cd"}], "initial_model": None, "corpus": corpus}
    one, other = RetrainConfig(corpus="text/"), RetrainConfig(**{"corpus": "text/", **change})
    trials = [retrain_news.trial_of(champion, corpus, config) for config in (one, other)]
    assert (trials[0] == trials[1]) is is_same
    firsts = [retrain_news.first_trial_of(plan, config) for config in (one, other)]
    assert (firsts[0] == firsts[1]) is is_same


@pytest.mark.parametrize(("seeds", "before"), [((0, 1), 0.625), ((0,), None)])
def test_tasks_before_are_the_champions_means_where_it_was_scored_alike(
    seeds: tuple[int, ...], before: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0: 0.5, 1: 0.75}
    theirs = sheet_of({"rte": {seed: scores[seed] for seed in seeds}})
    monkeypatch.setattr(promotion, "sheet_of", lambda version: theirs)
    (row,) = forgetting.tasks({}, sheet_of({"rte": {0: 0.25, 1: 0.5}}))
    assert row == {"task": "rte", "metric": "accuracy", "before": before, "after": 0.375}


def test_the_champion_and_what_came_of_it_are_scored_on_old_and_new_text_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SimpleNamespace(special_ids=SimpleNamespace(mask=4))
    run: Any = SimpleNamespace(
        store=SimpleNamespace(get_folder=lambda key: f"folder of {key}"),
        dataset=lambda split, config: text if split == "train" else f"new {split}",
        old_dataset=lambda split, config: f"old {split}",
    )
    models = {"load_initial_model": "champion", "start_from": "continued", "load_members": "members"}
    for name, model in models.items():
        monkeypatch.setattr(forgetting, name, lambda *_, model=model, **__: SimpleNamespace(model=model))
    monkeypatch.setattr(forgetting, "initial_shape", lambda folder, config: folder)
    monkeypatch.setattr(forgetting, "partner_of", lambda *_, **__: "partner")
    monkeypatch.setattr(forgetting, "_method", lambda config, model, *partner, mask_token_id: (model, *partner))
    monkeypatch.setattr(forgetting, "corrupt_for_scoring", lambda method: f"as {method[0]}")
    monkeypatch.setattr(
        forgetting, "score_detector",
        lambda method, heldout, *, corrupt, mask_fraction: f"{method} {heldout} {corrupt} {mask_fraction}",
    )  # fmt: skip
    config = PretrainConfig(mask_fraction=0.25)
    rows = forgetting.detection(config, run, auxiliary={}, initial_model={}, key="model")
    assert rows == [
        {
            "text": text,
            "before": f"('champion', 'partner') {text} heldout as champion 0.25",
            "after": f"('continued', 'partner') {text} heldout as continued 0.25",
        }
        for text in ("old", "new")
    ]


def test_metrics_of_what_was_forgotten_are_named_by_text_score_and_time() -> None:
    before, after = ({"heldout_rtd_loss": loss, "heldout_auc": loss + 0.5, "other": 9.0} for loss in (0.25, 0.375))
    assert forgetting.as_metrics([{"text": "old", "before": before, "after": after}]) == {
        "forgetting.old.rtd_loss.before": 0.25, "forgetting.old.rtd_loss.after": 0.375,
        "forgetting.old.auc.before": 0.75, "forgetting.old.auc.after": 0.875,
    }  # fmt: skip


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


@pytest.mark.parametrize("fails", ["_plan", "_begun"])
def test_a_run_that_is_refused_in_its_first_step_leaves_the_lock_free(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrackingError("MLflow does not answer")

    config = RetrainConfig(store=str(tmp_path / "store"), tracking_uri="http://mlflow", experiment="nightly")
    begins_by(config, monkeypatch)
    asked: list[Any] = []
    monkeypatch.setattr(tracking, "check_server", lambda *server: asked.append(server))
    monkeypatch.setattr(retrain, fails, fail)
    with pytest.raises(TrackingError, match="does not answer"):
        retrain.begin_retrain({}, flow="RetrainFlow", run_id="1")
    assert asked == [("http://mlflow", "nightly")]
    assert retrain._lock_of(config, owner="another/run").acquire() is None


@pytest.mark.parametrize(
    ("counted", "reason"),
    [
        ((20, 8), ""),
        ((19, 8), "27 new tokens, fewer than 28 (min_new_tokens)"),
        ((16, 12), ""),
        ((15, 13), "15 new tokens to train on, fewer than the 16 of one batch (batch_size, sequence_length)"),
        ((21, 7), "of 28 new tokens 7 are held out (heldout_fraction 0.25), fewer than the 8 of one sequence"),
    ],
)
def test_new_text_is_enough_from_min_new_tokens_one_batch_and_one_held_out_sequence_on(
    counted: tuple[int, int], reason: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sequence has two special tokens: 8 of 10 are text, 16 in a batch of two."""
    asked: dict[str, Any] = {}

    def count_tokens(shards: Any, config: Any, **given: Any) -> tuple[int, int]:
        asked.update(given)
        return counted

    monkeypatch.setattr(tokenization, "count_tokens", count_tokens)
    config = RetrainConfig(min_new_tokens=28, sequence_length=10, batch_size=2, heldout_fraction=0.25)
    text = corpus_of("text", [TextFile("a.txt", "a.txt", 9, "d")], shard_bytes=9)
    assert retrain._too_little(config, text, "tokenizers/t", store) == reason
    assert asked["is_enough"](*counted) is (reason == "")  # no more is read than that
    assert (asked["about"], asked["tokenizer_key"]) == (28, "tokenizers/t")


def champion_of(**tags: str) -> Champion:
    record = {"tokenizer": "tokenizers/t", "files": [], "shards": []}
    return Champion({"name": "fast-electra", "version": "1", "tags": tags}, record, [])


CONFIG = RetrainConfig()


def test_a_trial_is_of_this_champion_this_text_and_these_parameters() -> None:
    other = Champion({"name": "fast-electra", "version": "2", "tags": {}}, {}, [])
    trials = [
        retrain_news.trial_of(champion_of(), {"digest": "d"}, CONFIG),
        retrain_news.trial_of(other, {"digest": "d"}, CONFIG),
        retrain_news.trial_of(champion_of(), {"digest": "e"}, CONFIG),
        retrain_news.trial_of(champion_of(), {"digest": "d"}, dataclasses.replace(CONFIG, continue_steps=7)),
    ]
    assert len(set(trials)) == 4
    assert retrain_news.trial_of(champion_of(), {"digest": "d", "address": "moved"}, CONFIG) == trials[0]


def test_a_first_trial_is_of_the_models_that_it_starts_from() -> None:
    plan = {"candidates": [{"digest": "a"}], "initial_model": None, "corpus": {"digest": "d"}}
    changes: list[dict[str, Any]] = [
        {}, {"initial_model": {"digest": "i"}}, {"initial_model": {"digest": "j"}}, {"candidates": [{"digest": "b"}]},
        {"corpus": {"digest": "e"}},
    ]  # fmt: skip
    assert len({retrain_news.first_trial_of({**plan, **change}, CONFIG) for change in changes}) == 5
    moved = {**plan, "candidates": [{"digest": "a", "address": "elsewhere"}]}
    assert retrain_news.first_trial_of(moved, CONFIG) == retrain_news.first_trial_of(plan, CONFIG)


def test_of_old_text_that_is_partly_gone_the_rest_is_replayed_and_the_loss_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"files": [], "shards": [{"key": f"tokens/{name}"} for name in "cab"]}
    monkeypatch.setattr(tracking, "aliases", lambda name: {tracking.CHAMPION: "3"})
    monkeypatch.setattr(tracking, "model_version_info", lambda address: {"address": address})
    monkeypatch.setattr(retrain_news, "read_record", lambda info: record)
    monkeypatch.setattr(Store, "has", lambda store, key: key != "tokens/b")
    found = retrain_news.find_champion(store)
    assert found is not None and found.shard_keys == ["tokens/c", "tokens/a"]
    assert found.info == {"address": "models:/fast-electra/3"} and found.record == record
    assert caplog.messages == ["1 of 3 token shards of old text are gone from the store"]
    monkeypatch.setattr(Store, "has", lambda store, key: True)
    found = retrain_news.find_champion(store)
    assert found is not None and found.shard_keys == ["tokens/c", "tokens/a", "tokens/b"]
    assert len(caplog.messages) == 1


def test_new_text_is_cut_into_shards_of_their_megabytes() -> None:
    corpus = corpus_of("text", [TextFile("a.txt", "a.txt", 3_000_000, "d")], shard_bytes=10**9)
    changes = retrain_news.changes_of(corpus, None)
    for megabytes, count in ((3.0, 1), (1.5, 2)):
        config = dataclasses.replace(CONFIG, shard_megabytes=megabytes)
        assert len(retrain_news.unseen_part(corpus, changes, config).shards) == count


def found_at(address: str, **changes: Any) -> dict[str, Any]:
    """As fetch_candidates finds what lies at an address."""
    key = address.rpartition("/")[2]
    return {"key": key, "digest": f"digest of {key}", "tokenizer_digest": "t", "vocab_size": 99, **changes}


AT = {
    "models:/aux/a": found_at("models:/aux/a"),
    **{address: found_at(address) for address in ("a", "b", "copies/a")},
    "foreign": found_at("foreign", tokenizer_digest="u"),
    "padded": found_at("padded", vocab_size=128),
}
OWN = {"auxiliary.version": "aux/a", "auxiliary.address": "somewhere", "auxiliary.digest": "digest of a"}
BOTH = {"auxiliary.version": "not registered,not registered", "auxiliary.address": "a,b"}
OF_BOTH = "f2542703e9d4025b"  # printf 'digest of a\ndigest of b' | sha256sum


@pytest.mark.parametrize(
    ("tags", "auxiliary", "kept", "others", "said"),
    [
        (OWN, "b", ["a"], ["b"], []),
        (OWN, "copies/a,foreign", ["a"], [], ["foreign is left out: its tokenizer is not the champion's"]),
        (
            {**OWN, "auxiliary.digest": "another"}, "b,copies/a", [], ["b", "a"],
            ["what lies at somewhere is no longer the champion's auxiliary"],
        ),
        *[
            (
                {**OWN, "auxiliary.version": f"aux/{gone}"}, "b", [], ["b"],
                [f"the champion's auxiliary cannot be had any more: nothing at models:/aux/{gone}"],
            )
            for gone in ("gone", "deleted", "empty")
        ],
        ({**BOTH, "auxiliary.digest": OF_BOTH}, "b", ["a", "b"], [], []),
    ],
)  # fmt: skip
def test_the_champions_auxiliary_is_looked_up_first_and_others_serve_if_they_have_its_tokenizer(
    tags: dict[str, str], auxiliary: str, kept: list[str], others: list[str], said: list[str], store: Store,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(retrain_auxiliary, "fetch_candidates", fetch_candidates)
    found = retrain_auxiliary.fetch(RetrainConfig(auxiliary=auxiliary), champion_of(**tags), store)
    assert [each["key"] for each in found if each["is_kept"]] == kept
    assert [each["key"] for each in found if not each["is_kept"]] == others
    assert caplog.messages == said


def fetch_candidates(config: RetrainConfig, store: Store) -> list[dict[str, Any]]:
    for address in config.auxiliary_list():
        if address not in AT:
            error = {"models:/aux/deleted": TrackingError, "models:/aux/empty": DataError}.get(address, AuxiliaryError)
            raise error(f"nothing at {address}")
    assert config.ensemble_size == len(config.auxiliary_list())
    return [{"address": address, **AT[address]} for address in config.auxiliary_list()]


@pytest.mark.parametrize(
    ("changes", "ensemble_size", "auxiliary", "message"),
    [
        ({"auxiliary.version": "aux/gone"}, 1, "foreign", "no auxiliary has the champion's tokenizer t: give one by"),
        ({}, 2, "b,padded", "candidates of an ensemble must have logits for equally many tokens"),
    ],
)
def test_auxiliaries_of_which_none_can_serve_or_that_do_not_go_together_are_refused(
    changes: dict[str, str], ensemble_size: int, auxiliary: str, message: str, store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(retrain_auxiliary, "fetch_candidates", fetch_candidates)
    config = RetrainConfig(auxiliary=auxiliary, ensemble_size=ensemble_size)
    with pytest.raises(AuxiliaryError, match=message):
        retrain_auxiliary.fetch(config, champion_of(**{**OWN, **changes}), store)


def test_the_run_of_a_retraining_has_all_its_parameters_and_one_with_nothing_to_do_is_finished_with_its_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []
    for name in ("open_training_run", "open_run"):
        monkeypatch.setattr(retrain, name, lambda plan, given, *, params, name=name: done.append((name, given, params)))
    monkeypatch.setattr(retrain, "finish", lambda plan: done.append("finish"))
    monkeypatch.setattr(tracking, "log_text", lambda *given: done.append(given))
    monkeypatch.setattr(retrain_report, "log", lambda plan, outcome: done.append(outcome))
    monkeypatch.setattr(retrain_report, "outcome_of", lambda plan: "outcome")
    monkeypatch.setattr(retrain_report, "page", lambda plan: f"page of {plan['outcome']}")
    plan = {"pathspec": "RetrainFlow/1", "reason": "why", "config": {"a": 1}, "retrain": {"a": 2}, "mlflow_run_id": "r"}
    retrain._begun({**plan, "way": "continue"}, {"b": 3})
    assert done == [("open_training_run", {"b": 3}, {"a": 2})]
    done.clear()
    assert retrain._begun({**plan, "way": "nothing"}, {"b": 3})["outcome"] == "outcome"
    assert done == [
        ("open_run", {"b": 3}, {"a": 2}), "outcome", ("r", "page of outcome", "report.html"), "finish",
    ]  # fmt: skip


def test_a_run_is_closed_under_its_lock_and_one_that_has_lost_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RetrainConfig(store=str(tmp_path / "store"))
    plan = {"pathspec": "RetrainFlow/1", "retrain": config.to_dict(), "way": "scratch"}
    another = retrain._lock_of(config, owner="another/run")
    owners: list[str] = []

    def close(plan: Any, made: Any) -> Any:
        held = another.acquire()
        owners.append(held.owner if held else "nobody")
        return {"outcome": 1}, "words", "page"

    monkeypatch.setattr(retrain, "_close", close)
    assert retrain.close(plan, {"version": {}}) == ({"outcome": 1}, "words", "page")
    assert owners == ["RetrainFlow/1"]
    assert another.acquire() is None  # it was freed
    with pytest.raises(LockError, match="now held by another/run"):
        retrain.close(plan, {"version": {}})
    assert len(owners) == 1


def test_new_text_is_checked_as_the_run_was_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def check_text(corpus: Any, **given: Any) -> None:
        asked.extend([[file["name"] for file in corpus.files], given])
        raise AuxiliaryError("so far")

    files = [TextFile(name, name, 9, digest) for name, digest in (("a.txt", "d"), ("copy.txt", "d"))]
    corpus = corpus_of("text", files, shard_bytes=9)
    monkeypatch.setattr(retrain_news, "find_champion", lambda store: None)
    monkeypatch.setattr(retrain, "find_corpus", lambda config, store: corpus)
    monkeypatch.setattr(text_check, "check_text", check_text)
    config = RetrainConfig(store=store.root, on_bad_text="skip", text_field="body")
    with pytest.raises(AuxiliaryError, match="so far"):
        retrain._plan(config, flow="RetrainFlow", run_id="1")
    (names, given) = asked
    assert names == ["a.txt"] and given.pop("store").root == store.root
    assert given == {"text_field": "body", "on_bad_text": "skip"}


@pytest.mark.parametrize(
    ("way", "tags", "before"),
    [("scratch", {"retrain.trial": "t"}, None), ("continue", {"retrain.trial": "t", "retrain.generation": 3}, "1")],
)
def test_a_version_has_its_trial_and_generation_and_its_tasks_models_before_it_is_decided_upon(
    way: str, tags: dict[str, Any], before: str | None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def note(name: str, answer: Any) -> Any:
        return lambda *given, **more: done.append((name, *given[1:], *more.values())) or answer

    version = {"name": "fast-electra", "version": "2"}
    monkeypatch.setattr(delivery, "register_discriminator", note("register", version))
    monkeypatch.setattr(delivery, "promote", note("promote", {**version, "aliases": []}))
    monkeypatch.setattr(tracking, "set_version_tags", note("tags", None))
    monkeypatch.setattr(scoring, "register_task_models", note("task models", []))
    monkeypatch.setattr(tracking, "model_version_info", lambda address: {"version": address[-1]})
    monkeypatch.setattr(forgetting, "tasks", lambda champion, sheet: [{"before": champion["version"], "sheet": sheet}])
    champion = {"name": "fast-electra", "version": "1", "generation": 2} if before else None
    plan = {"config": {"store": store.root}, "run_key": "runs/1", "way": way, "trial": "t", "champion": champion}
    made = {"text": "text", "frozen": "frozen", "trained": {"digest": "d"}, "scores": {"sheet": "s"}, "candidates": []}
    found = retrain.register(plan, made, pathspec="RetrainFlow/1/register/7")
    rows = [{"before": before, "sheet": "s"}] if before else []
    assert found == {**made, "tasks": rows, "version": {**version, "aliases": []}}
    path = "RetrainFlow/1/register/7"
    assert done == [
        ("register", "text", "frozen", {"digest": "d"}, {"sheet": "s"}, path),
        ("tags", "2", tags),
        ("task models", {"sheet": "s"}, {**version, "digest": "d"}, path),
        ("promote", {"sheet": "s"}, version),
    ]


@pytest.mark.parametrize(("old", "drift"), [([], {}), (["old"], {"old_masked_loss": 2.0, "drift": 0.25})])
def test_drift_is_how_much_higher_the_loss_is_on_new_text_than_on_old(
    old: list[str], drift: dict[str, float], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    losses = {("new",): 2.25, ("old",): 2.0}
    monkeypatch.setattr(retrain_auxiliary, "take_gpu", taken.append)
    monkeypatch.setattr(
        retrain_auxiliary, "score_candidate",
        lambda candidate, config, *, shard_keys, store: {**candidate, "masked_loss": losses[tuple(shard_keys)]},
    )  # fmt: skip
    plan = {"config": {"store": store.root}, "run_key": "runs/1", "old_shard_keys": old}
    scored = retrain_auxiliary.score(plan, {"shard_keys": ["new"]}, {"address": "a"}, index=3)
    assert scored == {"address": "a", "masked_loss": 2.25, **drift}
    assert taken == [3]


def test_the_end_of_a_run_talks_to_its_server_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process of its own, in which nothing before has connected."""
    done: list[Any] = []
    monkeypatch.setattr(retrain, "connect", lambda plan: done.append("connect"))
    monkeypatch.setattr(retrain_report, "outcome_of", lambda plan, made: {"words": "words", "of": made})
    monkeypatch.setattr(retrain_report, "log", lambda plan, outcome: done.append(("log", outcome["of"])))
    monkeypatch.setattr(retrain_report, "sections", lambda plan, outcome, made: "sections")
    monkeypatch.setattr(delivery, "close_pretrain", lambda plan, *parts, first: (f"{first} of {parts}", "page"))
    names = ("text", "candidates", "frozen", "trained", "scores", "version")
    made = {name: name[0] for name in names}
    plan = {"config": {"store": store.root}, "run_key": "runs/1"}
    outcome, words, page = retrain._close(plan, made)
    assert done == ["connect", ("log", made)]
    assert (outcome["of"], page) == (made, "page")
    assert words == "sections of ('t', 'c', 'f', 't', 's', 'v')\nwords"
