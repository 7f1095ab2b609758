"""What came of a retraining, and why: as plain values, in words, and as the first sections of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from steps import tracking
from steps.page import Section, Table, number, render

Row = Mapping[str, Any]
Plain = dict[str, Any]
OUTCOME_FILE = "retraining.json"
"""Artifact of the MLflow run: outcome_of's."""
_NAMES_SHOWN = 20
_ABOUT = {
    "new": "new",
    "changed": "rewritten under the same name",
    "duplicates": "duplicates",
    "kept": "seen before",
    "gone": "gone",
}
_WAYS = {
    "nothing": "nothing to do",
    "scratch": "a first model was trained",
    "continue": "the champion was continued on new text",
}


def outcome_of(plan: Row, made: Row | None = None) -> Plain:
    """All that is to be told of a run, of plain JSON types; made is retrain.register's, None where nothing was trained.

    {run, mlflow, way, reason, files: {kind: count}, champion_before, version, is_promoted, promotion, auxiliary,
    forgetting, tasks, words}; what does not apply is None or empty.
    """
    champion, version = plan["champion"], made["version"] if made else None
    outcome = {
        "run": plan["pathspec"],
        "mlflow": plan["mlflow_url"],
        "way": plan["way"],
        "reason": plan["reason"],
        "files": {kind: len(names) for kind, names in plan["changes"].items()},
        "champion_before": f"{champion['name']} {champion['version']}" if champion else None,
        "version": f"{version['name']} {version['version']}" if version else None,
        "is_promoted": bool(version) and tracking.CHAMPION in (version or {}).get("aliases", ()),
        "promotion": version["reason"] if version else None,
        "auxiliary": _choice(made["frozen"]) if made else None,
        "forgetting": list(made["trained"]["forgetting"]) if made else [],
        "tasks": list(made["tasks"]) if made else [],
    }
    return {**outcome, "words": _words(outcome)}


def log(plan: Row, outcome: Plain) -> None:
    """The MLflow run has the outcome, as an artifact and as tags to search for."""
    run_id = plan["mlflow_run_id"]
    tracking.log_dict(run_id, outcome, OUTCOME_FILE)
    tracking.log_text(run_id, outcome["words"], "retraining.txt")
    tags = {"way": outcome["way"], "reason": outcome["reason"], "is_promoted": str(outcome["is_promoted"]).lower()}
    tracking.set_tags(run_id, {f"retrain.{name}": value for name, value in tags.items()})


def page(plan: Row) -> str:
    """The whole page of a run that had nothing to do."""
    return render("Retraining: nothing to do", sections(plan, plan["outcome"]), plan["pathspec"], plan["mlflow_url"])


def sections(plan: Row, outcome: Row, made: Row | None = None) -> list[Section]:
    """What happened and why, the text, what was forgotten, and the auxiliary."""
    parts = [_what_happened(plan, outcome), _text(plan)]
    if outcome["forgetting"]:
        parts.append(_forgetting(outcome))
    if made and plan["old_shard_keys"]:
        parts.append(_auxiliary(made["candidates"], plan["retrain"]["max_auxiliary_drift"]))
    return parts


def _words(outcome: Row) -> str:
    """A few lines for a terminal or a chat."""
    lines = [f"{outcome['run']}: {_WAYS[outcome['way']]}: {outcome['reason']}"]
    files = ", ".join(f"{count:,} {_ABOUT[kind]}" for kind, count in outcome["files"].items() if count)
    lines += [f"files: {files}"] if files else []
    for row in outcome["forgetting"]:
        before, after = (row[when]["heldout_rtd_loss"] for when in ("before", "after"))
        lines.append(f"held-out RTD loss on {row['text']} text: {before:.4f} before, {after:.4f} after")
    if outcome["auxiliary"]:
        lines.append(f"auxiliary: {outcome['auxiliary']}")
    if outcome["version"]:
        lines.append(f"{outcome['version']}: {outcome['promotion']}")
    elif outcome["champion_before"]:
        lines.append(f"champion is still {outcome['champion_before']}")
    return "\n".join(lines)


def _choice(frozen: Row) -> str:
    """Whether the auxiliary was kept, and by how much it had drifted."""
    if "drift" not in frozen:
        return "chosen for a first model"
    verb = "kept" if frozen["is_kept"] else f"re-chosen: {frozen['address']}"
    return f"{verb}; drift {frozen['drift']:+.3f} nats"


def _what_happened(plan: Row, outcome: Row) -> Section:
    facts = [("way", _WAYS[outcome["way"]]), ("champion before", outcome["champion_before"] or "none")]
    if outcome["version"]:
        facts.append(("registered", outcome["version"]))
        before = "unchanged" if outcome["champion_before"] else "none"
        facts.append(("champion now", outcome["version"] if outcome["is_promoted"] else before))
    if plan["way"] == "continue":
        facts.append(("replayed share", f"{plan['replay_fraction']:g}"))
        facts.append(("curriculum", plan["retrain"]["curriculum"]))
    why = [outcome["reason"], outcome["promotion"] or ""]
    return Section("What happened, and why", ". ".join(each for each in why if each), facts)


def _text(plan: Row) -> Section:
    changes = plan["changes"]
    facts = [(_ABOUT[kind], number(len(names))) for kind, names in changes.items()]
    rows = [[_ABOUT[kind], _names(names)] for kind, names in changes.items() if names]
    tables = [Table(["files", "names"], rows, is_prose=True)] if rows else []
    return Section(
        "Text, against what the champion has seen", "Told by content, not by name or date.", facts, (), tables
    )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _forgetting(outcome: Row) -> Section:
    names = {"heldout_rtd_loss": "RTD loss", "heldout_auc": "AUC"}
    rows = [
        _change(f"{row['text']} text", label, row["before"][name], row["after"][name])
        for row in outcome["forgetting"]
        for name, label in names.items()
    ]
    rows += [
        _change(f"task {row['task']}", row["metric"] or "–", row["before"], row["after"]) for row in outcome["tasks"]
    ]
    note = (
        "Held-out text, its tokens replaced alike before and after; tasks are means over the seeds, before as the "
        "champion's own run scored them (– where that was done otherwise). A lower loss is better, and a higher AUC or "
        "score."
    )
    return Section("Before and after", note, tables=[Table(["on", "measure", "before", "after", "change"], rows)])


def _change(what: str, measure: str, before: float | None, after: float | None) -> list[str]:
    change = None if before is None or after is None else after - before
    return [what, measure, number(before), number(after), number(change, signed=True)]


def _auxiliary(candidates: Sequence[Row], bound: float) -> Section:
    rows = [
        [
            str(row["address"]),
            "champion's own" if row["is_kept"] else "",
            *(number(row[name]) for name in ("old_masked_loss", "masked_loss")),
            number(row["drift"], signed=True),
        ]
        for row in candidates
    ]
    columns = ["auxiliary", "", "masked loss, old text", "new text", "drift"]
    return Section(
        "The auxiliary on new text", f"Drift of at most {bound:g} nats is allowed.", tables=[Table(columns, rows)]
    )
