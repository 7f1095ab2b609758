"""The table that ends a flow in the terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from steps import cost_words
from steps.page import number, spread
from steps.scores import average_hint, notes

_WIDTH = 100  # columns
_LABEL = 38  # of them, at most: whatever a task is called, its score stays in sight
Row = Mapping[str, Any]


def closing_table(
    *,
    auxiliary: Row | None,
    heldout: Row | None = None,
    scores: Row | None = None,
    suite_name: str = "sample tasks",
    cost: Row | None = None,
    registered: Row | None = None,
    task_models: Sequence[Row] = (),
    browse: str = "make ui",
) -> str:
    """What the terminal shows at the end, at most 100 columns wide.

    auxiliary: the chosen candidate's dict; heldout: the last held-out row; scores: scoring.gather_scores; cost:
    ledger.account_*; registered: what register_* returned; task_models: what register_task_models did; browse: how
    to open MLflow. What is None or empty is left out.
    """
    lines: list[tuple[str, str, str]] = []
    if auxiliary is not None:
        lines += [
            ("auxiliary: held-out masked loss", *_pair(auxiliary, "masked_loss", "unigram_loss", "unigram")),
            ("auxiliary: masked accuracy", *_pair(auxiliary, "masked_accuracy", "unigram_accuracy", "unigram")),
        ]
    if heldout is not None and "heldout_masked_loss" in heldout:
        lines += [
            ("main model: held-out masked loss", *_pair(heldout, *_masked("loss"), "unigram")),
            ("main model: masked accuracy", *_pair(heldout, *_masked("accuracy"), "unigram")),
        ]
    elif heldout is not None:
        rtd = _pair(heldout, "heldout_rtd_loss", "heldout_majority_loss", "majority class")
        lines += [
            ("main model: held-out RTD loss", *rtd),
            ("main model: AUC, replaced tokens", number(heldout.get("heldout_auc")), "chance 0.5"),
            ("main model: recall, replaced", number(heldout.get("heldout_recall_replaced")), ""),
            ("main model: precision, replaced", number(heldout.get("heldout_precision_replaced")), ""),
        ]
    main = [row for row in scores["rows"] if row["is_main"]] if scores else []
    lines += [_task_line(row) for row in main]
    lines += [
        (f"average, as {name}'s", f"{average['value']:.3f}", average_hint(average))
        for name, average in (scores["averages"] if scores else {}).items()
        if len(average["tasks"]) > 1
    ]
    lines += cost_words.closing_lines(cost) if cost is not None else []
    if registered is not None:
        known = " ".join(f"@{alias}" for alias in registered.get("aliases", ())) or "no alias"
        lines.append(("registered", f"{registered['name']} {registered['version']}", known))
        lines += _gate_lines(registered.get("gates", ()))
    remarks = []
    if scores and main:
        star = "; * differs from the untrained encoder (95 %)" if any(row["untrained"] for row in main) else ""
        remarks = [f"{suite_name}: mean ± std over seeds{star}", f"{scores['subject']}: {scores['protocol']}"]
        remarks += notes(scores)
    if registered is not None and registered.get("gates"):
        open_gates = [each for each in registered["gates"] if each["status"] != "pass"]
        remarks += [f"gate {each['name']} {each['status']}: {each['reason']}" for each in open_gates]
    if registered is not None and "reason" in registered and (registered.get("gates") or not registered["aliases"]):
        remarks.append(str(registered["reason"]))
    if task_models:
        versions = [f"{each['name']} {each['version']}" for each in task_models]
        remarks.append(f"task models: {', '.join(versions)}")
    return _aligned(lines, [*remarks, f"browse runs and lineage: {browse}"])


def _gate_lines(gates: Sequence[Row]) -> list[tuple[str, str, str]]:
    """One line: how many pass, and which do not."""
    if not gates:
        return []
    others = [f"{each['name']} {each['status']}" for each in gates if each["status"] != "pass"]
    return [("gates", f"{len(gates) - len(others)} of {len(gates)} pass", ", ".join(others))]


def _masked(score: str) -> tuple[str, str]:
    return f"heldout_masked_{score}", f"heldout_unigram_{score}"


def _aligned(lines: Sequence[tuple[str, str, str]], remarks: Sequence[str]) -> str:
    lines = [(_short(name), value, hint) for name, value, hint in lines]
    width = max((len(name) for name, _, _ in lines), default=0)
    middle = max((len(value) for _, value, _ in lines), default=0)
    body = [f"  {name:<{width}}  {value:>{middle}}  {hint}".rstrip() for name, value, hint in lines]
    # A command is to be pasted and an address to be clicked on: both stay whole.
    wrapper = textwrap.TextWrapper(_WIDTH - 2, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    under = [wrapped for note in remarks for wrapped in wrapper.wrap(note)]
    body = [line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in body]
    rule = "-" * max((len(line) for line in body), default=0)
    return "\n".join([rule, *body, rule, *(f"  {note}" for note in under)])


def _short(label: str) -> str:
    """Without its middle, where it is too long; a task's metric stands at its end."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 21]}…{label[-20:]}"


def _pair(row: Row, key: str, baseline: str, name: str) -> tuple[str, str]:
    return number(row.get(key)), f"{name} {number(row.get(baseline))}"


def _task_line(row: Row) -> tuple[str, str, str]:
    star = " *" if row.get("is_outside_noise") else ""
    untrained = f"untrained {spread(row['untrained'], 3)}, " if row.get("untrained") else ""
    metric = str(row["metric"]).replace("_correlation", "")
    return (
        f"{row['task']}: {metric}",
        spread(row.get("pretrained"), 3) + star,
        f"{untrained}majority {row['majority']:z.3f}",
    )
