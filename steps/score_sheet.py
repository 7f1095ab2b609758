"""The score sheet of a run: main metric by task and seed, and all that two sheets must share to be compared.

A sheet lies in scores.json of the MLflow run that made it, PretrainFlow's or EvaluateFlow's. The version that was
scored has a tag `scores.KEY` with that run's id; two versions that have a KEY in common were scored alike.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fast_electra_core.config import EvaluateConfig, RunConfig, ScoringConfig
from fast_electra_core.promotion import Scores

Sheet = Mapping[str, Any]
TAG = "scores."
_PROTOCOL = (
    "finetune_recipe", "finetune_learning_rate", "finetune_grid", "finetune_batch_size", "finetune_epochs",
    "finetune_max_length", "finetune_max_examples", "layer_decay", "best_epoch", "mnli_transfer",
)  # fmt: skip
"""Fields of ScoringConfig that decide how a fine-tuning goes."""


def score_sheet(
    config: Mapping[str, Any], tasks: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The sheet as plain JSON; tasks as tasks.check_tasks, rows as scores.summarise gave them.

    {glue, protocol, seeds, tasks: {task: {digest, num_dev, metric, majority, learning_rate, values}}}; values are by
    seed. A task that no seed was scored on has metric None and no values.
    """
    main = {row["task"]: row for row in rows if row["is_main"] and row["pretrained"]}
    found = {}
    for task in ScoringConfig.part_of(config).scored_tasks():
        row = main.get(task)
        found[task] = {
            "digest": tasks[task]["digest"],
            "num_dev": next(iter(tasks[task]["dev"].values())),
            "metric": row["metric"] if row else None,
            "majority": row["majority"] if row else None,
            "learning_rate": row["pretrained"]["learning_rate"] if row else None,
            "values": row["pretrained"]["values"] if row else {},
        }
    return {
        "glue": config["glue"],
        "on_bad_text": config["on_bad_text"],
        "seeds": config["seeds"],
        "protocol": {name: config[name] for name in _PROTOCOL},
        "tasks": found,
    }


def key_of(sheet: Sheet) -> str:
    """Hex digest (16 characters) of what two sheets must share: data, metrics, seeds, and how was fine-tuned."""
    tasks = {task: [each["digest"], each["metric"], sorted(each["values"])] for task, each in sheet["tasks"].items()}
    return RunConfig.digest_of({"protocol": sheet["protocol"], "tasks": tasks})


def whole(sheet: Sheet) -> Sheet:
    """The sheet as if no fine-tuning had failed: each seed has a value. For its key alone."""
    seeds = map(str, range(sheet["seeds"]))
    filled: dict[str, float] = dict.fromkeys(seeds, 0.0)
    tasks = {task: {**each, "values": {**filled, **each["values"]}} for task, each in sheet["tasks"].items()}
    return {**sheet, "tasks": tasks}


def values_of(sheet: Sheet) -> Scores:
    """The scores as promotion.judge takes them."""
    return {task: {int(seed): score for seed, score in each["values"].items()} for task, each in sheet["tasks"].items()}


def scoring_config(sheet: Sheet) -> ScoringConfig:
    """The config that fine-tunes as the sheet's run did."""
    return ScoringConfig(
        glue=sheet["glue"],
        on_bad_text=sheet["on_bad_text"],
        tasks=",".join(sheet["tasks"]),
        seeds=sheet["seeds"],
        untrained_baseline=False,
        test_predictions=False,
        keep_task_models=False,
        **sheet["protocol"],
    )


def difference(ours: Sheet, theirs: Sheet) -> str:
    """Why the two cannot be compared, in words: the first reason found; empty where they can."""
    if set(ours["tasks"]) != set(theirs["tasks"]):
        return f"scored on {', '.join(ours['tasks'])}, that one on {', '.join(theirs['tasks'])}"
    for name, value in ours["protocol"].items():
        if value != theirs["protocol"][name]:
            return f"{name} is {value}, for that one {theirs['protocol'][name]}"
    for task, each in ours["tasks"].items():
        other = theirs["tasks"][task]
        if each["digest"] != other["digest"]:
            return f"the data of {task} is not the same (digest {each['digest']}, for that one {other['digest']})"
        if set(each["values"]) != set(other["values"]):
            return f"{task} has seeds {_seeds(each)}, for that one {_seeds(other)}"
        if each["metric"] != other["metric"]:  # the first of a task of one's own may have become another
            return f"{task} is scored by {each['metric']}, for that one by {other['metric']}"
    return ""


def evaluation_command(sheet: Sheet, address: str) -> str:
    """The command line of EvaluateFlow that scores the model at the address as the sheet's run did."""
    wanted = scoring_config(sheet)
    plain = EvaluateConfig()
    given = {name: getattr(wanted, name) for name in ("glue", "on_bad_text", "tasks", "seeds", *_PROTOCOL)}
    words = ["python", "flows/evaluate_flow.py", "run", "--model", address]
    for name, value in given.items():
        if name in ("tasks", "seeds") or value != getattr(plain, name):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _seeds(task: Mapping[str, Any]) -> str:
    return ", ".join(sorted(task["values"], key=int)) or "none"
