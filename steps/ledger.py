"""The ledger of a flow run: what it will cost, said at `start`; and what it has cost, beside what was measured.

All of it is plain dicts: per candidate for the auxiliary `flops` and `memory` (fast_electra_core.cost), and at the end
`measured`. None stands for what is not known; it is never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig, TrainingConfig
from fast_electra_core.cost import METHOD_WORK, MethodWork, RunSize, own_parameters, plan_flops, plan_memory
from fast_electra_core.cost_conventions import GOOGLE_BACKWARD, GOOGLE_TYPES, google_flops_per_token
from fast_electra_core.errors import AuxiliaryError
from fast_electra_core.initial_model import initial_shape
from fast_electra_core.model_cost import ModelCost, cost_of
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config
from fast_electra_core.tokenizer import load_tokenizer, num_ids
from steps.register import FLOPS_TAG, MONEY_TAG
from steps.store import Store
from steps.tokenizer import special_ids

Plain = dict[str, Any]
_JOINT = METHOD_WORK["electra"]
_SECONDS_PER_HOUR = 3600.0


class Circumstances(NamedTuple):
    """What is known of a run only when it is on its way; at the start it is taken to draw all, to be on a GPU, and to
    have as many processes on each machine as this one has GPUs, if the config does not say how many."""

    reused_fraction: float = 0.0
    """Share of the steps whose replacements an earlier run has drawn."""
    device: str = "cuda"
    """On a CPU attention keeps its probabilities where it has dropout."""
    num_processes: int | None = None
    """That train together."""


AT_START = Circumstances()


class _Models(NamedTuple):
    """On paper, all of them."""

    main: PreTrainedModel
    auxiliaries: Sequence[PreTrainedModel]
    """Those that run beside it."""
    joint: Sequence[PreTrainedModel]
    """Detector and generator of the joint run that it is compared with, if there is one."""


def plan_auxiliary(
    config: AuxiliaryConfig,
    store: Store,
    *,
    tokenizer_key: str,
    teacher: Mapping[str, Any] | None,
    circumstances: Circumstances = AT_START,
) -> Plain:
    """What the training of an auxiliary will cost; teacher is distill.fetch_teacher's.

    Raises: as plan_pretraining, of the teacher.
    """
    folder = store.get_folder(tokenizer_key)
    with torch.device("meta"):
        teachers = [_on_paper(teacher, store)] if teacher else []
        vocab_size = teachers[0].config.vocab_size if teachers else num_ids(load_tokenizer(folder))
        shape = encoder_config(config, vocab_size=vocab_size, special_ids=special_ids(folder))
        models = _Models(build_masked_lm(shape, seed=config.seed), teachers, [])
    work = METHOD_WORK["distilled" if teacher else "mlm"]
    own_training = _tagged(teacher, FLOPS_TAG) if teacher else 0.0
    size = _size(config, circumstances.num_processes, auxiliary_training_flops=own_training)
    cost = _price(models, config, work=work, size=size, device=circumstances.device)
    money = _tagged(teacher, MONEY_TAG) if teacher else 0.0
    return {**cost, "beside": "teacher", "address": teacher and teacher["address"], "own_training_money": money}


def plan_pretraining(
    config: PretrainConfig,
    candidate: Mapping[str, Any],
    store: Store,
    *,
    initial_model: Mapping[str, Any] | None,
    circumstances: Circumstances = AT_START,
) -> Plain:
    """What pre-training with this candidate, or frozen auxiliary, will cost; initial_model is fetch_initial_model's.

    The training that an initial model has behind it is not charged.

    Raises:
        AuxiliaryError: the auxiliary's registered version says in a tag what its training has cost, but not as a
            number > 0.
    """
    work, folder = METHOD_WORK[config.method], store.get_folder(candidate["key"])
    members = candidate.get("members", [candidate])  # a frozen auxiliary has members
    with torch.device("meta"):
        drawing = [_on_paper(member, store) for member in members]
        shape = encoder_config(config, vocab_size=drawing[0].config.vocab_size, special_ids=special_ids(folder))
        if initial_model:
            shape = initial_shape(store.get_folder(initial_model["key"]), config)
        detector = build_discriminator(shape, seed=config.seed)
        main = build_masked_lm(shape, seed=config.seed) if work.predicts_tokens else detector
    uses_weights = work.auxiliary == "frozen" or config.warm_start != "none"
    size = _size(
        config,
        circumstances.num_processes,
        is_drawn_ahead=config.corruption == "offline",
        reused_fraction=circumstances.reused_fraction,
        num_corruptions=2 if config.consistency_weight else 1,
        auxiliary_training_flops=_tagged_of_all(members, FLOPS_TAG) if uses_weights else 0.0,
        auxiliary_shared_by=config.auxiliary_shared_by,
    )
    beside = {"frozen": drawing, "trained": drawing[:1], "none": []}[work.auxiliary]
    models = _Models(main, beside, [detector, drawing[0]])
    cost = _price(models, config, work=work, size=size, device=circumstances.device)
    money = _tagged_of_all(members, MONEY_TAG) if uses_weights else 0.0
    return {**cost, "beside": "auxiliary", "address": candidate["address"], "own_training_money": money}


def account(
    cost: Mapping[str, Any], config: TrainingConfig, result: Mapping[str, Any], *, drawing_seconds: float = 0.0
) -> Plain:
    """The plan with `measured`: time, speed, memory and price of the training that gave `result`.

    result is pretrain.train_auxiliary's or train_discriminator's and its memory_bytes; drawing_seconds those of the
    tasks that drew replacements ahead of it. training_seconds are those of the steps alone, data_seconds of them those
    spent waiting for batches, seconds all of them, with scores, checkpoints and what else comes before the first step;
    flops_per_second and tokens_per_second are what was achieved in the steps, peak_share the part of the device's peak.
    """
    flops = cost["flops"]
    in_training = flops["main"] if cost["is_drawn_ahead"] else flops["total"]
    training_seconds = _training_seconds(result["curve"], config.batch_size * config.sequence_length)
    spent = result["spent"]
    starting_seconds = spent["loading"] + spent.get("starting", 0.0)
    seconds = result["seconds"] + spent["loading"] + drawing_seconds
    flops_per_second = in_training / training_seconds
    money = None if config.price_per_hour is None else config.price_per_hour * seconds / _SECONDS_PER_HOUR
    own = cost["own_training_money"]
    charged = None if money is None or own is None else money + own / cost["auxiliary_shared_by"]
    measured = {
        "seconds": seconds,
        "training_seconds": training_seconds,
        "data_seconds": spent.get("data", 0.0),
        "scoring_seconds": spent.get("scoring", 0.0),
        "checkpoint_seconds": spent.get("checkpoints", 0.0),
        "starting_seconds": starting_seconds,
        "drawing_seconds": drawing_seconds,
        "tokens_per_second": cost["num_tokens"] / training_seconds,
        "flops_per_second": flops_per_second,
        "peak_share": flops_per_second / result["peak_flops_per_second"],
        "memory": result["memory_bytes"],
        "money": money,
        "money_charged": charged,
    }
    return {**cost, "price_per_hour": config.price_per_hour, "measured": measured}


def _on_paper(model: Mapping[str, Any], store: Store) -> PreTrainedModel:
    shape = AutoConfig.from_pretrained(store.get_folder(model["key"]), trust_remote_code=False)
    return AutoModelForMaskedLM.from_config(shape, trust_remote_code=False)


def _size(config: TrainingConfig, num_processes: int | None, **more: Any) -> RunSize:
    number = num_processes or _expected_processes(config)
    rows = math.ceil(config.batch_size / number)
    sequences = min(rows, config.micro_batch_size or rows)
    return RunSize(
        num_tokens=config.num_steps * config.batch_size * config.sequence_length,
        tokens_per_pass=sequences * config.sequence_length,
        num_processes=number,
        is_sharded=config.sharding == "fsdp",
        is_accumulated=sequences < rows,
        **more,
    )


def _expected_processes(config: TrainingConfig) -> int:
    """As steps.launch will start them, on machines like this one; a model is shared by two at least."""
    number = (config.processes_per_node or max(1, torch.cuda.device_count())) * getattr(config, "num_nodes", 1)
    return max(2, number) if config.sharding == "fsdp" else number


def _price(models: _Models, config: TrainingConfig, *, work: MethodWork, size: RunSize, device: str) -> Plain:
    drops = config.dropout > 0
    is_fused = device.startswith("cuda") or not drops
    kept = {"sequence_length": config.sequence_length, "head_fraction": config.mask_fraction}
    again = config.activation_checkpointing
    main = cost_of(models.main, **kept, drops=drops, is_fused=is_fused, recomputes=again)  # type: ignore[arg-type]
    auxiliaries = [cost_of(model, **kept) for model in models.auxiliaries]  # type: ignore[arg-type]
    if getattr(config, "auxiliary_dropout", 0.0):  # then the whole of its last layer runs
        auxiliaries = [auxiliary._replace(skipped_flops=0.0) for auxiliary in auxiliaries]
    flops = plan_flops(main, auxiliaries, work=work, size=size)
    once = replace(size, num_corruptions=1)
    if flops.joint_total is None and models.joint:
        detector = cost_of(models.joint[0], **kept, recomputes=again)  # type: ignore[arg-type]
        generator = cost_of(models.joint[1], **kept)  # type: ignore[arg-type]
        flops = flops._replace(joint_total=plan_flops(detector, [generator], work=_JOINT, size=once).total)
    memory = plan_memory(main, auxiliaries, work=work, size=size)
    alone, alone_once = (plan_memory(main, [], work=work, size=each) for each in (size, once))
    joint = plan_memory(main, auxiliaries[:1], work=_JOINT, size=once) if _replaces(work) else None
    return {
        "num_tokens": size.num_tokens,
        "flops": {
            **flops._asdict(),
            "per_token": flops.total / size.num_tokens,
            "auxiliary_training": size.auxiliary_training_flops,
            "saving_fraction": flops.saving_fraction,
            "charged_saving_fraction": flops.charged_saving_fraction,
            "by_google": _google_total(models, [main, *auxiliaries], config, work=work, size=size),
        },
        "memory": {
            **memory._asdict(),
            "auxiliary": memory.peak - alone.peak,
            "auxiliary_if_joint": joint and joint.peak - alone_once.peak,
        },
        "parameters": {"main": main.num_parameters, "auxiliary": own_parameters(main, auxiliaries, work=work)},
        "auxiliary_shared_by": size.auxiliary_shared_by,
        "num_processes": size.num_processes,
        "is_sharded": size.is_sharded,
        "is_drawn_ahead": size.is_drawn_ahead,
    }


def _replaces(work: MethodWork) -> bool:
    """Whether a frozen model draws replacements, as a joint run's generator would."""
    return work.auxiliary == "frozen" and not work.predicts_tokens


def _google_total(
    models: _Models, costs: Sequence[ModelCost], config: TrainingConfig, *, work: MethodWork, size: RunSize
) -> float | None:
    """The run's FLOPs by ELECTRA's own conventions, which know no activation checkpointing; None where they are not
    defined for one of the models."""
    running = [models.main, *models.auxiliaries]
    if any(model.config.model_type not in GOOGLE_TYPES for model in running):
        return None
    kept = {"sequence_length": config.sequence_length, "head_fraction": config.mask_fraction}
    main, *auxiliaries = (
        cost._replace(forward_flops=google_flops_per_token(model, **kept), recomputed_flops=0.0)  # type: ignore[arg-type]
        for model, cost in zip(running, costs, strict=True)
    )
    return plan_flops(main, auxiliaries, work=work, size=size, backward=GOOGLE_BACKWARD).total


def _tagged_of_all(members: Sequence[Mapping[str, Any]], tag: str) -> float | None:
    """The sum over the members; None if one of them has no such tag."""
    values = [_tagged(member, tag) for member in members]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _tagged(candidate: Mapping[str, Any], tag: str) -> float | None:
    """The number in a tag of the candidate's registered version; None if it has none."""
    tags = (candidate["registry"] or {"tags": {}})["tags"]
    if tag not in tags:
        return None
    try:
        value = float(tags[tag])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise AuxiliaryError(
            f"auxiliary {candidate['address']}: its version's tag {tag} must be a number > 0, got {tags[tag]!r}. "
            "Correct it, or delete it: what its training has cost then counts as unknown"
        )
    return value


def _training_seconds(curve: Sequence[Mapping[str, float]], tokens_per_step: int) -> float:
    """Seconds of the steps alone, scores and checkpoints left out: a row has the speed of the steps since the one
    before, which stands for those of a row without one, too."""
    rows = [row for row in curve if "tokens_per_second" in row]
    steps = [0.0, *(row["step"] for row in rows)]
    return sum(
        (step - before) * tokens_per_step / row["tokens_per_second"]
        for before, step, row in zip(steps, steps[1:], rows, strict=False)
    )
