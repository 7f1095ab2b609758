"""Fine-tunings: which there are, how they share the machines, one of them as a piece of work, and what it leaves.

A job is one (task, seed, start, rate of a grid); a pack is jobs that one Metaflow task does in turn, so that no pod is
started for a minute's work, and so that what starts from mnli comes after it.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_electra_core.config import ScoringConfig
from fast_electra_core.errors import DataError
from fast_electra_core.glue import DIAGNOSTIC, SPECS, TaskData, TaskSpec, summarise_task
from fast_electra_core.glue_metrics import majority_score
from fast_electra_core.recipes import FinetuneSettings, finetune_settings
from steps.fan_out import MAX_TASKS
from steps.store import Store
from steps.tasks import bad_row_choice, load_task

if TYPE_CHECKING:
    from fast_electra_core.finetuning import FinetuneResult

Job = dict[str, Any]
PACK_PASSES = 100_000
"""Examples trained on (each epoch counts) that are worth a machine's start: a minute of a GPU at small size."""
LEAST_PACKS = 4
"""Packs that there are at least, where there are as many jobs, so that no core of a small machine idles."""
_MNLI = "mnli"


def list_packs(config: ScoringConfig, tasks: Mapping[str, Mapping[str, Any]]) -> list[list[Job]]:
    """All jobs of a run, in packs of about equal work; tasks: by name, what tasks.check_tasks found.

    With mnli_transfer the tasks that start from mnli follow it in its pack: the second wave waits for its own
    mnli alone, not for all of them.
    """
    starts = (False, True) if config.untrained_baseline else (False,)
    rates: list[float | None] = [*config.grid()] or [None]
    chains: list[list[Job]] = []
    for seed in range(config.seeds):
        for untrained in starts:
            for rate in rates:
                common: Job = {"seed": seed, "untrained": untrained, "rate": rate}
                jobs = [{"task": task, **common} for task in config.task_list() if task != DIAGNOSTIC]
                if config.mnli_transfer:
                    chain = [job for job in jobs if follows_mnli(job["task"], config)]
                    jobs = [job for job in jobs if job not in chain]
                    first = next(job for job in jobs if job["task"] == _MNLI)
                    jobs.remove(first)
                    chains.append([first, *chain])
                chains += [[job] for job in jobs]
    work = [sum(passes(job, config, tasks) for job in chain) for chain in chains]
    small = [size for size in work if size < PACK_PASSES]
    num_large = len(work) - len(small)
    num_small = min(max(math.ceil(sum(small) / PACK_PASSES), LEAST_PACKS - num_large), len(small))
    packs: list[list[Job]] = [[] for _ in range(min(num_large + num_small, MAX_TASKS))]
    loads = [0.0] * len(packs)
    # The largest first, each onto the lightest pack, so that large ones stay alone; equal work stays in order.
    for size, chain in sorted(zip(work, chains, strict=True), key=lambda each: -each[0]):
        lightest = loads.index(min(loads))
        packs[lightest] += chain
        loads[lightest] += size
    return packs


def follows_mnli(task: str, config: ScoringConfig) -> bool:
    """Whether the task starts from the encoder fine-tuned on mnli."""
    return config.mnli_transfer and task in SPECS and SPECS[task].starts_from_mnli


def job_name(job: Mapping[str, Any]) -> str:
    """What a person reads: `rte seed 0 untrained, rate 0.0003`."""
    rate = f", rate {job['rate']:g}" if job["rate"] is not None else ""
    return f"{job['task']} seed {job['seed']}{' untrained' if job['untrained'] else ''}{rate}"


def job_key(run_key: str, job: Mapping[str, Any]) -> str:
    """Where the store keeps what the job left."""
    return f"{run_key}/finetuned/{job_name(job).replace(',', '').replace(' ', '-')}"


def model_key(key: str) -> str:
    """Where the store keeps the model of the job with that key, while it is the best of its seeds."""
    return f"{key}-model"


def in_turn(pack: Sequence[Job], config: ScoringConfig, *, store: Store, run_key: str) -> list[Job]:
    """The pack's jobs; those that an earlier attempt began and did not end come last, lest one that takes its machine
    down every time takes the others along."""

    def was_cut_off(job: Job) -> bool:
        key = job_key(run_key, job)
        return store.has(_begun(key)) and not store.has(key)

    def comes_last(job: Job) -> bool:
        return was_cut_off(job) or (follows_mnli(job["task"], config) and was_cut_off(mnli_job(job)))

    return sorted(pack, key=comes_last)  # stable: what starts from mnli stays behind it


def _begun(key: str) -> str:
    return f"{key}-begun"


def run(
    config: Mapping[str, Any],
    *,
    encoder_folder: Path,
    job: Mapping[str, Any],
    store: Store,
    key: str,
    digest: str | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune the saved encoder (untrained: its architecture alone) on one task; returns a plain dict.

    The result is kept under key; done once, it is not done again. digest: the task's, as check_tasks gave it;
    on_metrics as in fast_electra_core.finetuning.finetune.

    Raises:
        DataError: the task cannot be read, or is not what it was when the run began.
        CheckpointError, NonFiniteLossError: as the core raises them.
    """
    if store.has(key):
        return stored_result(store, key)
    with tempfile.TemporaryDirectory(dir=store.folder) as empty:
        store.put_folder(Path(empty), _begun(key))
    from fast_electra_core.classifier import build_classifier
    from fast_electra_core.finetuning import finetune
    from fast_electra_core.tokenizer import load_tokenizer
    from steps import task_models
    from steps.machine import device

    settings = ScoringConfig.part_of(config)
    data = _load(settings, job, digest)
    model = build_classifier(
        encoder_folder,
        num_labels=data.spec.num_labels,
        seed=job["seed"],
        untrained=job["untrained"] and not follows_mnli(job["task"], settings),
    ).to(device())
    tokenizer = load_tokenizer(encoder_folder)
    recipe = _recipe(settings, job, data.spec, hidden_size=model.config.hidden_size)
    cache = store.path("encoded")
    result = finetune(model, tokenizer, data, settings=recipe, cache=cache, on_metrics=on_metrics)
    if settings.keep_task_models and not job["untrained"]:
        task_models.keep(
            model, tokenizer, spec=data.spec, max_length=recipe.max_length, store=store, key=model_key(key)
        )
    found = _described(job, data, recipe, result)
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        folder = Path(scratch) / "finetuned"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(found))
        if job["task"] == _MNLI and settings.mnli_transfer:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        store.put_folder(folder, key)
    return found


def _load(settings: ScoringConfig, job: Mapping[str, Any], digest: str | None) -> TaskData:
    """The job's task, with the test sets that it is to answer."""
    task = job["task"]
    is_answering = settings.test_predictions and not job["untrained"]
    data = load_task(settings.glue, task, on_bad_row=bad_row_choice(settings), with_test=is_answering)
    if digest is not None and summarise_task(data)["digest"] != digest:
        raise DataError(f"task {task} of {settings.glue} changed since the run began; start the run again")
    if is_answering and task == _MNLI and DIAGNOSTIC in settings.task_list():
        diagnostic = load_task(settings.glue, DIAGNOSTIC, with_test=True).test["test"]
        return dataclasses.replace(data, test={**data.test, DIAGNOSTIC: diagnostic})
    return data


def _recipe(settings: ScoringConfig, job: Mapping[str, Any], spec: TaskSpec, *, hidden_size: int) -> FinetuneSettings:
    given = {
        "learning_rate": job["rate"] if job["rate"] is not None else settings.finetune_learning_rate,
        "batch_size": settings.finetune_batch_size,
        "epochs": settings.finetune_epochs,
        "max_length": settings.finetune_max_length,
        "max_examples": settings.finetune_max_examples,
        "layer_decay": settings.layer_decay,
        "is_best_epoch": settings.best_epoch,
        "seed": job["seed"],
    }
    return finetune_settings(settings.finetune_recipe, spec, hidden_size=hidden_size, given=given)


def _described(
    job: Mapping[str, Any], data: TaskData, recipe: FinetuneSettings, result: "FinetuneResult"
) -> dict[str, Any]:
    """What is kept of a fine-tuning, plain."""
    kept = ("scores", "degenerate", "test_predictions", "epoch_scores", "num_train", "num_steps", "padding_fraction")
    return {
        **job,
        "main_metric": data.spec.main_metric,
        "labels": list(data.spec.labels),
        "is_pair": len(data.spec.text_columns) == 2,
        "majority": _majority(data),
        "num_dev": {split: len(examples) for split, examples in data.dev.items()},
        "learning_rate": recipe.learning_rate,
        "epochs": recipe.epochs,
        **{name: getattr(result, name) for name in (*kept, "seconds", "curve")},
    }


def stored_result(store: Store, key: str) -> dict[str, Any]:
    """What run returned when it was done."""
    found: dict[str, Any] = json.loads((store.get_folder(key) / "result.json").read_text())
    return found


def mnli_job(job: Mapping[str, Any]) -> Job:
    """The job whose encoder this one starts from."""
    return {**job, "task": _MNLI}


def passes(job: Mapping[str, Any], config: ScoringConfig, tasks: Mapping[str, Mapping[str, Any]]) -> float:
    """About how many examples the job trains on, each epoch counted."""
    number = min(tasks[job["task"]]["train"], config.finetune_max_examples or math.inf)
    spec = SPECS.get(job["task"])
    epochs = config.finetune_epochs or (spec.epochs if spec else 3.0)
    return float(number) * epochs * (2 if spec and spec.is_swap_doubled else 1)


def _majority(data: TaskData) -> dict[str, float]:
    train_labels = [example.label for example in data.train if example.label is not None]
    scores: dict[str, float] = {}
    for split, examples in data.dev.items():
        ending = "_mismatched" if split == "mismatched" else ""
        labels = [example.label for example in examples if example.label is not None]
        found = majority_score(data.spec, train_labels, labels)
        scores.update({f"{metric}{ending}": value for metric, value in found.items()})
    return scores
