"""What is said of a retraining, of a plan and a result by hand."""

from typing import Any

import pytest

from steps import retrain_report

NOTHING: dict[str, list[str]] = {"new": [], "changed": [], "duplicates": [], "kept": [], "gone": []}


def plan_of(**changes: Any) -> dict[str, Any]:
    plan = {
        "pathspec": "RetrainFlow/1",
        "mlflow_url": "http://host",
        "way": "scratch",
        "reason": "there is no champion",
    }
    return {**plan, "champion": None, "changes": {**NOTHING, "new": ["a.txt"]}, "old_shard_keys": [], **changes}


def made_of(*aliases: str) -> dict[str, Any]:
    version = {"name": "fast-electra", "version": "4", "aliases": list(aliases), "reason": "gate licence: not stated"}
    return {"version": version, "frozen": {}, "trained": {"forgetting": []}, "tasks": []}


@pytest.mark.parametrize(
    "champion, aliases, now",
    [
        (None, (), "none"),
        (None, ("champion",), "fast-electra 4"),
        ({"name": "fast-electra", "version": "3"}, (), "unchanged"),
    ],
)
def test_the_page_says_who_is_champion_now(champion: Any, aliases: tuple[str, ...], now: str) -> None:
    plan, made = plan_of(champion=champion), made_of(*aliases)
    first = retrain_report.sections(plan, retrain_report.outcome_of(plan, made), made)[0]
    assert dict(first.facts)["champion now"] == now


def test_the_words_are_of_what_came_of_the_run_and_of_nothing_else() -> None:
    champion = {"name": "fast-electra", "version": "3"}
    files = {**NOTHING, "new": ["a", "b"], "kept": ["c"]}
    plan = plan_of(champion=champion, changes=files, way="continue", reason="there is text")
    made = made_of("challenger")
    before, after = ({"heldout_rtd_loss": loss, "heldout_auc": 0.75} for loss in (0.25, 0.375))
    made["trained"] = {"forgetting": [{"text": "old", "before": before, "after": after}]}
    made["frozen"] = {"address": "hub:x", "is_kept": True, "drift": 0.0625}
    assert retrain_report.outcome_of(plan, made)["words"].splitlines() == [
        "RetrainFlow/1: the champion was continued on new text: there is text",
        "files: 2 new, 1 seen before",
        "held-out RTD loss on old text: 0.2500 before, 0.3750 after",
        "auxiliary: kept; drift +0.062 nats",
        "fast-electra 4: gate licence: not stated",
    ]
    made["frozen"]["is_kept"] = False
    assert retrain_report.outcome_of(plan, made)["auxiliary"] == "re-chosen: hub:x; drift +0.062 nats"
    nothing = plan_of(champion=champion, changes=NOTHING, way="nothing", reason="too little")
    assert retrain_report.outcome_of(nothing)["words"].splitlines() == [
        "RetrainFlow/1: nothing to do: too little",
        "champion is still fast-electra 3",
    ]


def test_of_many_files_the_first_are_named_and_the_others_counted() -> None:
    plan = plan_of(changes={**NOTHING, "new": [f"{index}.txt" for index in range(23)]})
    text = retrain_report.sections(plan, retrain_report.outcome_of(plan, made_of()))[1]
    ((_, names),) = text.tables[0].rows
    assert names == ", ".join(f"{index}.txt" for index in range(20)) + " and 3 more"
    twenty = plan_of(changes={**NOTHING, "new": ["a"] * 20})
    assert "more" not in retrain_report.sections(twenty, retrain_report.outcome_of(twenty))[1].tables[0].rows[0][1]


def test_before_and_after_says_which_direction_is_better() -> None:
    plan, made = plan_of(champion={"name": "fast-electra", "version": "3"}), made_of()
    before, after = ({"heldout_rtd_loss": loss, "heldout_auc": 0.75} for loss in (0.25, 0.375))
    made["trained"] = {"forgetting": [{"text": "old", "before": before, "after": after}]}
    section = retrain_report.sections(plan, retrain_report.outcome_of(plan, made), made)[-1]
    assert section.tables[0].rows[0] == ["old text", "RTD loss", "0.2500", "0.3750", "+0.1250"]
    assert "A lower loss is better, and a higher AUC or score." in section.note


def test_what_happened_to_a_champion_that_was_continued_is_told_in_facts_and_one_sentence_for_each_why() -> None:
    settings = {"curriculum": "constant", "max_auxiliary_drift": 0.5}
    champion = {"name": "fast-electra", "version": "3"}
    plan = plan_of(champion=champion, way="continue", reason="there is text", replay_fraction=0.25, retrain=settings)
    first = retrain_report.sections(plan, retrain_report.outcome_of(plan, made_of()), made_of())[0]
    assert (first.note, list(first.facts)) == (
        "there is text. gate licence: not stated",
        [
            ("way", "the champion was continued on new text"), ("champion before", "fast-electra 3"),
            ("registered", "fast-electra 4"), ("champion now", "unchanged"), ("replayed share", "0.25"),
            ("curriculum", "constant"),
        ],
    )  # fmt: skip
    nothing = plan_of(champion=champion, way="nothing", reason="too little")
    first = retrain_report.sections(nothing, retrain_report.outcome_of(nothing))[0]
    facts = [("way", "nothing to do"), ("champion before", "fast-electra 3")]
    assert (first.note, list(first.facts)) == ("too little", facts)


def test_an_auxiliary_that_was_compared_with_none_was_chosen_for_a_first_model() -> None:
    assert retrain_report.outcome_of(plan_of(), made_of())["auxiliary"] == "chosen for a first model"


def test_an_outcome_leads_to_its_run_and_has_the_tasks_before_and_after() -> None:
    made = {**made_of(), "tasks": ({"task": "rte", "metric": "accuracy", "before": 0.5, "after": 0.75},)}
    outcome = retrain_report.outcome_of(plan_of(), made)
    assert (outcome["run"], outcome["mlflow"]) == ("RetrainFlow/1", "http://host")
    assert outcome["tasks"] == [{"task": "rte", "metric": "accuracy", "before": 0.5, "after": 0.75}]


def test_files_are_counted_by_kind_and_those_kinds_named_that_there_are() -> None:
    plan = plan_of(changes={**NOTHING, "changed": ["a.txt", "b.txt"], "gone": ["c.txt"]})
    text = retrain_report.sections(plan, retrain_report.outcome_of(plan))[1]
    assert list(text.facts) == [
        ("new", "0"), ("rewritten under the same name", "2"), ("duplicates", "0"), ("seen before", "0"), ("gone", "1"),
    ]  # fmt: skip
    (table,) = text.tables
    assert table.rows == [["rewritten under the same name", "a.txt, b.txt"], ["gone", "c.txt"]]
    assert table.is_prose
    none = plan_of(changes=NOTHING)
    assert retrain_report.sections(none, retrain_report.outcome_of(none))[1].tables == []


def test_what_was_not_measured_on_one_side_has_no_change() -> None:
    plan, made = plan_of(), made_of()
    before, after = ({"heldout_rtd_loss": 0.25, "heldout_auc": auc} for auc in (0.75, None))
    made["trained"] = {"forgetting": [{"text": "old", "before": before, "after": after}]}
    made["tasks"] = [
        {"task": "rte", "metric": "accuracy", "before": 0.75, "after": 0.5},
        {"task": "cola", "metric": None, "before": None, "after": 0.5},
    ]
    section = retrain_report.sections(plan, retrain_report.outcome_of(plan, made), made)[-1]
    assert section.tables[0].rows[1:] == [
        ["old text", "AUC", "0.7500", "–", "–"],
        ["task rte", "accuracy", "0.7500", "0.5000", "-0.2500"],
        ["task cola", "–", "–", "0.5000", "–"],
    ]


def test_the_auxiliaries_are_shown_where_there_is_old_text_to_compare_with() -> None:
    own = {"address": "models:/a/1", "is_kept": True, "old_masked_loss": 2.0, "masked_loss": 2.25, "drift": 0.25}
    other = {**own, "address": "hub:x", "is_kept": False, "masked_loss": 1.5, "drift": -0.5}
    plan, made = plan_of(retrain={"max_auxiliary_drift": 0.125}), {**made_of(), "candidates": [own, other]}
    outcome = retrain_report.outcome_of(plan, made)
    assert [section.heading for section in retrain_report.sections(plan, outcome, made)] == [
        "What happened, and why", "Text, against what the champion has seen",
    ]  # fmt: skip
    section = retrain_report.sections({**plan, "old_shard_keys": ["tokens/1"]}, outcome, made)[-1]
    assert section.note == "Drift of at most 0.125 nats is allowed."
    assert section.tables[0].rows == [
        ["models:/a/1", "champion's own", "2.0000", "2.2500", "+0.2500"],
        ["hub:x", "", "2.0000", "1.5000", "-0.5000"],
    ]


def test_the_page_of_a_run_that_had_nothing_to_do_is_headed_by_the_run_and_leads_to_mlflow() -> None:
    plan = plan_of(way="nothing", reason="too little")
    page = retrain_report.page({**plan, "outcome": retrain_report.outcome_of(plan)})
    assert "<p>RetrainFlow/1</p>" in page and '<a href="http://host"' in page
