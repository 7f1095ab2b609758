"""Corruption ahead of training, on paper: which task draws which steps, and the name of what it draws. Nothing heavy.

A range of steps is what is stored, and not drawn again, as a whole; a task draws several, one after the other.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from fast_electra_core.config import PretrainConfig
from steps.fan_out import in_groups

CORRUPTION_FORMAT = 1
"""Part of every identity; raise it when the ids that a step draws, or their bytes, change."""
_RANGE_TOKENS = 1 << 23
"""Tokens per range: 2.5 MB, and minutes of an auxiliary on an old GPU."""
_MAX_TASKS = 32


def list_tasks(config: PretrainConfig) -> list[dict[str, int]]:
    """The steps [first_step, end_step) of each task. Online there is one task without steps: a fan-out cannot be empty,
    and a conditional path would keep the flow off AWS Step Functions."""
    if config.corruption == "online":
        return [{"first_step": 0, "end_step": 0}]
    groups = in_groups(list_ranges(config), _MAX_TASKS)
    return [{"first_step": group[0].start, "end_step": group[-1].stop} for group in groups]


def list_ranges(config: PretrainConfig) -> list[range]:
    """All steps of a run in ranges of equal length, the last one shorter; at least two, so that two machines help."""
    return [range_of(first, config) for first in range(0, config.num_steps, range_length(config))]


def range_of(step: int, config: PretrainConfig) -> range:
    """The range that a step is in."""
    first = step - step % range_length(config)
    return range(first, min(first + range_length(config), config.num_steps))


def range_length(config: PretrainConfig) -> int:
    """Steps per range."""
    tokens_per_step = config.batch_size * config.sequence_length
    return max(1, min(-(-config.num_steps // 2), _RANGE_TOKENS // tokens_per_step))


def identity_of(
    config: PretrainConfig, *, shard_keys: Sequence[str], tokenizer_key: str, auxiliary_digest: str
) -> dict[str, Any]:
    """What the drawn ids are a function of, as plain values: text, auxiliary, curriculum, batches and seed.

    micro_batch_size and precision are in it because they move the last bits of the auxiliary's output: what training
    reads must follow from its own parameters, not from which run came first. The digest is of all members of an
    ensemble, and the unigram counts follow from the text. What is off is left out, so that what was drawn before it
    could be on is found.
    """
    off = {"attention": "sequence", "auxiliary_dropout": 0.0, "unigram_share": 0.0, "top_k": None, "top_p": 1.0}
    switched_on = {name: getattr(config, name) for name, nothing in off.items() if getattr(config, name) != nothing}
    return switched_on | {
        "format": CORRUPTION_FORMAT,
        "text": hashlib.sha256("\n".join(shard_keys).encode()).hexdigest()[:16],
        "tokenizer": tokenizer_key,
        "auxiliary": auxiliary_digest,
        "sequence_length": config.sequence_length,
        "batch_size": config.batch_size,
        "num_steps": config.num_steps,
        "seed": config.seed,
        "mask_fraction": config.mask_fraction,
        "masking": config.masking,
        "keep_fraction": config.keep_fraction,
        "schedule": config.schedule,
        "temperature_start": config.temperature_start,
        "temperature_decay": config.temperature_decay,
        "temperature_end": config.temperature_end,
        "micro_batch_size": config.micro_batch_size or config.batch_size,
        "precision": config.precision,
    }


def digest_of(identity: dict[str, Any]) -> str:
    """The name of a corruption: 16 hex characters."""
    return PretrainConfig.digest_of(identity)


def range_key(identity: dict[str, Any], steps: range) -> str:
    """Where a range of steps lies in the store."""
    return f"corruption/{digest_of(identity)}/steps-{steps.start:09d}-{steps.stop:09d}"


def summarise(config: PretrainConfig, results: Sequence[dict[str, Any]], *, digest: str) -> dict[str, Any]:
    """The tasks' results as one: how it was corrupted, which share an earlier run had drawn, the seconds that drawing
    the rest took, its size and devices."""
    if config.corruption == "online":
        kind = "none" if config.method == "mlm" else "online"
        return {"corruption": kind, "reused_fraction": 0.0, "drawing_seconds": 0.0}
    num_tokens = config.num_steps * config.batch_size * config.sequence_length
    return {
        "corruption": "offline",
        "digest": digest,
        "reused_fraction": sum(result["num_reused_steps"] for result in results) / config.num_steps,
        "drawing_seconds": sum(result["seconds"] for result in results),
        "bytes_per_token": sum(result["num_bytes"] for result in results) / num_tokens,
        "devices": sorted({device for result in results for device in result["devices"]}),
    }
