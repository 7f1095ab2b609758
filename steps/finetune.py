"""GLUE tasks from wherever they lie, one fine-tuning as a step, and the statistics over its seeds."""

import hashlib
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import DataError
from fast_electra_core.glue import (
    TaskData,
    check_task_folder,
    read_hub_task,
    read_task,
    summarise_task,
    task_spec,
)
from fast_electra_core.glue_metrics import (
    electra_average,
    leaderboard_average,
    main_metric,
    majority_score,
)
from fast_electra_core.sample_tasks import sample_task
from steps.store import s3_client

CONFIDENCE = 0.95


def run(
    config: Mapping[str, Any],
    *,
    encoder_folder: Path,
    task: str,
    seed: int,
    untrained: bool,
    digest: str | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune the saved encoder (untrained: its architecture alone) on one task; returns a plain dict.

    digest: the task's, as check_tasks gave it; on_metrics as in fast_electra_core.finetuning.finetune.

    Raises:
        DataError: the task cannot be read, or is not what it was when the run began.
        CheckpointError, NonFiniteLossError: as the core raises them.
    """
    import torch

    from fast_electra_core.finetuning import FinetuneSettings, build_classifier, finetune
    from fast_electra_core.tokenizer import load_tokenizer

    settings = PretrainConfig.from_dict(dict(config))
    if "OMP_NUM_THREADS" not in os.environ:
        # Fine-tunings run side by side: with a thread per core each, they would wait for one another.
        torch.set_num_threads(1)
    data = load_task(settings.glue, task, on_bad_row=_on_bad_row(settings))
    if digest is not None and summarise_task(data)["digest"] != digest:
        raise DataError(f"task {task} of {settings.glue} changed since the run began; start the run again")
    spec = task_spec(task)
    model = build_classifier(encoder_folder, num_labels=spec.num_labels, seed=seed, untrained=untrained)
    result = finetune(
        model.to("cuda" if torch.cuda.is_available() else "cpu"),
        load_tokenizer(encoder_folder),
        data,
        settings=FinetuneSettings(
            learning_rate=settings.finetune_learning_rate,
            batch_size=settings.finetune_batch_size,
            epochs=settings.finetune_epochs,
            max_length=settings.finetune_max_length,
            max_examples=settings.finetune_max_examples,
            layer_decay=settings.layer_decay,
            seed=seed,
        ),
        on_metrics=on_metrics,
    )
    return {
        "task": task,
        "seed": seed,
        "untrained": untrained,
        "scores": result.scores,
        "main_metric": result.main_metric,
        "majority": _majority(data),
        "degenerate": result.degenerate,
        "num_train": result.num_train,
        "num_dev": {split: len(examples) for split, examples in data.dev.items()},
        "num_steps": result.num_steps,
        "padding_fraction": result.padding_fraction,
        "seconds": result.seconds,
        "curve": result.curve,
    }


def load_task(glue: str, task: str, *, on_bad_row: str = "error", cache: Path | None = None) -> TaskData:
    """The task's examples from `sample`, a folder or s3:// prefix in the classic form, or `hub:NAME`.

    cache: the folder that downloads from S3 are kept in; None: FAST_ELECTRA_CACHE, or the temporary folder.

    Raises:
        DataError: something is missing, broken or cannot be reached; the message says what.
    """
    if glue == "sample":
        return sample_task(task)
    if glue.startswith("hub:"):
        return read_hub_task(glue.removeprefix("hub:"), task)
    root = _download_task(glue, task, cache) if glue.startswith("s3://") else Path(glue)
    return read_task(root, task, on_bad_row=on_bad_row)


def check_tasks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Reads every task of the run, before anything costs; per task its counts and digest (summarise_task).

    Raises:
        DataError: as load_task.
    """
    settings = PretrainConfig.from_dict(dict(config))
    on_bad_row = _on_bad_row(settings)
    if settings.glue != "sample" and not settings.glue.startswith(("hub:", "s3://")):
        return check_task_folder(Path(settings.glue), settings.task_list(), on_bad_row=on_bad_row)
    return {
        task: summarise_task(load_task(settings.glue, task, on_bad_row=on_bad_row)) for task in settings.task_list()
    }


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per task and metric, in the order they come, over the seeds in run's dicts.

    Each row: task, metric, is_main, majority; pretrained and untrained, each None or {n, median, mean, std,
    best, num_degenerate}; margin = difference of the means; margin_low, margin_high = Welch's 95 % of it;
    is_outside_noise = that interval excludes 0. These four are None without two seeds on both sides.
    """
    rows = []
    for task in dict.fromkeys(result["task"] for result in results):
        of_task = [result for result in results if result["task"] == task]
        for metric in of_task[0]["scores"]:
            trained = [result for result in of_task if not result["untrained"]]
            untrained = [result for result in of_task if result["untrained"]]
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "is_main": metric == main_metric(task),
                    "majority": of_task[0]["majority"][metric],
                    "pretrained": _statistics(trained, metric),
                    "untrained": _statistics(untrained, metric),
                    **_margin(_values(trained, metric), _values(untrained, metric)),
                }
            )
    return rows


def averages(results: Sequence[Mapping[str, Any]], *, untrained: bool = False) -> dict[str, dict[str, Any]]:
    """ELECTRA's and the leaderboard's average of the seeds' mean scores: {name: {value, tasks, is_complete}}.

    Empty where no task counts towards one. They differ (see glue_metrics): never compare one with the other.
    """
    kept = [result for result in results if result["untrained"] == untrained]
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


def _on_bad_row(settings: PretrainConfig) -> str:
    return "skip" if settings.on_bad_text == "skip" else "error"


def _majority(data: TaskData) -> dict[str, float]:
    train_labels = [example.label for example in data.train]
    scores: dict[str, float] = {}
    for split, examples in data.dev.items():
        ending = "_mismatched" if split == "mismatched" else ""
        found = majority_score(data.name, train_labels, [example.label for example in examples])
        scores.update({f"{metric}{ending}": value for metric, value in found.items()})
    return scores


def _values(results: Iterable[Mapping[str, Any]], metric: str) -> list[float]:
    return [result["scores"][metric] for result in results]


def _statistics(results: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    values = _values(results, metric)
    if not values:
        return None
    return {
        "n": len(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "best": max(values),
        "num_degenerate": sum(result["degenerate"] for result in results),
    }


def _margin(trained: Sequence[float], untrained: Sequence[float]) -> dict[str, Any]:
    from scipy.stats import t

    if len(trained) < 2 or len(untrained) < 2:
        return dict.fromkeys(("margin", "margin_low", "margin_high", "is_outside_noise"))
    margin = statistics.fmean(trained) - statistics.fmean(untrained)
    parts = [statistics.variance(values) / len(values) for values in (trained, untrained)]
    half = 0.0
    if sum(parts) > 0:  # else every seed of a side scored the same, and the interval is a point
        freedom = sum(parts) ** 2 / sum(
            part**2 / (len(values) - 1) for part, values in zip(parts, (trained, untrained), strict=True)
        )
        half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(sum(parts))
    low, high = margin - half, margin + half
    return {
        "margin": margin,
        "margin_low": low,
        "margin_high": high,
        "is_outside_noise": low > 0 or high < 0,
    }


def _download_task(address: str, task: str, cache: Path | None) -> Path:
    """A local folder with the task's files as they are in S3 now: named by their ETags, so never stale."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").strip("/").partition("/")
    if not bucket:
        raise DataError(f"glue must be s3://BUCKET/PREFIX, got {address!r}")
    prefix = f"{prefix}/" if prefix else ""
    spec = task_spec(task)
    needed = {spec.train_file, *dict(spec.dev_files).values()}
    try:
        client = s3_client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = {entry["Key"].removeprefix(prefix): entry for page in pages for entry in page.get("Contents", [])}
        folder = next((name for name in spec.folders if any(key.startswith(f"{name}/") for key in found)), None)
        if folder is None:
            there = sorted({key.split("/")[0] for key in found if "/" in key})
            raise DataError(
                f"{address} has no folder {' or '.join(spec.folders)} for task {task}; folders there: "
                f"{', '.join(there) or 'none'}"
            )
        files = {key: entry for key, entry in found.items() if key.startswith(f"{folder}/")}
        identity = repr((address, sorted((key, entry["ETag"]) for key, entry in files.items())))
        root = cache if cache is not None else _default_cache()
        root = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        for key, entry in files.items():
            path = root / key
            if Path(key).name in needed and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.{os.getpid()}")
                client.download_file(bucket, entry["Key"], str(partial))
                partial.replace(path)  # whole or not at all: other tasks may share the cache
    except (BotoCoreError, ClientError) as error:
        raise DataError(
            f"{address} cannot be read: {error}. Check the bucket, AWS_ENDPOINT_URL and credentials"
        ) from error
    (root / folder).mkdir(parents=True, exist_ok=True)
    return root


def _default_cache() -> Path:
    folder = os.environ.get("FAST_ELECTRA_CACHE", str(Path(tempfile.gettempdir()) / "fast_electra_cache"))
    return Path(folder) / "glue"
