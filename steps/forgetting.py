"""What a continued model has forgotten and learnt: its replaced-token-detection scores on old and on new text, and its
tasks' scores, before and after."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from fast_electra_core.config import PretrainConfig
from fast_electra_core.evaluation import score_detector, unigram_counts
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.initial_model import initial_shape, start_from
from fast_electra_core.method_building import build_method, corrupt_for_scoring
from steps import promotion, score_sheet
from steps.frozen import load_members
from steps.initial_model import load_initial_model
from steps.machine import device
from steps.pretrain import partner_of
from steps.training_run import TrainingRun

Row = dict[str, Any]
SHOWN = {"heldout_rtd_loss": "RTD loss", "heldout_auc": "AUC"}
"""What is shown of score_detector's."""


def detection(
    config: PretrainConfig, run: TrainingRun, *, auxiliary: dict[str, Any], initial_model: dict[str, Any], key: str
) -> list[Row]:
    """Held-out scores of the model that was continued and of the one that came of it (key in the store): a row for old
    text and one for new, {text, before, after}, both by score_detector. Tokens are replaced alike in all four."""
    folder = run.store.get_folder(key)
    models = {
        "before": load_initial_model(initial_model, config, run.store).model,
        "after": start_from(folder, initial_shape(folder, config), seed=config.seed).model,
    }
    dataset = run.dataset("train", config)
    partner = partner_of(
        config,
        run,
        members=load_members(auxiliary, run.store),
        dataset=dataset,
        counts=lambda size: unigram_counts(dataset, size),
    )
    texts = {"old": run.old_dataset("heldout", config), "new": run.dataset("heldout", config)}
    rows: list[Row] = [{"text": text} for text in texts]
    for when, model in models.items():
        method = _method(config, model, partner, mask_token_id=dataset.special_ids.mask)
        for row in rows:
            corrupt = corrupt_for_scoring(method)
            heldout = texts[row["text"]]
            row[when] = score_detector(method, heldout, corrupt=corrupt, mask_fraction=config.mask_fraction)
    return rows


def _method(config: PretrainConfig, model: PreTrainedModel, partner: Any, *, mask_token_id: int) -> FastElectra:
    method = build_method(config, model, partner, mask_token_id=mask_token_id).to(device())
    assert isinstance(method, FastElectra)  # retraining refuses the others
    return method


def as_metrics(rows: list[Row]) -> dict[str, float]:
    """`forgetting.old.rtd_loss.before` and so on."""
    return {
        f"forgetting.{row['text']}.{name.removeprefix('heldout_')}.{when}": row[when][name]
        for row in rows
        for name in SHOWN
        for when in ("before", "after")
    }


def tasks(champion: Mapping[str, Any], sheet: Mapping[str, Any]) -> list[Row]:
    """A row per task: {task, metric, before, after}, means over the seeds; before is the champion's own sheet's, None
    where that was not scored alike."""
    theirs = promotion.sheet_of(champion)
    is_alike = theirs is not None and score_sheet.key_of(theirs) == score_sheet.key_of(sheet)
    rows = []
    for task, each in sheet["tasks"].items():
        before = theirs["tasks"][task] if is_alike and theirs else {"values": {}}
        rows.append({"task": task, "metric": each["metric"], "before": _mean(before), "after": _mean(each)})
    return rows


def _mean(task: Mapping[str, Any]) -> float | None:
    values = list(task["values"].values())
    return sum(values) / len(values) if values else None
