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


def test_before_and_after_says_which_direction_is_better() -> None:
    plan, made = plan_of(champion={"name": "fast-electra", "version": "3"}), made_of()
    before, after = ({"heldout_rtd_loss": loss, "heldout_auc": 0.75} for loss in (0.25, 0.375))
    made["trained"] = {"forgetting": [{"text": "old", "before": before, "after": after}]}
    section = retrain_report.sections(plan, retrain_report.outcome_of(plan, made), made)[-1]
    assert section.tables[0].rows[0] == ["old text", "RTD loss", "0.2500", "0.3750", "+0.1250"]
    assert "A lower loss is better, and a higher AUC or score." in section.note
