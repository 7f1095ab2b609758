"""What the steps of the flows do after `start`, in their order: the work itself, its trace in MLflow, and its page.

Each is one attempt (steps.trace): an error in it marks the flow's MLflow run FAILED, the next attempt RUNNING again.
"""

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from steps import tracking
from steps.corpus_record import RECORD, record_of
from steps.fan_out import in_groups
from steps.meter import MemoryMeter
from steps.store import Store
from steps.trace import (
    Plain,
    attempt,
    auxiliary_tags,
    child,
    connect,
    corruption_tags,
    costs,
    log_corpus,
    method_tags,
    text_tags,
)

if TYPE_CHECKING:
    from fast_electra_core.parallel import Group

_logger = logging.getLogger(__name__)
_CORRUPTION_METRICS = ("reused_fraction", "bytes_per_token")


@attempt
def list_tokenizings(plan: Plain) -> list[list[Plain]]:
    """The shards of text, one per task as far as Metaflow allows so many tasks."""
    return in_groups(plan["corpus"]["shards"])


@attempt
def tokenize(plan: Plain, shards: Sequence[Plain]) -> list[Plain]:
    """Tokenize some shards; returns the manifest of each, with its key and the seconds that it took."""
    from steps.tokenization import tokenize_shard

    store, key, manifests = Store(plan["config"]["store"]), plan["tokenizer_key"], []
    for shard in shards:
        started = time.perf_counter()
        manifest = tokenize_shard(shard, plan["config"], tokenizer_key=key, store=store)
        manifests.append({**manifest, "seconds": time.perf_counter() - started})
    return manifests


@attempt
def gather_tokens(plan: Plain, tokenized: Sequence[Sequence[Plain]]) -> Plain:
    """Counts over the shards of all tasks, the seconds that they took, and their keys in order.

    Raises:
        DataError: the text is not enough, or not for this tokenizer.
    """
    from steps.text_summary import summarise

    connect(plan)
    manifests = [manifest for task in tokenized for manifest in task]
    text = summarise(manifests, plan["config"])
    text["tokenizing_seconds"] = sum(manifest["seconds"] for manifest in manifests)
    numbers = {f"text/{name}": value for name, value in text.items()}
    tracking.log_metrics(plan["mlflow_run_id"], [{"step": 0, **numbers}])
    tracking.set_tags(plan["mlflow_run_id"], text_tags(plan))
    tracking.log_dict(plan["mlflow_run_id"], record_of(plan, manifests), RECORD)
    return {**text, "shard_keys": [manifest["key"] for manifest in manifests]}


@attempt
def text_page(plan: Plain, text: Plain) -> str:
    """The page on the text, also kept in MLflow."""
    from steps import report

    page = report.text_page({**plan["corpus"], **text, "sequence_length": plan["config"]["sequence_length"]})
    tracking.log_text(plan["mlflow_run_id"], page, "pages/text.html")
    return page


def _watched(plan: Plain, run_id: str) -> contextlib.AbstractContextManager[None]:
    """The machine's load is logged to the run meanwhile."""
    spill = Store(plan["config"]["store"]).path(f"{plan['run_key']}/unsent_system_metrics.jsonl")
    return tracking.system_metrics(run_id, spill=spill)


def _log_environment(run_id: str, result: Plain) -> None:
    """Where the weights were made."""
    from steps.provenance import ENVIRONMENT_FILE, training_environment

    tracking.log_dict(run_id, training_environment(result["device"]), ENVIRONMENT_FILE)


@attempt
def train_auxiliary(plan: Plain, text: Plain, *, group: "Group | None" = None) -> tuple[Plain, str]:
    """Train the masked language model of AuxiliaryFlow; returns the result and its page.

    The first process of a group does so, the others only help: they get two empty things.
    """
    from steps import ledger, pretrain, report
    from steps.machine import device
    from steps.training_run import training_run

    config = AuxiliaryConfig.from_dict(plan["config"])
    if group and not group.is_first:
        pretrain.train_auxiliary(config, training_run(plan, text, "", group=group), teacher=plan["teacher"])
        return {}, ""
    with child(plan, "pre-training", params=plan["config"]) as run_id:
        log_corpus(plan, run_id)
        meter = MemoryMeter(device().type)
        with _watched(plan, run_id):
            run = training_run(plan, text, run_id, group=group)
            result = pretrain.train_auxiliary(config, run, teacher=plan["teacher"])
        _log_environment(run_id, result)
        result |= {"memory_bytes": meter.peak_bytes()}
        known = ledger.Circumstances(device=result["device"], num_processes=result["num_processes"])
        made_by: Plain = {"tokenizer_key": plan["tokenizer_key"], "teacher": plan["teacher"], "circumstances": known}
        result["cost"] = ledger.account(ledger.plan_auxiliary(config, Store(config.store), **made_by), config, result)
        heldout = heldout_rows(result["curve"])
        page = report.training_page(result["curve"], plan["config"], heldout, cost=result["cost"])
        tracking.log_text(run_id, page, "pages/training.html")
        tracking.log_dict(run_id, result["cost"], "cost.json")
        tracking.log_metrics(run_id, [{"step": config.num_steps, **result["scores"], **costs(result)}])
        tracking.set_tags(run_id, {"auxiliary.digest": result["digest"]})
    return {**result, "mlflow_run_id": run_id}, page


def heldout_rows(curve: Sequence[Plain]) -> list[Plain]:
    """The rows of a training's curve that held-out text was scored at."""
    return [row for row in curve if any(name.startswith("heldout_") for name in row)]


@attempt
def score_candidate(plan: Plain, text: Plain, candidate: Plain, *, index: int | None = None) -> Plain:
    """The candidate with its scores and price; index is the task's, by which it takes a GPU."""
    from steps.auxiliary import score_candidate as score
    from steps.machine import take_gpu

    take_gpu(index)
    return score(candidate, plan["config"], shard_keys=text["shard_keys"], store=Store(plan["config"]["store"]))


@attempt
def freeze_auxiliary(plan: Plain, text: Plain, scored: Sequence[Plain]) -> tuple[Plain, str]:
    """What was chosen, as one record, and the page on all candidates; the choice is in MLflow as a run of its own."""
    from steps import report
    from steps.frozen import RULE, check_frozen, choose, score_together

    store = connect(plan)
    config = PretrainConfig.from_dict(plan["config"])
    with child(plan, "auxiliary", params={"rule": RULE, "candidates": len(scored)}) as run_id:
        rows = [_numbers(candidate, step) for step, candidate in enumerate(scored)]
        tracking.log_metrics(run_id, rows)
        chosen = choose(
            scored, ensemble_size=config.ensemble_size, max_auxiliary_fraction=config.max_auxiliary_fraction
        )
        check_frozen(chosen, store)
        chosen = score_together(chosen, config, shard_keys=text["shard_keys"], store=store)
        page = report.candidates_page(scored, indices_of(chosen, scored), RULE)
        tracking.log_text(run_id, page, "pages/auxiliary.html")
        tracking.log_dict(run_id, {"rule": RULE, "candidates": list(scored)}, "candidates.json")
        tracking.set_tags(run_id, auxiliary_tags(chosen))
    tracking.set_tags(plan["mlflow_run_id"], auxiliary_tags(chosen))
    _logger.info(
        "auxiliary %s: masked accuracy %.1f %% (unigram %.1f %%), loss %.3f (unigram %.3f), %.0f %% of the main "
        "model's forward FLOPs",
        chosen["address"], 100 * chosen["masked_accuracy"], 100 * chosen["unigram_accuracy"], chosen["masked_loss"],
        chosen["unigram_loss"], 100 * chosen["flops_fraction"],
    )  # fmt: skip
    return {**chosen, "rule": RULE}, page


def indices_of(frozen: Plain, candidates: Sequence[Plain]) -> list[int]:
    """Which of the candidates the frozen auxiliary is made of."""
    keys = [candidate["key"] for candidate in candidates]
    return [keys.index(member["key"]) for member in frozen["members"]]


def _numbers(candidate: Plain, step: int) -> Plain:
    numbers = {name: value for name, value in candidate.items() if isinstance(value, int | float)}
    return {"step": step, **{name: float(value) for name, value in numbers.items()}}


@attempt
def list_corruptions(plan: Plain) -> list[Plain]:
    """One task per some ranges of steps, or one without steps if nothing is drawn ahead of training."""
    from steps.corruption_plan import list_tasks

    return list(list_tasks(PretrainConfig.from_dict(plan["config"])))


@attempt
def corrupt(plan: Plain, text: Plain, frozen: Plain, task: Plain, *, index: int | None = None) -> Plain:
    """Draw the replacements of the task's steps, as far as no run has done so before. As to index see
    score_candidate."""
    if task["first_step"] == task["end_step"]:
        return {}
    from steps.corrupt import corrupt as draw
    from steps.machine import take_gpu
    from steps.training_run import training_run

    take_gpu(index)
    run = training_run(plan, text, plan["mlflow_run_id"])
    return draw(PretrainConfig.from_dict(plan["config"]), run, task, auxiliary=frozen)


@attempt
def gather_corruptions(plan: Plain, text: Plain, frozen: Plain, results: Sequence[Plain]) -> Plain:
    """How the text was corrupted, and what of that an earlier run had drawn."""
    from steps.corruption_plan import digest_of, identity_of, summarise

    config = PretrainConfig.from_dict(plan["config"])
    identity = identity_of(
        config,
        shard_keys=text["shard_keys"],
        tokenizer_key=plan["tokenizer_key"],
        auxiliary_digest=frozen["digest"],
    )
    return summarise(config, results, digest=digest_of(identity))


@attempt
def pretrain(
    plan: Plain, text: Plain, frozen: Plain, corrupted: Plain, *, group: "Group | None" = None
) -> tuple[Plain, str]:
    """Train the main model; returns the result and its page. As to group see train_auxiliary."""
    from steps import ledger, report
    from steps.frozen import check_frozen
    from steps.machine import device
    from steps.pretrain import train_discriminator
    from steps.training_run import training_run

    config = PretrainConfig.from_dict(plan["config"])
    models: Plain = {"auxiliary": frozen, "corruption": corrupted, "initial_model": plan["initial_model"]}
    if group and not group.is_first:
        train_discriminator(config, training_run(plan, text, "", group=group), **models)
        return {}, ""
    store = connect(plan)
    tracking.set_tags(plan["mlflow_run_id"], corruption_tags(corrupted))
    with child(plan, "pre-training", params=plan["config"]) as run_id:
        log_corpus(plan, run_id)
        for model in (frozen, plan["initial_model"] or {}):
            if model.get("registry"):
                tracking.log_model_input(run_id, model["registry"]["model_id"])
        meter = MemoryMeter(device().type)
        with _watched(plan, run_id):
            run = training_run(plan, text, run_id, group=group)
            result = train_discriminator(config, run, **models)
        _log_environment(run_id, result)
        result |= {"memory_bytes": meter.peak_bytes()}
        check_frozen(frozen, store)
        known = ledger.Circumstances(corrupted["reused_fraction"], result["device"], result["num_processes"])
        cost = ledger.plan_pretraining(config, frozen, store, initial_model=plan["initial_model"], circumstances=known)
        result["cost"] = ledger.account(cost, config, result, drawing_seconds=corrupted["drawing_seconds"])
        page = report.training_page(result["curve"], plan["config"], heldout_rows(result["curve"]))
        tracking.log_text(run_id, page, "pages/training.html")
        tracking.log_dict(run_id, {**result["cost"], "corruption": corrupted}, "cost.json")
        numbers = {f"corruption/{name}": corrupted[name] for name in _CORRUPTION_METRICS if name in corrupted}
        tracking.log_metrics(run_id, [{"step": config.num_steps, **costs(result), **numbers}])
        tracking.set_tags(run_id, method_tags(plan) | auxiliary_tags(frozen) | corruption_tags(corrupted))
    return {**result, "mlflow_run_id": run_id, "corruption": corruption_tags(corrupted)}, page
