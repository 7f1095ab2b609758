"""What CompareFlow does beyond PretrainFlow: arms as tasks, one arm's run, and all of them as one result.

A run of an arm is a run of PretrainFlow from `pretrain` to its scores, under a folder and an MLflow run of its own.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fast_electra_core.arms import UNTRAINED, Arm, CompareConfig, list_arms, reference_of
from fast_electra_core.comparison import compare
from fast_electra_core.config import PretrainConfig, ScoringConfig
from fast_electra_core.errors import ConfigError, NonFiniteLossError
from steps import launch, scoring, tracking
from steps.fan_out import in_groups
from steps.machine import take_gpu
from steps.store import Store
from steps.trace import Plain, attempt, connect, finish, how_to_browse, made_of

_logger = logging.getLogger(__name__)
_NUMBERS = (
    "heldout_auc", "heldout_rtd_loss", "heldout_majority_loss", "heldout_recall_replaced",
    "heldout_masked_loss", "heldout_unigram_loss",
)  # fmt: skip
_FLOORS = (("heldout_rtd_loss", "heldout_majority_loss"), ("heldout_masked_loss", "heldout_unigram_loss"))
"""Losses, and those of knowing nothing but frequencies."""
_DRAWN_NOW = {"corruption": "online", "reused_fraction": 0.0, "drawing_seconds": 0.0}
_MAX_POINTS = 100  # of a run's curve in the result: more cannot be seen


def check_arms(plan: Plain) -> None:
    """Every arm can be trained with the auxiliary that it names.

    Raises:
        ConfigError: one cannot; it names the arm.
    """
    from fast_electra_core.initial_model import initial_shape
    from fast_electra_core.models import check_warm_start
    from steps.auxiliary import check_vocabulary, load_masked_lm, outline
    from steps.tokenizer import check_masking

    config, store = CompareConfig.from_dict(plan["comparison"]), Store(plan["config"]["store"])
    initial = plan["initial_model"]
    for arm in list_arms(config):
        settings = config.of_arm(arm)
        check_masking(settings.masking, store.get_folder(plan["tokenizer_key"]))
        try:
            if initial:
                initial_shape(store.get_folder(initial["key"]), settings)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: initial_model {initial['address']} does not fit: {error}") from error
        candidates = _candidates_of(arm, plan["candidates"])
        try:
            check_vocabulary(settings, candidates)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from error
        for candidate in candidates:
            if settings.warm_start == "none":
                continue
            model = load_masked_lm(store.get_folder(candidate["key"]), address=candidate["address"])
            main = outline(settings, vocab_size=model.config.vocab_size, folder=store.get_folder(candidate["key"]))
            try:
                check_warm_start(main, model, with_layers=settings.warm_start == "layers")
            except ConfigError as error:
                raise ConfigError(f"arm {arm.name}: auxiliary {candidate['address']}: {error}") from error


def _candidates_of(arm: Arm, candidates: Sequence[Plain]) -> list[Plain]:
    """All of them, or the one that the arm names."""
    if "auxiliary" not in arm.values:
        return list(candidates)
    found = [each for each in candidates if each["address"] == arm.values["auxiliary"]]
    if not found:
        known = ", ".join(each["address"] for each in candidates)
        raise ConfigError(
            f"arm {arm.name}: its auxiliary must be one of those in --auxiliary ({known}), got "
            f"{arm.values['auxiliary']!r}"
        )
    return found


@attempt
def list_runs(plan: Plain, candidates: Sequence[Plain], frozen: Plain) -> list[list[Plain]]:
    """The runs of all arms, in tasks: first every arm's first seed, then every arm's second, and so on, so that what is
    done at any time can be compared. Opens each arm's MLflow run.

    candidates are scored; frozen is the one for the arms that name none.
    """
    connect(plan)
    config = CompareConfig.from_dict(plan["comparison"])
    arms = list_arms(config)
    frozen_of = {arm.name: _frozen_of(arm, config.of_arm(arm), candidates) or dict(frozen) for arm in arms}
    price = {arm.name: _flops_per_step(config.of_arm(arm), frozen_of[arm.name], plan) for arm in arms}
    num_steps = _num_steps(config, arms, price)
    runs = []
    for turn in range(config.pretrain_seeds):
        for arm in arms:
            settings = config.of_arm(arm, turn=turn).to_dict() | {"num_steps": num_steps[arm.name]}
            if turn or arm != reference_of(arms, arms[0]):
                settings["untrained_baseline"] = False  # the same for every arm and every turn, to the last bit
            run: Plain = {"arm": arm.name, "base": arm.base, "point": arm.point, "turn": turn, "config": settings}
            run |= {"reference": reference_of(arms, arm).name, "frozen": frozen_of[arm.name]}
            runs.append(run | {"mlflow_run_id": _open_arm(plan, arm, settings)})
    tokens = config.sequence_length * sum(run["config"]["num_steps"] * run["config"]["batch_size"] for run in runs)
    flops = config.pretrain_seeds * sum(price[name] * num_steps[name] for name in price)
    _logger.info(
        "%d arms × %d seeds = %d runs of %s steps, %.3g tokens, %.3g FLOPs in all; each is fine-tuned on %s × %d seeds",
        len(arms), config.pretrain_seeds, len(runs), ", ".join(sorted({str(n) for n in num_steps.values()})), tokens,
        flops, config.tasks, config.seeds,
    )  # fmt: skip
    return in_groups(runs)


def _frozen_of(arm: Arm, settings: PretrainConfig, candidates: Sequence[Plain]) -> Plain | None:
    """The auxiliary of an arm that says something of its own about it."""
    from steps.frozen import RULE, choose, record_of

    if "auxiliary" in arm.values:
        return {**record_of(_candidates_of(arm, candidates)), "rule": "named by the arm"}
    if "ensemble_size" not in arm.values:
        return None
    most = settings.max_auxiliary_fraction
    return {**choose(candidates, ensemble_size=settings.ensemble_size, max_auxiliary_fraction=most), "rule": RULE}


def _num_steps(config: CompareConfig, arms: Sequence[Arm], price: Mapping[str, float]) -> dict[str, int]:
    """Optimiser steps of each arm: all the same, or such that each costs what its reference costs.

    price: FLOPs of a step.
    """
    if config.equal == "tokens":
        return {arm.name: config.of_arm(arm).num_steps for arm in arms}
    budget = {arm.name: price[arm.name] * config.of_arm(arm).num_steps for arm in arms}
    return {arm.name: max(1, round(budget[reference_of(arms, arm).name] / price[arm.name])) for arm in arms}


def _flops_per_step(config: PretrainConfig, frozen: Plain, plan: Plain) -> float:
    from steps.ledger import plan_pretraining

    cost = plan_pretraining(config, frozen, Store(config.store), initial_model=plan["initial_model"])
    return float(cost["flops"]["per_token"]) * config.batch_size * config.sequence_length


def _open_arm(plan: Plain, arm: Arm, settings: Plain) -> str:
    tags = {"role": "arm", "arm": arm.name, "metaflow.pathspec": plan["pathspec"], **plan["code"], **made_of(plan)}
    return tracking.start_child(
        plan["config"]["tracking_uri"],
        plan["mlflow_run_id"],
        name=arm.name,
        tags=tags | {name: str(value) for name, value in arm.values.items()},
        params={name: value for name, value in settings.items() if name != "seed"},
        key=f"arm {arm.name}",
    )


@attempt
def run_arms(plan: Plain, text: Plain, runs: Sequence[Plain], *, index: int | None = None) -> list[Plain]:
    """Train and score some runs, one after another; a loss that is not finite is a result, not an error. index is the
    task's, by which it takes a GPU; with several, `--processes_per_node 1` lets each task have its own."""
    take_gpu(index)
    return [_run_arm(plan, text, run) for run in runs]


def _run_arm(plan: Plain, text: Plain, run: Plain) -> Plain:
    name = f"{run['arm']} seed {run['turn']}"
    _logger.info("%s: its pre-training and fine-tunings are those of this task", name)
    with tracking.child_run(
        plan["config"]["tracking_uri"],
        run["mlflow_run_id"],
        name=name,
        tags={"role": "run of an arm", "arm": run["arm"], "metaflow.pathspec": plan["pathspec"]},
        params=run["config"],
        key=name,
    ) as run_id:
        ours = {
            **plan,
            "config": run["config"],
            "config_digest": PretrainConfig.from_dict(run["config"]).digest(),
            "run_key": f"{plan['run_key']}/arms/{_slug(name)}",
            "mlflow_run_id": run_id,
        }
        result = {key: run[key] for key in ("arm", "base", "point", "turn", "reference", "mlflow_run_id")}
        try:
            trained, _ = launch.pretrain(ours, text, run["frozen"], _DRAWN_NOW)
        except NonFiniteLossError as error:
            cause = str(error).partition(". ")[0]
            _logger.warning("%s diverged: %s", name, cause)
            return result | _nothing(f"diverged: {cause}")
        jobs = [job for pack in scoring.list_packs(ours) for job in pack]
        finetuned = scoring.finetune(ours, trained["key"], jobs)
        found = result | _summary(trained, finetuned)
        tracking.log_results(run_id, _as_metrics(found))
        return found


def _nothing(failure: str) -> Plain:
    none: Plain = {"scores": {}, "untrained": {}, "numbers": {}, "curve": [], "notes": []}
    return none | {"failure": failure, "is_majority": False}


def _summary(trained: Plain, finetuned: Sequence[Plain]) -> Plain:
    from steps.scores import failure_text, failures, summarise

    rows = [row for row in summarise(finetuned) if row["is_main"]]
    numbers = {name: trained["scores"][name] for name in _NUMBERS if name in trained["scores"]}
    numbers |= {name: trained[name] for name in ("seconds", "peak_memory_megabytes")}
    flops = trained["cost"]["flops"]
    numbers |= {"total_flops": flops["total"]}
    numbers |= {} if flops["charged"] is None else {"charged_flops": flops["charged"]}
    degenerate = sum(bool(each.get("degenerate")) for each in finetuned if not each["untrained"])
    notes = [f"left out: {failure_text(each)}" for each in failures(finetuned)]
    notes += [f"{degenerate} fine-tunings predict one class only"] if degenerate else []
    scores = trained["scores"]
    return {
        "scores": {row["task"]: row["pretrained"]["mean"] for row in rows if row["pretrained"]},
        "untrained": {row["task"]: row["untrained"]["mean"] for row in rows if row["untrained"]},
        "numbers": numbers,
        "curve": _thinned(trained["curve"]),
        "notes": notes,
        "failure": "",
        "is_majority": any(scores.get(loss, -math.inf) >= scores.get(floor, math.inf) for loss, floor in _FLOORS),
    }


def _as_metrics(found: Plain) -> dict[str, float]:
    return {**found["numbers"], **{f"score.{task}": value for task, value in found["scores"].items()}}


def _thinned(curve: Sequence[Plain]) -> list[Plain]:
    """The held-out rows, and as many of the others as can be seen."""
    stride = -(-len(curve) // _MAX_POINTS) or 1
    return [row for index, row in enumerate(curve) if index % stride == 0 or "heldout_auc" in row]


def _slug(name: str) -> str:
    """A name as a folder: odd letters become dashes, and a digest tells apart what would fall together."""
    plain = "".join(letter if letter.isalnum() or letter in "_-.=" else "-" for letter in name)
    return f"{plain}-{ScoringConfig.digest_of({'name': name})[:6]}"


@attempt
def gather(plan: Plain, results: Sequence[Plain]) -> tuple[Plain, str, str]:
    """All runs as one result, its page and the closing words; ends the arms' MLflow runs."""
    from steps import comparison_page

    connect(plan)
    runs = sorted(results, key=lambda result: result["turn"])
    runs += [_untrained(result) for result in runs if result["untrained"]]
    found: Plain = {"comparison": plan["comparison"], "runs": runs, "arms": _as_plain(compare(runs))}
    for row in found["arms"]:
        ids = {result["mlflow_run_id"] for result in runs if result["arm"] == row["arm"] and "mlflow_run_id" in result}
        for run_id in ids:
            tracking.log_results(run_id, _arm_metrics(row))
            tracking.finish(run_id)
    run_id = plan["mlflow_run_id"]
    page, table = comparison_page.page(found), comparison_page.as_markdown(found)
    tracking.log_dict(run_id, found, "comparison.json")
    tracking.log_text(run_id, page, "comparison.html")
    tracking.log_text(run_id, table, "comparison.md")
    finish(plan)
    return found, page, f"{table}browse the page, its arms and their runs: {how_to_browse(plan)}"


def _untrained(result: Plain) -> Plain:
    """The same main model without pre-training, as one more arm."""
    return {
        "arm": UNTRAINED,
        "base": UNTRAINED,
        "point": "",
        "turn": result["turn"],
        "reference": result["arm"],
        **_nothing(""),
        "scores": result["untrained"],
    }


def _as_plain(rows: Sequence[Mapping[str, Any]]) -> list[Plain]:
    """Rows with dicts in place of named tuples, as JSON and artifacts keep them."""
    return [
        {
            **row,
            "scores": {name: each._asdict() if each else None for name, each in row["scores"].items()},
            "margins": {name: each._asdict() if each else None for name, each in row["margins"].items()},
        }
        for row in rows
    ]


def _arm_metrics(row: Plain) -> dict[str, float]:
    found = {f"{name}.median": value for name, value in row["numbers"].items()}
    found |= {f"num_{name}": float(row[f"num_{name}"]) for name in ("runs", "failed", "majority")}
    for kind in ("scores", "margins"):
        for task, values in row[kind].items():
            found |= {
                f"{kind}.{task}.{key}": float(value) for key, value in (values or {}).items() if value is not None
            }
    return found
