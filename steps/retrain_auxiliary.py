"""The auxiliary of a run that continues a champion: the champion's own, unless new text is too strange to it.

Drift is how much higher a masked language model's loss is on held-out new text than on held-out old text, in nats.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from fast_electra_core.errors import AuxiliaryError, DataError, TrackingError
from fast_electra_core.method_knobs import MODEL_FREE
from fast_electra_core.retraining import RetrainConfig
from steps.auxiliary import check_vocabulary, fetch_candidates, score_candidate
from steps.machine import take_gpu
from steps.retrain_news import Champion
from steps.store import Store
from steps.trace import Plain, attempt

_logger = logging.getLogger(__name__)


def fetch(config: RetrainConfig, champion: Champion, store: Store) -> list[Plain]:
    """The champion's auxiliary, as `is_kept`, and those of config that have its tokenizer, as fetch_candidates has
    them. What of them cannot serve is left out and said.

    Raises:
        AuxiliaryError: none is left, or one of config's cannot serve at all.
    """
    kept = _champions_own(config, champion, store)
    tokenizer = champion.record["tokenizer"].rpartition("/")[2]
    candidates = [{**candidate, "is_kept": True} for candidate in kept]
    for address in config.auxiliary_list():
        (candidate,) = fetch_candidates(replace(config, auxiliary=address, ensemble_size=1), store)
        if candidate["tokenizer_digest"] != tokenizer:
            _logger.warning("%s is left out: its tokenizer is not the champion's", address)
        elif candidate["key"] not in [each["key"] for each in candidates]:
            candidates.append({**candidate, "is_kept": False})
    if not candidates:
        raise AuxiliaryError(
            f"no auxiliary has the champion's tokenizer {tokenizer}: give one by --auxiliary, or train a new main "
            "model by flows/pretrain_flow.py"
        )
    check_vocabulary(config, candidates)
    return candidates


def _champions_own(config: RetrainConfig, champion: Champion, store: Store) -> list[Plain]:
    tags = champion.info["tags"]
    versions, addresses = (tags[f"auxiliary.{name}"].split(",") for name in ("version", "address"))
    named = [
        address if version == "not registered" else f"models:/{version}"
        for version, address in zip(versions, addresses, strict=True)
    ]
    try:
        own = replace(config, auxiliary=",".join(named), ensemble_size=len(named))
        members = fetch_candidates(own, store)
    except (AuxiliaryError, DataError, TrackingError) as error:
        _logger.warning("the champion's auxiliary cannot be had any more: %s", error)
        return []
    if _digest_of(members) != tags["auxiliary.digest"]:
        _logger.warning("what lies at %s is no longer the champion's auxiliary", tags["auxiliary.address"])
        return []
    return members


def _digest_of(members: Sequence[Plain]) -> str:
    """As frozen.record_of makes it."""
    digests = [str(member["digest"]) for member in members]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


@attempt
def score(plan: Plain, text: Plain, candidate: Plain, *, index: int | None = None) -> Plain:
    """The candidate with its size, price and scores on held-out new text; where a champion is continued, also with
    old_masked_loss and drift. index is the task's, by which it takes a GPU."""
    take_gpu(index)
    store = Store(plan["config"]["store"])
    scored = score_candidate(candidate, plan["config"], shard_keys=text["shard_keys"], store=store)
    if not plan["old_shard_keys"]:
        return scored
    on_old = score_candidate(candidate, plan["config"], shard_keys=plan["old_shard_keys"], store=store)
    drift = scored["masked_loss"] - on_old["masked_loss"]
    return {**scored, "old_masked_loss": on_old["masked_loss"], "drift": drift}


def keep_or_replace(plan: Plain, scored: Sequence[Plain]) -> list[Plain]:
    """The candidates with those marked not ok that are not to be chosen: others than the champion's own while that
    keeps max_auxiliary_drift; otherwise those that do not keep it."""
    if not plan["old_shard_keys"]:
        return list(scored)
    config = RetrainConfig.from_dict(plan["retrain"])
    bound = math.inf if config.method in MODEL_FREE else config.max_auxiliary_drift
    own = [each for each in scored if each["is_kept"]]
    if len(own) == config.ensemble_size and all(each["ok"] and each["drift"] <= bound for each in own):
        reason = f"not needed: the champion's auxiliary keeps the bound of {bound:g} nats (max_auxiliary_drift)"
        return [each if each["is_kept"] else _refused(each, reason) for each in scored]
    return [each if each["drift"] <= bound else _refused(each, _too_strange(each, bound)) for each in scored]


def _too_strange(candidate: Plain, bound: float) -> str:
    return (
        f"the new text is strange to it: its masked loss there is {candidate['masked_loss']:.3f}, on old text "
        f"{candidate['old_masked_loss']:.3f}, at most {bound:g} more is allowed (max_auxiliary_drift). Is it another "
        "language, or garbage? If it belongs there, train an auxiliary on both with the same tokenizer"
    )


def _refused(candidate: Plain, reason: str) -> Plain:
    return {**candidate, "ok": False, "reason": candidate["reason"] or reason}
