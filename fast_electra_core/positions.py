"""How many tokens a model has positions for."""

from collections.abc import Mapping
from typing import Any

_FROM_BEHIND_PAD = (
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Types whose first position has the number pad + 1, so that those before it are never used."""


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model of this config.json can take; None: any number."""
    positions: int | None = config.get("max_position_embeddings")
    if positions is None or config.get("position_biased_input") is False:  # a DeBERTa that knows distances alone
        return None
    if config.get("model_type") in _FROM_BEHIND_PAD:
        return positions - int(config.get("pad_token_id", 1)) - 1
    return positions
