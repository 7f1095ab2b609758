"""The page of a comparison: what was asked, what came out, how sure, at what cost. For readers who know no code."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from fast_electra_core.arms import COMPARISONS, CompareConfig, list_arms, reference_of
from steps.charts import Chart, intervals, lines
from steps.page import Section, Table, interval, number, render, spread

Row = Mapping[str, Any]
_AVERAGE = "average"
_COSTS = {
    "total_flops": "FLOPs",
    "charged_flops": "FLOPs, auxiliary charged",
    "seconds": "seconds",
    "peak_memory_megabytes": "peak MB",
}


def page(found: Row) -> str:
    """The whole page; found as steps.compare.gather makes it."""
    settings = found["comparison"]
    sections = [_question(found), *_scores(found), _detection(found), _cost(found), _stability(found), _settings(found)]
    title = "Comparison of arms" if settings["arms"] else f"Comparison: {settings['comparison']}"
    return render(title, [section for section in sections if section])


def as_markdown(found: Row) -> str:
    """The main table as Markdown, for the terminal and the log, with what it lacks."""
    table = _score_table(found)
    lines_of = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    lines_of += [f"| {' | '.join(row)} |" for row in table.rows]
    notes = [f"- {note}" for note in _notes(found)]
    return "\n".join([*lines_of, "", *([*notes, ""] if notes else []), _reading(found), ""])


def _question(found: Row) -> Section:
    settings, arms = found["comparison"], [row for row in found["arms"] if row["arm"] != "untrained"]
    own = "What sets these arms apart?"
    question = own if settings["arms"] else COMPARISONS[settings["comparison"]].question
    facts = [
        ("arms", str(len(arms))),
        ("pre-trainings per arm", str(settings["pretrain_seeds"])),
        ("fine-tunings per task and pre-training", str(settings["seeds"])),
        ("tokens per pre-training" if settings["equal"] == "tokens" else "tokens of the reference", _tokens(settings)),
        ("diverged", str(sum(row["num_failed"] for row in arms))),
        ("no better than the majority class", str(sum(row["num_majority"] for row in arms))),
    ]
    return Section("The question", question, facts)


def _tokens(settings: Row) -> str:
    """Of a pre-training: one number, or the least and the most, where arms differ in steps or batches."""
    config = CompareConfig.from_dict(dict(settings))
    arms = list_arms(config)
    shown = arms if config.equal == "tokens" else [reference_of(arms, arm) for arm in arms]
    runs = [config.of_arm(arm) for arm in shown]
    tokens = {run.num_steps * run.batch_size * run.sequence_length for run in runs}
    return " to ".join(number(each) for each in sorted({min(tokens), max(tokens)}))


def _scores(found: Row) -> list[Section]:
    table = _score_table(found)
    if not table.rows:
        return []
    per_task = Section("Score by task", "Mean ± standard deviation over pre-trainings.", tables=[_task_table(found)])
    return [
        Section("Scores", _reading(found), charts=_score_charts(found), tables=[table]),
        *([per_task] if len(_tasks(found)) > 1 else []),
    ]


def _reading(found: Row) -> str:
    n = found["comparison"]["pretrain_seeds"]
    reference = next((row["reference"] for row in found["arms"] if row["reference"] != row["arm"]), "")
    few = f" With {n} pre-trainings an interval is wide: one that holds 0 says nothing either way." if n < 6 else ""
    if n == 1:
        few = " With 1 pre-training there is neither interval nor p, and the margin says nothing of the noise."
    return (
        "The score of a pre-training is the mean of its tasks' scores, each the mean over fine-tuning seeds. The "
        f"margin is the arm less the reference ({reference.partition(' ')[0]}, at the same point of the grid), seed by "
        "seed: same text, order and positions; with its 95 % interval (Student's) and a paired t-test's p, not "
        f"corrected for the number of arms.{few}"
    )


def _score_table(found: Row) -> Table:
    rows = []
    key = _key(found)
    for row in found["arms"]:
        score, margin = row["scores"].get(key), row["margins"].get(key)
        if not score:
            rows.append([row["arm"], "0", *["–"] * 6])
            continue
        rows.append(
            [
                row["arm"],
                str(score["n"]),
                spread(score),
                number(score["median"]),
                number(score["best"]),
                number(margin["mean"], signed=True) if margin else "–",
                interval(margin["low"], margin["high"], signed=True) if margin else "–",
                number(margin["p"]) if margin else "–",
            ]
        )
    return Table(["arm", "n", "mean ± std", "median", "best", "margin", "95 %", "p"], rows)


def _task_table(found: Row) -> Table:
    tasks = _tasks(found)
    rows = [[row["arm"], *(spread(row["scores"].get(task)) for task in tasks)] for row in found["arms"]]
    return Table(["arm", *tasks], rows)


def _score_charts(found: Row) -> list[Chart]:
    key = _key(found)
    margins = [(row["arm"], row["margins"].get(key)) for row in found["arms"]]
    dots = [(arm, margin["mean"], margin["low"], margin["high"]) for arm, margin in margins if margin]
    return _given(intervals(dots, "Margin over the reference, with its 95 % interval"))


def _detection(found: Row) -> Section | None:
    rows = [row for row in found["arms"] if "heldout_auc" in row["numbers"]]
    if not rows:
        return None
    names = {
        "heldout_rtd_loss": "RTD loss",
        "heldout_majority_loss": "majority's",
        "heldout_auc": "AUC",
        "heldout_recall_replaced": "recall",
    }
    table = Table(
        ["arm", *names.values()],
        [[row["arm"], *(number(row["numbers"].get(name)) for name in names)] for row in rows],
    )
    note = (
        "Medians over pre-trainings, on held-out text. Each method is scored on what its own auxiliary or generator "
        "replaces at the end: a better one sets a harder task, so these numbers rank no arms with different ones."
    )
    curve = lines(_curves(found, "heldout_auc"), "Held-out AUC over training (median)", x="progress", y="AUC")
    return Section("Detection of replaced tokens", note, charts=_given(curve), tables=[table])


def _curves(found: Row, name: str) -> dict[str, list[tuple[float, float]]]:
    """{arm: (progress, median over seeds)}."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in found["arms"]:
        at: dict[float, list[float]] = {}
        for run in found["runs"]:
            last = run["curve"][-1]["step"] if run["curve"] else 1
            for point in run["curve"] if run["arm"] == row["arm"] else ():
                if name in point:
                    at.setdefault(round(point["step"] / last, 3), []).append(point[name])
        series[row["arm"]] = [(x, statistics.median(at[x])) for x in sorted(at)]
    return series


def _cost(found: Row) -> Section | None:
    medians = {row["arm"]: row["numbers"] for row in found["arms"]}
    rows = []
    for row in found["arms"]:
        ours, theirs = row["numbers"], medians.get(row["reference"], {})
        if not ours:
            continue
        cells = [row["arm"]]
        for name in _COSTS:
            known = name in ours and theirs.get(name)
            value = ours.get(name)
            short = f"{value:.3e}" if value is not None and name.endswith("_flops") else number(value)
            cells += [short, f"{ours[name] / theirs[name]:.2f}" if known else "–"]
        rows.append(cells)
    columns = ["arm", *(column for name in _COSTS.values() for column in (name, "ratio"))]
    note = (
        "Medians over pre-trainings; ratios to the reference. FLOPs are counted from the layers, without and with the "
        "auxiliary's own training charged (– where what it has cost is not known); seconds are wall-clock, with "
        "whatever else the machine did; memory is the process's peak."
    )
    return Section("Cost of a pre-training", note, tables=[Table(columns, rows)]) if rows else None


def _stability(found: Row) -> Section | None:
    """How many runs failed, and, on a grid of one number, the score along it."""
    rows = [
        [row["arm"], str(row["num_runs"]), str(row["num_failed"]), str(row["num_majority"])]
        for row in found["arms"]
        if row["arm"] != "untrained"
    ]
    note = (
        "Diverged: the loss was no longer finite. At the majority class: on held-out text the main model knows no more "
        "than the share of replaced tokens."
    )
    charts = [chart for name in ("score", "AUC") for chart in _given(_along_grid(found, name))]
    return Section("Stability", note, charts=charts, tables=[Table(["arm", "runs", "diverged", "at majority"], rows)])


def _along_grid(found: Row, name: str) -> Chart | None:
    series: dict[str, list[tuple[float, float]]] = {}
    knobs, places = set(), set()
    key = _key(found)
    for row in found["arms"]:
        run = next(run for run in found["runs"] if run["arm"] == row["arm"])
        knob, _, value = run["point"].partition("=")
        try:
            x = float(value)
        except ValueError:  # no grid, several knobs, or words
            continue
        score = (row["scores"].get(key) or {}).get("median") if name == "score" else row["numbers"].get("heldout_auc")
        knobs.add(knob)
        places.add(x)
        # What has none is a gap: a line across it would say that the runs there had not diverged.
        series.setdefault(run["base"], []).append((x, math.nan if score is None else score))
    if len(knobs) != 1:
        return None
    points = {base: sorted(points) for base, points in series.items()}
    return lines(points, f"Median {name} along the grid", x=knobs.pop(), y=name, at=sorted(places))


def _settings(found: Row) -> Section:
    shown = {name: value for name, value in found["comparison"].items() if value not in (None, "")}
    tables = [Table(["shared by all arms", ""], [[k, str(v)] for k, v in shown.items()], is_prose=True)]
    if notes := _notes(found):
        tables.insert(0, Table(["to be known", ""], [[note, ""] for note in notes], is_prose=True))
    return Section("Settings", tables=tables)


def _notes(found: Row) -> list[str]:
    """What of a run is left out, and why."""
    notes = [f"{run['arm']} seed {run['turn']}: {note}" for run in found["runs"] for note in run["notes"]]
    return notes + [f"{run['arm']} seed {run['turn']}: {run['failure']}" for run in found["runs"] if run["failure"]]


def _tasks(found: Row) -> list[str]:
    return list(dict.fromkeys(task for run in found["runs"] for task in run["scores"]))


def _key(found: Row) -> str:
    tasks = _tasks(found)
    return tasks[0] if len(tasks) == 1 else _AVERAGE


def _given(chart: Chart | None) -> list[Chart]:
    return [chart] if chart else []
