"""Scores, a candidate for the auxiliary and held-out scores, as pages and closing table are given them."""

from typing import Any

HELDOUT = {
    "step": 10,
    "heldout_rtd_loss": 0.21,
    "heldout_majority_loss": 0.34,
    "heldout_auc": 0.87,
    "heldout_recall_replaced": 0.6,
    "heldout_precision_replaced": 0.72,
}


def statistics(mean: float, std: float | None = 0.01, *, num_degenerate: int = 0) -> dict[str, Any]:
    ends = {"low": mean - std, "high": mean + std} if std is not None else {"low": None, "high": None}
    best = mean + (std or 0.0)
    recipe = {"learning_rate": 3e-4, "epochs": 10.0}
    found = {"n": 3, "median": mean, "mean": mean, "std": std, "best": best, "num_degenerate": num_degenerate}
    return {**found, **ends, **recipe}


def task_row(task: str = "sst2", metric: str = "accuracy", **changes: Any) -> dict[str, Any]:
    row = {
        "task": task,
        "metric": metric,
        "is_main": True,
        "majority": 0.5,
        "pretrained": statistics(0.75),
        "untrained": statistics(0.625, 0.02),
        "margin": 0.125,
        "margin_low": 0.0625,
        "margin_high": 0.1875,
        "is_outside_noise": True,
    }
    return {**row, **changes}


def scores_of(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    nothing = {"averages": {}, "failures": [], "optimism": [], "submission": {"files": [], "missing": [], "seeds": {}}}
    said = {
        "subject": "models:/fast-electra@champion",
        "protocol": "recipe electra; seeds 0 to 2",
        "skipped": {},
        "own_answers": [],
    }
    return {"rows": list(rows), **nothing, **said, **changes}


def candidate(**changes: Any) -> dict[str, Any]:
    row = {
        "address": "models:/fast-electra-auxiliary@champion",
        "ok": True,
        "reason": "",
        "num_layers": 2,
        "hidden_size": 128,
        "num_parameters": 1_543_680,
        "flops_per_token": 1.2e6,
        "flops_fraction": 0.31,
        "seconds_per_1k_tokens": 0.0213,
        "masked_loss": 4.41,
        "masked_accuracy": 0.251,
        "unigram_loss": 6.62,
        "unigram_accuracy": 0.046,
        "digest": "0123456789abcdef",
    }
    return {**row, **changes}
