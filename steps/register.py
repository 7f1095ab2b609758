"""Registering what a run has made: gates, lineage tags, model card, and the rule for who is champion."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fast_electra_core.method_knobs import is_read
from steps import tracking
from steps.model_card import Facts, description, model_card

AUXILIARY_NAME = "fast-electra-auxiliary"
MODEL_NAME = "fast-electra"
CHAMPION = "champion"
CHALLENGER = "challenger"
LINEAGE_TAGS = (
    "metaflow.pathspec",
    "code.git_sha",
    "corpus.digest",
    "tokenizer.digest",
    "auxiliary.digest",
    "config.digest",
)
SCHEDULE_TAGS = ("schedule", "temperature_start", "temperature_decay", "temperature_end")
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
FLOPS_TAG = "training.total_flops"
MONEY_TAG = "training.money"
"""What training has cost; the ledgers of runs that use an auxiliary read them."""
_SCORE = "glue.average"
_SUITE = "glue.suite"
_PARENT = "mlflow.parent_run_id"


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
    loss, unigram = metrics["masked_loss"], metrics["unigram_loss"]
    is_better = loss < unigram  # False for NaN
    reason = f"held-out masked loss {loss:.4f} is {'' if is_better else 'not '}below the unigram's {unigram:.4f}"
    finite = _is_finite(folder)
    if not finite:
        is_better, reason = False, "weights are not finite"
    return _register(
        AUXILIARY_NAME,
        [CHAMPION] if is_better else [],
        reason if is_better else f"no alias: {reason}",
        example=f"the {_mask_token(folder)} of the function",
        folder=folder,
        run_id=run_id,
        facts=Facts(
            summary="A masked language model that serves, frozen, as the auxiliary of Fast-ELECTRA pre-training.",
            task="fill-mask",
            tags={**tags, **_as_tags(metrics)},
            metrics=metrics,
            config=config,
            cost=cost or {},
        ),
    )


def register_discriminator(
    config: Mapping[str, Any],
    *,
    folder: Path,
    run_id: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    evidence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A new version of `fast-electra`; returns name, version, aliases, reason, run_id and model_id.

    The schedule's parameters are added to the tags from config, as `not used` where config["method"] reads none. What
    the version's pipeline does follows from the method too. Gates: finite weights, and every lineage and schedule tag
    given. A version that passes is the challenger. It is champion too if there is none yet, or
    if its `glue.average` is higher than the champion's on the same `glue.suite` (same tasks, same data). The
    tag `promotion.reason` says what was decided and why. evidence: `scores`, `cost` and `datasets`, as
    model_card.Facts has them.

    Raises:
        TrackingError: the folder is incomplete, or the server refuses.
    """
    tracking.connect(config["tracking_uri"])
    method = config["method"]
    schedule = {name: config[name] if is_read(name, method) else "not used" for name in SCHEDULE_TAGS}
    tags = {**schedule, **tags, **_as_tags(metrics)}
    failures = _gate_failures(folder, tags)
    if failures:
        aliases, reason = [], f"no alias: {'; '.join(failures)}"
    else:
        is_champion, reason = _beats_champion(tags)
        aliases = [CHALLENGER, CHAMPION] if is_champion else [CHALLENGER]
    pipeline = _pipeline_of(method, folder)
    return _register(
        MODEL_NAME,
        aliases,
        reason,
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


def code_version() -> dict[str, str]:
    """The tag `code.git_sha`: the commit of this file's checkout, with `-dirty` where files differ from it;
    outside a checkout the environment's FAST_ELECTRA_GIT_SHA; else `unknown`."""
    here = Path(__file__).resolve().parent
    try:
        sha = _git(here, "rev-parse", "HEAD")
        is_dirty = bool(_git(here, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet, or a disk that hangs
        return {"code.git_sha": os.environ.get("FAST_ELECTRA_GIT_SHA", "unknown")}
    return {"code.git_sha": f"{sha}-dirty" if is_dirty else sha}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _register(
    name: str,
    aliases: list[str],
    reason: str,
    *,
    facts: Facts,
    **what: Any,
) -> dict[str, Any]:
    facts = replace(facts, tags={**facts.tags, "promotion.reason": reason})
    version = tracking.register_model(
        name=name,
        task=facts.task,
        tags=facts.tags,
        metrics=facts.metrics,
        datasets=facts.datasets,
        card=model_card(name, facts),
        description=description(facts),
        **what,
    )
    for alias in aliases:
        tracking.set_alias(name, alias, version["version"])
    return {**version, "aliases": aliases, "reason": reason}


def _gate_failures(folder: Path, tags: Mapping[str, Any]) -> list[str]:
    missing = [name for name in LINEAGE_TAGS + SCHEDULE_TAGS if str(tags.get(name) or "").strip() == ""]
    failures = [f"tags missing: {', '.join(missing)}"] if missing else []
    return failures if _is_finite(folder) else [*failures, "weights are not finite"]


def _beats_champion(tags: Mapping[str, Any]) -> tuple[bool, str]:
    number = tracking.aliases(MODEL_NAME).get(CHAMPION)
    if number is None:
        return True, "champion: there was none"
    champion = tracking.model_version_info(f"models:/{MODEL_NAME}/{number}")["tags"]
    if tags.get(_PARENT) and champion.get(_PARENT) == tags[_PARENT]:
        before = champion.get("promotion.reason", "")  # this version's own: the step is done again
        return True, before if before.startswith(CHAMPION) else "champion: it is already"
    ours, theirs = tags.get(_SUITE), champion.get(_SUITE)
    who = f"the champion, version {number}"
    if _SCORE not in tags or _SCORE not in champion:
        return False, f"challenger: not comparable with {who}: {_SCORE} is not known for both"
    if str(ours) != theirs:
        return False, f"challenger: not comparable with {who}: scored on {theirs}, this on {ours}"
    new, old = float(tags[_SCORE]), float(champion[_SCORE])
    if new > old:
        return True, f"champion: {_SCORE} {new:.4f} is above {old:.4f} of {who}"
    return False, f"challenger: {_SCORE} {new:.4f} is not above {old:.4f} of {who}"


def _is_finite(folder: Path) -> bool:
    """Whether every weight in the folder's safetensors files is finite; one tensor in memory at a time."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    return False
    return True


def _mask_token(folder: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder, trust_remote_code=False).mask_token)


def _as_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    return {name: repr(float(value)) for name, value in metrics.items()}
