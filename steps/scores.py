"""What the fine-tunings of a run amount to: statistics over seeds, averages, and the files that tell of them.

A result is what finetune.run returns; one that failed has `failed`, the reason, in place of scores.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.glue import DIAGNOSTIC, SPECS
from fast_electra_core.glue_metrics import electra_average, leaderboard_average
from fast_electra_core.leaderboard import write_submission
from steps.finetune import job_name

CONFIDENCE = 0.95
Result = Mapping[str, Any]


def chosen(results: Sequence[Result]) -> list[Result]:
    """The results that count: none that failed, and of several learning rates, for each task and start, the one at
    which most seeds ended; of those the one with the highest median of the task's metric on dev (the first given wins a
    tie). A rate that some seeds diverge at is judged by its luckiest otherwise."""
    kept: list[Result] = []
    for task, untrained in dict.fromkeys((each["task"], each["untrained"]) for each in results):
        of_start = [
            each
            for each in results
            if each["task"] == task and each["untrained"] == untrained and not each.get("failed")
        ]
        by_rate: dict[float, list[Result]] = {}
        for each in of_start:
            by_rate.setdefault(each["learning_rate"], []).append(each)
        if by_rate:
            main = of_start[0]["main_metric"]
            best = max(by_rate.values(), key=lambda group: (len(group), statistics.median(_values(group, main))))
            kept += best
    return kept


def failures(results: Sequence[Result]) -> list[dict[str, Any]]:
    """{task, seed, untrained, rate, reason} of each fine-tuning that failed."""
    return [
        {**{name: each[name] for name in ("task", "seed", "untrained", "rate")}, "reason": each["failed"]}
        for each in results
        if each.get("failed")
    ]


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per task and metric, in the order they come, over the seeds of what is `chosen`.

    Each row: task, metric, is_main, majority; pretrained and untrained, each None or {n, median, mean, std, best, low,
    high, num_degenerate, learning_rate, epochs, values}: low and high are Student's 95 % interval of the mean, values
    are by seed; margin = difference of the means; margin_low, margin_high = Welch's 95 % of it; is_outside_noise = that
    interval excludes 0, and is no point. These four are None without two seeds on both sides.
    """
    rows = []
    kept = chosen(results)
    for task in dict.fromkeys(result["task"] for result in kept):
        of_task = [result for result in kept if result["task"] == task]
        for metric in of_task[0]["scores"]:
            trained = [result for result in of_task if not result["untrained"]]
            untrained = [result for result in of_task if result["untrained"]]
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "is_main": metric == of_task[0]["main_metric"],
                    "majority": of_task[0]["majority"][metric],
                    "pretrained": _statistics(trained, metric),
                    "untrained": _statistics(untrained, metric),
                    **_margin(_values(trained, metric), _values(untrained, metric)),
                }
            )
    return rows


def statistics_of(values: Sequence[float]) -> dict[str, Any]:
    """n, median, mean, std, best, and Student's 95 % interval of the mean (low, high), of one value or more; std, low
    and high are None of one. The interval ends at -1 and 1, where every metric of a task does."""
    mean, half = statistics.fmean(values), _half_interval(values)
    return {
        "n": len(values),
        "median": statistics.median(values),
        "mean": mean,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "best": max(values),
        "low": None if half is None else max(-1.0, mean - half),
        "high": None if half is None else min(1.0, mean + half),
    }


def averages(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """ELECTRA's and the leaderboard's average of the trained encoder's scores, each the mean over its seeds: {name:
    {value, tasks, is_complete}}.

    Empty where no task counts towards one. They differ (see glue_metrics): never compare one with the other.
    """
    kept = [result for result in chosen(results) if not result["untrained"] and result["task"] in SPECS]
    scores = {
        task: {
            metric: statistics.fmean(_values([result for result in kept if result["task"] == task], metric))
            for metric in next(result["scores"] for result in kept if result["task"] == task)
        }
        for task in dict.fromkeys(result["task"] for result in kept)
    }
    found = {}
    for name, average, tasks in (
        ("electra", electra_average, set(scores) - {"wnli"}),
        ("leaderboard", leaderboard_average, set(scores)),
    ):
        if tasks:
            mean = average(scores)
            found[name] = {"value": mean.value, "tasks": list(mean.tasks), "is_complete": mean.is_complete}
    return found


def optimism(config: Mapping[str, Any]) -> list[str]:
    """In which ways the scores flatter, in words; empty by default."""
    found = []
    if config["best_epoch"]:
        found.append("best epoch on dev")
    if config["finetune_grid"]:
        found.append(f"best of the learning rates {config['finetune_grid']} on dev")
    return found


def submit(path: Path, results: Sequence[Result]) -> dict[str, Any]:
    """Write the leaderboard's zip, each task by its seed with the best dev score; {files, missing, seeds}.

    Nothing is written where no test set was answered.
    """
    best = _best_seeds(results)
    answers = {task: dict(each["test_predictions"]) for task, each in best.items() if task in SPECS}
    for predictions in list(answers.values()):
        if DIAGNOSTIC in predictions:
            answers[DIAGNOSTIC] = {"test": predictions.pop(DIAGNOSTIC)}
    files, missing = write_submission(path, answers) if answers else ([], [])
    seeds = {task: each["seed"] for task, each in best.items() if task in SPECS}
    return {"files": files, "missing": missing, "seeds": seeds}


def own_answers(results: Sequence[Result]) -> dict[str, str]:
    """The test answers of the user's own tasks, likewise chosen: by file name, a label word (or number) per line."""
    found = {}
    for task, each in _best_seeds(results).items():
        if task not in SPECS:
            answers, labels = each["test_predictions"]["test"], each["labels"]
            words = [labels[answer] for answer in answers] if labels else answers
            lines = [f"{index}\t{word}" for index, word in enumerate(words)]
            found[f"predictions/{task}.tsv"] = "\n".join(["index\tprediction", *lines, ""])
    return found


def _best_seeds(results: Sequence[Result]) -> dict[str, Result]:
    """Of each task whose test set was answered, the pre-trained seed with the best dev score, the first of equals."""
    best: dict[str, Result] = {}
    for each in chosen(results):
        if each["untrained"] or not each["test_predictions"]:
            continue
        main = each["main_metric"]
        if each["task"] not in best or each["scores"][main] > best[each["task"]]["scores"][main]:
            best[each["task"]] = each
    return best


def protocol(config: Mapping[str, Any]) -> str:
    """How a run fine-tunes, in words: `recipe electra, epochs 3, at most 128 tokens; seeds 0 to 4`."""
    given = {
        "rate {:g}": config["finetune_learning_rate"],
        "epochs {:g}": config["finetune_epochs"],
        "batch size {}": config["finetune_batch_size"],
        "layer decay {:g}": config["layer_decay"],
        "at most {:,} training examples": config["finetune_max_examples"],
        "at most {} tokens": config["finetune_max_length"],
    }
    words = [f"recipe {config['finetune_recipe']}"]
    words += [words.format(value) for words, value in given.items() if value is not None]
    if config["mnli_transfer"]:
        words.append("mrpc, stsb and rte from the encoder fine-tuned on mnli")
    seeds = "seed 0" if config["seeds"] == 1 else f"seeds 0 to {config['seeds'] - 1}"
    return f"{', '.join(words)}; {seeds}"


def notes(scores: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores must know besides: what flatters, what failed, what is missing."""
    found = [f"the scores flatter: {each}" for each in scores["optimism"]]
    found += [f"failed and left out: {failure_text(each)}" for each in scores["failures"]]
    if scores["skipped"]:
        found.append(f"broken rows left out: {', '.join(f'{n:,} of {task}' for task, n in scores['skipped'].items())}")
    degenerate = [
        f"{group['num_degenerate']} of {group['n']} {words}fine-tunings of {row['task']}"
        for row in scores["rows"]
        for group, words in ((row["pretrained"], ""), (row["untrained"], "untrained "))
        if row["is_main"] and group and group["num_degenerate"]
    ]
    if degenerate:
        found.append(f"one class only is predicted by {', '.join(degenerate)}")
    submission = scores["submission"]
    if submission["files"]:
        missing = f"; for the leaderboard it lacks {', '.join(submission['missing'])}" if submission["missing"] else ""
        found.append(f"test answers: submission.zip, {len(submission['files'])} of 11 files{missing}")
    return found + [f"test answers: {name}" for name in scores["own_answers"]]


def as_markdown(scores: Mapping[str, Any], *, heading: str) -> str:
    """The table of a run as Markdown; scores as scoring.gather_scores makes them."""
    rows = scores["rows"]
    has_baseline = any(row["untrained"] for row in rows)
    head = ["task", "metric", "n", "median", "mean", "std", "95 %", "best", "rate", "epochs"]
    head += ["untrained", "majority"] if has_baseline else ["majority"]
    lines = [f"# {heading}", "", f"{scores['subject']}: {scores['protocol']}.", ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        ours, theirs = row["pretrained"] or {}, row["untrained"] or {}
        interval = f"{ours['low']:.4f} to {ours['high']:.4f}" if ours.get("low") is not None else "–"
        cells = [
            *(row[name].replace("|", "\\|") for name in ("task", "metric")),
            *(_cell(ours.get(name)) for name in ("n", "median", "mean", "std")),
        ]
        cells += [interval, _cell(ours.get("best"))]
        cells += [f"{ours[name]:g}" if ours else "–" for name in ("learning_rate", "epochs")]
        cells += [_cell(theirs.get("mean"))] if has_baseline else []
        lines.append(f"| {' | '.join([*cells, _cell(row['majority'])])} |")
    lines.append("")
    for name, average in scores["averages"].items():
        if len(average["tasks"]) > 1:
            whole = "" if average["is_complete"] else ", incomplete"
            lines.append(f"- average as {name}'s: {average['value']:.4f} over {', '.join(average['tasks'])}{whole}")
    lines += [f"- {' '.join(note.split())}" for note in notes(scores)]  # a failure's reason may have several lines
    return "\n".join([*lines, ""])


def average_hint(average: Mapping[str, Any]) -> str:
    """What one of `averages` is of: `over 4 tasks, incomplete`."""
    return f"over {len(average['tasks'])} tasks{'' if average['is_complete'] else ', incomplete'}"


def failure_text(failure: Mapping[str, Any]) -> str:
    """`rte seed 2 untrained, rate 0.0003 (reason)`."""
    return f"{job_name(failure)} ({failure['reason']})"


def _cell(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:z.4f}"


def _values(results: Iterable[Result], metric: str) -> list[float]:
    return [result["scores"][metric] for result in results]


def _statistics(results: Sequence[Result], metric: str) -> dict[str, Any] | None:
    values = _values(results, metric)
    if not values:
        return None
    return {
        **statistics_of(values),
        "num_degenerate": sum(result["degenerate"] for result in results),
        "learning_rate": results[0]["learning_rate"],
        "epochs": results[0]["epochs"],
        "values": {str(result["seed"]): value for result, value in zip(results, values, strict=True)},
    }


def _half_interval(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    from scipy.stats import t

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _margin(trained: Sequence[float], untrained: Sequence[float]) -> dict[str, Any]:
    if len(trained) < 2 or len(untrained) < 2:
        return dict.fromkeys(("margin", "margin_low", "margin_high", "is_outside_noise"))
    from scipy.stats import t

    margin = statistics.fmean(trained) - statistics.fmean(untrained)
    parts = [statistics.variance(values) / len(values) for values in (trained, untrained)]
    half = 0.0
    if sum(parts) > 0:  # else every seed of a side scored the same: a point, and nothing to judge the noise by
        freedom = sum(parts) ** 2 / sum(
            part**2 / (len(values) - 1) for part, values in zip(parts, (trained, untrained), strict=True)
        )
        half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(sum(parts))
    low, high = margin - half, margin + half
    return {
        "margin": margin,
        "margin_low": low,
        "margin_high": high,
        "is_outside_noise": half > 0 and (low > 0 or high < 0),
    }
