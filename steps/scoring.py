"""What PretrainFlow and EvaluateFlow do to score an encoder: fine-tune in packs, gather, report. As in steps.lifecycle,
each is one attempt: an error in it marks the flow's MLflow run FAILED, the next attempt RUNNING again.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.config import ScoringConfig
from fast_electra_core.errors import DataError, StoreError, TrackingError, full_disk
from steps import tracking
from steps.store import Store
from steps.trace import (
    Plain,
    attempt,
    child,
    connect,
    finish,
    how_to_browse,
    log_task,
    made_of,
    model_tags,
    subject,
    suite,
)

_logger = logging.getLogger(__name__)


@attempt
def list_packs(plan: Plain) -> list[list[Plain]]:
    """The fine-tunings, in packs of about equal work."""
    from steps.finetune import list_packs

    return list_packs(ScoringConfig.part_of(plan["config"]), plan["tasks"])


@attempt
def finetune(plan: Plain, encoder_key: str, pack: Sequence[Plain], *, index: int | None = None) -> list[Plain]:
    """Do a pack's jobs; one that fails twice comes back with the reason in `failed`, and the others go on. index is the
    task's, by which it takes a GPU.

    Raises:
        TrackingError, StoreError, OSError: the server or the store is away, the disk is full. That is no fault of a
            job's: the next attempt at the step finds what was done, and does the rest.
    """
    from steps.finetune import in_turn, list_packs
    from steps.machine import share_cores, take_gpu

    take_gpu(index)
    store, config = connect(plan), ScoringConfig.part_of(plan["config"])
    share_cores(len(list_packs(config, plan["tasks"])))
    return [_twice(plan, encoder_key, job) for job in in_turn(pack, config, store=store, run_key=plan["run_key"])]


def _twice(plan: Plain, encoder_key: str, job: Plain) -> Plain:
    from steps.finetune import job_name

    reason = ""
    for turn in ("first", "second"):
        try:
            return _finetune(plan, encoder_key, job)
        except (TrackingError, StoreError):
            raise
        except Exception as error:  # whatever it was is reported by name at the end
            if full := full_disk(error):
                raise OSError(full) from error
            reason = f"{type(error).__name__}: {error}"
            _logger.warning("%s failed at the %s attempt: %s", job_name(job), turn, reason, exc_info=error)
    return {**job, "failed": reason}


def _finetune(plan: Plain, encoder_key: str, job: Plain) -> Plain:
    from steps.console import progress_lines
    from steps.finetune import follows_mnli, job_key, job_name, mnli_job, run
    from steps.task_models import drop_beaten

    store = connect(plan)
    config = ScoringConfig.part_of(plan["config"])
    if follows_mnli(job["task"], config):
        encoder_key = job_key(plan["run_key"], mnli_job(job))
        if not store.has(encoder_key):
            raise DataError(f"it starts from {job_name(mnli_job(job))}, which failed")
    name = job_name(job)
    with child(plan, name, params=job) as run_id:
        log_task(plan, run_id, job["task"])
        result = run(
            plan["config"],
            encoder_folder=store.get_folder(encoder_key),
            job=job,
            store=store,
            key=job_key(plan["run_key"], job),
            digest=plan["tasks"][job["task"]]["digest"],
            on_metrics=progress_lines(name),
        )
        if config.keep_task_models and not job["untrained"]:
            drop_beaten(store, plan["run_key"], job, config.seeds)
        rows = [{"step": step, **values} for step, values in _curve_rows(result["curve"])]
        tracking.log_metrics(run_id, [*rows, {"step": result["num_steps"], **result["scores"]}])
    scores = ", ".join(f"{metric} {value:.3f}" for metric, value in result["scores"].items())
    _logger.info("%s: %s (%.0f s)", name, scores, result["seconds"])
    return result


def _curve_rows(curve: Sequence[Mapping[str, float]]) -> list[tuple[int, dict[str, float]]]:
    return [(int(row["step"]), {key: row[key] for key in row if key != "step"}) for row in curve]


@attempt
def gather_scores(plan: Plain, results: Sequence[Plain], lost: Sequence[Any] = ()) -> tuple[Plain, str]:
    """All fine-tunings as rows per task and metric, with averages, failures and the leaderboard's files; their page.

    A fine-tuning whose machine was lost is looked up in the store, and counts as failed if it is not there.
    lost: what Metaflow's @catch has caught of the tasks that brought no results.

    Raises:
        DataError: every one of them failed, or a task ended in an error.
    """
    from steps import report, run_charts
    from steps.scores import as_markdown, failure_text, failures

    store = connect(plan)
    for each in lost:
        if not each.type.endswith(".FailureHandledByCatch"):  # Metaflow's word for a process that said nothing
            raise DataError(
                f"fine-tunings are missing, their task ended in: {each.exception}. Mend that, then `resume finetune` "
                "(`resume` alone takes over that they are missing)"
            )
    results = _with_lost_ones(plan, results, store)
    failed = failures(results)
    for failure in failed:
        _logger.warning("left out: %s", failure_text(failure))
    if len(failed) == len(results):
        # The tasks that they failed in have ended well for Metaflow: `resume` alone would take the failures over.
        first = failure_text(failed[0])
        raise DataError(f"every fine-tuning failed, first {first}; mend the cause, then `resume finetune`")
    scores = {**_summary(plan, results, store), **_log_answers(plan, results, store)}
    run_id = plan["mlflow_run_id"]
    suite_name = report.suite_name(plan["config"]["glue"], plan["tasks"])
    page = report.glue_page(scores, suite_name, run=plan["pathspec"])
    tracking.log_text(run_id, page, "pages/scores.html")
    tracking.log_dict(run_id, scores, "scores.json")
    tracking.log_text(run_id, as_markdown(scores, heading=suite_name), "scores.md")
    main = [row for row in scores["rows"] if row["is_main"]]
    tracking.log_figure(run_id, run_charts.scores(main).figure(), "charts/scores.png")
    tracking.log_results(run_id, _as_metrics(scores, results))
    return scores, page


def _summary(plan: Plain, results: Sequence[Plain], store: Store) -> Plain:
    """All that a table of the scores says, but for the test answers."""
    from steps import task_models
    from steps.score_sheet import score_sheet
    from steps.scores import averages, failures, optimism, protocol, summarise

    rows = summarise(results)
    return {
        "suite": suite(plan),
        "subject": subject(plan),
        "protocol": protocol(plan["config"]),
        "skipped": {task: facts["num_skipped"] for task, facts in plan["tasks"].items() if facts["num_skipped"]},
        "rows": rows,
        "sheet": score_sheet(plan["config"], plan["tasks"], rows),
        "averages": averages(results),
        "failures": failures(results),
        "optimism": optimism(plan["config"]),
        "task_models": task_models.pick(results, store, plan["run_key"]),
        "seconds": _seconds(results),
    }


def _seconds(results: Sequence[Plain]) -> dict[str, float]:
    """Of all fine-tunings that ended, by what they started from."""
    ended = [result for result in results if not result.get("failed")]
    return {
        "fine-tuning": sum(each["seconds"] for each in ended if not each["untrained"]),
        "fine-tuning, untrained": sum(each["seconds"] for each in ended if each["untrained"]),
    }


def _log_answers(plan: Plain, results: Sequence[Plain], store: Store) -> Plain:
    """Test answers as artifacts: the leaderboard's zip, and a file for each of the user's own tasks."""
    from steps.scores import own_answers, submit

    run_id = plan["mlflow_run_id"]
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        zipped = Path(scratch) / "submission.zip"
        submission = submit(zipped, results)
        if zipped.is_file():
            tracking.log_file(run_id, zipped)
    answers = own_answers(results)
    for name, text in answers.items():
        tracking.log_text(run_id, text, name)
    return {"submission": submission, "own_answers": list(answers)}


def _as_metrics(scores: Plain, results: Sequence[Plain]) -> dict[str, float]:
    """Medians by task, metric and start, averages of several tasks, and how many fine-tunings failed or degenerated."""
    medians = {
        f"{row['task']}.{row['metric']}.{start}": row[start]["median"]
        for row in scores["rows"]
        for start in ("pretrained", "untrained")
        if row[start] is not None
    }
    several = {name: average for name, average in scores["averages"].items() if len(average["tasks"]) > 1}
    return {
        **medians,
        **{f"average.{name}": average["value"] for name, average in several.items()},
        "finetunings.failed": len(scores["failures"]),
        "finetunings.degenerate": sum(bool(result.get("degenerate")) for result in results),
    }


@attempt
def register_task_models(plan: Plain, scores: Plain, encoder: Plain | None = None, *, pathspec: str) -> list[Plain]:
    """Register what gather_scores has picked; returns the versions.

    encoder: the registered version that they were fine-tuned from, with its digest; None: the evaluation's model.
    """
    from steps import task_models

    connect(plan)
    if not scores["task_models"]:
        return []
    tags = {
        "metaflow.pathspec": pathspec,
        "mlflow.parent_run_id": plan["mlflow_run_id"],
        "config.digest": plan["config_digest"],
        **plan["code"],
        **made_of(plan),
    }
    return task_models.register(plan, scores, encoder or _evaluated(plan["model"]), tags)


def _evaluated(model: Plain) -> Plain:
    if not model["address"].startswith("models:/"):
        return {"name": model["address"], "digest": model["digest"]}
    name, _, number = model["version"].rpartition("/")
    info = tracking.model_version_info(f"models:/{name}/{number}")
    return {**info, "digest": model["digest"]}


def _with_lost_ones(plan: Plain, results: Sequence[Plain], store: Store) -> list[Plain]:
    from steps.finetune import job_key, job_name, stored_result

    found = {job_name(result): result for result in results if not result.get("failed")}
    reasons = {job_name(result): result["failed"] for result in results if result.get("failed")}
    for job in [job for pack in list_packs(plan) for job in pack]:
        if job_name(job) not in found:
            key = job_key(plan["run_key"], job)
            lost = {**job, "failed": reasons.get(job_name(job), "its machine was lost, twice")}
            found[job_name(job)] = stored_result(store, key) if store.has(key) else lost
    tasks = list(plan["tasks"])
    return sorted(found.values(), key=lambda result: (tasks.index(result["task"]), result["seed"], result["untrained"]))


@attempt
def close_evaluate(plan: Plain, scores: Plain, task_models: Sequence[Plain]) -> str:
    """End the MLflow run of an evaluation; returns the closing words."""
    from steps import report
    from steps.closing_table import closing_table

    connect(plan)
    run_id = plan["mlflow_run_id"]
    table = closing_table(
        auxiliary=None,
        scores=scores,
        suite_name=report.suite_name(plan["config"]["glue"], plan["tasks"]),
        task_models=task_models,
        browse=how_to_browse(plan),
    )
    tracking.log_text(run_id, table, "report.txt")
    tracking.set_tags(run_id, model_tags(plan))
    _note_scores(plan, scores)
    finish(plan)
    return table


def _note_scores(plan: Plain, scores: Plain) -> None:
    """A registered version that was scored leads to its scores, so that others can be compared with it."""
    from steps.score_sheet import TAG, key_of

    if plan["model"]["version"] == "not registered":
        return
    name, _, number = plan["model"]["version"].rpartition("/")
    try:
        tracking.set_version_tags(name, number, {f"{TAG}{key_of(scores['sheet'])}": plan["mlflow_run_id"]})
    except TrackingError as error:  # whoever may read a registry may not write to it
        _logger.warning("%s does not lead to these scores: %s", plan["model"]["version"], error)
