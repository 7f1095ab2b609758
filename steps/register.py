"""Registering what a run has made, with lineage tags and model card; and which auxiliary is champion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_electra_core.method_knobs import is_read
from steps import tracking
from steps.gates import SCHEDULE_TAGS, is_finite
from steps.model_card import Facts, description, model_card

AUXILIARY_NAME = "fast-electra-auxiliary"
MODEL_NAME = "fast-electra"
_TRAINED_BY = {
    "fast_electra": "replaced token detection (Fast-ELECTRA)",
    "electra": "replaced token detection beside a generator (ELECTRA)",
    "electra_decoupled": "replaced token detection beside a generator with an optimizer of its own (ELECTRA)",
    "electra_gdes": "replaced token detection beside a generator, embeddings shared without gradient (as DeBERTaV3)",
    "mlm": "masked language modelling (BERT)",
    "uniform": "detection of tokens that were replaced by any other",
    "unigram": "detection of tokens that were replaced by token frequency",
    "bigram": "detection of tokens that were replaced by what follows their left neighbour elsewhere",
}
_TRAIN_ON = "train it longer, by a higher --num_steps, or on more text"
FLOPS_TAG = "training.total_flops"
MONEY_TAG = "training.money"
"""What training has cost; the ledgers of runs that use an auxiliary read them."""


def register_auxiliary(
    config: Mapping[str, Any],
    *,
    folder: Path,
    run_id: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    cost: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A new version of `fast-electra-auxiliary`; returns name, version, aliases, reason, run_id and model_id.

    It becomes champion if its held-out masked_loss is below unigram_loss, the loss of always predicting the
    corpus's token frequencies; otherwise it gets no alias. The tag `promotion.reason` says which.

    Raises:
        TrackingError: the folder is incomplete, or the server refuses.
    """
    tracking.connect(config["tracking_uri"])
    is_better, reason = judge_auxiliary(metrics["masked_loss"], metrics["unigram_loss"], folder)
    reason = reason if is_better else f"no alias: {reason}"
    version = _register(
        AUXILIARY_NAME,
        example=f"the {_mask_token(folder)} of the function",
        folder=folder,
        run_id=run_id,
        facts=Facts(
            summary="A masked language model that serves, frozen, as the auxiliary of Fast-ELECTRA pre-training.",
            task="fill-mask",
            tags={**tags, **_as_tags(metrics), "promotion.reason": reason},
            metrics=metrics,
            config=config,
            cost=cost or {},
        ),
    )
    if is_better:
        _crown(AUXILIARY_NAME, version["version"])
    info = tracking.model_version_info(f"models:/{AUXILIARY_NAME}/{version['version']}")
    return {**version, "aliases": info["aliases"], "reason": reason}


def judge_auxiliary(loss: float, unigram: float, folder: Path) -> tuple[bool, str]:
    """Whether an auxiliary may be champion, and why, in words: its held-out masked loss is below the unigram's, and
    every weight in the folder is finite."""
    if not is_finite(folder):
        return False, "weights are not finite"
    if loss < unigram:  # False for NaN
        return True, f"held-out masked loss {loss:.4f} is below the unigram's {unigram:.4f}"
    return False, f"held-out masked loss {loss:.4f} is not below the unigram's {unigram:.4f}; {_TRAIN_ON}"


def _crown(name: str, version: str) -> None:
    """The version is champion, unless an earlier attempt has made it so: another may have followed since."""
    while True:
        seen = tracking.throne(name)
        if version in [entry.version for entry in seen.entries] or tracking.claim(seen, version, "promoted"):
            return


def register_discriminator(
    config: Mapping[str, Any],
    *,
    folder: Path,
    run_id: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    evidence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A new version of `fast-electra`, without alias; returns name, version, run_id and model_id. Whether it becomes
    challenger or champion is steps.promotion's to say.

    The schedule's parameters are added to the tags from config, as `not used` where config["method"] reads none. What
    the version's pipeline does follows from the method too. evidence: `scores`, `cost` and `datasets`, as
    model_card.Facts has them.

    Raises:
        TrackingError: the folder is incomplete, or the server refuses.
    """
    tracking.connect(config["tracking_uri"])
    method = config["method"]
    schedule = {name: config[name] if is_read(name, method) else "not used" for name in SCHEDULE_TAGS}
    tags = {**schedule, **tags, **_as_tags(metrics)}
    pipeline = _pipeline_of(method, folder)
    return _register(
        MODEL_NAME,
        example=pipeline["example"],
        folder=folder,
        run_id=run_id,
        facts=Facts(
            summary=pipeline["summary"],
            task=pipeline["task"],
            tags=tags,
            metrics=metrics,
            config=config,
            **(evidence or {}),
        ),
    )


def _pipeline_of(method: str, folder: Path) -> dict[str, str]:
    """transformers' task for a main model of that method, an example, and what to say of it."""
    start = f"A text encoder pre-trained by {_TRAINED_BY[method]}. A pipeline"
    if method == "mlm":
        return {
            "task": "fill-mask",
            "example": f"the cat sat on the {_mask_token(folder)}",
            "summary": f"{start} fills in masked tokens; fine-tuning starts from its encoder.",
        }
    return {
        "task": "feature-extraction",
        "example": "the cat sat on the mat",
        "summary": f"{start} gives one logit per token, above 0 where the token looks replaced; fine-tuning starts "
        "from its encoder.",
    }


def training_tags(cost: Mapping[str, Any]) -> dict[str, Any]:
    """What a training has cost (ledger.account), as tags of the version that it made."""
    money = cost["measured"]["money"]
    return {FLOPS_TAG: cost["flops"]["total"], **({} if money is None else {MONEY_TAG: money})}


def _register(name: str, *, facts: Facts, **what: Any) -> dict[str, Any]:
    return tracking.register_model(
        name=name,
        task=facts.task,
        tags=facts.tags,
        metrics=facts.metrics,
        datasets=facts.datasets,
        card=model_card(name, facts),
        description=description(facts),
        **what,
    )


def _mask_token(folder: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder, trust_remote_code=False).mask_token)


def _as_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    return {name: repr(float(value)) for name, value in metrics.items()}
