"""The charts of a run that are looked at first: on its pages, and as images in MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any

from steps.charts import Chart, bars, panels, shares
from steps.scores import statistics_of

Row = Mapping[str, Any]
_LOSSES = {
    "loss": "training",
    "heldout_rtd_loss": "held-out",
    "heldout_masked_loss": "held-out",
    "heldout_majority_loss": "always the majority class",
    "heldout_unigram_loss": "unigram",
}
_PANELS = {
    "loss": _LOSSES,
    "temperature": {"temperature": "temperature"},
    "replaced share": {"replaced_fraction": "replaced share"},
}


def progress(rows: Sequence[Row], num_steps: int) -> Chart | None:
    """Loss, temperature and replaced share over the progress of a training, as far as the rows have them."""
    return panels(rows, num_steps, _PANELS)


def scores(rows: Sequence[Row], rival: Row | None = None) -> Chart:
    """The main scores by task with intervals; rival is promotion.rival_of's."""
    others = {}
    if rival:
        known = {task: list(of.values()) for task, of in rival["scores"].items() if of}  # a waived gate lets one lack
        others = {rival["name"]: {task: statistics_of(values) for task, values in known.items()}}
    return bars(rows, others)


def cost_split(cost: Row, seconds: Mapping[str, float]) -> Chart | None:
    """What the operations of pre-training (ledger.account) went to, and what the time did; seconds: of other work."""
    flops, measured, beside = cost["flops"], cost["measured"], cost["beside"]
    operations = {
        "main model": flops["main"] - flops["main_head"],
        "its head": flops["main_head"],
        beside: flops["auxiliary"] - flops["auxiliary_head"],
        f"the {beside}'s head": flops["auxiliary_head"],
    }
    time = {
        "drawing ahead": measured["drawing_seconds"],
        "pre-training": measured["training_seconds"],
        "its scores": measured["scoring_seconds"],
        "its checkpoints": measured["checkpoint_seconds"],
        "its start-up": measured["starting_seconds"],
        **seconds,
    }
    wholes = {
        f"{flops['total']:.3e} floating-point operations of pre-training": operations,
        f"{sum(time.values()):,.0f} s of work, of tasks side by side the sum": time,
    }
    return shares(wholes, "What the cost is made of")
