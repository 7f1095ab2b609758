"""Fine-tuning an encoder on one task, by a recipe, in a loop of our own.

Everything follows from the seed.
Shapes: B sequences, L tokens per sequence, C outputs of the classifier.
"""

import functools
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fast_electra_core.errors import ConfigError, NonFiniteLossError
from fast_electra_core.glue import Example, TaskData
from fast_electra_core.glue_metrics import score
from fast_electra_core.positions import usable_positions
from fast_electra_core.precision import autocast
from fast_electra_core.recipes import FinetuneSettings
from fast_electra_core.task_batches import EncodedExamples, ExampleEncoder, endless_batches
from fast_electra_core.transfer import onto

MAX_GRADIENT_NORM = 1.0
EVALUATION_BATCH = 64
NUM_CURVE_POINTS = 50

Predictions = list[int] | list[float]
Label = int | float | None


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What came out. scores: metric -> fraction; the mismatched split's metrics end in _mismatched."""

    scores: dict[str, float]
    predictions: dict[str, Predictions]
    """By dev split, in the order of its examples: class ids, or numbers."""
    test_predictions: dict[str, Predictions]
    """The same by test split."""
    curve: list[dict[str, float]]
    """Rows {"step", "loss", "learning_rate"}; loss averaged since the row before."""
    epoch_scores: list[dict[str, float]]
    """With is_best_epoch, the scores after each epoch; otherwise empty."""
    degenerate: bool
    """One class predicted for every example of the first dev split; for a regression, nearly one number."""
    num_steps: int
    num_train: int
    """Examples trained on, swapped pairs not counted."""
    padding_fraction: float
    """Share of the training tokens that was padding."""
    seconds: float


@dataclass
class _Course:
    """What the loop did."""

    num_steps: int
    num_tokens: int = 0
    num_padding: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    epoch_scores: list[dict[str, float]] = field(default_factory=list)


class _Batch(NamedTuple):
    inputs: dict[str, Tensor]
    """Each (B, L)."""
    labels: list[Label]
    num_padding: int


def layer_factor(parameter_name: str, *, num_layers: int, decay: float) -> float:
    """What the learning rate of this parameter is multiplied by: decay per layer below the head.

    1 for the head, decay ** 1 for the top layer, decay ** num_layers for the lowest and one power more for
    the embeddings. Departs from ELECTRA's code (google-research/electra, model/optimization.py,
    `_get_layer_lrs`), which puts the head at depth num_layers + 2, so that its top layer gets decay ** 2.
    """
    layer = re.search(r"\.layers?\.(\d+)\.", parameter_name)
    if layer:
        return decay ** (num_layers - int(layer.group(1)))
    return decay ** (num_layers + 1) if "embeddings" in parameter_name else 1.0


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    settings: FinetuneSettings,
    cache: Path | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> FinetuneResult:
    """Train the model, in place and on its own device, on data.train; score it on dev, answer the test sets. In bf16
    where the device has it, as pre-training's `auto`.

    cache: a folder for tokenized examples (ExampleEncoder); on_metrics gets the step and {"loss", "learning_rate",
    "num_steps"} about fifty times.

    Raises:
        ConfigError: max_length beyond the model's positions.
        NonFiniteLossError: the loss became NaN or infinite, or what the model answers afterwards.
    """
    started = time.monotonic()
    positions = usable_positions(model.config.to_dict())
    if positions is not None and settings.max_length > positions:
        raise ConfigError(
            f"finetune_max_length must be <= {positions}, the model's positions, got {settings.max_length}"
        )
    rng = random.Random(f"finetune {settings.seed}")
    chosen = _choose_examples(data, settings.max_examples, rng)
    encode = ExampleEncoder(model, tokenizer, settings.max_length, cache=cache)
    train = encode(_in_both_orders(chosen) if data.spec.is_swap_doubled and settings.has_swapped_pairs else chosen)
    dev = {split: encode(labelled) for split, labelled in data.dev.items()}
    predict = functools.partial(_predict, model, encode, is_regression=data.spec.is_regression)

    def scores_now() -> dict[str, float]:
        return _score(data, {split: predict(encoded) for split, encoded in dev.items()})

    course = _train(
        model,
        _batches(encode, train, settings.batch_size, rng),
        num_examples=len(train.labels),
        settings=settings,
        best_of=(scores_now, data.spec.main_metric) if settings.is_best_epoch else None,
        on_metrics=on_metrics,
    )
    predictions = {split: predict(encoded) for split, encoded in dev.items()}
    return FinetuneResult(
        scores=_score(data, predictions),
        predictions=predictions,
        test_predictions={split: predict(encode(texts)) for split, texts in data.test.items()},
        curve=course.curve,
        epoch_scores=course.epoch_scores,
        degenerate=_is_degenerate(data, predictions),
        num_steps=course.num_steps,
        num_train=len(chosen),
        padding_fraction=course.num_padding / course.num_tokens,
        seconds=time.monotonic() - started,
    )


def score_dev(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData, *, max_length: int
) -> dict[str, float]:
    """What `finetune` would say of the fine-tuned model as it is: every metric on dev."""
    encode = ExampleEncoder(model, tokenizer, max_length)
    predict = functools.partial(_predict, model, encode, is_regression=data.spec.is_regression)
    return _score(data, {split: predict(encode(labelled)) for split, labelled in data.dev.items()})


def _in_both_orders(pairs: list[Example]) -> list[Example]:
    return pairs + [Example(str(pair.text_b), pair.text_a, pair.label) for pair in pairs]


def _batches(encode: ExampleEncoder, train: EncodedExamples, batch_size: int, rng: random.Random) -> Iterator[_Batch]:
    lengths = train.lengths
    for indices in endless_batches(lengths, batch_size, rng):
        inputs = encode.batch(train, indices)
        num_padding = inputs["input_ids"].numel() - sum(lengths[index] for index in indices)
        yield _Batch(inputs, [train.labels[index] for index in indices], num_padding)


def _score(data: TaskData, predictions: Mapping[str, Predictions]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for split, examples in data.dev.items():
        ending = "_mismatched" if split == "mismatched" else ""
        found = score(data.spec, predictions[split], _labels(examples))
        scores |= {f"{name}{ending}": value for name, value in found.items()}
    return scores


def _labels(examples: Sequence[Example]) -> list[int | float]:
    return [example.label for example in examples if example.label is not None]


def _train(
    model: PreTrainedModel,
    batches: Iterator[_Batch],
    *,
    num_examples: int,
    settings: FinetuneSettings,
    best_of: tuple[Callable[[], dict[str, float]], str] | None,
    on_metrics: Callable[[int, dict[str, float]], None] | None,
) -> _Course:
    """best_of: what scores the model as it is, and the metric by which the best epoch's weights are kept."""
    steps_per_epoch = math.ceil(num_examples / settings.batch_size)
    course = _Course(num_steps=max(1, round(settings.epochs * steps_per_epoch)))
    take_step = training_step(model, settings)
    log_every = max(1, course.num_steps // NUM_CURVE_POINTS)
    best: dict[str, Tensor] = {}
    loss_sum, num_summed = torch.zeros((), device=model.device), 0
    model.train()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # dropout
        for step in range(course.num_steps):
            batch = next(batches)
            rate_factor = _rate_factor(step, course.num_steps, settings.warmup_fraction)
            loss_sum, num_summed = loss_sum + take_step(batch.inputs, batch.labels, rate_factor), num_summed + 1
            course.num_tokens += batch.inputs["input_ids"].numel()
            course.num_padding += batch.num_padding
            is_last = step + 1 == course.num_steps
            if (step + 1) % log_every == 0 or is_last:
                row = {"loss": float(loss_sum) / num_summed, "learning_rate": settings.learning_rate * rate_factor}
                if not math.isfinite(row["loss"]):  # device sync, above
                    raise NonFiniteLossError(
                        f"the loss of fine-tuning became {row['loss']} by step {step}; lower finetune_learning_rate "
                        f"({settings.learning_rate:g}), or leave that rate out of finetune_grid"
                    )
                course.curve.append({"step": step, **row})
                if on_metrics is not None:
                    on_metrics(step, {**row, "num_steps": course.num_steps})
                loss_sum, num_summed = torch.zeros((), device=model.device), 0
            if best_of is not None and ((step + 1) % steps_per_epoch == 0 or is_last):
                score_now, metric = best_of
                course.epoch_scores.append(score_now())
                model.train()
                if course.epoch_scores[-1][metric] >= max(scores[metric] for scores in course.epoch_scores):
                    best = {name: value.clone() for name, value in model.state_dict().items()}
    if best:
        model.load_state_dict(best)
    return course


def training_step(
    model: PreTrainedModel, settings: FinetuneSettings
) -> Callable[[Mapping[str, Tensor], Sequence[Label], float], Tensor]:
    """One update of the model's weights as a function of its inputs, their labels and the factor on the learning rate;
    it returns the loss, detached, a scalar on the model's device. Dropout draws from the global generator."""
    optimizer, factors = _build_optimizer(model, settings)

    def take(inputs: Mapping[str, Tensor], labels: Sequence[Label], rate_factor: float) -> Tensor:
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = settings.learning_rate * rate_factor * factor
        with autocast("auto", model.device):
            loss = _loss(model(**inputs).logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return take


def _choose_examples(data: TaskData, max_examples: int | None, rng: random.Random) -> list[Example]:
    examples = list(data.train)
    if max_examples is None or max_examples >= len(examples):
        return examples
    return rng.sample(examples, max_examples)


def _rate_factor(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Rises linearly to 1 over the warm-up, then falls linearly, to 0 after the last step."""
    num_warmup = warmup_fraction * num_steps
    return min((step + 1) / max(1.0, num_warmup), (num_steps - step) / (num_steps - num_warmup), 1.0)


def _build_optimizer(model: PreTrainedModel, settings: FinetuneSettings) -> tuple[torch.optim.AdamW, list[float]]:
    """AdamW, and the learning-rate factor of each group. Departs from ELECTRA: with bias correction."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        factor = layer_factor(name, num_layers=model.config.num_hidden_layers, decay=settings.layer_decay)
        weight_decay = settings.weight_decay if parameter.ndim > 1 else 0.0  # not on biases and LayerNorm
        groups.setdefault((factor, weight_decay), []).append(parameter)
    options: list[dict[str, Any]] = [{"params": p, "weight_decay": wd} for (_, wd), p in groups.items()]
    optimizer = torch.optim.AdamW(options, betas=settings.betas, eps=1e-6, fused=True)
    return optimizer, [factor for factor, _ in groups]


def _loss(logits: Tensor, labels: Sequence[Label]) -> Tensor:
    """Mean squared error for one output (B, 1), cross-entropy for more (B, C)."""
    targets = onto(torch.tensor(labels), logits.device)
    if logits.shape[1] == 1:
        return torch.nn.functional.mse_loss(logits[:, 0].float(), targets.float())
    return torch.nn.functional.cross_entropy(logits.float(), targets)


@torch.no_grad()
def _predict(
    model: PreTrainedModel, encode: ExampleEncoder, encoded: EncodedExamples, *, is_regression: bool
) -> Predictions:
    model.eval()
    order = sorted(range(len(encoded.lengths)), key=encoded.lengths.__getitem__)
    found: list[Tensor] = []
    for start in range(0, len(order), EVALUATION_BATCH):
        with autocast("auto", model.device):
            found.append(model(**encode.batch(encoded, order[start : start + EVALUATION_BATCH])).logits.float())
    logits = torch.cat(found)  # (N, C)
    if not bool(logits.isfinite().all()):  # device sync; the largest of no numbers would be the first class
        raise NonFiniteLossError(
            "what the fine-tuned model answers is not finite; lower finetune_learning_rate, or leave that rate out of "
            "finetune_grid"
        )
    predictions = np.empty(len(order), dtype=np.float64 if is_regression else np.int64)
    predictions[order] = (logits[:, 0] if is_regression else logits.argmax(dim=1)).cpu().numpy()
    return predictions.tolist()


def _is_degenerate(data: TaskData, predictions: Mapping[str, Predictions]) -> bool:
    split = next(iter(data.dev))
    spread = max(predictions[split]) - min(predictions[split])
    if not data.spec.is_regression:
        return spread == 0
    labels = _labels(data.dev[split])
    return spread < 0.01 * (max(labels) - min(labels))
