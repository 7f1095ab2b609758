"""Whether what lies in the registry is what was scored: its weights and tokenizer, and one of its scores once more.

The score is the cheapest one that goes through the registry: a task model that was registered with it is downloaded and
scored on dev again, the one with the smallest dev set. Where no task model was kept, the downloaded encoder is
fine-tuned again on the smallest task, with its lowest seed.
"""

import contextlib
import logging
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.errors import DataError
from steps import tracking
from steps.score_sheet import Sheet, scoring_config
from steps.store import Store
from steps.task_models import PRETRAINED_TAG

_logger = logging.getLogger(__name__)
_FLIPPED = 2
"""Dev examples that another device's rounding may put on the other side of the boundary."""
_DEVIATIONS = 3.0
"""Of the seeds, that a fine-tuning on another device may differ by from the same one here."""


@contextlib.contextmanager
def downloaded(address: str, store: Store) -> Iterator[Path]:
    """The version's files, for a while."""
    with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
        yield tracking.download_model(address, Path(scratch) / "model")


def replay(folder: Path, version: Mapping[str, Any], sheet: Sheet | None, store: Store) -> tuple[bool, str]:
    """Whether the downloaded version is what the sheet's scores are of, and in words what was compared.

    Raises:
        DataError: the task's data cannot be read, or has changed.
        TrackingError: the server does not answer.
    """
    if sheet is None:
        return False, "no scores are kept with the version"
    problem = _moved(folder, version["tags"])
    if problem:
        return False, problem
    scored = {task: each for task, each in sheet["tasks"].items() if each["values"]}
    linked = {task: version["tags"][f"task.{task}"] for task in scored if f"task.{task}" in version["tags"]}
    tuned = tracking.find_versions(PRETRAINED_TAG, f"{version['name']}/{version['version']}") if linked else []
    there = {f"{each['name']}/{each['version']}" for each in tuned}  # a link may be to one that has been deleted
    kept = {
        task: name for task, name in linked.items() if name in there and _is_of_sheet(f"models:/{name}", scored[task])
    }
    if kept:
        task = min(kept, key=lambda name: scored[name]["num_dev"])
        return _rescore(task, f"models:/{kept[task]}", version["tags"]["weights.digest"], sheet, store)
    return _finetune_again(folder, scored, sheet, store)


def _is_of_sheet(address: str, facts: Mapping[str, Any]) -> bool:
    """Whether the task model was scored in the fine-tunings of the sheet: a later evaluation, whose settings may be
    others, links its own in their place."""
    tags = tracking.model_version_info(address)["tags"]
    return bool(tags.get("score") == repr(facts["values"].get(tags.get("seed", ""))))


def _moved(folder: Path, tags: Mapping[str, str]) -> str:
    """What of the files is not what was fine-tuned; empty if nothing."""
    from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest
    from steps.model_source import weights_digest

    digests = {"weights.digest": weights_digest(folder), "tokenizer.digest": tokenizer_digest(load_tokenizer(folder))}
    for name, now in digests.items():
        if tags.get(name) != now:
            return f"{name} in the registry is {now}, scored was {tags.get(name, 'none')}"
    return ""


def _rescore(task: str, address: str, encoder: str, sheet: Sheet, store: Store) -> tuple[bool, str]:
    """A registered task model on its dev set again."""
    from transformers import AutoModelForSequenceClassification

    from fast_electra_core.finetuning import score_dev
    from fast_electra_core.tokenizer import load_tokenizer
    from steps.machine import device

    info = tracking.model_version_info(address)
    facts = sheet["tasks"][task]
    if info["tags"].get("pretrained.digest") != encoder:
        return False, f"{address} was fine-tuned from other weights ({info['tags'].get('pretrained.digest')})"
    before = facts["values"][info["tags"]["seed"]]
    data = _task_data(task, sheet)
    with downloaded(address, store) as folder:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False
        )
        length = sheet["protocol"]["finetune_max_length"]
        scores = score_dev(model.to(device()), load_tokenizer(folder), data, max_length=length)
    what = f"{address} scored again: {task} {facts['metric']}"
    return _same(scores[facts["metric"]], before, _resolution(facts), what)


def _finetune_again(folder: Path, scored: Mapping[str, Any], sheet: Sheet, store: Store) -> tuple[bool, str]:
    """The downloaded encoder on the smallest task that does not start from another one, with its lowest seed."""
    from steps.console import progress_lines
    from steps.finetune import follows_mnli, job_key, job_name, passes, run
    from steps.model_source import weights_digest

    config = scoring_config(sheet)
    data = {task: _task_data(task, sheet) for task in scored if not follows_mnli(task, config)}
    if not data:
        return False, "no task of the scores starts from the encoder itself"
    counts = {task: {"train": len(each.train)} for task, each in data.items()}
    task = min(data, key=lambda name: passes({"task": name}, config, counts))
    seed = min(map(int, scored[task]["values"]))
    before = scored[task]["values"][str(seed)]
    rate = scored[task]["learning_rate"] if config.grid() else None
    job = {"task": task, "seed": seed, "untrained": False, "rate": rate}
    name = job_name(job)
    _logger.info("replay: %s once more, from the registered encoder", name)
    result = run(
        config.to_dict(),
        encoder_folder=folder,
        job=job,
        store=store,
        key=job_key(f"replays/{weights_digest(folder)}-{config.digest()}", job),
        digest=scored[task]["digest"],
        on_metrics=progress_lines(f"replay of {name}"),
    )
    values = list(scored[task]["values"].values())
    noise = _DEVIATIONS * statistics.stdev(values) if len(values) > 1 else 0.0
    what = f"fine-tuned again from the registry, seed {seed}: {task} {scored[task]['metric']}"
    now = result["scores"][scored[task]["metric"]]
    return _same(now, before, max(noise, _resolution(scored[task])), what)


def _same(now: float, before: float, tolerance: float, what: str) -> tuple[bool, str]:
    words = f"{what} {now:.4f}, was {before:.4f}"
    if abs(now - before) <= tolerance:
        return True, f"{words}; weights and tokenizer as scored"
    return False, f"{words}, which is more than {tolerance:.4f} off"


def _resolution(facts: Mapping[str, Any]) -> float:
    return 2 * _FLIPPED / float(facts["num_dev"])


def _task_data(task: str, sheet: Sheet) -> Any:
    from fast_electra_core.glue import summarise_task
    from steps.tasks import bad_row_choice, load_task

    config = scoring_config(sheet)
    data = load_task(config.glue, task, on_bad_row=bad_row_choice(config))
    if summarise_task(data)["digest"] != sheet["tasks"][task]["digest"]:
        raise DataError(f"task {task} of {config.glue} is not the data that was scored on; put it back")
    return data
