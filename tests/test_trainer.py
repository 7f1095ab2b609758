"""Training is a pure function of config, data and step: a killed run, resumed, is the run that was never killed."""

import contextlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import METHODS, dataset_of, electra_config, method_of
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core import stopwatch, trainer
from fast_electra_core.checkpoint import list_checkpoints, load_latest, save_checkpoint
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import CheckpointError, ConfigError, Interrupted, NonFiniteLossError
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.parallel import Group
from fast_electra_core.precision import uses_bf16
from fast_electra_core.trainer import (
    SKIPPED,
    WITHOUT_EFFECT_ON_TRAINING,
    Hooks,
    Row,
    train,
    training_identity,
)

VOCAB_SIZE, NUM_STEPS = 30, 7
# Checkpoints and rows in different rhythms, so that a row's window may begin before a checkpoint.
CONFIG = PretrainConfig(
    num_steps=NUM_STEPS, batch_size=4, micro_batch_size=2, sequence_length=10, dropout=0.2, learning_rate=0.01,
    warmup_fraction=0.3, mask_fraction=0.3, checkpoint_every_steps=2, log_every_steps=3, precision="fp32", seed=5,
)  # fmt: skip


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Eleven sequences: seven steps of four straddle three epochs."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(5, VOCAB_SIZE, 21) for _ in range(4)]
    return dataset_of(tmp_path_factory.mktemp("shard"), documents, vocab_size=VOCAB_SIZE, sequence_length=10)


def make(name: str, *, dropout: float = 0.2) -> Any:
    shape = electra_config(VOCAB_SIZE, dropout=dropout)
    torch.manual_seed(1)
    return method_of(name, ElectraForPreTraining(shape), ElectraForMaskedLM(shape))


def run(
    name: str,
    dataset: TokenDataset,
    root: Path,
    *,
    config: PretrainConfig = CONFIG,
    on_step: Callable[[int], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    method: Any = None,
) -> list[Row]:
    """One attempt at the run; its metric rows, also when it ends early."""
    rows: list[Row] = []
    hooks = Hooks(
        on_metrics=rows.append, on_step=on_step, should_stop=should_stop, evaluate=lambda: {"heldout": len(rows)}
    )
    torch.manual_seed(99)  # the surroundings' random state must not matter
    with contextlib.suppress(Killed, Interrupted):
        train(method or make(name, dropout=config.dropout), dataset, config=config, checkpoints=root, hooks=hooks)
    return rows


def final_tensors(root: Path) -> dict[str, bytes]:
    newest = load_latest(root)
    assert newest is not None
    assert newest.step == NUM_STEPS
    return {name: value.numpy().tobytes() for name, value in newest.tensors.items()}


def training_rows(*attempts: list[Row]) -> dict[float, list[Row]]:
    """Rows by step, without speed, which is the machine's, and without held-out values."""
    by_step: dict[float, list[Row]] = {}
    for row in (row for rows in attempts for row in rows if "loss" in row):
        kept = {key: value for key, value in row.items() if key not in ("tokens_per_second", "heldout")}
        by_step.setdefault(row["step"], []).append(kept)
    return by_step


def kill_at(step_to_die: int) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if step == step_to_die:
            raise Killed

    return on_step


@pytest.fixture(scope="module")
def uninterrupted(
    dataset: TokenDataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, bytes], dict[float, list[Row]]]]:
    """Final tensors and rows of each method's run in one go."""
    results = {}
    for name in METHODS:
        root = tmp_path_factory.mktemp(name)
        rows = run(name, dataset, root)
        results[name] = final_tensors(root), training_rows(rows)
    return results


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_killed_at_any_step_and_resumed_the_run_is_bit_for_bit_the_same(
    name: str, step: int, dataset: TokenDataset, uninterrupted: Any, tmp_path: Path
) -> None:
    """Weights, optimizer state, metric rows. ModernBERT's resume replays the loader, DeBERTaV3 saves no optimizer."""
    killed = run(name, dataset, tmp_path, on_step=kill_at(step))
    resumed = run(name, dataset, tmp_path)
    tensors, rows = uninterrupted[name]
    assert final_tensors(tmp_path) == tensors
    assert {"model", "optimizer"} == {key.split(".")[0] for key in tensors}
    seen = training_rows(killed, resumed)
    assert list(rows) == [3, 6, 7]
    assert sorted(seen) == [3, 6, 7]
    assert all(row == rows[at][0] for at, versions in seen.items() for row in versions)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_at_every_single_step_the_run_is_bit_for_bit_the_same(
    name: str, dataset: TokenDataset, uninterrupted: Any, tmp_path: Path
) -> None:
    attempts = [run(name, dataset, tmp_path, should_stop=lambda: True) for _ in range(NUM_STEPS)]
    tensors, rows = uninterrupted[name]
    assert final_tensors(tmp_path) == tensors
    assert training_rows(*attempts) == rows


def test_a_stop_writes_a_checkpoint_of_the_step_reached_and_says_so(dataset: TokenDataset, tmp_path: Path) -> None:
    steps: list[int] = []
    written: list[Path] = []
    scored: list[int] = []

    def evaluate() -> Row:
        scored.append(steps[-1])
        return {}

    hooks = Hooks(
        on_step=steps.append, on_checkpoint=written.append, evaluate=evaluate, should_stop=lambda: steps[-1] == 3
    )
    with pytest.raises(Interrupted, match="stopped after step 3; a checkpoint is written, resume goes on from there"):
        train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks)
    assert steps == [1, 2, 3]
    assert [path.name for path in written] == ["step-000000002", "step-000000003"]
    assert scored == [2]  # at the stop nobody has the time
    assert all(path in list_checkpoints(tmp_path) for path in written)


def test_a_stop_whose_checkpoint_cannot_be_written_does_not_say_that_it_is(
    dataset: TokenDataset, tmp_path: Path
) -> None:
    def fail(folder: Path) -> None:
        raise CheckpointError("the disk is full")

    hooks = Hooks(on_checkpoint=fail, should_stop=lambda: True)
    with pytest.raises(CheckpointError, match="the disk is full"):
        train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks)


def test_a_checkpoints_row_is_told_before_it_is_written(
    dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve goes to S3 with it."""
    rows: list[Row] = []
    told: list[tuple[int, float]] = []
    monkeypatch.setattr(trainer.CheckpointWriter, "write", lambda _, given: told.append((given.step, rows[-1]["step"])))
    train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=Hooks(on_metrics=rows.append))
    assert told == [(2, 2), (4, 4), (6, 6), (7, 7)]


def test_a_stop_at_the_last_step_lets_the_run_end(dataset: TokenDataset, tmp_path: Path) -> None:
    steps: list[int] = []
    hooks = Hooks(on_step=steps.append, should_stop=lambda: steps[-1] == NUM_STEPS)
    trained = train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks)
    assert trained[:2] == (0, NUM_STEPS)
    assert trained.seconds > 0


def test_a_finished_run_started_again_does_nothing(dataset: TokenDataset, tmp_path: Path) -> None:
    run("masked_lm", dataset, tmp_path)
    before = final_tensors(tmp_path)
    method = make("masked_lm")
    hooks = Hooks(on_step=kill_at(NUM_STEPS))
    assert train(method, dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks).first_step == NUM_STEPS
    assert final_tensors(tmp_path) == before
    found = {f"model.{name}": value.detach().numpy().tobytes() for name, value in method.named_parameters()}
    assert found.items() <= before.items()


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_result(
    dataset: TokenDataset, uninterrupted: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("fast_electra", dataset, tmp_path, on_step=kill_at(5))
    newest = list_checkpoints(tmp_path)[0]
    (newest / "tensors.safetensors").write_bytes(b"rubbish")
    steps: list[int] = []
    run("fast_electra", dataset, tmp_path, on_step=steps.append)
    assert steps == [3, 4, 5, 6, 7]
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert final_tensors(tmp_path) == uninterrupted["fast_electra"][0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1, None])
def test_another_micro_batch_size_gives_the_same_run(
    name: str, size: int | None, dataset: TokenDataset, tmp_path: Path
) -> None:
    config = replace(CONFIG, dropout=0.0)
    expected = training_rows(run(name, dataset, tmp_path / "two", config=config))
    found = training_rows(run(name, dataset, tmp_path / "other", config=replace(config, micro_batch_size=size)))
    assert found.keys() == expected.keys()
    for step, (row,) in expected.items():
        assert found[step] == [{key: pytest.approx(value, rel=1e-4) for key, value in row.items()}]


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every_steps": 1}, {"checkpoint_every_steps": 100}, {"store": "elsewhere"},
        {"activation_checkpointing": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_effect_on_training_have_none(
    changes: dict[str, Any], dataset: TokenDataset, uninterrupted: Any, tmp_path: Path
) -> None:
    run("fast_electra", dataset, tmp_path, config=replace(CONFIG, **changes))
    assert final_tensors(tmp_path) == uninterrupted["fast_electra"][0]


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_activations_are_computed_again_and_layers_compiled_where_that_is_asked_for(
    is_asked_for: bool, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers do not tell."""
    method = make("masked_lm")
    compiled: list[bool] = []
    monkeypatch.setattr(method, "compile_layers", lambda: compiled.append(method.model.is_activation_checkpointing))
    config = replace(CONFIG, activation_checkpointing=is_asked_for, compile_layers=is_asked_for)
    run("masked_lm", dataset, tmp_path, config=config, on_step=kill_at(1), method=method)
    assert method.model.is_activation_checkpointing == is_asked_for
    assert compiled == ([True] if is_asked_for else [])


def test_as_many_checkpoints_stay_as_is_said_and_the_milestones(dataset: TokenDataset, tmp_path: Path) -> None:
    """Written at steps 2, 4, 6 and 7."""
    run("masked_lm", dataset, tmp_path / "few", config=replace(CONFIG, keep_checkpoints=1, milestone_every_steps=4))
    assert steps_kept(tmp_path / "few") == [7, 4]
    run("masked_lm", dataset, tmp_path / "many", config=replace(CONFIG, keep_checkpoints=3))
    assert steps_kept(tmp_path / "many") == [7, 6, 4]


def steps_kept(root: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in list_checkpoints(root)]


def test_they_may_change_when_a_run_is_resumed(dataset: TokenDataset, uninterrupted: Any, tmp_path: Path) -> None:
    run("fast_electra", dataset, tmp_path, on_step=kill_at(5))
    run("fast_electra", dataset, tmp_path, config=replace(CONFIG, checkpoint_every_steps=1, glue="other"))
    assert final_tensors(tmp_path) == uninterrupted["fast_electra"][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6}, {"learning_rate": 0.02}, {"warmup_fraction": 0.6}, {"weight_decay": 0.5}, {"dropout": 0.1},
        {"max_gradient_norm": 1e-7}, {"mask_fraction": 0.4}, {"batch_size": 6},
    ],
    ids=str,
)  # fmt: skip
def test_settings_with_effect_change_the_run(
    changes: dict[str, Any], dataset: TokenDataset, uninterrupted: Any, tmp_path: Path
) -> None:
    run("fast_electra", dataset, tmp_path, config=replace(CONFIG, **changes))
    assert final_tensors(tmp_path) != uninterrupted["fast_electra"][0]


def test_the_largest_seed_trains(dataset: TokenDataset, tmp_path: Path) -> None:
    config = replace(CONFIG, seed=2**60 - 1)
    assert len(run("fast_electra", dataset, tmp_path, config=config)) == 5


def spoil(method: Any, steps: list[int], *, where: Callable[[int], bool]) -> None:
    """The gradient is infinite in the steps of which `where` is true; the loss is not."""
    method.discriminator.discriminator_predictions.dense.bias.register_hook(
        lambda gradient: gradient * math.inf if where(len(steps)) else gradient
    )


def skipped(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / SKIPPED).read_text().splitlines()]


def test_a_step_that_is_not_finite_changes_nothing_and_is_noted_with_its_batch(
    dataset: TokenDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = make("fast_electra", dropout=0.0)
    steps: list[int] = []
    weights: list[dict[str, bytes]] = []

    def on_step(step: int) -> None:
        steps.append(step)
        weights.append({name: value.detach().numpy().tobytes() for name, value in method.named_parameters()})

    spoil(method, steps, where=lambda step: step == 3)
    config = replace(CONFIG, dropout=0.0)
    rows = run("fast_electra", dataset, tmp_path, config=config, on_step=on_step, method=method)
    by_step = {row["step"]: row for row in rows}
    assert weights[3] == weights[2]
    assert all(weights[step] != weights[step - 1] for step in (1, 2, 4, 5, 6))
    index = dataset.index_at(3, batch_size=4, seed=5)
    assert skipped(tmp_path) == [{"step": 3, "epoch": index.epoch.tolist(), "sequence": index.sequence.tolist()}]
    assert (
        f"step 3 is left out: its loss or gradient is not finite; its batch is in {tmp_path / SKIPPED}" in caplog.text
    )
    assert "skipped_steps" not in by_step[3]
    assert by_step[6]["skipped_steps"] == 1
    # Of the window's steps two were taken: its norm is the mean of theirs.
    method, steps = make("fast_electra", dropout=0.0), []
    spoil(method, steps, where=lambda step: step == 3)
    config = replace(config, log_every_steps=1)
    each = run("fast_electra", dataset, tmp_path / "each", config=config, on_step=steps.append, method=method)
    norms = [row["gradient_norm"] for row in each if row["step"] in (5, 6)]
    assert by_step[6]["gradient_norm"] == pytest.approx(sum(norms) / 2)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # The moments have not moved either: Adam has counted the steps that were taken.
    newest = load_latest(tmp_path)
    assert newest is not None
    assert newest.tensors["optimizer.0.step"].item() == NUM_STEPS - 1


@pytest.mark.parametrize("name", ["electra", "electra_decoupled"])
def test_a_step_in_which_the_generator_diverges_is_left_out_as_well(
    name: str, dataset: TokenDataset, tmp_path: Path
) -> None:
    """What is drawn of no number is no token: looked up, it ended the run, and on a GPU all that the process does."""
    method = make(name, dropout=0.0)
    steps: list[int] = []
    method.generator.generator_lm_head.register_forward_hook(
        lambda _, __, logits: logits * math.inf if len(steps) == 3 else logits
    )
    run(name, dataset, tmp_path, config=replace(CONFIG, dropout=0.0), on_step=steps.append, method=method)
    assert [entry["step"] for entry in skipped(tmp_path)] == [3]
    assert_newest_is_sound(tmp_path, step=NUM_STEPS)


@pytest.mark.parametrize("log_every_steps", [1, 100])
def test_more_in_a_row_than_may_be_left_out_end_the_run(
    log_every_steps: int, dataset: TokenDataset, tmp_path: Path
) -> None:
    """Also where nobody looks for a while."""
    method = make("fast_electra")
    steps: list[int] = []
    spoil(method, steps, where=lambda step: step >= 3)
    config = replace(CONFIG, log_every_steps=log_every_steps, max_skipped_steps=1)
    with pytest.raises(
        NonFiniteLossError, match=r"not finite in step 4, as in the 1 before it: 1 in a row may be left"
    ):
        run("fast_electra", dataset, tmp_path, config=config, on_step=steps.append, method=method)
    assert_newest_is_sound(tmp_path, step=4)
    assert [entry["step"] for entry in skipped(tmp_path)] == [3, 4]


def test_they_end_it_with_the_next_row_where_no_checkpoint_is_due(dataset: TokenDataset, tmp_path: Path) -> None:
    method = make("fast_electra")
    steps: list[int] = []
    spoil(method, steps, where=lambda step: step >= 1)
    config = replace(CONFIG, log_every_steps=4, checkpoint_every_steps=100, max_skipped_steps=1)
    with pytest.raises(NonFiniteLossError, match="not finite in step 2, as in the 1 before it"):
        run("fast_electra", dataset, tmp_path, config=config, on_step=steps.append, method=method)
    assert steps == [1, 2, 3, 4]


def test_steps_left_out_now_and_then_do_not_end_the_run(dataset: TokenDataset, tmp_path: Path) -> None:
    method = make("fast_electra")
    steps: list[int] = []
    spoil(method, steps, where=lambda step: step % 2 == 1)
    config = replace(CONFIG, max_skipped_steps=1)
    run("fast_electra", dataset, tmp_path, config=config, on_step=steps.append, method=method)
    assert [entry["step"] for entry in skipped(tmp_path)] == [1, 3, 5]
    assert_newest_is_sound(tmp_path, step=NUM_STEPS)


def test_with_none_allowed_the_first_ends_the_run(dataset: TokenDataset, tmp_path: Path) -> None:
    method = make("fast_electra")
    steps: list[int] = []
    spoil(method, steps, where=lambda step: step == 3)
    config = replace(CONFIG, max_skipped_steps=0)
    with pytest.raises(NonFiniteLossError, match="not finite in step 3, as in the 0 before it: 0 in a row may be left"):
        run("fast_electra", dataset, tmp_path, config=config, on_step=steps.append, method=method)
    assert_newest_is_sound(tmp_path, step=2)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(dataset: TokenDataset, tmp_path: Path) -> None:
    """As a faulty memory would leave them: no step can be taken, and none is worth to be waited for."""
    method = make("fast_electra")
    bias = method.discriminator.discriminator_predictions.dense.bias

    def poison(step: int) -> None:
        if step == 3:
            torch.nn.init.constant_(bias, math.nan)

    with pytest.raises(
        NonFiniteLossError, match=r"dense.bias is not finite. The checkpoint before is kept. Resume from"
    ):
        run("fast_electra", dataset, tmp_path, on_step=poison, method=method)
    assert_newest_is_sound(tmp_path, step=2)


def assert_newest_is_sound(root: Path, *, step: int) -> None:
    newest = load_latest(root)
    assert newest is not None
    assert newest.step == step
    assert all(bool(value.isfinite().all()) for value in newest.tensors.values())


def test_a_checkpoint_of_another_run_is_refused_and_the_difference_named(dataset: TokenDataset, tmp_path: Path) -> None:
    run("masked_lm", dataset, tmp_path, on_step=kill_at(3))
    with pytest.raises(CheckpointError, match=r"is of another run: learning_rate, seed differ. Start a new run"):
        run("masked_lm", dataset, tmp_path, config=replace(CONFIG, seed=6, learning_rate=0.5))


def test_names_without_effect_are_fields_and_the_identity_is_all_the_others() -> None:
    names = {field.name for config in (AuxiliaryConfig, PretrainConfig) for field in fields(config)}
    assert names >= WITHOUT_EFFECT_ON_TRAINING
    own = {field.name for field in fields(PretrainConfig)}
    assert training_identity(CONFIG).keys() == own - WITHOUT_EFFECT_ON_TRAINING
    for name in ("seed", "num_steps", "dropout", "schedule", "rtd_weight", "auxiliary", "corpus", "sequence_length"):
        assert name in training_identity(CONFIG)


def test_a_field_that_the_checkpoint_does_not_know_is_named_too(dataset: TokenDataset, tmp_path: Path) -> None:
    run("masked_lm", dataset, tmp_path, on_step=kill_at(3))
    newest = load_latest(tmp_path)
    assert newest is not None
    del newest.state["identity"]["mask_fraction"]
    save_checkpoint(tmp_path, newest)
    with pytest.raises(CheckpointError, match=r"is of another run: mask_fraction differ\."):
        run("masked_lm", dataset, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"group_timeout_seconds": 7200.0}, {"micro_batch_size": 1}, {"max_skipped_steps": 0}, {"keep_checkpoints": 9},
        {"milestone_every_steps": 50}, {"num_nodes": 2}, {"processes_per_node": 2}, {"price_per_hour": 4.0},
        {"auxiliary_shared_by": 3}, {"max_auxiliary_fraction": 0.9}, {"corpus_licence": "CC0-1.0"},
        {"corruption": "offline"}, {"tasks": "rte"}, {"seeds": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_goes_on_with_what_messages_and_documents_tell_to_change(changes: dict[str, Any]) -> None:
    assert training_identity(replace(CONFIG, **changes)) == training_identity(CONFIG)


def test_a_run_does_not_go_on_with_other_text() -> None:
    assert training_identity(replace(CONFIG, on_bad_text="skip")) != training_identity(CONFIG)


def test_no_two_steps_runs_or_processes_have_the_same_dropout(
    dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = {
        trainer._dropout_seed(step, replace(CONFIG, seed=seed), Group(rank, 3))
        for step, seed, rank in itertools.product(range(50), (0, 1, 6), range(3))
    }
    assert len(seeds) == 50 * 3 * 3
    method, given = make("masked_lm"), list[int]()
    monkeypatch.setattr(torch, "manual_seed", given.append)
    train(method, dataset, config=CONFIG, checkpoints=tmp_path, hooks=Hooks())
    assert len(given) == len(set(given)) == NUM_STEPS


def test_the_identity_survives_json() -> None:
    config = replace(CONFIG, micro_batch_size=None, learning_rate=1 / 3)
    assert json.loads(json.dumps(training_identity(config))) == training_identity(config)


def test_bf16_is_refused_where_the_hardware_is_slower_with_it() -> None:
    with pytest.raises(ConfigError, match=r"precision bf16 is refused on cpu: .*Use --precision auto or fp32"):
        uses_bf16("bf16", torch.device("cpu"))
    assert not uses_bf16("auto", torch.device("cpu"))
    assert not uses_bf16("fp32", torch.device("cpu"))


def test_a_refused_precision_ends_the_run_before_its_first_step(dataset: TokenDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision bf16 is refused on cpu"):
        run("masked_lm", dataset, tmp_path, config=replace(CONFIG, precision="bf16"), on_step=kill_at(1))


def test_biases_and_norms_do_not_decay() -> None:
    method = make("fast_electra")
    decaying, constant = build_optimizer(method, replace(CONFIG, weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], constant["weight_decay"]) == (0.3, 0.0)
    assert (decaying["betas"], decaying["eps"]) == ((0.9, 0.999), 1e-6)
    names = {id(value): name for name, value in method.named_parameters()}
    assert all(names[id(value)].endswith("weight") for value in decaying["params"])
    assert all(names[id(value)].endswith(("bias", "LayerNorm.weight")) for value in constant["params"])
    assert len(decaying["params"]) + len(constant["params"]) == len(names)


def test_rows_hold_the_means_of_their_window_and_come_when_due(dataset: TokenDataset, tmp_path: Path) -> None:
    each = run("fast_electra", dataset, tmp_path / "each", config=replace(CONFIG, log_every_steps=1))
    rows = run("fast_electra", dataset, tmp_path / "three")
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 7]
    assert ["loss" in row for row in rows] == [False, True, False, True, True]
    assert ["heldout" in row for row in rows] == [True, False, True, True, True]
    assert rows[1]["loss"] == pytest.approx(sum(row["loss"] for row in each[:3]) / 3)
    assert rows[3]["loss"] == pytest.approx(sum(row["loss"] for row in each[3:6]) / 3)
    assert rows[4]["loss"] == pytest.approx(each[6]["loss"])
    assert rows[3]["gradient_norm"] == pytest.approx(sum(row["gradient_norm"] for row in each[3:6]) / 3)
    assert rows[4]["gradient_norm"] == pytest.approx(each[6]["gradient_norm"])
    assert rows[3]["temperature"] == pytest.approx(1 + math.exp(-(5 / 7) / 0.1))
    assert rows[3]["learning_rate"] == pytest.approx(0.01 * 2 / 7)
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_row_holds_the_mean_of_its_steps_where_log_every_steps_changed_on_the_way(
    dataset: TokenDataset, tmp_path: Path
) -> None:
    """Begun with a row at step 3, killed behind the checkpoint of step 2, gone on with rows at 5 and 7."""
    each = run("fast_electra", dataset, tmp_path / "each", config=replace(CONFIG, log_every_steps=1))
    norms = [row["gradient_norm"] for row in each if "loss" in row]
    run("fast_electra", dataset, tmp_path / "two", on_step=kill_at(3))
    rows = run("fast_electra", dataset, tmp_path / "two", config=replace(CONFIG, log_every_steps=5))
    found = {row["step"]: row["gradient_norm"] for row in rows if "loss" in row}
    assert found == {5: pytest.approx(sum(norms[:5]) / 5), 7: pytest.approx(sum(norms[5:]) / 2)}

    run("fast_electra", dataset, tmp_path / "three", config=replace(CONFIG, log_every_steps=7), on_step=kill_at(5))
    rows = run("fast_electra", dataset, tmp_path / "three", config=replace(CONFIG, log_every_steps=3))
    found = {row["step"]: row["gradient_norm"] for row in rows if "loss" in row}
    assert found == {6: pytest.approx(sum(norms[:6]) / 6), 7: pytest.approx(norms[6])}


class Clock:
    """In place of the module `time`: a steady clock that stands still until told, and no time of day to be read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_speed_counts_the_tokens_of_the_time_it_is_divided_by(
    dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch is waited for 3 s and every step takes 2 besides: 40 tokens / 5 s, also after a resume. Evaluations
    (50 s) and checkpoints (7 s, and one for each still being written when it is waited for) are not training."""
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    Writer = trainer.CheckpointWriter
    really_made, really_write, really_wait = trainer.made_ahead, Writer.write, Writer.wait
    rows: list[Row] = []

    def made_late(make: Any, steps: range, **more: Any) -> Any:
        for batch in really_made(make, steps, **more):
            clock.now += 3
            yield batch

    def write(writer: trainer.CheckpointWriter, checkpoint: trainer.Checkpoint) -> None:
        clock.now += 7
        really_write(writer, checkpoint)

    def wait(writer: trainer.CheckpointWriter) -> None:
        clock.now += writer._thread is not None
        really_wait(writer)

    monkeypatch.setattr(trainer, "made_ahead", made_late)
    monkeypatch.setattr(Writer, "write", write)
    monkeypatch.setattr(Writer, "wait", wait)

    def on_step(step: int) -> None:
        clock.now += 2
        if step == 5 and len(rows) < 4:
            raise Killed

    def evaluate() -> Row:
        clock.now += 50
        return {}

    hooks = Hooks(on_metrics=rows.append, on_step=on_step, evaluate=evaluate)
    with pytest.raises(Killed):
        train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks)
    rows.append({})
    clock.now += 10_000  # between the attempts
    trained = train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks)
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    assert speeds == [8.0, 8.0, 8.0]
    # Seven steps and four evaluations; step 5, done twice, counts once, and the checkpoint gone on from does not.
    # Waited for: the one of step 6 when that of 7 is due, and that at the end.
    assert trained.seconds == 7 * (2 + 3) + 4 * 50 + 3 * 7 + 2
    assert trained.spent == {"starting": 0, "data": 7 * 3, "scoring": 4 * 50, "checkpoints": 3 * 7 + 2}


def test_a_finished_run_started_again_has_taken_the_time_it_took(
    dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)

    def on_step(step: int) -> None:
        clock.now += 2

    for _ in range(2):
        hooks = Hooks(on_step=on_step)
        trained = train(make("masked_lm"), dataset, config=CONFIG, checkpoints=tmp_path, hooks=hooks)
        assert trained.seconds == 7 * 2


def test_a_checkpoint_that_does_not_say_how_long_it_took_is_good_all_the_same(
    dataset: TokenDataset, uninterrupted: Any, tmp_path: Path
) -> None:
    run("masked_lm", dataset, tmp_path, on_step=kill_at(3))
    newest = load_latest(tmp_path)
    assert newest is not None
    del newest.state["seconds"], newest.state["spent"]
    save_checkpoint(tmp_path, newest)
    run("masked_lm", dataset, tmp_path)
    assert final_tensors(tmp_path) == uninterrupted["masked_lm"][0]


def test_every_micro_batch_is_weighed_by_the_whole_batch_and_knows_how_far_training_is(
    dataset: TokenDataset, tmp_path: Path
) -> None:
    """Batches of four as 2 + 2, 1 + 1 + 1 + 1 and 4 sequences of 10."""
    for size, sizes in ((2, [2, 2]), (1, [1, 1, 1, 1]), (None, [4])):
        method, given = make("masked_lm"), list[Any]()
        method.register_forward_pre_hook(lambda _, given_, more, to=given: to.append((*given_, more)), with_kwargs=True)
        run("masked_lm", dataset, tmp_path / str(size), config=replace(CONFIG, micro_batch_size=size), method=method)
        assert [len(batch.input_ids) for batch, _, _ in given] == sizes * NUM_STEPS
        assert [more for _, _, more in given] == [{"progress": step / 7} for step in range(NUM_STEPS) for _ in sizes]
        for first in range(0, len(given), len(sizes)):
            parts = given[first : first + len(sizes)]
            num_selected = sum(int(batch.is_selected.sum()) for batch, _, _ in parts)
            assert [totals for _, totals, _ in parts] == [(40, num_selected)] * len(sizes)


def test_training_learns(tmp_path: Path) -> None:
    """Two words in strict alternation: the masked language model soon knows which one is missing."""
    data = dataset_of(tmp_path / "shard", [np.array([10, 11] * 200)], vocab_size=VOCAB_SIZE, sequence_length=10)
    config = replace(
        CONFIG, num_steps=60, dropout=0.0, log_every_steps=20, batch_size=8, micro_batch_size=None, learning_rate=0.02
    )
    rows = [row for row in run("masked_lm", data, tmp_path / "checkpoints", config=config) if "loss" in row]
    assert rows[0]["loss"] > 1.0
    assert rows[-1]["loss"] < 0.2
    assert rows[-1]["masked_accuracy"] > 0.95
