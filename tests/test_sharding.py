"""A model that two processes share trains as a whole one: FSDP2 in real gloo groups on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import VOCAB_SIZE, together
from test_parallel import close, run, shard, tensors_of, without_speed
from toys import METHODS, electra_config, method_of
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core.checkpoint import load_latest
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.errors import ConfigError
from fast_electra_core.parallel import ALONE, Group
from fast_electra_core.sharding import gathered, sharded
from fast_electra_core.trainer import SKIPPED

__all__ = ["shard"]  # a fixture


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_that_share_a_model_end_with_the_weights_and_metrics_of_one(
    name: str, shard: Path, tmp_path: Path
) -> None:
    (alone,) = run(1, name, shard, tmp_path / "1")
    first, second = run(2, name, shard, tmp_path / "2", sharding="fsdp")
    close(first["weights"], alone["weights"])
    for found, expected in zip(without_speed(first["rows"]), without_speed(alone["rows"]), strict=True):
        close(found, expected)
    assert first["weights_scored"] == pytest.approx(alone["weights_scored"], rel=1e-5)  # while it trained, too
    assert second["weights"] == {} and second["scored"] == []


def test_a_run_goes_on_sharded_whole_and_sharded_again_as_one_process_would(shard: Path, tmp_path: Path) -> None:
    """With activations computed again, by two, one and three processes."""
    (alone,) = run(1, "electra", shard, tmp_path / "alone")
    more: dict[str, Any] = {"sharding": "fsdp", "activation_checkpointing": True}
    run(2, "electra", shard, tmp_path / "parts", stop_after=2, **more)
    sharded_file = shapes_of(tmp_path / "parts")
    (second,) = run(1, "electra", shard, tmp_path / "parts", stop_after=4)
    first, *_ = run(3, "electra", shard, tmp_path / "parts", **more)
    assert (second["steps"], first["steps"]) == ([3, 4, -1], [5, 6])
    close(first["weights"], alone["weights"])
    run(2, "electra", shard, tmp_path / "replicas", stop_after=2)
    assert shapes_of(tmp_path / "replicas") == sharded_file


def shapes_of(root: Path) -> dict[str, Any]:
    newest = load_latest(root)
    assert newest is not None
    return {name: (value.shape, value.dtype) for name, value in newest.tensors.items()}


def test_a_sharded_run_that_is_stopped_resumes_to_the_same_bits(shard: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"sharding": "fsdp", "dropout": 0.2}
    run(3, "fast_electra", shard, tmp_path / "whole", **more)
    run(3, "fast_electra", shard, tmp_path / "parts", stop_after=2, **more)
    first, *_ = run(3, "fast_electra", shard, tmp_path / "parts", **more)
    assert first["steps"] == [3, 4, 5, 6]
    assert tensors_of(tmp_path / "parts") == tensors_of(tmp_path / "whole")
    again, *_ = run(3, "fast_electra", shard, tmp_path / "parts", **more)  # nothing is left to do
    assert again["weights"] == first["weights"]


def test_a_gradient_that_is_not_finite_in_one_process_is_left_out_by_all(shard: Path, tmp_path: Path) -> None:
    first, _ = run(2, "fast_electra", shard, tmp_path, bad_step=1, sharding="fsdp")
    (alone,) = run(1, "fast_electra", shard, tmp_path / "alone", bad_step=1)
    close(first["weights"], alone["weights"])
    assert [row.get("skipped_steps") for row in first["rows"]] == [1, None, None]
    assert len((tmp_path / SKIPPED).read_text().splitlines()) == 1


def what_is_held(group: Group) -> dict[str, Any]:
    shape = electra_config(VOCAB_SIZE)
    auxiliary = ElectraForMaskedLM(shape)
    method = method_of("fast_electra", ElectraForPreTraining(shape), auxiliary)
    num_whole = sum(value.numel() for value in method.parameters())
    trained = sharded(method, group)
    values: dict[str, Any] = dict(trained.named_parameters())
    return {
        "whole": num_whole,
        "held": sum(value.to_local().numel() for value in values.values()),
        "gathered": sum(value.numel() for value in gathered(values, group).values()),
        "same auxiliary": trained.proposal is method.proposal,
        "home": sorted({value.device.type for value in method.parameters()}),
    }


def test_each_process_holds_its_share_and_the_first_besides_what_it_saves() -> None:
    """Half each, but for tensors with an odd number of rows, of which the first has one more."""
    first, second = together(2, what_is_held)
    assert first["whole"] == second["whole"] == first["held"] + second["held"]
    assert first["held"] == pytest.approx(second["held"], rel=0.02)
    assert (first["gathered"], second["gathered"]) == (first["whole"], 0)
    assert (first["home"], second["home"]) == (["cpu"], ["meta"])
    assert first["same auxiliary"] and second["same auxiliary"]


def test_sharding_is_refused_where_there_is_nobody_to_share_with_and_with_compiled_layers() -> None:
    with pytest.raises(ConfigError, match=r"must be ddp where one process trains alone, got fsdp: .*per_node 2"):
        sharded(torch.nn.Module(), ALONE)  # type: ignore[arg-type]  # it is not looked at
    with pytest.raises(ConfigError, match=r"compile_layers must be false with sharding fsdp, got true: .*Leave --comp"):
        PretrainConfig(sharding="fsdp", compile_layers=True)
    with pytest.raises(
        ConfigError, match=r"processes_per_node must be at least 2 with sharding fsdp on one machine, got"
    ):
        AuxiliaryConfig(sharding="fsdp", processes_per_node=1)
    assert PretrainConfig(sharding="fsdp", processes_per_node=1, num_nodes=2).sharding == "fsdp"
    with pytest.raises(ConfigError, match=r"sharding must be one of ddp, fsdp; got 'fsdp2'. Did you mean 'fsdp'"):
        PretrainConfig(sharding="fsdp2")
