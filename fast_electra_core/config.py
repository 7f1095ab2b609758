"""What a run is: every knob with its meaning, unit and range. Flat, frozen dataclasses, checked when made.

A default stands here and nowhere else; presets.py overrides it; a flow parameter that was given overrides both.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from fast_electra_core.errors import ConfigError, check_choice
from fast_electra_core.glue import DIAGNOSTIC, SPECS, TASK_NAMES
from fast_electra_core.method_knobs import METHODS, MODEL_FREE, OFF_BY_DEFAULT, check_is_read
from fast_electra_core.promotion import MARGIN, PROMOTIONS, check_waivers
from fast_electra_core.recipes import RECIPES
from fast_electra_core.schedules import SCHEDULES

ATTENTIONS = ("sequence", "document")
CORRUPTIONS = ("online", "offline")
MASKINGS = ("tokens", "whole_words", "spans")
BAD_TEXT_CHOICES = ("error", "replace", "skip")
ARCHITECTURES = ("electra", "modernbert")
WARM_STARTS = ("none", "embeddings", "layers")
SHARDINGS = ("ddp", "fsdp")
PRECISIONS = ("auto", "fp32", "bf16")
PYDOCS_LICENCE = "PSF-2.0 (Python's standard library); of an installed package, the package's own"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every flow shares: where things are kept, and what to do with bad input."""

    LEFT_OUT: ClassVar[frozenset[str]] = frozenset()
    """Fields that are no parameters of the flow."""

    preset: str = "demo"
    """What the other values start from: tiny, demo, laptop, small, base, large or modernbert_base."""
    on_bad_text: str = "error"
    """What to do with bytes that are not UTF-8 and lines that do not parse: error, replace or skip; skip also leaves
    out broken rows of GLUE files, and counts them."""
    store: str = ".fast_electra"
    """Folder or `s3://` prefix that keeps token shards, checkpoints and models between steps. Of what is in S3 each
    machine has a copy in the folder FAST_ELECTRA_CACHE, by itself fast_electra_cache in the temporary folder."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """MLflow tracking server or database; not given, MLFLOW_TRACKING_URI where that is set, in the environment or in
    Metaflow's config file. Without a password, which would be kept with every run: a server's is read
    from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PostgreSQL's from PGPASSWORD."""
    experiment: str = "fast-electra"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} must be a finite number, got {value}")
        check_choice("on_bad_text", self.on_bad_text, BAD_TEXT_CHOICES)
        for name in ("store", "tracking_uri", "experiment"):
            _check_not_blank(name, getattr(self, name))
        try:
            password = urlsplit(self.tracking_uri).password
        except ValueError as error:  # its own words may hold a password
            raise ConfigError(
                "tracking_uri is no address: its brackets do not match, as in http://[::1]:5000"
            ) from error
        if password is not None:
            raise ConfigError(
                "tracking_uri holds a password, which would be kept with every run; it is not shown here. Leave it "
                "out: a server's is read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PostgreSQL's from "
                "PGPASSWORD"
            )

    def to_dict(self) -> dict[str, Any]:
        """The config as a plain dict, readable without this package."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict."""
        return cls(**values)

    @classmethod
    def part_of(cls, values: Mapping[str, Any]) -> Self:
        """The config of this class that a larger one's dict holds."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    def digest(self) -> str:
        """Hex digest (16 characters) of every value."""
        return self.digest_of(self.to_dict())

    @staticmethod
    def digest_of(values: dict[str, Any]) -> str:
        """Hex digest (16 characters) of a dict of plain values, whatever its order."""
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """What the two flows that train share: text, size of the model to train, optimisation."""

    corpus: str = "pydocs"
    """`pydocs`, a file, folder, glob or `s3://` prefix of .txt, .jsonl, .parquet (optionally compressed), or
    `hub:NAME[/CONFIG]`."""
    corpus_licence: str = ""
    """Licence of the text, in words (`CC BY-SA 4.0`), kept with the model. Empty: known of pydocs; of any other text
    not stated, and then a main model gets no alias. `unstated`: not known, and waived."""
    text_field: str = "text"
    """The field of .jsonl lines, .parquet columns and hub rows that holds the text."""
    heldout_fraction: float = 0.02
    """Share of the text that is never trained on; the auxiliary and the detector are scored on it. (0, 0.5]."""
    shard_megabytes: float = 16.0
    """Text per tokenizing task. > 0."""
    sequence_length: int = 128
    """Tokens per sequence, [CLS] and [SEP] included. >= 8."""
    attention: str = "sequence"
    """How far a token sees where several documents stand in one sequence: sequence, all of it; or document, its own
    document alone, as both models are then trained and asked."""

    architecture: str = "electra"
    """electra (post-norm, learned positions), or modernbert (pre-norm, rotary positions, gated feed-forward)."""
    num_layers: int = 12
    """Transformer layers. 1 .. 1000."""
    hidden_size: int = 256
    """Width; a multiple of num_heads."""
    embedding_size: int = 128
    """Width of the embedding table; projected to hidden_size where they differ. >= 1."""
    num_heads: int = 4
    """Attention heads. >= 1."""
    intermediate_size: int = 1024
    """Width of the feed-forward layer. >= 1."""
    dropout: float = 0.1
    """Dropout of the trained model, hidden and attention. [0, 1)."""

    mask_fraction: float = 0.15
    """Share of each sequence's ordinary tokens that is chosen to be replaced (or, for an auxiliary, to be masked),
    as an exact count. (0, 1)."""
    masking: str = "tokens"
    """How they are chosen, always as many and every position as likely: tokens, each for itself; whole_words, a word's
    pieces together; spans of 1 to 10 words, 3.8 on average. Held-out text is always masked by tokens."""
    keep_fraction: float = 0.0
    """Chance of a chosen token to be shown to the masked language model as it is instead of as [MASK]; ELECTRA has
    0.15. Held-out text keeps none. [0, 1)."""

    num_steps: int = 1_000_000
    """Optimiser steps. >= 1."""
    batch_size: int = 128
    """Sequences per optimiser step. >= 1."""
    micro_batch_size: int | None = None
    """Sequences per forward pass; a divisor of batch_size. None: the whole batch at once."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass, and compute the layer again there: less memory, about a
    third more computing, the same numbers. A generator that is trained alongside keeps all of its own."""
    compile_layers: bool = False
    """Compile the layers that are trained at the first step (torch.compile; needs a C++ compiler): it takes one or two
    minutes, and then 6 to 10 % less time per step on a CPU core. `Unverified:` on a GPU. The numbers are the same but
    for rounding, and for which values dropout drops."""
    learning_rate: float = 5e-4
    """Peak learning rate. > 0."""
    warmup_fraction: float = 0.01
    """Share of num_steps over which the learning rate rises; it falls linearly to 0 afterwards. [0, 1)."""
    weight_decay: float = 0.01
    """AdamW's weight decay, on matrices only. >= 0."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm. > 0."""
    precision: str = "auto"
    """fp32, bf16 (refused where the hardware is slower with it), or auto: bf16 on GPUs that have it."""
    seed: int = 0
    """Seed of initialisation, data order, masking and sampling. [0, 2**60)."""

    processes_per_node: int | None = None
    """Processes that train together on each machine, each on its share of every batch. None: one for each GPU, and one
    where there is none. 1 .. batch_size."""
    sharding: str = "ddp"
    """What each of the processes that train together holds: ddp, the whole model, its gradients and optimizer; or fsdp,
    a share of them, for models that one GPU does not hold. fsdp wants several processes, and no compile_layers. The
    numbers are the same but for rounding; a run may go on under the other."""
    group_timeout_seconds: float = 1800.0
    """So long processes that train together wait for one that is slow, or busy with scoring held-out text or sending a
    checkpoint, or at the end the model, to S3. One that takes longer counts as hung: the group begins again from its
    newest checkpoint. >= 1."""
    checkpoint_every_steps: int = 1000
    """A checkpoint is written every so many steps. >= 1."""
    keep_checkpoints: int = 2
    """So many of the newest checkpoints are kept. >= 1."""
    milestone_every_steps: int | None = None
    """Checkpoints of every so many steps are kept as well. A multiple of checkpoint_every_steps. None: none are."""
    log_every_steps: int = 50
    """Training metrics are averaged over, and logged every, so many steps. >= 1."""
    max_skipped_steps: int = 3
    """A step whose loss or gradient is not finite is left out; more of them in a row than this end the run. 0: the
    first does. >= 0."""
    price_per_hour: float | None = None
    """Price of an hour of the machine that trains, or of all that do, in whatever money: what a run has cost is then
    also said in it. None: it is not. > 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("architecture", self.architecture, ARCHITECTURES)
        if self.architecture == "modernbert" and self.embedding_size != self.hidden_size:
            raise ConfigError(
                f"embedding_size must equal hidden_size ({self.hidden_size}) in a modernbert, got {self.embedding_size}"
            )
        _check_interval("heldout_fraction", self.heldout_fraction, 0.0, 0.5, "(]")
        _check_positive("shard_megabytes", self.shard_megabytes)
        check_at_least("sequence_length", self.sequence_length, 8)
        for name in ("hidden_size", "embedding_size", "num_heads", "intermediate_size"):
            check_at_least(name, getattr(self, name), 1)
        _check_interval("num_layers", self.num_layers, 1, 1000, "[]")  # `start` builds them all, if without weights
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size must be a multiple of num_heads ({self.num_heads}), got {self.hidden_size}")
        if self.architecture == "modernbert" and self.hidden_size // self.num_heads % 2:
            raise ConfigError(
                f"hidden_size must be an even multiple of num_heads ({self.num_heads}) in a modernbert, got "
                f"{self.hidden_size}"
            )
        _check_interval("dropout", self.dropout, 0.0, 1.0, "[)")
        _check_interval("mask_fraction", self.mask_fraction, 0.0, 1.0, "()")
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("masking", self.masking, MASKINGS)
        _check_interval("keep_fraction", self.keep_fraction, 0.0, 1.0, "[)")
        for name in ("num_steps", "batch_size", "checkpoint_every_steps", "log_every_steps", "keep_checkpoints"):
            check_at_least(name, getattr(self, name), 1)
        if self.micro_batch_size is not None:
            check_at_least("micro_batch_size", self.micro_batch_size, 1)
            if self.batch_size % self.micro_batch_size:
                raise ConfigError(
                    f"batch_size must be divisible by micro_batch_size ({self.micro_batch_size}), got {self.batch_size}"
                )
        if self.milestone_every_steps is not None:
            check_at_least("milestone_every_steps", self.milestone_every_steps, 1)
            if self.milestone_every_steps % self.checkpoint_every_steps:
                raise ConfigError(
                    f"milestone_every_steps must be a multiple of checkpoint_every_steps "
                    f"({self.checkpoint_every_steps}), got {self.milestone_every_steps}"
                )
        if self.processes_per_node is not None:
            _check_interval("processes_per_node", self.processes_per_node, 1, self.batch_size, "[]")
        self._check_sharding()
        check_at_least("group_timeout_seconds", self.group_timeout_seconds, 1)
        _check_positive("learning_rate", self.learning_rate)
        _check_interval("warmup_fraction", self.warmup_fraction, 0.0, 1.0, "[)")
        check_at_least("weight_decay", self.weight_decay, 0.0)
        _check_positive("max_gradient_norm", self.max_gradient_norm)
        _check_interval("seed", self.seed, 0, 2**60, "[)")
        check_at_least("max_skipped_steps", self.max_skipped_steps, 0)
        if self.price_per_hour is not None:
            _check_positive("price_per_hour", self.price_per_hour)
        for name in ("corpus", "text_field"):
            _check_not_blank(name, getattr(self, name))

    def _check_sharding(self) -> None:
        check_choice("sharding", self.sharding, SHARDINGS)
        num_nodes = getattr(self, "num_nodes", 1)  # an auxiliary trains on one
        if self.sharding == "fsdp" and num_nodes == 1 and self.processes_per_node == 1:
            raise ConfigError(
                "processes_per_node must be at least 2 with sharding fsdp on one machine, got 1: there is nobody to "
                "share with. Give more, or leave --sharding out"
            )
        if self.sharding == "fsdp" and self.compile_layers:
            raise ConfigError(
                "compile_layers must be false with sharding fsdp, got true: a layer that is gathered for each of its "
                "passes is not compiled whole. Leave --compile_layers out, or --sharding"
            )
        if self.processes_per_node and num_nodes * self.processes_per_node <= self.batch_size:
            self.check_processes(num_nodes * self.processes_per_node)

    def check_processes(self, number: int) -> None:
        """So many processes can train together: with sharding each has as many micro-batches of a batch as the others,
        which would wait for what it exchanges in one more.

        Raises:
            ConfigError: some have one more.
        """
        most, least = math.ceil(self.batch_size / number), self.batch_size // number
        counts = [math.ceil(rows / (self.micro_batch_size or self.batch_size)) for rows in (most, least)]
        if self.sharding == "fsdp" and counts[0] != counts[1]:
            raise ConfigError(
                f"batch_size {self.batch_size} gives some of the {number} processes {most} sequences and others "
                f"{least}, so {counts[0]} and {counts[1]} micro-batches of micro_batch_size {self.micro_batch_size}; "
                f"with sharding fsdp all must have as many. Give a --batch_size that {number} divides, or another "
                "--micro_batch_size"
            )

    def licence(self) -> str:
        """Of the text, as stated or known; empty where it is neither, `unstated` where that was waived."""
        return self.corpus_licence.strip() or (PYDOCS_LICENCE if self.corpus == "pydocs" else "")


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig(TrainingConfig):
    """A masked language model to be trained as auxiliary (AuxiliaryFlow)."""

    tokenizer: str = "train"
    """`train` (WordPiece on the corpus), a vocab.txt, or a folder with a tokenizer."""
    embedding_init: str = "random"
    """How the token embeddings start: random, or cooccurrence: from the text's word co-occurrences, which takes a small
    model past the unigram plateau at once."""
    vocab_size: int = 8192
    """Entries of a trained vocabulary; without effect, and so refused, with a given tokenizer. 256 .. 2**24."""
    distill_from: str = ""
    """A larger masked language model to learn from besides the text: `models:/NAME@alias` or `models:/NAME/VERSION`, a
    folder or `s3://` prefix, `hub:NAME`. Its tokenizer is the trained model's too. Empty: none."""
    distill_share: float = 0.5
    """Share of the loss that is the distance from that model's output; the rest is the masked tokens' own. (0, 1]."""
    distill_temperature: float = 2.0
    """Temperature of both outputs in that distance. > 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("embedding_init", self.embedding_init, ("random", "cooccurrence"))
        _check_interval("vocab_size", self.vocab_size, 256, 2**24, "[]")  # its trainer takes 71 bytes an entry at once
        _check_interval("distill_share", self.distill_share, 0.0, 1.0, "(]")
        _check_positive("distill_temperature", self.distill_temperature)
        if not self.tokenizer.strip():
            raise ConfigError("tokenizer must not be empty; `train` trains one on the corpus")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(RunConfig):
    """How an encoder is scored: which tasks, by which recipe, how often."""

    glue: str = "sample"
    """`sample` (embedded tasks, GLUE-shaped), a folder or `s3://` prefix with a sub-folder per task, in the classic
    form or as `datasets` saved it, or `hub:nyu-mll/glue`."""
    tasks: str = "cola,sst2,mrpc,rte"
    """Tasks to fine-tune on, comma-separated: GLUE's, `ax` beside mnli, and those of the folder with a task.json."""
    seeds: int = 5
    """Fine-tunings per task, seeds 0 .. seeds-1. >= 1."""
    finetune_recipe: str = "electra"
    """Learning rate, epochs and decay by task and width: electra or modernbert; what is given below overrides it."""
    finetune_learning_rate: float | None = None
    """Peak learning rate of fine-tuning. None: the recipe's. > 0."""
    finetune_grid: str = ""
    """Learning rates to choose from by the dev score, comma-separated, for each task alone; flatters, and is named in
    the result. Empty: no choice."""
    finetune_batch_size: int | None = None
    """Examples per step of fine-tuning. None: the recipe's. >= 1."""
    finetune_epochs: float | None = None
    """Passes over each task's training set. None: the recipe's. > 0."""
    finetune_max_length: int = 128
    """Tokens per example; longer ones are cut. 8 .. 512."""
    finetune_max_examples: int | None = None
    """Training examples used per task, the first so many of a seeded shuffle. None: all. >= 1."""
    layer_decay: float | None = None
    """Factor on the learning rate per layer below the head. None: the recipe's. (0, 1]."""
    best_epoch: bool = False
    """Score the best epoch on dev instead of the last; flatters, and is named in the result."""
    mnli_transfer: bool = False
    """Start mrpc, stsb and rte from the encoder fine-tuned on mnli with the same seed; needs mnli among the tasks."""
    test_predictions: bool = True
    """Also answer the test sets, as files for the leaderboard."""
    untrained_baseline: bool = True
    """Also fine-tune the same encoder without pre-training, for comparison."""
    keep_task_models: bool = True
    """Register the fine-tuned model of each task's best seed too, as NAME-TASK."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = self.task_list()
        if not [task for task in tasks if task != DIAGNOSTIC]:
            raise ConfigError(f"tasks must name at least one of {', '.join(TASK_NAMES)}, got {self.tasks!r}")
        words = [word for word in re.split(r"[,;\s]+", self.tasks) if word]
        if set(words) <= {*TASK_NAMES, DIAGNOSTIC} and not set(words) <= set(tasks):
            raise ConfigError(f"tasks must be comma-separated, got {self.tasks!r}. Give --tasks {','.join(words)}")
        if self.glue == "sample" or self.glue.startswith("hub:"):  # a folder may hold tasks of its own
            names = TASK_NAMES if self.glue == "sample" else tuple(SPECS)
            for task in tasks:
                check_choice("tasks", task, names)
        if DIAGNOSTIC in tasks and "mnli" not in tasks:
            raise ConfigError(f"{DIAGNOSTIC} is answered by the models trained on mnli; add mnli to tasks")
        if self.mnli_transfer and "mnli" not in tasks:
            raise ConfigError(f"mnli_transfer needs mnli among the tasks, got {self.tasks!r}")
        check_at_least("seeds", self.seeds, 1)
        check_choice("finetune_recipe", self.finetune_recipe, RECIPES)
        for name in ("finetune_learning_rate", "finetune_epochs"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.grid() and self.finetune_learning_rate is not None:
            raise ConfigError("finetune_grid and finetune_learning_rate exclude each other; leave one of them out")
        for name in ("finetune_batch_size", "finetune_max_examples"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        _check_interval("finetune_max_length", self.finetune_max_length, 8, 512, "[]")
        if self.layer_decay is not None:
            _check_interval("layer_decay", self.layer_decay, 0.0, 1.0, "(]")

    def scored_tasks(self) -> list[str]:
        """The tasks that have a dev set to be scored on: all but `ax`."""
        return [task for task in self.task_list() if task != DIAGNOSTIC]

    def task_list(self) -> list[str]:
        """The tasks, in order, without blanks and repetitions."""
        return _split_list(self.tasks)

    def grid(self) -> list[float]:
        """The learning rates to choose from, in order.

        Raises:
            ConfigError: one is no number > 0.
        """
        rates = []
        for word in _split_list(self.finetune_grid):
            try:
                rates.append(float(word))
            except ValueError:
                raise ConfigError(f"finetune_grid must be numbers, comma-separated, got {word!r}") from None
            _check_positive("finetune_grid", rates[-1])
        return rates


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig, ScoringConfig):
    """A main model to be trained (PretrainFlow): a discriminator by replaced token detection, or a rival by mlm."""

    method: str = "fast_electra"
    """fast_electra (frozen auxiliary, annealed temperature), or a rival on the same sequences and masks. electra: a
    generator of the auxiliary's shape trains alongside, from scratch, embeddings shared. electra_decoupled: likewise,
    with an optimizer each and nothing shared. electra_gdes: DeBERTaV3's, an optimizer each, embeddings shared but no
    gradient. mlm: BERT's, the main model itself fills in the masked tokens. uniform, unigram, bigram: tokens are
    replaced without any model, by every ordinary token alike, as often as in the text, or by what has followed the left
    neighbour there. mlm and these take of the auxiliary the tokenizer, and what warm_start says."""
    generator_learning_rate: float | None = None
    """Peak learning rate of the generator of electra_decoupled and electra_gdes. None: learning_rate. > 0."""
    corruption: str = "online"
    """When replacements are drawn: online, in each training step, or offline: ahead of training, in tasks of their own,
    and kept in the store for every run with the same text, auxiliary, schedule, batches and seed. Only of fast_electra,
    and in PretrainFlow."""
    num_nodes: int = 1
    """Machines that train together, each on its share of every batch; on Kubernetes as a JobSet. From 1 to batch_size
    divided by processes_per_node; more than 1 in PretrainFlow only."""
    auxiliary: str = "models:/fast-electra-auxiliary@champion"
    """Candidates, comma-separated: `models:/NAME@alias` or `models:/NAME/VERSION`, a folder or `s3://` prefix,
    `hub:NAME`. One is chosen by held-out masked loss, or as many as ensemble_size says."""
    ensemble_size: int = 1
    """So many of the candidates sample together, from the mean of their probabilities. 1 .. number of candidates."""
    max_auxiliary_fraction: float = 0.75
    """Candidates whose forward FLOPs per token, those of an ensemble together, exceed this share of the main model's
    are not chosen. > 0."""
    auxiliary_shared_by: int = 1
    """Runs that the auxiliary's own training is divided by, where it is charged: all that use it, this one included. It
    changes what the ledger says, and nothing else. >= 1."""
    warm_start: str = "none"
    """What the main model takes over from the auxiliary before it is trained: none, embeddings, or layers: the
    embeddings and the lowest layers, as many as the auxiliary has. Both need the same architecture and widths."""
    initial_model: str = ""
    """A model that the whole main model starts from (continual pre-training, another domain), instead of warm_start:
    `models:/NAME@alias` or `models:/NAME/VERSION`, a folder or `s3://` prefix, `hub:NAME`; electra or modernbert, of
    the main model's sizes, with the auxiliary's tokenizer. Empty: none, it starts from random weights."""

    schedule: str = "exponential"
    """Shape of the temperature over progress: exponential, exponential_exact, linear, polynomial, cosine, step or
    constant; see fast_electra_core.schedules."""
    temperature_start: float = 2.0
    """Temperature at progress 0. > 0."""
    temperature_decay: float = 0.1
    """How slow the schedule is: its time constant (exponential, exponential_exact), the progress at which
    temperature_end is reached (linear, cosine: 0.1 after a tenth of the training, 1 at its end), 1 / power
    (polynomial: 0.5 falls quadratically), the progress in which half of what is left is gone (step); constant has
    none. > 0."""
    temperature_end: float = 1.0
    """Temperature that the schedule descends to; constant does not. > 0, at most temperature_start."""
    auxiliary_dropout: float = 0.0
    """Dropout that the auxiliary keeps at progress 0; falls to 0 as the temperature does to its end. [0, 1)."""
    unigram_share: float = 0.0
    """Share of the replacements that are drawn from the text's token frequencies instead, at progress 0; falls to 0 as
    the temperature does to its end. [0, 1]."""
    top_k: int | None = None
    """Only the k likeliest tokens are drawn, at progress 0; k grows geometrically to the whole vocabulary as the
    temperature goes to its end. >= 1; None: all, always."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn, at progress 0; grows to 1 as the
    temperature goes to its end. (0, 1]; 1: all, always."""
    rtd_weight: float = 50.0
    """Weight of the replaced-token-detection loss. > 0."""
    soft_target_share: float = 0.0
    """Share, in the targets of selected tokens, of the auxiliary's doubt: its probability of any other token than the
    one put there; the rest says whether it was replaced. Online only. [0, 1]."""
    consistency_weight: float = 0.0
    """Weight of the disagreement of the main model with itself over a second draw of the same tokens, where none was
    selected. Costs a second pass of both models. Online only. >= 0."""

    promote: str = "if_better"
    """Whether the model becomes champion once its gates pass: if_better (there is none yet, or a paired test over the
    seeds says that it beats the present one), always (whatever the test says), or never."""
    promotion_margin: float = MARGIN
    """Mean difference over the present champion, in units of the scores, that a better one has at least. >= 0."""
    waive_gates: str = ""
    """Gates that may fail, comma-separated, as is then kept with the version: finite, majority (`majority:rte` for one
    task), replay, signature, lineage, licence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("promote", self.promote, PROMOTIONS)
        check_at_least("promotion_margin", self.promotion_margin, 0.0)
        check_waivers(self.waived_gates())
        check_choice("method", self.method, METHODS)
        check_choice("corruption", self.corruption, CORRUPTIONS)
        if self.corruption == "offline" and self.method != "fast_electra":
            because = "its generator is trained alongside, so what it will draw cannot be known ahead"
            if self.method == "mlm":
                because = "no tokens are replaced"
            elif self.method in MODEL_FREE:
                because = "drawing takes next to no time, so there is nothing to save"
            raise ConfigError(
                f"corruption must be online with method {self.method}, got offline: {because}. Leave --corruption out, "
                "or give --method fast_electra"
            )
        if self.generator_learning_rate is not None:
            _check_positive("generator_learning_rate", self.generator_learning_rate)
        _check_interval("num_nodes", self.num_nodes, 1, self.batch_size // (self.processes_per_node or 1), "[]")
        check_choice("warm_start", self.warm_start, WARM_STARTS)
        if self.initial_model and self.warm_start != "none":
            raise ConfigError(
                f"initial_model and warm_start exclude each other: the whole main model starts from "
                f"{self.initial_model}. Leave --warm_start {self.warm_start} out, or --initial_model"
            )
        check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("temperature_start", "temperature_decay", "temperature_end", "rtd_weight"):
            _check_positive(name, getattr(self, name))
        if self.schedule != "constant" and self.temperature_end > self.temperature_start:
            raise ConfigError(
                f"temperature_end must be <= temperature_start ({self.temperature_start:g}), got "
                f"{self.temperature_end:g}: schedule {self.schedule} descends. Raise --temperature_start, or lower "
                "--temperature_end"
            )
        _check_positive("max_auxiliary_fraction", self.max_auxiliary_fraction)
        check_at_least("auxiliary_shared_by", self.auxiliary_shared_by, 1)
        if not self.auxiliary_list():
            raise ConfigError("auxiliary must name at least one candidate")
        if not 1 <= self.ensemble_size <= len(self.auxiliary_list()):
            raise ConfigError(
                f"ensemble_size must be between 1 and the number of candidates ({len(self.auxiliary_list())}), got "
                f"{self.ensemble_size}; name more with --auxiliary A,B"
            )
        self._check_what_is_off_by_default()

    def _check_what_is_off_by_default(self) -> None:
        for name in ("auxiliary_dropout", "unigram_share", "soft_target_share"):
            _check_interval(name, getattr(self, name), 0.0, 1.0, "[)" if name == "auxiliary_dropout" else "[]")
        if self.top_k is not None:
            check_at_least("top_k", self.top_k, 1)
        _check_interval("top_p", self.top_p, 0.0, 1.0, "(]")
        check_at_least("consistency_weight", self.consistency_weight, 0.0)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in OFF_BY_DEFAULT:
            if getattr(self, name) != defaults[name]:
                check_is_read(name, self.method)
        for name in ("soft_target_share", "consistency_weight"):
            if getattr(self, name) and self.corruption == "offline":
                raise ConfigError(
                    f"{name} must be 0 with corruption offline, got {getattr(self, name):g}: one id per position is "
                    "drawn ahead, neither its probability nor a second one. Leave --corruption out"
                )

    def waived_gates(self) -> list[str]:
        """What waive_gates lists, without blanks and repetitions."""
        return _split_list(self.waive_gates)

    def auxiliary_list(self) -> list[str]:
        """The candidates, in order, without blanks and repetitions."""
        return _split_list(self.auxiliary)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """Any encoder to be scored (EvaluateFlow)."""

    preset: str = "small"
    """Size of the model, by which the recipe's values are overridden; from small on, they are not."""
    model: str = "models:/fast-electra@champion"
    """`models:/NAME@alias` or `models:/NAME/VERSION`, a folder or `s3://` prefix, `hub:NAME`."""
    untrained_baseline: bool = False
    """Also fine-tune the same architecture without its weights, for comparison."""
    keep_task_models: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_blank("model", self.model)


def _split_list(text: str) -> list[str]:
    return list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


def _check_not_blank(name: str, value: str) -> None:
    if not value.strip():
        raise ConfigError(f"{name} must not be empty")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be > 0, got {value}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raise ConfigError if value is below least; both are named."""
    if value < least:
        raise ConfigError(f"{name} must be >= {least}, got {value}")


def _check_interval(name: str, value: float, low: float, high: float, ends: str) -> None:
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):
        raise ConfigError(f"{name} must be in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value}")
