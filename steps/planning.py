"""What `start` does: check everything before it costs anything, make the run's plan, open its MLflow run."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fast_electra_core.config import PretrainConfig, RunConfig, TrainingConfig
from fast_electra_core.errors import ConfigError
from fast_electra_core.text import KNOWN_SUFFIXES
from steps import tracking
from steps.config import resolve_auxiliary, resolve_compare, resolve_evaluate, resolve_pretrain
from steps.cost_words import plan_text
from steps.store import Store
from steps.trace import Plain, log_corpus, log_task, origin_tags, running

if TYPE_CHECKING:
    from fast_electra_core.text_shards import Corpus

_logger = logging.getLogger(__name__)


def begin_auxiliary(given: Mapping[str, Any], *, flow: str, run_id: str) -> Plain:
    """Check everything about an AuxiliaryFlow run and open its MLflow run.

    Raises:
        ConfigError, DataError, AuxiliaryError, TrackingError: something would not have worked later.
    """
    config = resolve_auxiliary(given)
    store = Store(config.store)
    tracking.check_server(config.tracking_uri, config.experiment)
    from steps import ledger  # after what is refused at once: these wait for torch
    from steps.distill import fetch_teacher
    from steps.tokenizer import check_masking, prepare_tokenizer

    teacher = fetch_teacher(config, store)
    corpus = _readable_corpus(config, store)
    tokenizer = str(store.get_folder(teacher["key"])) if teacher else config.tokenizer
    tokenizer_key = prepare_tokenizer(tokenizer, config.to_dict(), corpus.shards, store)
    check_masking(config.masking, store.get_folder(tokenizer_key))
    plan = plan_of(config, flow=flow, run_id=run_id, corpus=corpus.to_dict(), tokenizer_key=tokenizer_key)
    plan["teacher"] = teacher
    plan["costs"] = [ledger.plan_auxiliary(config, store, tokenizer_key=tokenizer_key, teacher=teacher)]
    open_run(plan, given, params=plan["config"])
    _say_costs(plan)
    return plan


def begin_pretrain(given: Mapping[str, Any], *, flow: str, run_id: str) -> Plain:
    """Check everything about a PretrainFlow run, fetch the candidates, and open its MLflow run.

    Raises: as begin_auxiliary.
    """
    plan = training_plan(resolve_pretrain(given), flow=flow, run_id=run_id)
    open_training_run(plan, given, params=plan["config"])
    return plan


def open_training_run(plan: Plain, given: Mapping[str, Any], *, params: Mapping[str, Any]) -> None:
    """Open the MLflow run of a plan that trains a main model, with its costs, and say what it will cost; params are
    the run's in MLflow."""
    from steps import ledger

    config, store = PretrainConfig.from_dict(plan["config"]), Store(plan["config"]["store"])
    plan["costs"] = [
        ledger.plan_pretraining(config, candidate, store, initial_model=plan["initial_model"])
        for candidate in plan["candidates"]
    ]
    open_run(plan, given, params=params)
    _say_costs(plan, ensemble_size=config.ensemble_size)
    if not config.licence() and "licence" not in config.waived_gates():
        _logger.warning(
            "the licence of %s is not stated: the model will be registered, but without alias. State it with "
            "--corpus_licence 'CC BY-SA 4.0', or waive it with --corpus_licence unstated", config.corpus,
        )  # fmt: skip


def begin_compare(given: Mapping[str, Any], *, flow: str, run_id: str) -> Plain:
    """Check everything about a CompareFlow run, each arm too; fetch the candidates, and open its MLflow run.

    The plan's config is what all arms share, its `comparison` the whole CompareConfig.

    Raises: as begin_auxiliary.
    """
    from steps.compare import check_arms

    config = resolve_compare(given)
    plan = training_plan(PretrainConfig.part_of(config.to_dict()), flow=flow, run_id=run_id)
    plan |= {"comparison": config.to_dict(), "config_digest": config.digest()}
    check_arms(plan)
    open_run(plan, given, params=plan["comparison"])
    return plan


def training_plan(
    config: PretrainConfig,
    *,
    flow: str,
    run_id: str,
    corpus: "Corpus | None" = None,
    candidates: Sequence[Plain] | None = None,
) -> Plain:
    """The plan of a run that trains main models: everything about it is checked, what it needs is in the store. corpus
    and candidates are config's, unless they are given.

    Raises: as begin_auxiliary.
    """
    from steps.tasks import check_tasks

    if config.num_nodes > 1 and flow != "PretrainFlow":
        raise ConfigError(
            f"num_nodes must be 1 in {flow}, got {config.num_nodes}: each of its trainings has one machine, and all "
            "its GPUs. Leave it out; PretrainFlow trains on several"
        )
    store = Store(config.store)
    tracking.check_server(config.tracking_uri, config.experiment)
    tasks = check_tasks(config)
    from steps.auxiliary import fetch_candidates  # after what is refused at once: these wait for torch
    from steps.initial_model import fetch_initial_model
    from steps.tokenizer import check_masking

    candidates = fetch_candidates(config, store) if candidates is None else list(candidates)
    tokenizer_key = f"tokenizers/{candidates[0]['tokenizer_digest']}"
    check_masking(config.masking, store.get_folder(tokenizer_key))
    initial_model = fetch_initial_model(config, store, candidates=candidates)
    corpus = corpus or _readable_corpus(config, store)
    plan = plan_of(config, flow=flow, run_id=run_id, corpus=corpus.to_dict(), tokenizer_key=tokenizer_key)
    return plan | {"candidates": candidates, "tasks": tasks, "initial_model": initial_model}


def begin_evaluate(given: Mapping[str, Any], *, flow: str, run_id: str) -> Plain:
    """Check everything about an EvaluateFlow run, fetch the model, and open the MLflow run.

    Raises: as begin_auxiliary.
    """
    from steps.evaluate import fetch_model
    from steps.tasks import check_tasks

    config = resolve_evaluate(given)
    store = Store(config.store)
    tracking.check_server(config.tracking_uri, config.experiment)
    plan = plan_of(config, flow=flow, run_id=run_id)
    plan |= {"tasks": check_tasks(config), "model": fetch_model(config, store)}
    open_run(plan, given, params=plan["config"])
    _logger.info("%s: model %s; MLflow run %s", plan["pathspec"], plan["model"]["address"], plan["mlflow_run_id"])
    return plan


def find_corpus(config: TrainingConfig, store: Store) -> "Corpus":
    """What lies at the config's corpus now.

    Raises:
        DataError: as resolve_corpus.
    """
    from steps.corpus import resolve_corpus

    return resolve_corpus(
        config.corpus,
        store=store,
        text_field=config.text_field,
        shard_megabytes=config.shard_megabytes,
        artifacts=tracking.artifacts_folder(config.tracking_uri),
    )


def _readable_corpus(config: TrainingConfig, store: Store) -> "Corpus":
    from steps.text_check import check_text

    corpus = find_corpus(config, store)
    if corpus.num_ignored:
        _logger.warning(
            "%d of the files in %s are left out: empty, or of a kind that is not known; known are %s",
            corpus.num_ignored, config.corpus, KNOWN_SUFFIXES,
        )  # fmt: skip
    check_text(corpus, text_field=config.text_field, on_bad_text=config.on_bad_text, store=store)
    return corpus


def plan_of(config: RunConfig, *, flow: str, run_id: str, **more: Any) -> Plain:
    """What every plan has, and more."""
    return {
        "config": config.to_dict(),
        "config_digest": config.digest(),
        "run_key": f"runs/{flow}-{run_id}",
        "pathspec": f"{flow}/{run_id}",
        **more,
    }


def open_run(plan: Plain, given: Mapping[str, Any], *, params: Mapping[str, Any]) -> None:
    """Open the plan's MLflow run: parameters, lineage, what it reads."""
    from steps.provenance import LINEAGE_FILE, code_version, record_of

    config = plan["config"]
    plan["code"] = code_version()
    plan["mlflow_run_id"] = tracking.start_parent(
        config["tracking_uri"],
        config["experiment"],
        name=plan["pathspec"],
        tags={
            "metaflow.pathspec": plan["pathspec"],
            "config.digest": plan["config_digest"],
            **plan["code"],
            **origin_tags(plan),
        },
        params=params,
    )
    plan["mlflow_url"] = tracking.run_url(plan["mlflow_run_id"])
    corpus = plan.get("corpus")
    with running(plan):
        tracking.log_dict(plan["mlflow_run_id"], record_of(plan, given), LINEAGE_FILE)
        if corpus:
            log_corpus(plan, plan["mlflow_run_id"])
        for task in plan.get("tasks", ()):
            log_task(plan, plan["mlflow_run_id"], task)
    if corpus:
        _logger.info(
            "%s: %.1f MB of text in %d files, %d shards; MLflow run %s",
            plan["pathspec"], corpus["num_bytes"] / 1e6, corpus["num_files"], len(corpus["shards"]),
            plan["mlflow_run_id"],
        )  # fmt: skip


def _say_costs(plan: Plain, *, ensemble_size: int = 1) -> None:
    with running(plan):
        tracking.log_dict(plan["mlflow_run_id"], {"costs": plan["costs"]}, "cost_plan.json")
    _logger.info("%s", plan_text(plan["costs"], ensemble_size=ensemble_size))
