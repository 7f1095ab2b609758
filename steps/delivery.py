"""What ends a flow that trains: registering, gates and promotion, the closing words and the report.

As in steps.lifecycle, each is one attempt.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fast_electra_core.config import PretrainConfig, TrainingConfig
from steps import tracking
from steps.lifecycle import heldout_rows, indices_of
from steps.trace import (
    Plain,
    attempt,
    auxiliary_tags,
    connect,
    corpus_dataset,
    costs,
    finish,
    how_to_browse,
    lineage_tags,
    method_tags,
    note_use,
    task_dataset,
)

if TYPE_CHECKING:
    from steps.charts import Chart
    from steps.page import Section

_logger = logging.getLogger(__name__)


@attempt
def register_auxiliary(plan: Plain, text: Plain, trained: Plain, *, pathspec: str) -> Plain:
    """Register the masked language model; the champion's alias goes to one that beats the unigram model."""
    from steps.register import register_auxiliary as register
    from steps.register import training_tags

    store = connect(plan)
    version = register(
        plan["config"],
        folder=store.get_folder(trained["key"]),
        run_id=trained["mlflow_run_id"],
        tags={
            **lineage_tags(plan, pathspec),
            "auxiliary.digest": trained["digest"],
            "weights.digest": trained["digest"],
            "training.num_tokens": trained["num_tokens"],
            **training_tags(trained["cost"]),
            "corpus.num_tokens": text["num_train_tokens"],
        },
        metrics=trained["scores"],
        cost=trained,
    )
    note_use(plan, None, version)
    return version


@attempt
def close_auxiliary(plan: Plain, trained: Plain, version: Plain) -> str:
    """End the MLflow run; returns the closing words."""
    from steps.closing_table import closing_table

    connect(plan)
    tracking.log_metrics(plan["mlflow_run_id"], [{"step": 0, **trained["scores"], **costs(trained)}])
    finish(plan)
    return closing_table(
        auxiliary=trained["scores"], cost=trained["cost"], registered=version, browse=how_to_browse(plan)
    )


@attempt
def register_discriminator(
    plan: Plain, text: Plain, frozen: Plain, trained: Plain, scores: Plain, *, pathspec: str
) -> Plain:
    """Register the main model with its lineage, and as yet without alias: `promote` comes when its task models are
    registered too."""
    from steps import score_sheet
    from steps.promotion import WAIVED_TAG
    from steps.register import register_discriminator as register
    from steps.register import training_tags

    store = connect(plan)
    main = [row for row in scores["rows"] if row["is_main"] and row["pretrained"]]
    digests = {row["task"]: plan["tasks"][row["task"]]["digest"] for row in main}
    metrics = {f"{row['task']}.{row['metric']}": row["pretrained"]["mean"] for row in main}
    datasets = {f"{row['task']}.{row['metric']}": task_dataset(plan, row["task"]) for row in main}
    datasets |= dict.fromkeys(trained["scores"], corpus_dataset(plan))
    average = scores["averages"].get("electra")
    if average is not None:
        metrics["glue.average"] = average["value"]
    version = register(
        plan["config"],
        folder=store.get_folder(trained["key"]),
        run_id=trained["mlflow_run_id"],
        tags={
            **lineage_tags(plan, pathspec),
            **method_tags(plan),
            **auxiliary_tags(frozen),
            **trained["corruption"],
            **({WAIVED_TAG: plan["config"]["waive_gates"]} if plan["config"]["waive_gates"] else {}),
            "weights.digest": trained["digest"],
            "corpus.num_tokens": text["num_train_tokens"],
            "glue.suite": f"{scores['suite']}:{TrainingConfig.digest_of(digests)}",
            f"{score_sheet.TAG}{score_sheet.key_of(scores['sheet'])}": plan["mlflow_run_id"],
            **training_tags(trained["cost"]),
        },
        metrics={**metrics, **trained["scores"]},
        evidence={"scores": scores, "cost": {**trained, **trained["cost"]["flops"]}, "datasets": datasets},
    )
    note_use(plan, frozen, version)
    return version


@attempt
def promote(plan: Plain, scores: Plain, version: Plain) -> Plain:
    """The registered main model becomes challenger if it passes its gates, and champion by the config's `promote`.

    To be called when its task models are registered (scoring.register_task_models). Returns version with aliases,
    reason, and gates: [{name, status, reason}]. A decision that an earlier attempt has made stays as it is.
    """
    from steps.gates import examine
    from steps.promotion import Rule, decided, settle

    store, config = connect(plan), PretrainConfig.part_of(plan["config"])
    info = tracking.model_version_info(f"models:/{version['name']}/{version['version']}")
    earlier = decided(info)
    if earlier is not None:
        return {**version, **earlier}
    gates = examine(info, scores["sheet"], waived=config.waived_gates(), store=store)
    settled = settle(info, gates, Rule(config.promote, config.promotion_margin))
    _logger.info("%s version %s: %s", version["name"], version["version"], settled["reason"])
    return {**version, **settled}


@attempt
def close_pretrain(
    plan: Plain,
    text: Plain,
    candidates: Sequence[Plain],
    frozen: Plain,
    trained: Plain,
    scores: Plain,
    version: Plain,
    *,
    first: Sequence["Section"] = (),
    task_models: Sequence[Plain] = (),
) -> tuple[str, str]:
    """The closing table for the terminal and the whole report, which begins with the sections in first; ends the MLflow
    run."""
    from steps import report, run_charts
    from steps.closing_table import closing_table
    from steps.promotion import rival_of

    connect(plan)
    run_id = plan["mlflow_run_id"]
    suite_name = report.suite_name(plan["config"]["glue"], plan["tasks"])
    rival, heldout = rival_of(version), heldout_rows(trained["curve"])
    seconds = {"tokenizing": text["tokenizing_seconds"], **scores["seconds"]}
    page = report.final_page(
        {
            "title": f"Fast-ELECTRA: {version['name']} version {version['version']}",
            "subtitle": f"{plan['pathspec']} · method {plan['config']['method']} · MLflow run {run_id}",
            "link": plan["mlflow_url"],
            "first": first,
            "registered": version,
            "glue": {"scores": scores, "suite_name": suite_name, "rival": rival},
            "training": {"rows": trained["curve"], "config": plan["config"], "heldout": heldout},
            "candidates": {
                "candidates": list(candidates),
                "chosen": indices_of(frozen, candidates),
                "rule": frozen["rule"],
            },
            "cost": {"cost": trained["cost"], "seconds": seconds},
            "text": {**plan["corpus"], **text},
            "lineage": lineage_tags(plan, plan["pathspec"])
            | method_tags(plan)
            | auxiliary_tags(frozen)
            | trained["corruption"],
        }
    )
    table = closing_table(
        auxiliary=frozen,
        heldout=trained["scores"],
        scores=scores,
        suite_name=suite_name,
        cost=trained["cost"],
        registered=version,
        task_models=task_models,
        browse=how_to_browse(plan),
    )
    tracking.log_text(run_id, page, "report.html")
    tracking.log_text(run_id, table, "report.txt")
    _log_charts(
        run_id,
        progress=run_charts.progress([*trained["curve"], *heldout], plan["config"]["num_steps"]),
        scores=run_charts.scores([row for row in scores["rows"] if row["is_main"]], rival),
        cost=run_charts.cost_split(trained["cost"], seconds),
    )
    tracking.log_metrics(run_id, [{"step": 0, **trained["scores"], **costs(trained)}])
    finish(plan)
    return table, page


def _log_charts(run_id: str, **charts: "Chart | None") -> None:
    """Each an image among the run's artifacts, `charts/NAME.png`."""
    for name, chart in charts.items():
        if chart is not None:
            tracking.log_figure(run_id, chart.figure(), f"charts/{name}.png")
