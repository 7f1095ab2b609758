"""What tracking takes from training: time that a step waits for it, and processor time of the threads beside training.

    python benchmarks/tracking.py [--num_steps 200] [--log_every_steps 50] [--latency 0.5]

Steps of the laptop preset on one thread, random tokens; a database file, and the same answering `latency` seconds late.
Both columns together bound what tracking can cost: the threads beside training only compete with it for a core.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from arm_steps import SPECIAL

from fast_electra_core.config import PretrainConfig
from fast_electra_core.curriculum import Curriculum
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.methods import Batch, Totals
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config, freeze
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.presets import AUXILIARY_PRESETS, PRETRAIN_PRESETS
from fast_electra_core.proposals import FrozenMaskedLm
from steps import tracking
from steps.tracking import metrics

VOCABULARY = 8192
NAMES = ("loss", "temperature", "replaced_fraction", "replaced_of_selected", "recall_replaced", "recall_original")
MORE_NAMES = ("precision_replaced", "learning_rate", "gradient_norm", "tokens_per_second")


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--num_steps", type=int, default=200)
    arguments.add_argument("--log_every_steps", type=int, default=50)
    arguments.add_argument("--latency", type=float, default=0.5, help="seconds that the slow database takes longer")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    step = _steps_of(PretrainConfig(**{"preset": "laptop", **PRETRAIN_PRESETS["laptop"]}))
    print(f"{'':<16}{'ms per step':>12}{'waited':>10}{'beside':>10}")
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking.check_server(uri, "benchmark")
        for name, latency in (("no tracking", None), ("database", 0.0), ("slow database", given.latency)):
            _measure(name, step, given, uri=uri, latency=latency)


def _measure(
    name: str, step: Callable[[], None], given: argparse.Namespace, *, uri: str, latency: float | None
) -> None:
    send = metrics.send_values

    def send_late(*values: Any) -> None:
        time.sleep(latency or 0.0)
        send(*values)

    metrics.send_values = send_late
    run_id = tracking.start_parent(uri, "benchmark", name=name, tags={}, params={})
    with tracking.MetricsLogger(run_id) as logger:
        step()
        waited, wall, thread, process = 0.0, time.perf_counter(), time.thread_time(), time.process_time()
        for done in range(1, given.num_steps + 1):
            step()
            if done % given.log_every_steps == 0 and latency is not None:
                before = time.perf_counter()
                logger.log({"step": done, **dict.fromkeys(NAMES + MORE_NAMES, 0.5)})
                waited += time.perf_counter() - before
        wall = time.perf_counter() - wall
        beside = time.process_time() - process - (time.thread_time() - thread)
    metrics.send_values = send
    print(f"{name:<16}{1000 * wall / given.num_steps:>12.1f}{waited / wall:>10.4%}{beside / wall:>10.4%}", flush=True)


def _steps_of(config: PretrainConfig) -> Callable[[], None]:
    """A function that trains for one step."""
    shallow = PretrainConfig(**{**config.to_dict(), "num_layers": int(AUXILIARY_PRESETS["laptop"]["num_layers"])})
    shape, auxiliary = (encoder_config(each, vocab_size=VOCABULARY, special_ids=SPECIAL) for each in (config, shallow))
    drawing = build_masked_lm(auxiliary, seed=1)
    freeze(drawing)
    method = FastElectra(
        build_discriminator(shape, seed=0),
        FrozenMaskedLm([drawing], mask_token_id=SPECIAL.mask),
        curriculum=Curriculum("exponential", 2.0, 0.1, 1.0),
        rtd_weight=config.rtd_weight,
    ).train()
    optimizer = build_optimizer(method, config)
    size = (config.batch_size, config.sequence_length)
    batch = Batch(
        torch.randint(5, VOCABULARY, size),
        torch.rand(size).argsort(dim=1) < round(config.mask_fraction * config.sequence_length),
        torch.rand(size, dtype=torch.float64),
    )

    def step() -> None:
        totals = Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))
        method.loss(batch, totals, progress=0.5, stats={}).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
