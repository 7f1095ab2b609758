"""Training as a step: what is reported of a run that took several attempts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import MASK, dataset_of, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core import trainer
from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.methods import MaskedLanguageModel
from fast_electra_core.trainer import Row
from steps import tracking
from steps.pretrain import TrainingRun, _train
from steps.store import Store


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


def test_seconds_and_speed_are_those_of_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.check_server(uri, "tests")
    run = TrainingRun(
        store=Store(str(tmp_path / "store")), run_key="runs/1", shard_keys=[], tokenizer_key="",
        mlflow_run_id=tracking.start_parent(uri, "tests", name="flow", tags={}, params={}),
    )  # fmt: skip
    dataset = dataset_of(tmp_path / "shard", [np.arange(5, 29)] * 4, vocab_size=30, sequence_length=10)
    config = AuxiliaryConfig(
        num_steps=7, batch_size=4, sequence_length=10, checkpoint_every_steps=2, log_every_steps=3, precision="fp32",
        price_per_hour=3600.0,
    )  # fmt: skip

    def attempt(*, die_at: int = 0) -> dict[str, Any]:
        clock, evaluations = Clock(), [0]
        monkeypatch.setattr(trainer, "time", clock)

        def evaluate() -> Row:
            clock.now += 50
            evaluations[0] += 1
            if evaluations[0] == die_at:
                raise Killed
            return {"heldout_loss": 1.0}

        torch.manual_seed(0)
        method = Timed(ElectraForMaskedLM(electra_config(30)), mask_token_id=MASK)
        method.clock = clock
        return _train(method, dataset, config, run, evaluate=evaluate, label="test")

    with pytest.raises(Killed):
        attempt(die_at=2)  # at step 4; the checkpoint is of step 2
    # Said with the first row that has a speed, at step 3: 40 tokens in 2 s. Seven steps cost 14 at 1 a second.
    assert caplog.text.count("at 20 tokens per second, measured in the first steps, all steps take 14.0 s") == 1
    assert "and cost 14;" in caplog.text
    result = attempt()
    assert result["resumed_from"] == 2
    assert result["seconds"] == 7 * 2 + 4 * 50  # scored at steps 2, 4, 6 and 7
    assert result["tokens_per_second"] == 7 * 4 * 10 / 214
    again = attempt()
    assert (again["seconds"], again["tokens_per_second"]) == (result["seconds"], result["tokens_per_second"])
