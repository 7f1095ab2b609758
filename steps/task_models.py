"""The fine-tuned models that a run leaves: the best seed of each task, first in the store, then in the registry.

While fine-tunings run side by side, each that ends drops those of its seeds that it or another beats: the store holds
about one model per task, however many seeds there are.
"""

import logging
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_electra_core.glue import TaskSpec
from steps import tracking
from steps.finetune import Job, job_key, job_name, model_key, stored_result
from steps.model_card import Facts, description, model_card, rows_of
from steps.model_source import weights_digest
from steps.scores import chosen
from steps.store import Store
from steps.trace import task_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHAMPION = "champion"
_logger = logging.getLogger(__name__)
PRETRAINED_TAG = "pretrained.version"
_WORDS: Mapping[str, tuple[str, ...]] = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
}
"""Labels that are mere numbers in GLUE's files, in the hub's words."""
_EXAMPLE = {"text": "The cat sat on the mat.", "text_pair": "A cat was sitting."}


def label_words(spec: TaskSpec) -> tuple[str, ...]:
    """The task's labels as words, in the order of their ids; `score` for a regression."""
    return _WORDS.get(spec.name, spec.labels) or ("score",)


def keep(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    spec: TaskSpec,
    max_length: int,
    store: Store,
    key: str,
) -> None:
    """The fine-tuned model lies under the key, as safetensors, its labels words, its input cut as in fine-tuning."""
    words = label_words(spec)
    model.config.id2label = dict(enumerate(words))
    model.config.label2id = {word: index for index, word in enumerate(words)}
    if spec.is_regression:
        model.config.problem_type = "regression"
    tokenizer.model_max_length = max_length
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        store.put_folder(folder, key)


def drop_beaten(store: Store, run_key: str, job: Job, seeds: int) -> None:
    """Of the job's task and rate, the store keeps the best model among the seeds that are done."""
    done = []
    for seed in range(seeds):
        each = {**job, "seed": seed}
        key = job_key(run_key, each)
        if store.has(key) and store.has(model_key(key)):
            done.append((_rank(stored_result(store, key)), key))
    for _, key in sorted(done)[:-1]:
        store.delete(model_key(key))


def pick(results: Sequence[Mapping[str, Any]], store: Store, run_key: str) -> list[dict[str, Any]]:
    """Of each task whose models were kept, the best seed on dev of the rate that was chosen, the lowest where they are
    equal: {task, seed, untrained, rate, metric, score, num_seeds}. The models of the others are deleted.

    The best, not the median: it is also the one whose answers submission.zip holds. Its dev score flatters; the mean
    over seeds, which stands beside it everywhere, does not.
    """
    picked = []
    trained = [each for each in results if not each["untrained"]]
    counted = chosen(trained)
    for task in dict.fromkeys(each["task"] for each in counted):
        of_task = [each for each in counted if each["task"] == task]
        best = max(of_task, key=_rank)
        if store.has(model_key(job_key(run_key, best))):
            job = {name: best[name] for name in ("task", "seed", "untrained", "rate")}
            metric = best["main_metric"]
            picked.append({**job, "metric": metric, "score": best["scores"][metric], "num_seeds": len(of_task)})
    kept = {job_name(each) for each in picked}
    for each in trained:
        if job_name(each) not in kept and store.has(model_key(job_key(run_key, each))):
            store.delete(model_key(job_key(run_key, each)))
    return picked


def _rank(result: Mapping[str, Any]) -> tuple[float, int]:
    score = result["scores"][result["main_metric"]]
    return (-math.inf if math.isnan(score) else score, -result["seed"])


def register(
    plan: Mapping[str, Any], scores: Mapping[str, Any], pretrained: Mapping[str, str], tags: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A version of `NAME-TASK` for each picked model; NAME is the pre-trained model's.

    pretrained: `name`, `digest`, and, where it is registered, `version` and `model_id`: then its version gets a tag
    `task.TASK` for each, and the fine-tuning's run has it among its inputs. tags: those that all of them share. A
    retried step gets the versions it has made before.

    Raises:
        TrackingError: the server refuses.
    """
    store = Store(plan["config"]["store"])
    is_registered = "version" in pretrained
    origin = f"{pretrained['name']}/{pretrained['version']}" if is_registered else pretrained["name"]
    tags = {**tags, PRETRAINED_TAG: origin, "pretrained.digest": pretrained["digest"]}
    versions = []
    for job in scores["task_models"]:
        name = registered_name(pretrained["name"], job["task"])
        run_id = tracking.find_child(plan["mlflow_run_id"], job_name(job))
        result = {**stored_result(store, job_key(plan["run_key"], job)), **job}
        folder = store.get_folder(model_key(job_key(plan["run_key"], job)))
        facts = _facts(plan, scores, result, {**tags, "weights.digest": weights_digest(folder)})
        made = _register(folder, result, facts, name=name, run_id=run_id)
        versions.append(made)
        if is_registered:
            tracking.log_model_input(run_id, pretrained["model_id"])
            link = {f"task.{job['task']}": f"{name}/{made['version']}"}
            tracking.set_version_tags(pretrained["name"], pretrained["version"], link)
    if is_registered:
        follow(pretrained["name"])
    return versions


def registered_name(pretrained: str, task: str) -> str:
    """`fast-electra-sst2`; of a folder or an address, its last part, with dashes for signs like / and :."""
    last = pretrained.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return re.sub(r"[^\w.-]+", "-", f"{last}-{task}")


def follow(name: str) -> dict[str, str]:
    """The task models of the champion of `name` are champions too, the newest of each task; {model: version}.

    A task that the champion has no model for keeps the alias where it was.
    """
    number = tracking.aliases(name).get(CHAMPION)
    found = tracking.find_versions(PRETRAINED_TAG, f"{name}/{number}") if number else []
    newest = {each["name"]: each["version"] for each in found}  # the newest come last
    for model, version in newest.items():
        if tracking.aliases(model).get(CHAMPION) != version:
            tracking.set_alias(model, CHAMPION, version)
            _logger.info("%s version %s is champion, as its encoder is", model, version)
    return newest


def _register(folder: Path, result: Mapping[str, Any], facts: Facts, *, name: str, run_id: str) -> dict[str, Any]:
    return tracking.register_model(
        run_id=run_id,
        name=name,
        folder=folder,
        task=facts.task,
        example=_EXAMPLE if result["is_pair"] else {"text": _EXAMPLE["text"]},
        card=model_card(name, facts),
        tags=facts.tags,
        metrics=facts.metrics,
        description=description(facts),
        datasets=facts.datasets,
    )


def _facts(
    plan: Mapping[str, Any], scores: Mapping[str, Any], result: Mapping[str, Any], tags: Mapping[str, Any]
) -> Facts:
    task, count, config = result["task"], result["num_seeds"], plan["config"]
    rows = rows_of(scores, task)
    (main,) = [row["pretrained"] for row in rows["rows"] if row["is_main"]]
    spread = "" if main["std"] is None else f", standard deviation {main['std']:.4f}"
    rule = f"the best of {count} seeds on dev by {result['metric']}" if count > 1 else "the only seed"
    return Facts(
        summary=f"A model for {task}, fine-tuned from {tags[PRETRAINED_TAG]}: {rule}. Over all seeds "
        f"{result['metric']} has mean {main['mean']:.4f}{spread}.",
        task="text-classification",
        tags={
            **tags,
            "task": task,
            "task.digest": plan["tasks"][task]["digest"],
            "seed": result["seed"],
            "score": repr(float(result["score"])),
            "score.metric": result["metric"],
            "score.rule": rule,
        },
        metrics=result["scores"],
        datasets=dict.fromkeys(result["scores"], task_dataset(plan, task)),
        config={
            **{name: value for name, value in config.items() if name.startswith("finetune_")},
            "finetune_learning_rate": result["learning_rate"],
            "finetune_epochs": result["epochs"],
            "seed": result["seed"],
            "glue": config["glue"],
        },
        scores=rows,
    )
