"""Training as a step: what is reported of a run that took several attempts, and that tracking never delays it."""

import contextlib
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import MASK, dataset_of, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core import checkpoint, stopwatch, trainer
from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.corruption_store import StoredSamples
from fast_electra_core.data import TokenDataset
from fast_electra_core.methods import MaskedLanguageModel
from fast_electra_core.parallel import Group
from fast_electra_core.replay import MixedDataset
from fast_electra_core.trainer import Hooks, Row, Trained
from steps import tracking, training_run
from steps.store import Store
from steps.tracking import connection, metrics
from steps.training_run import TrainingRun, train_in_run


class Killed(BaseException):
    """The process ends here."""


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed(MaskedLanguageModel):
    """Every step takes 2 s."""

    clock: Clock

    def loss(self, *arguments: Any, **more: Any) -> Tensor:
        self.clock.now += 2
        return super().loss(*arguments, **more)


def toy_config(**changes: Any) -> AuxiliaryConfig:
    values = {"num_steps": 7, "batch_size": 4, "sequence_length": 10, "checkpoint_every_steps": 2, "log_every_steps": 3}
    return AuxiliaryConfig(**{**values, "precision": "fp32", **changes})


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"
    tracking.check_server(uri, "tests")
    return uri


@pytest.fixture
def run(tmp_path: Path, database: str) -> TrainingRun:
    return TrainingRun(
        store=Store(str(tmp_path / "store")), run_key="runs/1", shard_keys=[], tokenizer_key="",
        mlflow_run_id=tracking.start_parent(database, "tests", name="flow", tags={}, params={}),
    )  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> TokenDataset:
    return dataset_of(tmp_path / "shard", [np.arange(5, 29)] * 4, vocab_size=30, sequence_length=10)


def test_training_does_not_wait_for_a_server_that_answers_slowly(
    run: TrainingRun, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    really, sent = metrics.send_values, []

    def send_slowly(*arguments: Any) -> None:
        time.sleep(1.0)
        sent.append(arguments)
        really(*arguments)

    monkeypatch.setattr(metrics, "send_values", send_slowly)
    config = toy_config(num_steps=40, log_every_steps=1, checkpoint_every_steps=1)
    method = MaskedLanguageModel(ElectraForMaskedLM(electra_config(30)), mask_token_id=MASK)
    result = train_in_run(method, dataset, config, run, evaluate=dict, label="test")

    assert result["seconds"] < 20  # 40 rows and 40 checkpoints: 40 s and more if any of them waited each time
    assert 1 <= len(sent) <= 20  # rows travel together
    client = MlflowClient(connection.connected_uri())
    logged = [value.step for value in client.get_metric_history(run.mlflow_run_id, "loss")]
    assert logged == list(range(1, 41))


def test_seconds_and_speed_are_those_of_all_attempts(
    run: TrainingRun, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = toy_config(price_per_hour=3600.0)

    def attempt(*, die_at: int = 0) -> dict[str, Any]:
        clock, evaluations = Clock(), [0]
        monkeypatch.setattr(stopwatch, "time", clock)

        def evaluate() -> Row:
            clock.now += 50
            evaluations[0] += 1
            if evaluations[0] == die_at:
                raise Killed
            return {"heldout_loss": 1.0}

        torch.manual_seed(0)
        method = Timed(ElectraForMaskedLM(electra_config(30)), mask_token_id=MASK)
        method.clock = clock
        return train_in_run(method, dataset, config, run, evaluate=evaluate, label="test")

    with pytest.raises(Killed):
        attempt(die_at=2)  # at step 4; the checkpoint is of step 2
    # Said with the first row that has a speed, at step 3: 40 tokens in 2 s. Seven steps cost 14 at 1 a second.
    assert caplog.text.count("at 20 tokens per second, measured in the first steps, all steps take 14.0 s") == 1
    assert "and cost 14;" in caplog.text
    result = attempt()
    assert caplog.text.count("test goes on from its checkpoint at step 2") == 1
    # Once more by the attempt that found no such row before its checkpoint, and with none of its later rows.
    assert caplog.text.count("measured in the first steps") == 2
    assert result["resumed_from"] == 2
    assert result["seconds"] == 7 * 2 + 4 * 50  # scored at steps 2, 4, 6 and 7
    assert result["tokens_per_second"] == 7 * 4 * 10 / 214
    again = attempt()
    assert (again["seconds"], again["tokens_per_second"]) == (result["seconds"], result["tokens_per_second"])


def test_a_resumed_training_reads_the_tensors_of_its_checkpoint_once(
    run: TrainingRun, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as large as the model and its moments, and were held in the main memory to the end."""
    really, read = checkpoint.load_file, list[str]()

    def load_file(path: Path) -> dict[str, Tensor]:
        read.append(path.parent.name)
        return really(path)

    monkeypatch.setattr(checkpoint, "load_file", load_file)
    monkeypatch.setattr(trainer, "training_identity", lambda config: {})  # the second goes on beyond the first
    for num_steps in (2, 4):
        method = MaskedLanguageModel(ElectraForMaskedLM(electra_config(30)), mask_token_id=MASK)
        result = train_in_run(method, dataset, toy_config(num_steps=num_steps), run, evaluate=dict, label="test")
    assert result["resumed_from"] == 2
    assert read == ["step-000000002"]


class Bar:
    """Notes what a progress bar is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, num_steps: int, *, label: str, initial: int) -> contextlib.AbstractContextManager["Bar"]:
        self.told.append((num_steps, label, initial))
        return contextlib.nullcontext(self)

    def update(self, step: int) -> None:
        self.told.append(step)

    def show(self, **values: float) -> None:
        self.told.append(values)


def test_the_first_of_a_group_reports_for_all_and_what_this_attempt_took_to_load(
    run: TrainingRun, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from step 4; training itself is left out."""
    bar, samples = Bar(), StoredSamples(lambda step: Path(), identity={})
    row = {"step": 5, "loss": 0.5, "gradient_norm": 2.0}

    def train(*_: Any, hooks: Hooks, samples_at: Any, group: Group, **more: Any) -> Trained:
        hooks.on_step(5)
        hooks.on_metrics(row)
        for number in (signal.SIGTERM, signal.SIGINT):
            assert signal.getsignal(number) not in before
        assert not hooks.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert hooks.should_stop() and samples_at == samples.at and group == Group(0, 2)
        return Trained(4, 7, 20.0, {"data": 1.5})

    monkeypatch.setattr(training_run, "newest_sound", lambda root: root / "step-000000004")
    monkeypatch.setattr(training_run, "ProgressBar", bar)
    monkeypatch.setattr(training_run, "gemm_flops_per_second", lambda *_: 3e9)
    monkeypatch.setattr(training_run, "train", train)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    method = MaskedLanguageModel(ElectraForMaskedLM(electra_config(30)), mask_token_id=MASK)
    begun = replace(run, group=Group(0, 2), began=time.perf_counter() - 100, samples=samples)
    result = train_in_run(method, dataset, toy_config(), begun, evaluate=dict, label="test")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert bar.told == [(7, "test", 4), 5, {"loss": 0.5}]
    loading = result["spent"].pop("loading")
    assert 100 < loading < 200
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert result.pop("peak_memory_megabytes") == pytest.approx(int(peak) / 1024, rel=0.02)
    assert result == {
        "curve": [row], "resumed_from": 4, "seconds": 20.0, "tokens_per_second": 7 * 4 * 10 / 20,
        "spent": {"data": 1.5}, "peak_flops_per_second": 6e9, "device": "cpu", "num_processes": 2,
    }  # fmt: skip


def test_text_seen_before_is_among_what_is_trained_on_and_never_held_out(
    dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a group the first process alone talks to the tracking server."""
    connected, opened = list[Any](), list[Any]()

    def connect(plan: dict[str, Any]) -> Store:
        connected.append(plan)
        return Store(plan["config"]["store"])

    def open_dataset(part: str, config: AuxiliaryConfig, **more: Any) -> TokenDataset:
        opened.append((part, more["shard_keys"], more["tokenizer_key"]))
        return dataset

    monkeypatch.setattr(training_run, "connect", connect)
    monkeypatch.setattr(training_run, "open_dataset", open_dataset)
    plan = {"config": {"store": str(tmp_path)}, "run_key": "runs/1", "tokenizer_key": "tokenizer"}
    replaying = {**plan, "old_shard_keys": ["old"], "replay_fraction": 0.25}
    later = training_run.training_run(replaying, {"shard_keys": ["new"]}, "", group=Group(1, 2))
    assert not connected
    assert isinstance(later.dataset("train", toy_config()), MixedDataset)
    assert opened == [("train", ["new"], "tokenizer"), ("train", ["old"], "tokenizer")]
    assert later.dataset("heldout", toy_config()) is dataset
    assert opened[2:] == [("heldout", ["new"], "tokenizer")]
    first = training_run.training_run(plan, {"shard_keys": ["new"]}, "", group=Group(0, 2))
    assert connected == [plan]
    assert first.dataset("train", toy_config()) is dataset
