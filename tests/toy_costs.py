"""What steps.ledger makes of a run, in round numbers."""

from typing import Any


def cost_of(**changes: Any) -> dict[str, Any]:
    """Of a frozen run: 1.2e9 for the main model, 0.2e9 for the auxiliary, whose training has cost 1e9."""
    flops = {
        "total": 1.4e9, "main": 1.2e9, "auxiliary": 0.2e9, "auxiliary_reused": 0.0, "charged": 1.65e9,
        "joint_total": 1.8e9, "per_token": 1.4e6, "auxiliary_training": 1e9, "saving_fraction": 4 / 18,
        "charged_saving_fraction": 1.5 / 18, "by_google": 9e8, "main_head": 0.2e9, "auxiliary_head": 0.05e9,
    }  # fmt: skip
    memory = {
        "weights": 6e5, "gradients": 4e5, "optimizer_state": 8e5, "activations": 3e6, "logits": 1e4, "peak": 4.4e6,
        "exchange": 0.0, "saved": 0.0, "auxiliary": 2e5, "auxiliary_if_joint": 1.5e6,
    }  # fmt: skip
    measured = {
        "seconds": 20.0, "training_seconds": 14.0, "drawing_seconds": 0.0, "flops_per_second": 1e8, "memory": 5e6,
        "data_seconds": 0.5, "scoring_seconds": 3.0, "checkpoint_seconds": 1.0, "starting_seconds": 2.0,
        "tokens_per_second": 1000 / 14, "peak_share": 0.625,
        "money": None, "money_charged": None,
    }  # fmt: skip
    cost = {
        "num_tokens": 1000, "flops": flops, "memory": memory, "measured": measured, "address": "models:/aux@champion",
        "parameters": {"main": 1000, "auxiliary": 500}, "auxiliary_shared_by": 4, "own_training_money": None,
        "beside": "auxiliary", "num_processes": 1, "is_sharded": False,
        "is_drawn_ahead": False, "price_per_hour": None,
    }  # fmt: skip
    return {name: {**value, **changes.get(name, {})} if isinstance(value, dict) else changes.get(name, value)
            for name, value in cost.items()}  # fmt: skip
