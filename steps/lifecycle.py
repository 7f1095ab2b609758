"""What the steps of the flows do, in their order: the work itself, its trace in MLflow, and its page.

A flow run's `plan` is a plain dict, made once in `start` and handed on: the checked config, the corpus, the tokenizer,
the candidates, and the ids that every attempt and every resumed run share.
"""

import contextlib
import html
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig, TrainingConfig
from steps import tracking
from steps.config import resolve_auxiliary, resolve_pretrain
from steps.store import Store

Plain = dict[str, Any]
_logger = logging.getLogger(__name__)


def begin_auxiliary(given: Mapping[str, Any], *, flow: str, run_id: str) -> Plain:
    """Check everything about an AuxiliaryFlow run and open its MLflow run.

    Raises:
        ConfigError, DataError, AuxiliaryError, TrackingError: something would not have worked later.
    """
    from steps.corpus import resolve_corpus
    from steps.tokenization import prepare_tokenizer

    config = resolve_auxiliary(given)
    store = Store(config.store)
    tracking.check_server(config.tracking_uri, config.experiment)
    corpus = resolve_corpus(
        config.corpus, store=store, text_field=config.text_field, shard_megabytes=config.shard_megabytes
    )
    tokenizer_key = prepare_tokenizer(config.tokenizer, config.to_dict(), corpus.shards, store)
    plan = _plan(config, corpus.to_dict(), tokenizer_key, flow=flow, run_id=run_id)
    _open_run(plan)
    return plan


def begin_pretrain(given: Mapping[str, Any], *, flow: str, run_id: str) -> Plain:
    """Check everything about a PretrainFlow run, fetch the candidates, and open its MLflow run.

    Raises: as begin_auxiliary.
    """
    from steps.auxiliary import fetch_candidates
    from steps.corpus import resolve_corpus
    from steps.finetune import check_tasks

    config = resolve_pretrain(given)
    store = Store(config.store)
    tracking.check_server(config.tracking_uri, config.experiment)
    tasks = check_tasks(config.to_dict())
    candidates = fetch_candidates(config, store)
    corpus = resolve_corpus(
        config.corpus, store=store, text_field=config.text_field, shard_megabytes=config.shard_megabytes
    )
    tokenizer_key = f"tokenizers/{candidates[0]['tokenizer_digest']}"
    plan = _plan(config, corpus.to_dict(), tokenizer_key, flow=flow, run_id=run_id)
    plan |= {"candidates": candidates, "tasks": tasks}
    _open_run(plan)
    for task in tasks:
        _log_task(plan, plan["mlflow_run_id"], task)
    return plan


def _plan(config: TrainingConfig, corpus: Plain, tokenizer_key: str, *, flow: str, run_id: str) -> Plain:
    return {
        "config": config.to_dict(),
        "config_digest": config.digest(),
        "corpus": corpus,
        "tokenizer_key": tokenizer_key,
        "run_key": f"runs/{flow}-{run_id}",
        "pathspec": f"{flow}/{run_id}",
    }


def _open_run(plan: Plain) -> None:
    from steps.register import code_version

    config, corpus = plan["config"], plan["corpus"]
    plan["code"] = code_version()
    plan["mlflow_run_id"] = tracking.start_parent(
        config["tracking_uri"],
        config["experiment"],
        name=plan["pathspec"],
        tags={"metaflow.pathspec": plan["pathspec"], "config.digest": plan["config_digest"], **plan["code"]},
        params=config,
    )
    _log_corpus(plan, plan["mlflow_run_id"])
    _logger.info(
        "%s: %.1f MB of text in %d files, %d tokenizing tasks; MLflow run %s",
        plan["pathspec"], corpus["num_bytes"] / 1e6, corpus["num_files"], len(corpus["shards"]), plan["mlflow_run_id"],
    )  # fmt: skip


def _log_corpus(plan: Plain, run_id: str) -> None:
    corpus = plan["corpus"]
    tracking.log_input(
        run_id,
        name=corpus["address"],
        digest=corpus["digest"],
        source=corpus["address"],
        context="pre-training",
        profile={"num_bytes": corpus["num_bytes"], "num_files": corpus["num_files"]},
    )


def _log_task(plan: Plain, run_id: str, task: str) -> None:
    facts = plan["tasks"][task]
    tracking.log_input(
        run_id,
        name=f"{_suite(plan)}/{task}",
        digest=facts["digest"][:36],
        source=plan["config"]["glue"],
        context="fine-tuning",
        profile={name: value for name, value in facts.items() if name != "digest"},
    )


def _connect(plan: Plain) -> Store:
    """This process talks to the run's tracking server; returns the run's store."""
    tracking.connect(plan["config"]["tracking_uri"])
    return Store(plan["config"]["store"])


def tokenize(plan: Plain, shard: Plain) -> Plain:
    """Tokenize one shard; returns its manifest with its key."""
    from steps.tokenization import tokenize_shard

    store = Store(plan["config"]["store"])
    return tokenize_shard(shard, plan["config"], tokenizer_key=plan["tokenizer_key"], store=store)


def gather_tokens(plan: Plain, manifests: Sequence[Plain]) -> Plain:
    """Counts over all shards, and their keys in order.

    Raises:
        DataError: the text is not enough, or not for this tokenizer.
    """
    from steps.text_summary import summarise

    _connect(plan)
    text = summarise(manifests, plan["config"])
    numbers = {f"text.{name}": value for name, value in text.items()}
    tracking.log_metrics(plan["mlflow_run_id"], [{"step": 0, **numbers}])
    tracking.set_tags(plan["mlflow_run_id"], _text_tags(plan))
    return {**text, "shard_keys": [manifest["key"] for manifest in manifests]}


def _text_tags(plan: Plain) -> dict[str, str]:
    return {
        "corpus.digest": plan["corpus"]["digest"],
        "corpus.address": plan["corpus"]["address"],
        "tokenizer.digest": plan["tokenizer_key"].rpartition("/")[2],
    }


def text_page(plan: Plain, text: Plain) -> str:
    """The page on the text, also kept in MLflow."""
    from steps import report

    page = report.text_page({**plan["corpus"], **text, "sequence_length": plan["config"]["sequence_length"]})
    tracking.log_text(plan["mlflow_run_id"], page, "pages/text.html")
    return page


def _training_run(plan: Plain, text: Plain, mlflow_run_id: str) -> Any:
    from steps.pretrain import TrainingRun

    return TrainingRun(
        store=_connect(plan),
        run_key=plan["run_key"],
        mlflow_run_id=mlflow_run_id,
        shard_keys=text["shard_keys"],
        tokenizer_key=plan["tokenizer_key"],
    )


def train_auxiliary(plan: Plain, text: Plain) -> tuple[Plain, str]:
    """Train the masked language model of AuxiliaryFlow; returns the result and its page."""
    from steps import pretrain, report

    config = AuxiliaryConfig.from_dict(plan["config"])
    with _child(plan, "pre-training", params=plan["config"]) as run_id:
        _log_corpus(plan, run_id)
        result = pretrain.train_auxiliary(config, _training_run(plan, text, run_id))
        page = report.training_page(result["curve"], plan["config"], _heldout_rows(result["curve"]))
        tracking.log_text(run_id, page, "pages/training.html")
        tracking.log_metrics(run_id, [{"step": config.num_steps, **result["scores"], **_costs(result)}])
        tracking.set_tags(run_id, {"auxiliary.digest": result["digest"]})
    return {**result, "mlflow_run_id": run_id}, page


@contextlib.contextmanager
def _child(plan: Plain, name: str, *, params: Mapping[str, Any]) -> Iterator[str]:
    """A child run, the same one at every attempt; an error marks it and its parent FAILED until a resume."""
    tracking.reopen(plan["mlflow_run_id"])
    try:
        with tracking.child_run(
            plan["config"]["tracking_uri"],
            plan["mlflow_run_id"],
            name=name,
            tags={"metaflow.pathspec": plan["pathspec"], **plan["code"], **_text_tags(plan)},
            params=params,
            key=name,
        ) as run_id:
            yield run_id
    except Exception:
        tracking.finish(plan["mlflow_run_id"], "FAILED")
        raise


def _heldout_rows(curve: Sequence[Plain]) -> list[Plain]:
    return [row for row in curve if any(name.startswith("heldout_") for name in row)]


def _costs(result: Plain) -> dict[str, float]:
    names = ("seconds", "tokens_per_second", "peak_memory_megabytes", "num_parameters")
    return {f"cost.{name}": result[name] for name in names}


def register_auxiliary(plan: Plain, text: Plain, trained: Plain, *, pathspec: str) -> Plain:
    """Register the masked language model; the champion's alias goes to one that beats the unigram model."""
    from steps.register import register_auxiliary as register

    store = _connect(plan)
    return register(
        plan["config"],
        folder=store.get_folder(trained["key"]),
        run_id=trained["mlflow_run_id"],
        tags={
            **_lineage_tags(plan, pathspec),
            "auxiliary.digest": trained["digest"],
            "training.num_tokens": trained["num_tokens"],
            "training.total_flops": trained["total_flops"],
            "corpus.num_tokens": text["num_train_tokens"],
        },
        metrics=trained["scores"],
    )


def _lineage_tags(plan: Plain, pathspec: str) -> Plain:
    return {
        "metaflow.pathspec": pathspec,
        "mlflow.parent_run_id": plan["mlflow_run_id"],
        "config.digest": plan["config_digest"],
        **plan["code"],
        **_text_tags(plan),
    }


def close_auxiliary(plan: Plain, trained: Plain, version: Plain) -> str:
    """End the MLflow run; returns the closing words."""
    from steps import report

    _connect(plan)
    tracking.log_metrics(plan["mlflow_run_id"], [{"step": 0, **trained["scores"], **_costs(trained)}])
    tracking.finish(plan["mlflow_run_id"])
    return report.closing_table(auxiliary=trained["scores"], registered=version)


def score_candidate(plan: Plain, text: Plain, candidate: Plain) -> Plain:
    """The candidate with its scores and price."""
    from steps.auxiliary import score_candidate as score

    return score(candidate, plan["config"], shard_keys=text["shard_keys"], store=Store(plan["config"]["store"]))


def freeze_auxiliary(plan: Plain, scored: Sequence[Plain]) -> tuple[Plain, str]:
    """The chosen candidate, and the page on all of them; the choice is in MLflow as a run of its own."""
    from steps import report
    from steps.auxiliary import RULE, check_frozen, choose

    store = _connect(plan)
    with _child(plan, "auxiliary", params={"rule": RULE, "candidates": len(scored)}) as run_id:
        rows = [_numbers(candidate, step) for step, candidate in enumerate(scored)]
        tracking.log_metrics(run_id, rows)
        chosen = choose(scored)
        check_frozen(chosen, store)
        page = report.candidates_page(scored, list(scored).index(chosen), RULE)
        tracking.log_text(run_id, page, "pages/auxiliary.html")
        tracking.log_dict(run_id, {"rule": RULE, "candidates": list(scored)}, "candidates.json")
        tracking.set_tags(run_id, _auxiliary_tags(chosen))
    tracking.set_tags(plan["mlflow_run_id"], _auxiliary_tags(chosen))
    _logger.info(
        "auxiliary %s: masked accuracy %.1f %% (unigram %.1f %%), loss %.3f (unigram %.3f), %.0f %% of the main "
        "model's forward FLOPs",
        chosen["address"], 100 * chosen["masked_accuracy"], 100 * chosen["unigram_accuracy"], chosen["masked_loss"],
        chosen["unigram_loss"], 100 * chosen["flops_fraction"],
    )  # fmt: skip
    return {**chosen, "rule": RULE}, page


def _numbers(candidate: Plain, step: int) -> Plain:
    numbers = {name: value for name, value in candidate.items() if isinstance(value, int | float)}
    return {"step": step, **{name: float(value) for name, value in numbers.items()}}


def _auxiliary_tags(chosen: Plain) -> dict[str, str]:
    registered = chosen["registry"] or {}
    return {
        "auxiliary.digest": chosen["digest"],
        "auxiliary.address": chosen["address"],
        "auxiliary.version": f"{registered['name']}/{registered['version']}" if registered else "not registered",
    }


def pretrain(plan: Plain, text: Plain, frozen: Plain) -> tuple[Plain, str]:
    """Train the main model; returns the result and its page."""
    from steps import pretrain as training
    from steps import report
    from steps.auxiliary import check_frozen

    config = PretrainConfig.from_dict(plan["config"])
    store = _connect(plan)
    with _child(plan, "pre-training", params=plan["config"]) as run_id:
        _log_corpus(plan, run_id)
        result = training.train_discriminator(config, _training_run(plan, text, run_id), auxiliary=frozen)
        check_frozen(frozen, store)
        page = report.training_page(result["curve"], plan["config"], _heldout_rows(result["curve"]))
        tracking.log_text(run_id, page, "pages/training.html")
        tracking.log_dict(run_id, result["plan"], "cost.json")
        tracking.log_metrics(run_id, [{"step": config.num_steps, **_costs(result)}])
        tracking.set_tags(run_id, _auxiliary_tags(frozen))
    return {**result, "mlflow_run_id": run_id}, page


def list_finetunings(plan: Plain) -> list[Plain]:
    """One per task and seed."""
    config = PretrainConfig.from_dict(plan["config"])
    return [{"task": task, "seed": seed} for task in config.task_list() for seed in range(config.seeds)]


def finetune(plan: Plain, trained: Plain, job: Plain) -> list[Plain]:
    """Fine-tune and score the pre-trained encoder on one (task, seed) and, if asked for, the untrained one."""
    starts = (False, True) if plan["config"]["untrained_baseline"] else (False,)
    return [_finetune(plan, trained, {**job, "untrained": untrained}) for untrained in starts]


def _finetune(plan: Plain, trained: Plain, job: Plain) -> Plain:
    from steps.finetune import run

    store = _connect(plan)
    name = f"{job['task']} seed {job['seed']}{' untrained' if job['untrained'] else ''}"
    with _child(plan, name, params=job) as run_id:
        _log_task(plan, run_id, job["task"])
        result = run(
            plan["config"],
            encoder_folder=store.get_folder(trained["key"]),
            digest=plan["tasks"][job["task"]]["digest"],
            **job,
        )
        rows = [{"step": step, **values} for step, values in _curve_rows(result["curve"])]
        tracking.log_metrics(run_id, [*rows, {"step": result["num_steps"], **result["scores"]}])
    scores = ", ".join(f"{metric} {value:.3f}" for metric, value in result["scores"].items())
    _logger.info("%s: %s (%.0f s)", name, scores, result["seconds"])
    return result


def _curve_rows(curve: Sequence[Mapping[str, float]]) -> list[tuple[int, dict[str, float]]]:
    return [(int(row["step"]), {key: row[key] for key in row if key != "step"}) for row in curve]


def _suite(plan: Plain) -> str:
    return "sample" if plan["config"]["glue"] == "sample" else "glue"


def gather_scores(plan: Plain, results: Sequence[Plain]) -> tuple[Plain, str]:
    """All fine-tunings as rows per task and metric, with the averages; and their page."""
    from steps import report
    from steps.finetune import averages, summarise

    _connect(plan)
    rows = summarise(results)
    scores: Plain = {"suite": _suite(plan), "rows": rows, "averages": averages(results)}
    page = report.glue_page(rows, report.suite_name(plan["config"]["glue"]))
    run_id = plan["mlflow_run_id"]
    tracking.log_text(run_id, page, "pages/scores.html")
    tracking.log_dict(run_id, scores, "scores.json")
    metrics = {
        f"{row['task']}.{row['metric']}.{start}": row[start]["median"]
        for row in rows
        for start in ("pretrained", "untrained")
        if row[start] is not None
    }
    tracking.log_metrics(run_id, [{"step": 0, **metrics}])
    return scores, page


def register_discriminator(
    plan: Plain, text: Plain, frozen: Plain, trained: Plain, scores: Plain, *, pathspec: str
) -> Plain:
    """Register the main model with its lineage; gates and the champion's rule are in steps.register."""
    from steps.register import register_discriminator as register

    store = _connect(plan)
    suite = {name: task["digest"] for name, task in plan["tasks"].items()}
    main = [row for row in scores["rows"] if row["is_main"] and row["pretrained"]]
    metrics = {f"{row['task']}.{row['metric']}": row["pretrained"]["mean"] for row in main}
    average = scores["averages"].get("electra")
    if average is not None:
        metrics["glue.average"] = average["value"]
    return register(
        plan["config"],
        folder=store.get_folder(trained["key"]),
        run_id=trained["mlflow_run_id"],
        tags={
            **_lineage_tags(plan, pathspec),
            **_auxiliary_tags(frozen),
            "weights.digest": trained["digest"],
            "corpus.num_tokens": text["num_train_tokens"],
            "method": plan["config"]["method"],
            "glue.suite": f"{scores['suite']}:{TrainingConfig.digest_of(suite)}",
        },
        metrics={**metrics, **trained["scores"]},
    )


def close_pretrain(
    plan: Plain,
    text: Plain,
    candidates: Sequence[Plain],
    frozen: Plain,
    trained: Plain,
    scores: Plain,
    version: Plain,
) -> tuple[str, str]:
    """The closing table for the terminal and the whole report; ends the MLflow run."""
    from steps import report

    _connect(plan)
    run_id = plan["mlflow_run_id"]
    suite_name = report.suite_name(plan["config"]["glue"])
    page = report.final_page(
        {
            "title": f"Fast-ELECTRA: {version['name']} version {version['version']}",
            "subtitle": f"{plan['pathspec']} · MLflow run {run_id}",
            "registered": version,
            "glue": {"summary": scores["rows"], "suite_name": suite_name},
            "training": {
                "rows": trained["curve"], "config": plan["config"], "heldout": _heldout_rows(trained["curve"]),
            },
            "candidates": {
                "candidates": list(candidates),
                "chosen": [each["key"] for each in candidates].index(frozen["key"]),
                "rule": frozen["rule"],
            },
            "text": {**plan["corpus"], **text},
            "lineage": _lineage_tags(plan, plan["pathspec"]) | _auxiliary_tags(frozen) | trained["plan"],
        }
    )  # fmt: skip
    table = report.closing_table(
        auxiliary=frozen,
        heldout=trained["scores"],
        summary=scores["rows"],
        suite_name=suite_name,
        registered=version,
    )
    tracking.log_text(run_id, page, "report.html")
    tracking.log_text(run_id, table, "report.txt")
    tracking.log_metrics(run_id, [{"step": 0, **trained["scores"], **_costs(trained)}])
    tracking.finish(run_id)
    return table, page


def as_markdown(page: str) -> str:
    """A page as one line of HTML, which is what a Markdown component of a Metaflow card shows untouched."""
    source = html.escape(page).replace("\n", "&#10;")
    fit = "this.style.height=this.contentDocument.documentElement.scrollHeight+'px'"
    return f'<iframe srcdoc="{source}" style="width:100%;height:90vh;border:0" onload="{fit}"></iframe>'
