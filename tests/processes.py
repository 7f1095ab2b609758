"""Toy trainings by several real processes: what tests start in each of them, and what they get back."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from toys import SPECIAL_IDS, electra_config, method_of
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import Interrupted
from fast_electra_core.parallel import Group, joined
from fast_electra_core.trainer import Hooks, Row, train

VOCAB_SIZE = 30
CONFIG = PretrainConfig(
    num_steps=6, batch_size=6, micro_batch_size=2, sequence_length=10, dropout=0.0, learning_rate=0.01,
    warmup_fraction=0.3, mask_fraction=0.3, checkpoint_every_steps=4, log_every_steps=3, precision="fp32", seed=5,
)  # fmt: skip
FORKED = multiprocessing.get_context("forkserver")
# So that a process starts in a tenth of a second. Python 3.11 preloads without the paths of the tests.
FORKED.set_forkserver_preload(
    ["hypothesis", "pytest", "transformers.models.electra.modeling_electra", "fast_electra_core.trainer"]
)


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """work(group, *arguments) in `size` processes that form a gloo group; what each returns, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            FORKED.Process(target=_run, args=(work, Path(folder), rank, size, arguments)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * size, f"exit codes {codes}"
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def _run(work: Callable[..., Any], folder: Path, rank: int, size: int, arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = torch.distributed.FileStore(str(folder / "store"), size)
    with joined(torch.device("cpu"), timeout_seconds=120, store=store) as group:
        result = work(group, *arguments)
    (folder / f"{rank}.json").write_text(json.dumps(result))


def train_toy(
    group: Group, name: str, shard: Path, checkpoints: Path, changes: dict[str, Any], stop_after: int, bad_step: int
) -> dict[str, Any]:
    """Train one of toys.METHODS, from the newest checkpoint on; stop_after: the last process is asked to stop then;
    bad_step: its loss, and so its gradient, is infinite then."""
    dataset = TokenDataset([shard], "train", sequence_length=10, special_ids=SPECIAL_IDS)
    config = replace(CONFIG, **changes)
    shape = electra_config(VOCAB_SIZE, dropout=config.dropout)
    torch.manual_seed(1)
    auxiliary = ElectraForMaskedLM(shape)
    torch.manual_seed(1 + group.rank)  # what is trained is the first process's, whatever the others begin with
    method = method_of(name, ElectraForPreTraining(shape), auxiliary)
    rows: list[Row] = []
    steps: list[int] = []
    scored: list[int] = []
    weights_scored: list[float] = []

    if group.rank == group.size - 1:
        method.register_forward_hook(
            lambda _, __, output: (output[0] * float("inf"), output[1]) if len(steps) == bad_step else output
        )

    def evaluate() -> Row:
        scored.append(steps[-1])
        weights_scored.append(float(sum(value.detach().abs().sum() for value in method.parameters())))
        return {}

    hooks = Hooks(
        on_metrics=rows.append,
        on_step=steps.append,
        evaluate=evaluate,
        should_stop=lambda: group.rank == group.size - 1 and steps[-1] == stop_after,
    )
    try:
        train(method, dataset, config=config, checkpoints=checkpoints, hooks=hooks, group=group)
    except Interrupted:
        steps.append(-1)
    weights = {key: value.detach().flatten().tolist() for key, value in method.named_parameters() if not value.is_meta}
    return {"rows": rows, "steps": steps, "scored": scored, "weights_scored": weights_scored, "weights": weights}
