"""The frozen auxiliary: chosen among scored candidates, one or an ensemble, and unchanged from then on.

Its record is that of the best member, with all of them as `members`, and what they cost together.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import AuxiliaryError
from steps.model_source import weights_digest
from steps.store import Store

if TYPE_CHECKING:  # what choosing and checking need not wait for
    from transformers import PreTrainedModel

RULE = (
    "the lowest held-out masked loss, or the ensemble_size lowest, of candidates whose forward FLOPs per token are "
    "together at most max_auxiliary_fraction of the main model's"
)
_SUMS = ("flops_per_token", "flops_fraction", "num_parameters", "seconds_per_1k_tokens")


def choose(
    scored: Sequence[dict[str, Any]], *, ensemble_size: int = 1, max_auxiliary_fraction: float = math.inf
) -> dict[str, Any]:
    """The winner under RULE, or the winners as one record; the first given wins a tie. Members are taken in the order
    of their losses, passing over those that would make the ensemble too dear.

    Raises:
        AuxiliaryError: none is eligible, or too few, with the reason for each.
    """
    eligible = sorted((each for each in scored if each["ok"]), key=lambda each: float(each["masked_loss"]))
    if not eligible:
        reasons = "; ".join(f"{candidate['address']}: {candidate['reason']}" for candidate in scored)
        raise AuxiliaryError(f"no candidate can serve as auxiliary: {reasons}")
    members: list[dict[str, Any]] = []
    for candidate in eligible:
        price = sum(each["flops_fraction"] for each in (*members, candidate))
        if len(members) < ensemble_size and (not members or price <= max_auxiliary_fraction):
            members.append(candidate)
    if len(members) < ensemble_size:
        prices = "; ".join(f"{each['address']}: {each['flops_fraction']:.2f}" for each in scored)
        raise AuxiliaryError(
            f"no {ensemble_size} candidates fit together into {max_auxiliary_fraction:g} of the main model's forward "
            f"FLOPs: {prices}. Give a larger --max_auxiliary_fraction or a smaller --ensemble_size"
        )
    return record_of(members)


def record_of(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of an auxiliary made of these candidates, the best first. Of one it is the candidate's own; of several
    the prices are sums, the digest is of all, and the held-out scores are still those of the best."""
    best = {**members[0], "members": list(members)}
    if len(members) == 1:
        return best
    return {
        **best,
        "address": ",".join(each["address"] for each in members),
        "digest": hashlib.sha256("\n".join(each["digest"] for each in members).encode()).hexdigest()[:16],
        **{name: sum(each[name] for each in members) for name in _SUMS},
    }


def load_members(frozen: Mapping[str, Any], store: Store) -> list["PreTrainedModel"]:
    """The models of a frozen auxiliary, the best first.

    Raises: as load_masked_lm.
    """
    from steps.auxiliary import load_masked_lm

    return [load_masked_lm(store.get_folder(each["key"]), address=each["address"]) for each in frozen["members"]]


def score_together(
    frozen: dict[str, Any], config: PretrainConfig, *, shard_keys: Sequence[str], store: Store
) -> dict[str, Any]:
    """The record with the held-out scores of its members' mean; of a single one it is as it was."""
    if len(frozen["members"]) == 1:
        return frozen
    from fast_electra_core.evaluation import score_masked_lms, unigram_counts
    from steps.dataset import open_dataset
    from steps.machine import device

    folders = {
        "shard_keys": shard_keys,
        "tokenizer_key": f"tokenizers/{frozen['tokenizer_digest']}",
        "store": store,
    }
    heldout, train = (open_dataset(part, config, **folders) for part in ("heldout", "train"))  # type: ignore[arg-type]
    models = [model.to(device()) for model in load_members(frozen, store)]
    scores = score_masked_lms(models, heldout, counts=unigram_counts(train, models[0].config.vocab_size))
    return {**frozen, **scores._asdict()}


def check_frozen(frozen: Mapping[str, Any], store: Store) -> None:
    """The stored weights of every member are those that were scored.

    Raises:
        AuxiliaryError: they have changed since.
    """
    for member in frozen["members"]:
        digest = weights_digest(store.get_folder(member["key"]))
        if digest != member["digest"]:
            raise AuxiliaryError(
                f"the frozen auxiliary {member['address']} has moved: its weights' digest was {member['digest']}, now "
                f"it is {digest}. Delete {store.address(member['key'])} and run again"
            )
