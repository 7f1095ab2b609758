"""Claims about steps/promotion.py and the commands promote and rollback, on one real SQLite registry."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import new_database
from registry_toys import NAME, Registry, client, sheet_of

from fast_electra_core.config import ScoringConfig
from fast_electra_core.errors import TrackingError
from steps import gates, promotion, tracking
from steps import promote as command
from steps.command import main
from steps.gates import Gate
from steps.promotion import Rule
from steps.score_sheet import difference, evaluation_command, key_of, score_sheet, scoring_config
from steps.tracking import champions

GATES = [Gate("finite", "pass", "every weight is finite"), Gate("majority", "waived", "rte 0.480 (waive_gates)")]
IF_BETTER = Rule("if_better", 0.005)
OLD = {"rte": {0: 0.60, 1: 0.61, 2: 0.62}}
BETTER = {"rte": {0: 0.64, 1: 0.66, 2: 0.66}}
"""Differences 0.04, 0.05, 0.04: mean 0.0433, error 0.0033, t = 13."""
LIKE_OLD = {"rte": {0: 0.61, 1: 0.60, 2: 0.62}}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def made(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(uri, tmp_path_factory.mktemp("models"))


@pytest.fixture
def registry(made: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """No version, no ledger, and no patience with aliases that were set by hand."""
    monkeypatch.setattr(champions, "WAIT_SECONDS", 0.0)
    client().delete_registered_model(NAME)
    client().create_registered_model(NAME)
    yield made
    ledger = champions._find_ledger(NAME)
    if ledger:
        client().delete_run(ledger)


def settled(version: dict[str, Any], rule: Rule = IF_BETTER, gates: list[Gate] = GATES) -> dict[str, Any]:
    return promotion.settle(version, gates, rule)


def tag(version: dict[str, Any], name: str = "promotion.reason") -> str:
    return str(client().get_model_version(NAME, version["version"]).tags[name])


def test_the_first_version_that_passes_its_gates_is_champion(registry: Registry) -> None:
    version = registry.version(OLD)
    found = settled(version)
    assert found["aliases"] == ["challenger", "champion"]
    assert found["reason"] == tag(version) == "champion: there was none"
    assert tag(version, "gate.majority") == "waived: rte 0.480 (waive_gates)"
    assert found["gates"][0] == {"name": "finite", "status": "pass", "reason": "every weight is finite"}


def test_a_version_that_fails_a_gate_is_left_without_alias_and_says_how_to_waive_it(registry: Registry) -> None:
    version = registry.version(OLD)
    found = settled(version, gates=[Gate("majority", "fail", "rte 0.4"), Gate("finite", "pass", "fine")])
    assert found["aliases"] == []
    assert tracking.aliases(NAME) == {}
    assert tag(version) == (
        "no alias: gate majority: rte 0.4. To go on: fast-electra promote models:/fast-electra/1 --waive_gates majority"
    )


def test_an_alias_that_a_version_keeps_though_a_gate_fails_now_is_not_said_to_be_none(registry: Registry) -> None:
    version = registry.version(OLD)
    settled(version)
    found = settled(version, gates=[Gate("majority", "fail", "rte 0.4")])
    assert found["aliases"] == ["challenger", "champion"]
    assert found["reason"].startswith("still challenger and champion, against its gates: gate majority: rte 0.4. To go")


def test_a_version_whose_text_has_no_stated_licence_says_how_to_state_it(registry: Registry) -> None:
    failed = [Gate("majority", "fail", "rte 0.4"), Gate("licence", "fail", "not stated")]
    assert settled(registry.version(OLD), gates=failed)["reason"].endswith(
        "To go on: fast-electra promote models:/fast-electra/1 --corpus_licence LICENCE --waive_gates majority"
    )


def test_a_better_version_takes_the_championship_and_the_reason_has_the_numbers(registry: Registry) -> None:
    settled(registry.version(OLD))
    found = settled(registry.version(BETTER))
    assert found["aliases"] == ["challenger", "champion"]
    assert found["reason"] == (
        "champion: against version 1: mean difference +0.0433 (90 % interval +0.0336 to +0.0531), p = 0.0029, "
        "n = 3 seeds over rte"
    )
    assert tag({"version": "1"}) == "champion until version 2: there was none"
    again = settled(tracking.model_version_info(f"models:/{NAME}/2"))
    assert again["reason"] == tag(found) == found["reason"]  # why it is champion, not that it is already


def test_a_version_leads_to_the_champion_that_it_was_judged_against_and_its_scores(registry: Registry) -> None:
    assert promotion.rival_of(settled(registry.version(OLD))) is None
    assert promotion.rival_of(settled(registry.version(BETTER))) == {"name": "champion, version 1", "scores": OLD}
    assert promotion.rival_of(settled(registry.version(LIKE_OLD))) == {"name": "champion, version 2", "scores": BETTER}
    other = settled(registry.version({"cola": {0: 0.5, 1: 0.6}}))
    assert tag(other, "promotion.against") == "2"
    assert promotion.rival_of(other) is None  # not scored alike


def test_a_version_that_is_not_better_stays_challenger_and_the_reason_has_the_numbers(registry: Registry) -> None:
    settled(registry.version(OLD))
    found = settled(registry.version(LIKE_OLD))
    assert tracking.aliases(NAME) == {"champion": "1", "challenger": "2"}
    assert found["reason"].startswith("challenger: against version 1: mean difference +0.0000 (90 % interval -0.0169")
    assert found["reason"].endswith("p = 0.5, n = 3 seeds over rte; needed: p < 0.05 and at least +0.005")


@pytest.mark.parametrize(
    ("rule", "scores", "champion", "reason"),
    [
        (Rule("never", 0.005), BETTER, "1", "challenger: promote never"),
        (Rule("always", 0.005), LIKE_OLD, "2", "champion: promote always; against version 1: mean difference +0.0000"),
        (Rule("if_better", 0.05), BETTER, "1", "challenger: against version 1: mean difference +0.0433"),
    ],
)
def test_the_rule_can_be_chosen(
    registry: Registry, rule: Rule, scores: dict[str, dict[int, float]], champion: str, reason: str
) -> None:
    settled(registry.version(OLD))
    found = settled(registry.version(scores), rule)
    assert found["reason"].startswith(reason)
    assert tracking.aliases(NAME)["champion"] == champion


def test_scores_that_were_made_otherwise_are_not_compared_until_an_evaluation_makes_them_comparable(
    registry: Registry,
) -> None:
    settled(registry.version({"rte": {0: 0.6, 1: 0.6}}))
    version = registry.version(BETTER)
    found = settled(version)
    assert found["reason"] == (
        "challenger: not comparable with version 1: rte has seeds 0, 1, 2, for that one 0, 1. To compare: "
        "python flows/evaluate_flow.py run --model models:/fast-electra/1 --tasks rte --seeds 2; then: "
        "fast-electra promote models:/fast-electra/2"
    )
    evaluation = registry.new_run()
    tracking.set_version_tags(NAME, "1", registry.scored(evaluation, sheet_of(OLD)))  # as EvaluateFlow ends
    again = settled(tracking.model_version_info(f"models:/{NAME}/2"))
    assert again["reason"].startswith("champion: against version 1: mean difference +0.0433")


@pytest.mark.parametrize(
    ("theirs", "protocol", "why"),
    [
        ({"cola": {0: 0.5, 1: 0.5}}, {}, "scored on rte, that one on cola"),
        ({"rte": {0: 0.5, 1: 0.5}}, {"finetune_epochs": 2.0}, "finetune_epochs is None, for that one 2.0"),
        ({"rte": {0: 0.5, 10: 0.5, 9: 0.5}}, {}, "rte has seeds 0, 1, for that one 0, 9, 10"),
    ],
)
def test_what_differs_between_two_scorings_is_named(
    theirs: dict[str, dict[int, float]], protocol: dict[str, Any], why: str
) -> None:
    ours, others = sheet_of({"rte": {0: 0.5, 1: 0.5}}), sheet_of(theirs, **protocol)
    assert difference(ours, others) == why
    assert key_of(ours) != key_of(others)


@pytest.mark.parametrize(
    ("fact", "value", "why"),
    [
        ("metric", "macro_f1", "rte is scored by accuracy, for that one by macro_f1"),
        ("digest", "another", "the data of rte is not the same (digest digest of rte, for that one another)"),
    ],
)
def test_a_task_that_is_scored_by_another_metric_or_on_other_data_is_named(fact: str, value: str, why: str) -> None:
    ours, theirs = (sheet_of({"rte": {0: 0.5, 1: 0.5}}) for _ in range(2))
    theirs["tasks"]["rte"][fact] = value
    assert key_of(ours) != key_of(theirs)
    assert difference(ours, theirs) == why


def test_every_setting_of_scoring_is_compared_but_those_that_change_no_score() -> None:
    where = {"preset", "store", "tracking_uri", "experiment", "glue", "on_bad_text"}  # the data's digest is compared
    which = {"tasks", "seeds", "test_predictions", "untrained_baseline", "keep_task_models"}  # so are tasks and seeds
    settings = {each.name for each in dataclasses.fields(ScoringConfig)} - where - which
    assert set(sheet_of(OLD)["protocol"]) == settings


def test_a_sheet_has_each_tasks_main_metric_whatever_else_was_measured() -> None:
    config = ScoringConfig(tasks="mrpc", seeds=1).to_dict()
    rows = [
        {
            "task": "mrpc", "metric": metric, "is_main": metric == "f1", "majority": 0.5,
            "pretrained": {"values": {"0": value}, "learning_rate": 1e-3},
        }
        for metric, value in (("precision", 0.1), ("f1", 0.8), ("accuracy", 0.7))
    ]  # fmt: skip
    found = score_sheet(config, {"mrpc": {"digest": "d", "dev": {"dev": 100}}}, rows)["tasks"]["mrpc"]
    assert (found["metric"], found["values"]) == ("f1", {"0": 0.8})


def test_neither_the_order_of_tasks_nor_the_scores_keep_two_from_being_compared() -> None:
    ours = sheet_of({"rte": {0: 0.5, 1: 0.5}, "cola": {0: 0.5, 1: 0.5}})
    theirs = sheet_of({"cola": {1: 0.6, 0: 0.7}, "rte": {0: 0.4, 1: 0.8}})
    assert key_of(ours) == key_of(theirs)
    assert difference(ours, theirs) == ""


def test_the_command_that_makes_scores_comparable_is_taken_by_evaluate_flow() -> None:
    import shlex

    from steps.config import resolve_evaluate

    protocol = {"finetune_epochs": 2.0, "finetune_recipe": "modernbert", "best_epoch": True, "finetune_max_length": 64}
    sheet = sheet_of(OLD, on_bad_text="skip", glue="my glue", **protocol)
    words = shlex.split(evaluation_command(sheet, "models:/m/1"))[3:]
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    kinds = {"finetune_epochs": float, "finetune_max_length": int, "seeds": int, "best_epoch": bool}
    resolved = resolve_evaluate({name: kinds.get(name, str)(value) for name, value in given.items()})
    wanted = scoring_config(sheet)
    for name in ("glue", "tasks", "seeds", "on_bad_text", *sheet["protocol"]):
        assert getattr(resolved, name) == getattr(wanted, name), name


def test_a_versions_own_scores_come_before_those_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    own, evaluated, theirs, others = (sheet_of({"rte": {0: value, 1: 0.5}}) for value in (0.1, 0.2, 0.3, 0.4))
    runs = {"r2": own, "r1": evaluated, "r4": theirs, "r3": others}
    monkeypatch.setattr(promotion, "_read", runs.get)
    tags = {"mlflow.parent_run_id": "r2", "scores.a": "r1", "scores.b": "r2"}
    version, champion = {"tags": tags}, {"tags": {"scores.a": "r3", "scores.b": "r4"}}
    assert promotion.sheet_of(version) is own
    assert promotion._shared_sheets(version, champion) == (own, theirs)
    del runs["r2"]  # its run was deleted
    assert promotion.sheet_of(version) is evaluated
    assert promotion._shared_sheets(version, champion) == (evaluated, others)
    runs.clear()
    assert promotion.sheet_of(version) is promotion._shared_sheets(version, champion) is None


def test_where_a_side_has_no_scores_it_says_which_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = sheet_of({"rte": {0: 0.6, 1: 0.5}})
    monkeypatch.setattr(promotion, "_read", {"r": sheet}.get)
    none, scored = ({"name": "m", "version": number, "tags": {}} for number in "12")
    scored["tags"] = {f"scores.{key_of(sheet)}": "r"}
    assert promotion.compare(none, scored, 0.005) == (
        False,
        "not comparable with version 2: this version has no scores; score both by flows/evaluate_flow.py, then: "
        "fast-electra promote models:/m/1",
    )
    assert promotion.compare(scored, none, 0.005) == (
        False,
        "not comparable with version 1: that one has no scores. To compare: python flows/evaluate_flow.py run --model "
        "models:/m/1 --tasks rte --seeds 2; then: fast-electra promote models:/m/2",
    )


def test_gates_are_in_the_model_card_and_the_description_once(registry: Registry) -> None:
    import mlflow.artifacts

    version = registry.version(OLD)
    settled(version)
    settled(version)
    for file in ("model_card.md", "model/README.md"):
        card = mlflow.artifacts.load_text(f"models:/{NAME}/1/{file}")
        assert card.count("## Gates") == 1
        assert card.index("| majority | waived: rte 0.480 (waive_gates) |") < card.index("## Made from")
    assert client().get_model_version(NAME, version["version"]).description == "Gates: finite pass, majority waived."


# Doing it again


def test_a_decision_is_found_again_by_a_retried_step(registry: Registry) -> None:
    version = registry.version(OLD)
    assert promotion.decided(version) is None
    first = settled(version, gates=[*GATES, Gate("replay", "pass", "models:/m/1 scored again: rte: 0.6")])
    again = promotion.decided(tracking.model_version_info(f"models:/{NAME}/1"))
    assert again is not None
    assert {name: again[name] for name in ("aliases", "reason", "gates")} == {
        name: first[name] for name in ("aliases", "reason", "gates")
    }


def test_a_champion_that_was_cut_off_before_its_reason_was_written_is_not_entered_twice(registry: Registry) -> None:
    version = registry.version(OLD)
    settled(version)
    client().delete_model_version_tag(NAME, "1", "promotion.reason")
    found = settled(version)
    assert found["reason"] == "champion: it is already"
    tracking.set_version_tags(NAME, "1", {"promotion.reason": "challenger: promote never"})  # its alias was set by hand
    assert settled(tracking.model_version_info(f"models:/{NAME}/1"))["reason"] == "champion: it is already"
    assert [entry.version for entry in champions.throne(NAME).entries] == ["1"]


# Commands


def promote(registry: Registry, *words: str) -> int:
    return main(["promote", *words, "--tracking_uri", registry.uri])


def rollback(registry: Registry, *words: str) -> int:
    return main(["rollback", *words, "--tracking_uri", registry.uri])


def test_force_makes_champion_whatever_the_gates_say_and_keeps_that(
    registry: Registry, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    settled(registry.version(OLD))
    settled(registry.version(LIKE_OLD), gates=[Gate("licence", "fail", "not stated")])
    assert promote(registry, f"models:/{NAME}/2", "--force") == 0
    assert tracking.aliases(NAME)["champion"] == "2"
    said = "champion: by force, against the gates licence, after version 1"
    assert tag({"version": "2"}) == said
    assert tag({"version": "1"}) == "champion until version 2: there was none"
    assert f"fast-electra version 2: {said}" in capsys.readouterr().out
    assert said not in caplog.text  # once is enough
    again = promotion.force(tracking.model_version_info(f"models:/{NAME}/2"))  # it comes after none
    assert again["reason"] == "champion: by force, against the gates licence"


def test_promote_asks_with_the_margin_given_and_the_waivers_of_run_and_command_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(tracking, "set_version_tags", lambda name, number, tags: asked.update(tags))
    monkeypatch.setattr(gates, "examine", lambda *_, waived, store: asked.update(waived=waived) or [])
    monkeypatch.setattr(promotion, "settle", lambda version, gates, rule: {"rule": rule})
    version = {"name": "m", "version": "1", "tags": {"gates.waived": "replay,finite"}}
    assert command._examined(version, None, ["majority", "replay"], 0.25) == {"rule": ("if_better", 0.25)}
    assert asked == {"waived": ["replay", "finite", "majority"], "gates.waived": "replay,finite,majority"}


def test_promote_looks_at_the_gates_again_with_what_was_missing(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    version = registry.version({"rte": {0: 0.4, 1: 0.4}}, **{"corpus.licence": ""})
    assert promote(registry, f"models:/{NAME}/{version['version']}", "--waive_gates", "replay") == 1
    shown = capsys.readouterr().out
    assert "majority   fail    rte 0.400, not above 0.500" in shown
    assert "licence    fail    the licence of the text is not stated" in shown
    assert "lineage    pass" in shown
    assert "replay     waived  not replayed (waive_gates)" in shown  # it may take long
    words = ("--waive_gates", "majority:rte", "--corpus_licence", "CC BY-SA 4.0")
    assert promote(registry, f"models:/{NAME}/1", *words) == 0  # the waiver of replay was kept
    shown = capsys.readouterr().out
    assert "majority   waived  rte 0.400, not above 0.500 (waive_gates)" in shown
    assert "licence    pass    CC BY-SA 4.0" in shown
    assert tracking.aliases(NAME)["champion"] == "1"
    assert tag(version, "gates.waived") == "replay,majority:rte"


def test_bad_arguments_of_promote_are_one_line_each(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    before = registry.version(OLD)
    for words, message in [
        (("models:/fast-electra/9",), "fast-electra has no version 9; its aliases: none; its versions: 1"),
        (("models:/fast-electra@x",), "fast-electra has no alias 'x'"),
        (("models:/fast-electra/1", "--waive_gates", "licences"), "waive_gates must be one of finite, majority"),
        (
            ("models:/fast-electra/1", "--waive_gates", "replay,majority:nope", "--corpus_licence", "MIT"),
            "the task of majority in waive_gates must be one of rte; got 'nope'",
        ),
        (("models:/fast-electra/1", "--promotion_margin", "-1"), "promotion_margin must be >= 0, got -1"),
        (("models:/fast-electra/1", "--promotion_margin", "nan"), "promotion_margin must be >= 0, got nan"),
        (("models:/fast-electra/1", "--force", "--waive_gates", "majority"), "waive_gates has no effect with --force"),
        (
            ("models:/fast-electra/1", "--force", "--promotion_margin", "0"),
            "promotion_margin has no effect with --force",
        ),
        (("models:/fast-electra/1", "--corpus_licence", " "), "corpus_licence must not be empty"),
        (("models:/fast-electra/1", "--corpus_licence", ""), "corpus_licence must not be empty"),
    ]:
        assert promote(registry, *words) == 2
        assert message in capsys.readouterr().err
    assert tracking.model_version_info(f"models:/{NAME}/1") == before


def test_rollback_goes_back_one_champion_at_a_time_and_promotion_goes_on_from_there(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        version = registry.version(OLD)
        promotion.force(version)
    assert rollback(registry) == 0
    assert capsys.readouterr().out == "fast-electra: version 2 is champion again, version 3 is not\n"
    assert tracking.aliases(NAME)["champion"] == "2"
    assert tag({"version": "3"}) == "rolled back: version 2 is champion again"
    assert tag({"version": "2"}) == "champion again: version 3 was rolled back"
    assert rollback(registry) == 0
    assert tracking.aliases(NAME)["champion"] == "1"
    promotion.force(tracking.model_version_info(f"models:/{NAME}/3"))
    assert rollback(registry) == 0
    assert tracking.aliases(NAME)["champion"] == "1"


def test_rollback_goes_back_to_the_last_time_that_a_version_was_champion(registry: Registry) -> None:
    for _ in range(3):
        registry.version(OLD)
    for number in (1, 2, 1, 3):
        promotion.force(tracking.model_version_info(f"models:/{NAME}/{number}"))
    assert [promotion.rollback(NAME) for _ in range(3)] == [("3", "1"), ("1", "2"), ("2", "1")]


def test_rollback_says_where_there_is_nothing_to_go_back_to(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    version = registry.version(OLD)
    assert rollback(registry) == 2
    assert "fast-electra has no champion to go back from" in capsys.readouterr().err
    settled(version)
    assert rollback(registry) == 2
    assert "fast-electra had no champion before version 1." in capsys.readouterr().err
    promotion.force(registry.version(OLD))
    client().delete_model_version(NAME, "1")
    assert rollback(registry) == 2
    assert "version 1 of fast-electra, champion before version 2, is gone" in capsys.readouterr().err
    assert rollback(registry, "nothing") == 2
    assert "no registered model 'nothing'" in capsys.readouterr().err
    assert tracking.aliases(NAME)["champion"] == "2"


def test_a_champion_that_was_set_by_hand_is_taken_as_it_is_and_can_be_gone_back_from(registry: Registry) -> None:
    settled(registry.version(OLD))
    registry.version(OLD)
    tracking.set_alias(NAME, "champion", "2")
    found = settled(registry.version(BETTER))
    assert found["reason"].startswith("champion: against version 2:")
    assert [(entry.version, entry.how) for entry in champions.throne(NAME).entries] == [
        ("1", "promoted"), ("2", "found"), ("3", "promoted"),
    ]  # fmt: skip
    assert promotion.rollback(NAME) == ("3", "2")
    client().delete_registered_model_alias(NAME, "champion")
    assert champions.throne(NAME).champion is None


@pytest.mark.parametrize(
    ("history", "before"),
    [
        ("", None),
        ("1p", None),
        ("1p 2p", "1"),
        ("1p 2p 3p 2r", "1"),
        ("1p 2p 3p 2r 1r", None),
        ("1p 2p 1r 3p", "1"),
        ("1p 2p 1p", "2"),  # promoted again, not gone back to
        ("1p 2p 1p 3p 1r", "2"),
        ("1p 1p", None),
        ("1p -f 1f", None),
        ("1p 2p -f 3p", "2"),
    ],
)
def test_before_a_champion_was_the_last_one_that_was_not_rolled_back(history: str, before: str | None) -> None:
    how = {"p": "promoted", "r": "restored", "f": "found"}
    entries = [champions.Entry(None if line[0] == "-" else line[0], how[line[1]], "") for line in history.split()]
    assert champions.Throne("m", "ledger", tuple(entries)).before() == before


class Ledgers:
    """Ledgers in memory: their lines by run, and the alias."""

    def __init__(self, patch: pytest.MonkeyPatch, *, oldest: str = "ours", **lines: list[str]) -> None:
        self.lines, self.alias = lines, "1"
        patch.setattr(champions, "_find_ledger", lambda name: oldest)
        patch.setattr(champions, "_alias", lambda name: self.alias)
        patch.setattr(champions, "_seat", lambda name, version: setattr(self, "alias", version))
        patch.setattr(champions, "_write", self.write)
        patch.setattr(champions, "_entries", self.entries)
        self.seen = champions.Throne("m", "ours", self.entries("ours"))

    def entries(self, ledger: str) -> tuple[champions.Entry, ...]:
        return tuple(champions.Entry(version, "promoted", "") for version in self.lines[ledger])

    def write(self, ledger: str, number: int, version: str, how: str) -> bool:
        if number != len(self.lines[ledger]) + 1:
            return False
        self.lines[ledger].append(version)
        return True


def test_a_decision_counts_where_its_line_is_the_last_of_the_oldest_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Ledgers(monkeypatch, ours=["1"])
    assert champions.claim(alone.seen, "2", "promoted") and alone.alias == "2"
    late = Ledgers(monkeypatch, ours=["1"])
    late.lines["ours"].append("3")  # another was quicker
    assert not champions.claim(late.seen, "2", "promoted") and late.alias == "1"
    younger = Ledgers(monkeypatch, oldest="theirs", ours=["1"], theirs=["1", "3"])
    assert not champions.claim(younger.seen, "2", "promoted") and younger.alias == "3"


def test_a_decision_that_another_has_followed_already_does_not_count_and_leaves_the_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledgers = Ledgers(monkeypatch, ours=["1"])

    def seat_late(name: str, version: str) -> None:
        if version == "2":
            ledgers.lines["ours"].append("3")
        ledgers.alias = version

    monkeypatch.setattr(champions, "_seat", seat_late)
    assert not champions.claim(ledgers.seen, "2", "promoted")
    assert ledgers.alias == "3"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ({0: "2"}, (10.0, 2)),
        ({0: "2", 6: "3"}, (16.0, 3)),  # who was entered last has the whole time to get the alias
        ({}, (0.0, 1)),  # nobody is on the way
    ],
)
def test_a_champion_in_the_ledger_is_waited_for_and_then_the_alias_is_believed(
    lines: dict[int, str], found: tuple[float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines by the second in which they are entered; the alias was set to version 1 by hand."""
    now, written = [0.0], list[tuple[float, int]]()

    def write(ledger: str, number: int, version: str, how: str) -> bool:
        assert (ledger, version, how) == ("ours", "1", "found")
        written.append((now[0], number))
        return True

    def entries(ledger: str) -> tuple[champions.Entry, ...]:
        theirs = [champions.Entry(version, "promoted", "") for at, version in lines.items() if at <= now[0]]
        return (*theirs, *(champions.Entry("1", "found", "") for _ in written))

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(champions, "time", clock)
    monkeypatch.setattr(champions, "_find_ledger", lambda name: "ours")
    monkeypatch.setattr(champions, "_alias", lambda name: "1")
    monkeypatch.setattr(champions, "_entries", entries)
    monkeypatch.setattr(champions, "_write", write)
    assert champions.throne("m").champion == "1"
    assert written == [found]


@pytest.mark.parametrize(
    ("code", "held", "is_ours"),
    [
        ("TEMPORARILY_UNAVAILABLE", None, True),  # it arrived, and its confirmation was lost
        ("INVALID_PARAMETER_VALUE", "9 promoted 2024-02-29T12:00:00.000000+00:00", False),
        ("PERMISSION_DENIED", None, None),
    ],
)
def test_a_line_is_ours_if_it_is_there_as_we_wrote_it_and_a_refusal_is_no_lost_race(
    code: str, held: str | None, is_ours: bool | None, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    params, errors = {"champion.0002": held} if held else {}, [code]

    class Client:
        def log_param(self, run_id: str, key: str, value: str) -> None:
            if code != "PERMISSION_DENIED":
                params.setdefault(key, value)
            if errors:
                raise MlflowException("no", getattr(databricks_pb2, errors.pop()))

        def get_run(self, run_id: str) -> Any:
            return SimpleNamespace(data=SimpleNamespace(params=params))

    tracking.connect(uri)
    monkeypatch.setattr(champions, "mlflow_client", Client)
    if is_ours is None:
        with pytest.raises(TrackingError, match=r"cannot enter a champion: .* no "):
            champions._write("ours", 2, "3", "promoted")
        return
    assert champions._write("ours", 2, "3", "promoted") is is_ours


class Runs:
    """Versions of a model and the experiments of their runs; "" is a version without a run, None a run that is gone."""

    def __init__(self, versions: dict[str, str], experiments: dict[str, str | None]) -> None:
        self._versions, self._experiments = versions, experiments
        self.made: list[tuple[str, str]] = []

    def search_model_versions(self, condition: str) -> list[Any]:
        assert condition == "name='m'"
        return [SimpleNamespace(version=number, run_id=run) for number, run in self._versions.items()]

    def get_run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        experiment = self._experiments[run_id]
        if experiment is None:
            raise MlflowException("gone", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(info=SimpleNamespace(experiment_id=experiment))

    def create_run(self, experiment: str, *, tags: dict[str, str], run_name: str) -> Any:
        self.made.append((experiment, tags[champions.LEDGER_TAG]))
        return SimpleNamespace(info=SimpleNamespace(run_id="made"))

    def set_terminated(self, run_id: str) -> None:
        assert run_id == "made"


@pytest.mark.parametrize("older", ["older", None])
def test_the_history_is_where_the_newest_version_with_a_run_is_and_an_older_one_goes_before_it(
    older: str | None, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.connect(uri)
    runs = Runs({"9": "r9", "11": "r11", "10": "r10", "12": ""}, {"r9": "a", "r10": "b", "r11": None})
    monkeypatch.setattr(champions, "mlflow_client", lambda: runs)
    monkeypatch.setattr(champions, "_find_ledger", lambda name: older)
    assert champions._create_ledger("m") == (older or "made")
    assert runs.made == [("b", "m")]


def test_where_no_version_has_a_run_there_is_no_place_for_the_history(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.connect(uri)
    runs = Runs({"1": "r1", "2": ""}, {"r1": None})
    monkeypatch.setattr(champions, "mlflow_client", lambda: runs)
    with pytest.raises(TrackingError, match=r"no version of 'm' at sqlite:.* has a run, so there is no place for its"):
        champions._create_ledger("m")
    assert runs.made == []


def test_the_oldest_ledger_is_looked_for_in_every_page_of_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(list[Any]):
        def __init__(self, names: str, token: str) -> None:
            super().__init__(SimpleNamespace(experiment_id=name) for name in names)
            self.token = token

    class Client:
        pages = {None: Page("ab", "more"), "more": Page("c", "")}
        asked: list[Any] = []

        def search_experiments(self, *, max_results: int, page_token: str | None) -> Page:
            return self.pages[page_token]

        def search_runs(self, experiments: list[str], condition: str, *, max_results: int) -> list[Any]:
            self.asked.append((experiments, condition))
            made = [("r3", 20), ("r2", 10), ("r1", 10), ("r0", 30)]
            return [SimpleNamespace(info=SimpleNamespace(run_id=run, start_time=at)) for run, at in made]

    monkeypatch.setattr(champions, "mlflow_client", Client)
    assert champions._find_ledger("m") == "r1"
    assert Client.asked == [(["a", "b", "c"], "tags.`champions.of` = 'm'")]


def test_scores_that_are_gone_are_said_to_be_gone_with_the_command_that_makes_them_again(registry: Registry) -> None:
    first = registry.version(OLD)
    settled(first)
    version = registry.version(BETTER)
    tags = {name: "0" * 32 for name in first["tags"] if name.startswith("scores.")}
    tracking.set_version_tags(NAME, "1", tags)
    found = settled(version)
    gone = (
        f"not comparable with version 1: the scores of that one are gone with the MLflow run {'0' * 32}. To compare: "
        "python flows/evaluate_flow.py run --model models:/fast-electra/1 --tasks rte --seeds 2; then: "
        "fast-electra promote models:/fast-electra/2"
    )
    assert (found["aliases"], found["reason"]) == (["challenger"], f"challenger: {gone}")
    assert promotion.rival_of(tracking.model_version_info(f"models:/{NAME}/2")) is None
    assert settled(version, Rule("always", 0.005))["reason"] == f"champion: promote always; {gone}"


def test_where_a_fine_tuning_failed_its_own_side_is_to_be_scored_again(registry: Registry) -> None:
    both = {"rte": {0: 0.6, 1: 0.61}}
    settled(registry.version(both))
    version = registry.version({"rte": {0: 0.7}})  # of two seeds
    reason = (
        "challenger: not comparable with version 1: rte has seeds 0, for that one 0, 1. To compare: python "
        "flows/evaluate_flow.py run --model models:/fast-electra/2 --tasks rte --seeds 2; then: fast-electra promote "
        "models:/fast-electra/2"
    )
    assert settled(version)["reason"] == reason
    scored = registry.scored(registry.new_run(), sheet_of({"rte": {0: 0.7, 1: 0.72}}))  # as EvaluateFlow ends
    tracking.set_version_tags(NAME, "2", scored)
    again = settled(tracking.model_version_info(f"models:/{NAME}/2"))
    assert again["reason"].startswith("champion: against version 1: mean difference +0.1050")


def test_the_history_finds_a_place_where_the_newest_versions_run_was_purged(registry: Registry) -> None:
    registry.version(OLD)
    client().create_model_version(NAME, f"models:/{registry.model_id}", run_id="0" * 32, model_id=registry.model_id)
    assert champions.throne(NAME).champion is None
    assert promotion.force(tracking.model_version_info(f"models:/{NAME}/2"))["aliases"] == ["champion"]


def test_the_history_is_a_run_that_says_what_it_is(registry: Registry, tmp_path: Path) -> None:
    settled(registry.version(OLD))
    run = client().get_run(champions.throne(NAME).ledger)
    assert run.info.run_name == "champions of fast-electra"
    assert run.info.status == "FINISHED"
    assert run.data.params["champion.0001"].startswith("1 promoted 20")
