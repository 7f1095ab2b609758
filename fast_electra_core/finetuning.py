"""Fine-tuning an encoder on one task: ELECTRA's recipe in a loop of our own.

Everything follows from the seed.
Shapes: B sequences, L tokens per sequence, C outputs of the classifier.
"""

import contextlib
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fast_electra_core.errors import CheckpointError, ConfigError, NonFiniteLossError
from fast_electra_core.glue import MAX_SIMILARITY, Example, TaskData, task_spec
from fast_electra_core.glue_metrics import main_metric, score
from fast_electra_core.task_batches import EncodedExamples, ExampleEncoder, endless_batches

WARMUP_FRACTION = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
EVALUATION_BATCH = 64
NUM_CURVE_POINTS = 50


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """The knobs of one fine-tuning; meanings and ranges as in PretrainConfig."""

    learning_rate: float = 3e-4
    batch_size: int = 32
    epochs: float | None = None
    max_length: int = 128
    max_examples: int | None = None
    layer_decay: float = 0.8
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What came out. scores: metric -> fraction; the mismatched split's metrics end in _mismatched."""

    scores: dict[str, float]
    main_metric: str
    predictions: dict[str, list[int] | list[float]]
    """By dev split, in the order of its examples: class ids, or numbers."""
    curve: list[dict[str, float]]
    """Rows {"step", "loss", "learning_rate"}; loss averaged since the row before."""
    degenerate: bool
    """One class predicted for every example of the first dev split; for a regression, nearly one number."""
    num_steps: int
    num_train: int
    """Examples trained on, swapped pairs not counted."""
    padding_fraction: float
    """Share of the training tokens that was padding."""
    seconds: float


@dataclass
class _Tally:
    num_tokens: int = 0
    num_padding: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def default_epochs(task: str) -> float:
    """ELECTRA's: 10 for the small rte and stsb, 3 for the others."""
    task_spec(task)
    return 10.0 if task in ("rte", "stsb") else 3.0


def build_classifier(encoder_folder: Path, *, num_labels: int, seed: int, untrained: bool = False) -> PreTrainedModel:
    """A sequence classifier on the encoder saved in the folder, its new head a function of the seed.

    untrained: the same architecture, freshly initialised. Only safetensors are read, no remote code is run.

    Raises:
        CheckpointError: no usable config or safetensors; encoder weights missing or unknown.
    """
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            config = AutoConfig.from_pretrained(encoder_folder, num_labels=num_labels, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
            if untrained:
                return model
            loaded, report = AutoModelForSequenceClassification.from_pretrained(
                encoder_folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                # ModernBERT's detector has a head of the classifier's name and of another width.
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{encoder_folder} holds no encoder that can be fine-tuned: {error}") from error
    prefix = f"{model.base_model_prefix}."
    for kind, words in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "has wrongly shaped"),
    ):
        keys = [key if isinstance(key, str) else key[0] for key in report[kind]]  # a mismatch comes with its shapes
        # A pooler belongs to the head: pre-training by masked words or by detection has none.
        names = sorted(n for n in keys if n.startswith(prefix) and not n.startswith(f"{prefix}pooler."))
        if names:
            raise CheckpointError(f"{encoder_folder} {words} encoder weights {', '.join(names[:5])} ({len(names)})")
    # The encoder alone: whatever head the file had stays behind.
    model.base_model.load_state_dict(loaded.base_model.state_dict())
    return model


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
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> FinetuneResult:
    """Train the model, in place and on its own device, on data.train; score it on every dev split.

    on_metrics gets the step and {"loss", "learning_rate", "num_steps"} about fifty times.

    Raises:
        ConfigError: max_length beyond the model's positions.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    started = time.monotonic()
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and settings.max_length > positions:
        raise ConfigError(
            f"finetune_max_length must be <= {positions}, the model's positions, got {settings.max_length}"
        )
    rng = random.Random(f"finetune {settings.seed}")
    examples = _choose_examples(data, settings.max_examples, rng)
    encode = ExampleEncoder(model, tokenizer, settings.max_length)
    num_chosen = len(examples)
    if task_spec(data.name).is_swap_doubled:
        examples = examples + [Example(str(e.text_b), e.text_a, e.label) for e in examples]
    num_steps, tally = _train(model, encode, encode(examples), data.name, settings, rng, on_metrics)
    scores: dict[str, float] = {}
    predictions: dict[str, list[int] | list[float]] = {}
    for split, dev in data.dev.items():
        predictions[split] = _predict(model, encode, encode(dev), is_regression=task_spec(data.name).is_regression)
        ending = "_mismatched" if split == "mismatched" else ""
        split_scores = score(data.name, predictions[split], [example.label for example in dev])
        scores.update({f"{name}{ending}": value for name, value in split_scores.items()})
    return FinetuneResult(
        scores=scores,
        main_metric=main_metric(data.name),
        predictions=predictions,
        curve=tally.curve,
        degenerate=_is_degenerate(next(iter(predictions.values())), data.name),
        num_steps=num_steps,
        num_train=num_chosen,
        padding_fraction=tally.num_padding / tally.num_tokens,
        seconds=time.monotonic() - started,
    )


def _train(
    model: PreTrainedModel,
    encode: ExampleEncoder,
    train: EncodedExamples,
    task: str,
    settings: FinetuneSettings,
    rng: random.Random,
    on_metrics: Callable[[int, dict[str, float]], None] | None,
) -> tuple[int, _Tally]:
    epochs = settings.epochs if settings.epochs is not None else default_epochs(task)
    num_steps = max(1, round(epochs * math.ceil(len(train.lengths) / settings.batch_size)))
    batches = endless_batches(train.lengths, settings.batch_size, rng)
    optimizer, factors = _build_optimizer(model, settings.layer_decay)
    log_every = max(1, num_steps // NUM_CURVE_POINTS)
    tally = _Tally()
    loss_sum, num_summed = torch.zeros((), device=model.device), 0
    devices = [model.device] if model.device.type == "cuda" else []
    model.train()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)  # dropout
        for step in range(num_steps):
            indices = next(batches)
            inputs = encode.batch(train, indices)
            learning_rate = settings.learning_rate * _rate_factor(step, num_steps)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = learning_rate * factor
            loss = _loss(model(**inputs).logits, [train.labels[index] for index in indices])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            loss_sum, num_summed = loss_sum + loss.detach(), num_summed + 1
            tally.num_tokens += inputs["input_ids"].numel()
            tally.num_padding += inputs["input_ids"].numel() - sum(train.lengths[index] for index in indices)
            if (step + 1) % log_every == 0 or step + 1 == num_steps:
                mean_loss = float(loss_sum) / num_summed  # device sync
                if not math.isfinite(mean_loss):
                    raise NonFiniteLossError(
                        f"the loss of fine-tuning on {task} became {mean_loss} by step {step}; "
                        f"lower finetune_learning_rate ({settings.learning_rate:g})"
                    )
                row = {"loss": mean_loss, "learning_rate": learning_rate}
                tally.curve.append({"step": step, **row})
                if on_metrics is not None:
                    on_metrics(step, {**row, "num_steps": num_steps})
                loss_sum, num_summed = torch.zeros((), device=model.device), 0
    return num_steps, tally


def _choose_examples(data: TaskData, max_examples: int | None, rng: random.Random) -> list[Example]:
    examples = list(data.train)
    if max_examples is None or max_examples >= len(examples):
        return examples
    return rng.sample(examples, max_examples)


def _rate_factor(step: int, num_steps: int) -> float:
    """Rises linearly to 1 over the first tenth of the steps, then falls linearly, to 0 after the last."""
    num_warmup = WARMUP_FRACTION * num_steps
    return min((step + 1) / max(1.0, num_warmup), (num_steps - step) / (num_steps - num_warmup), 1.0)


def _build_optimizer(model: PreTrainedModel, decay: float) -> tuple[torch.optim.AdamW, list[float]]:
    """AdamW, and the learning-rate factor of each group. Departs from ELECTRA: with bias correction."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        factor = layer_factor(name, num_layers=model.config.num_hidden_layers, decay=decay)
        weight_decay = WEIGHT_DECAY if parameter.ndim > 1 else 0.0  # not on biases and LayerNorm
        groups.setdefault((factor, weight_decay), []).append(parameter)
    options: list[dict[str, Any]] = [{"params": p, "weight_decay": wd} for (_, wd), p in groups.items()]
    return torch.optim.AdamW(options, eps=1e-6, fused=True), [factor for factor, _ in groups]


def _loss(logits: Tensor, labels: Sequence[int | float]) -> Tensor:
    """Mean squared error for one output (B, 1), cross-entropy for more (B, C)."""
    targets = torch.tensor(labels, device=logits.device)
    if logits.shape[1] == 1:
        return torch.nn.functional.mse_loss(logits[:, 0].float(), targets.float())
    return torch.nn.functional.cross_entropy(logits.float(), targets)


@torch.inference_mode()
def _predict(
    model: PreTrainedModel, encode: ExampleEncoder, encoded: EncodedExamples, *, is_regression: bool
) -> list[int] | list[float]:
    model.eval()
    order = sorted(range(len(encoded.lengths)), key=encoded.lengths.__getitem__)
    found: list[Tensor] = []
    for start in range(0, len(order), EVALUATION_BATCH):
        logits = model(**encode.batch(encoded, order[start : start + EVALUATION_BATCH])).logits
        found.append(logits[:, 0].float() if is_regression else logits.argmax(dim=1))
    predictions = np.empty(len(order), dtype=np.float64 if is_regression else np.int64)
    predictions[order] = torch.cat(found).cpu().numpy()  # device sync
    return predictions.tolist()


def _is_degenerate(predictions: Sequence[float], task: str) -> bool:
    spread = max(predictions) - min(predictions)
    return spread < 0.01 * MAX_SIMILARITY if task_spec(task).is_regression else spread == 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No table of new weights (the head is always new; what else is missing is an error) and no bar."""
    log = transformers.utils.logging
    verbosity, has_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if has_bar:
            log.enable_progress_bar()
