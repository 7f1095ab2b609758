"""The ledger in words: the plan that `start` prints, the lines that end a run, and the tables on its page.

Nothing heavy: dicts of steps.ledger in, text out. What is not known is called unknown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fast_electra_core.config import TrainingConfig

Line = tuple[str, str, str]
"""Label, value and a hint."""
Cost = Mapping[str, Any]

NOTE = (
    "A backward pass counts as two forward passes. Memory is planned in float32, without what a layer's own backward "
    "pass needs; measured is the peak above what the process held before, on a CPU with what libraries load and with "
    "freed memory that the C library keeps. Of several processes both are the first one's."
)


def plan_text(costs: Sequence[Cost], *, ensemble_size: int = 1) -> str:
    """What a run will cost, with each of the auxiliaries that it may choose; several lines."""
    blocks = [f"this run will cost, training on {costs[0]['num_tokens']:,} tokens:"]
    for cost in costs:
        if cost["address"] is not None:
            chosen = " if it is chosen" if len(costs) > 1 else ""
            blocks.append(f"with the {cost['beside']} {cost['address']}{chosen}:")
        blocks.append(_aligned([*_operations(cost), *_memory(cost)]))
    if ensemble_size > 1:
        blocks.append(f"{ensemble_size} of them draw together: what the auxiliary costs is then the sum of theirs")
    return "\n".join(blocks)


def closing_lines(cost: Cost) -> list[Line]:
    """What a run has cost, for the table that ends it."""
    measured = cost["measured"]
    speed = f"{measured['tokens_per_second']:,.0f} tokens/s; {measured['flops_per_second']:.2e} FLOP/s"
    speed += f", {100 * measured['peak_share']:.0f} % of peak"
    beside = {name: measured[f"{name}_seconds"] for name in ("scoring", "checkpoint", "starting")}
    words = {"scoring": "scores", "checkpoint": "checkpoints", "starting": "start-up"}
    parts = ", ".join(f"{words[name]} {_seconds(value)}" for name, value in beside.items())
    lines = [
        *_operations(cost),
        ("time in training steps", _seconds(measured["training_seconds"]), speed),
        ("time of them for batches", _seconds(measured["data_seconds"]), ""),
        ("time beside them", _seconds(sum(beside.values())), parts),
    ]
    if cost["is_drawn_ahead"]:
        lines.append(("time of drawing ahead", _seconds(measured["drawing_seconds"]), ""))
    lines.append(("memory, measured", _bytes(measured["memory"]), f"planned {_bytes(cost['memory']['peak'])}"))
    if measured["money"] is not None:
        charged = f"; {cost['beside']} charged {_money(measured['money_charged'])}" if _is_charged(cost) else ""
        lines.append(("price", _money(measured["money"]), f"at {cost['price_per_hour']:g} per hour{charged}"))
    return [(f"cost: {label}", value, hint) for label, value, hint in lines]


def facts(cost: Cost) -> list[Line]:
    """The tiles of the page, hints left empty."""
    measured = cost["measured"]
    tiles = [("FLOPs", _flops(cost["flops"]["total"]), ""), ("time", _seconds(measured["seconds"]), "")]
    tiles += [("FLOP/s in training", f"{measured['flops_per_second']:.2e}", "")]
    tiles += [("memory, measured", _bytes(measured["memory"]), "")]
    return tiles if measured["money"] is None else [*tiles, ("price", _money(measured["money"]), "")]


def accounting_rows(cost: Cost) -> list[list[str]]:
    """Rows of what, FLOPs, FLOPs per token and share of a joint run, in both accountings."""
    flops = cost["flops"]
    training = flops["auxiliary_training"]
    share = None if training is None else training / cost["auxiliary_shared_by"]
    rows = {
        "main model, forward and backward": flops["main"],
        f"{cost['beside']} in this run": flops["auxiliary"],
        "this run, per step": flops["total"],
        f"the {cost['beside']}'s own training, shared by {_runs(cost)}": share,
        f"this run, with the {cost['beside']}'s training charged": flops["charged"],
        "drawn by an earlier run, in none of the sums": flops["auxiliary_reused"],
    }
    joint = flops["joint_total"]
    if joint is not None:
        rows["joint ELECTRA of these models"] = joint
    table = [[name, *_shares(value, cost["num_tokens"], joint)] for name, value in rows.items()]
    by_google = flops["by_google"]
    if by_google is not None:
        table.append(["this run, as ELECTRA's paper counts", _flops(by_google), "", ""])
    return table


def measured_rows(cost: Cost) -> list[list[str]]:
    """Rows of what, as planned and as measured."""
    memory, measured = cost["memory"], cost["measured"]
    rows = [[f"memory: {words}", _bytes(memory[name]), ""] for name, words in _memory_parts(cost).items()]
    rows.append(["memory: peak", _bytes(memory["peak"]), _bytes(measured["memory"])])
    rows.append([f"memory: of which the {cost['beside']}", _bytes(memory["auxiliary"]), ""])
    if memory["auxiliary_if_joint"] is not None:
        rows.append(["memory: of which the auxiliary, trained alongside", _bytes(memory["auxiliary_if_joint"]), ""])
    rows.append(["parameters trained or frozen", f"{sum(cost['parameters'].values()):,}", ""])
    in_training = cost["flops"]["main"] if cost["is_drawn_ahead"] else cost["flops"]["total"]
    rows.append(["training steps", _flops(in_training), _seconds(measured["training_seconds"])])
    rows.append(["of which waiting for batches", "", _seconds(measured["data_seconds"])])
    rows.append(["tokens per second in training steps", "", f"{measured['tokens_per_second']:,.0f}"])
    rows.append(["FLOP/s in training steps", "", f"{measured['flops_per_second']:.3e}"])
    rows.append(["of the device's matrix products at their best", "", f"{100 * measured['peak_share']:.0f} %"])
    rows.append(["scores on held-out text", "", _seconds(measured["scoring_seconds"])])
    rows.append(["copying checkpoints and waiting for them", "", _seconds(measured["checkpoint_seconds"])])
    rows.append(["loading and setting up, before the first step", "", _seconds(measured["starting_seconds"])])
    rows.append(["all that, and drawing ahead", "", _seconds(measured["seconds"])])
    if measured["money"] is not None:
        rows.append(["price", f"{cost['price_per_hour']:g} per hour", _money(measured["money"])])
        rows.append([f"price, with the {cost['beside']}'s training charged", "", _money(measured["money_charged"])])
    return rows


def expected_price(config: TrainingConfig, tokens_per_second: float) -> str:
    """What the steps of the whole training will take and cost at this speed; price_per_hour must be given."""
    assert config.price_per_hour is not None
    seconds = config.num_steps * config.batch_size * config.sequence_length / tokens_per_second
    price = config.price_per_hour * seconds / 3600
    return (
        f"at {tokens_per_second:,.0f} tokens per second, measured in the first steps, all steps take "
        f"{_seconds(seconds)} and cost {_money(price)}; scores and checkpoints come on top"
    )


def _operations(cost: Cost) -> list[Line]:
    flops = cost["flops"]
    hint = f"{flops['per_token']:.2e} per token"
    if cost["parameters"]["auxiliary"]:
        hint += f"; {cost['beside']} {_flops(flops['auxiliary'])}, {100 * flops['auxiliary'] / flops['total']:.0f} %"
    lines = [("FLOPs of this run", _flops(flops["total"]), hint)]
    if flops["auxiliary_reused"]:
        lines.append(("FLOPs reused, not in the sum", _flops(flops["auxiliary_reused"]), "drawn by an earlier run"))
    if _is_charged(cost):
        own = f"its training {_flops(flops['auxiliary_training'])}, shared by {_runs(cost)}"
        lines.append((f"FLOPs, {cost['beside']} charged", _flops(flops["charged"]), own))
    if flops["joint_total"] is not None and flops["joint_total"] != flops["total"]:
        lines.append(("FLOPs of joint ELECTRA", _flops(flops["joint_total"]), _savings(cost)))
    return lines


def _savings(cost: Cost) -> str:
    flops = cost["flops"]
    charged = flops["charged_saving_fraction"]
    words = "unknown" if charged is None else _saving(charged)
    return f"this run {_saving(flops['saving_fraction'])}" + (f"; charged {words}" if _is_charged(cost) else "")


def _saving(fraction: float) -> str:
    return f"{100 * abs(fraction):.0f} % {'less' if fraction >= 0 else 'more'}"


def _memory(cost: Cost) -> list[Line]:
    memory = cost["memory"]
    hint = ", ".join(f"{words} {_bytes(memory[name])}" for name, words in _memory_parts(cost).items())
    number = cost["num_processes"]
    which = f"the first of {number} processes" if cost["is_sharded"] else f"each of {number} processes"
    label = f"memory of {'training' if number == 1 else which}, in float32"
    lines = [(label, _bytes(memory["peak"]), f"at its peak; {hint}")]
    if cost["parameters"]["auxiliary"]:
        joint = memory["auxiliary_if_joint"]
        alongside = "" if joint is None else f"trained alongside: {_bytes(joint)}"
        lines.append((f"memory for the {cost['beside']}", _bytes(memory["auxiliary"]), alongside))
    return lines


def _memory_parts(cost: Cost) -> dict[str, str]:
    """What memory consists of, in words; what only several processes need where they do."""
    parts = {"weights": "weights", "gradients": "gradients", "optimizer_state": "optimizer state"}
    parts |= {"activations": "activations", "logits": "logits"}
    together = {"exchange": "exchange with the others", "saved": "whole weights, to score and save"}
    return parts | {name: words for name, words in together.items() if cost["memory"][name]}


def _is_charged(cost: Cost) -> bool:
    return bool(cost["flops"]["auxiliary_training"] != 0.0)


def _shares(value: float | None, num_tokens: int, joint: float | None) -> list[str]:
    if value is None:
        return ["unknown", "unknown", "unknown" if joint is not None else ""]
    return [_flops(value), f"{value / num_tokens:.3e}", "" if joint is None else f"{value / joint:.3f}"]


def _runs(cost: Cost) -> str:
    number = cost["auxiliary_shared_by"]
    return "1 run" if number == 1 else f"{number} runs"


def _flops(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3e}"


def _bytes(value: float) -> str:
    unit, name = next(
        (unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= unit or unit < 1e6
    )
    return f"{value / unit:,.1f} {name}"


def _seconds(value: float) -> str:
    return f"{value / 3600:.2f} h" if value >= 3600 else f"{value:.1f} s"


def _money(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _aligned(lines: Sequence[Line]) -> str:
    width, middle = (max(len(line[column]) for line in lines) for column in (0, 1))
    return "\n".join(f"  {label:<{width}}  {value:>{middle}}  {hint}" for label, value, hint in lines)
