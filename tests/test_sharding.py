"""A model that two processes share trains as a whole one: FSDP2 in real gloo groups on the CPU."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import CONFIG, VOCAB_SIZE, together
from test_cost import allocated_at_peak
from test_parallel import close, run, shard, tensors_of, without_speed
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import METHODS, SPECIAL_IDS, electra_config, method_of
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core.checkpoint import load_latest
from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.cost import METHOD_WORK, RunSize, plan_memory
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import ConfigError
from fast_electra_core.methods import Batch, Totals
from fast_electra_core.model_cost import cost_of
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.parallel import ALONE, Group
from fast_electra_core.sharding import gathered, sharded
from fast_electra_core.trainer import SKIPPED, Hooks, train

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


@pytest.mark.parametrize(
    "chain", [((2, "ddp"), (2, "fsdp"), (2, "ddp")), ((2, "fsdp"), (1, "ddp"), (2, "fsdp"))], ids=["2-2-2", "2-1-2"]
)
@pytest.mark.parametrize("name", ["fast_electra", "electra"])
def test_a_run_goes_on_under_another_sharding_as_one_that_nothing_happened_to(
    name: str, chain: Sequence[tuple[int, str]], shard: Path, tmp_path: Path
) -> None:
    """Weights and moments to 1e-4: in float32 sums over two processes, one's micro-batches and a norm's shards round
    otherwise, to 1e-7, and where a gradient is nearly 0 Adam's division makes more of it."""
    run(2, name, shard, tmp_path / "whole", sharding=chain[0][1])
    steps = []
    for (size, sharding), stop_after in zip(chain, (2, 4, 0), strict=True):
        first, *_ = run(size, name, shard, tmp_path / "parts", sharding=sharding, stop_after=stop_after)
        steps.append(first["steps"])
    assert steps == [[1, 2, -1], [3, 4, -1], [5, 6]]
    found, expected = load_latest(tmp_path / "parts"), load_latest(tmp_path / "whole")
    assert found is not None and expected is not None and found.tensors.keys() == expected.tensors.keys()
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=1e-4, atol=1e-6)


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


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, each storage once: those it is shown, and what operations make. The
    profiler misses what gloo's threads let go; but under a mode as this one DDP adds up gradients in new memory."""

    def __init__(self, *shown: Any) -> None:
        super().__init__()
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._see(shown)
        self.peak = self.now()

    def _see(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                storage = local(value).untyped_storage()
                self._storages[storage._cdata] = weakref.ref(storage)

    def now(self) -> int:
        alive = {key: storage for key, each in self._storages.items() if (storage := each()) is not None}
        self._storages = {key: self._storages[key] for key in alive}
        return sum(storage.nbytes() for storage in alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # its local tensors come by
        result = func(*args, **(kwargs or {}))
        self._see(result)
        self.peak = max(self.peak, self.now())
        return result


def local(value: Any) -> torch.Tensor:
    return (value.to_local() if isinstance(value, DTensor) else value).detach()


SIZES: dict[str, Any] = {
    "hidden_size": 64, "embedding_size": 64, "num_heads": 4, "num_layers": 4, "intermediate_size": 256,
    "dropout": 0.0, "precision": "fp32",
}  # fmt: skip


def a_step_of(group: Group, name: str, sharding: str, sequences: int, num_passes: int) -> dict[str, Any]:
    """Bytes planned, and held, by the second step of a model of 4 layers x 64, an auxiliary of 1, and 2001 tokens."""
    deep, shallow = (PretrainConfig(**{**SIZES, "num_layers": layers}) for layers in (4, 1))
    shapes = [encoder_config(each, vocab_size=2001, special_ids=SPECIAL_IDS) for each in (deep, shallow)]
    detector, masked_lm = build_discriminator(shapes[0], seed=0), build_masked_lm(shapes[1], seed=1)
    main, others = (masked_lm, []) if name == "masked_lm" else (detector, [masked_lm])
    sizes: dict[str, Any] = {"sequence_length": 32, "head_fraction": 5 / 32}
    planned = plan_memory(
        cost_of(main, **sizes),
        [cost_of(each, **sizes) for each in others],
        work=METHOD_WORK[{"masked_lm": "mlm"}.get(name, name)],
        size=RunSize(
            num_tokens=1, tokens_per_pass=sequences * 32, num_processes=group.size, is_sharded=sharding == "fsdp",
            is_accumulated=num_passes > 1,
        ),
    )  # fmt: skip
    method = method_of(name, detector, masked_lm).train()
    trained = sharded(method, group) if sharding == "fsdp" else method
    replica: Any = trained.train() if sharding == "fsdp" else group.replicate(trained)
    optimizer, saved = build_optimizer(trained, deep), [] if trained is method else list(method.parameters())
    totals = Totals(num_passes * sequences * 32, num_passes * sequences * 5)
    gradients: list[torch.Tensor] = []

    def step() -> int:
        for part in a_batch(num_passes * sequences).split(sequences):
            loss, _ = replica(part, totals, progress=0.5)
            loss.backward()
            del loss
        gradients[:] = [local(each.grad) for each in trained.parameters() if each.grad is not None]
        held = bytes_of(gradients)
        gradients.clear()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return held

    step()  # makes the optimizer's state
    frozen = [each for model in others for each in model.parameters()] if name == "fast_electra" else []
    state = [value for values in optimizer.state.values() for key, value in values.items() if key != "step"]
    # What DDP's own code holds it tells itself.
    buckets = [] if sharding == "fsdp" else replica._get_ddp_logging_data()["bucket_sizes"].split(",")
    gradient_bytes: list[int] = []
    before = [*trained.parameters(), *frozen, *saved, *state]
    if sharding == "fsdp":
        with Held(before) as held:
            gradient_bytes.append(step())
        peak = held.peak
    else:
        at_peak = allocated_at_peak(lambda: gradient_bytes.append(step()))
        peak = bytes_of(before) + sum(map(int, buckets)) + at_peak
    return {
        "planned": planned._asdict(),
        "weights": bytes_of([*trained.parameters(), *frozen]),
        "gradients": gradient_bytes[0],
        "optimizer_state": bytes_of(state),
        "saved": bytes_of(saved),
        "exchange": sum(map(int, buckets)),
        "peak": peak,
    }


def a_batch(num_sequences: int) -> Batch:
    """Of 32 tokens, 5 of them selected."""
    rng = torch.Generator().manual_seed(0)
    is_selected = (torch.arange(32) < 5).expand(num_sequences, 32).clone()
    uniforms = torch.rand(num_sequences, 32, generator=rng, dtype=torch.float64)
    return Batch(torch.randint(5, 2001, (num_sequences, 32), generator=rng), is_selected, uniforms)


def bytes_of(values: Iterable[torch.Tensor]) -> int:
    """Of their storages, each once."""
    storages = {storage._cdata: storage for storage in (local(value).untyped_storage() for value in values)}
    return sum(storage.nbytes() for storage in storages.values() if storage.device.type != "meta")


@pytest.mark.parametrize("sequences, num_passes", [(2, 2), (32, 1)], ids=["weights outweigh", "activations outweigh"])
@pytest.mark.parametrize("name", ["fast_electra", "masked_lm"])
@pytest.mark.parametrize("sharding", ["fsdp", "ddp"])
def test_planned_memory_is_what_the_first_of_two_processes_holds(
    sharding: str, name: str, sequences: int, num_passes: int
) -> None:
    """Its weights, gradients and state to the byte, the peak to a twentieth. The second holds no more of them."""
    first, second = together(2, a_step_of, name, sharding, sequences, num_passes)
    planned = first.pop("planned")
    parts = ["weights", "gradients", "optimizer_state", "saved"] + (["exchange"] if sharding == "ddp" else [])
    assert {part: planned[part] for part in parts} == {part: first[part] for part in parts}
    assert 0.95 * first["peak"] < planned["peak"] < 1.05 * first["peak"]
    assert all(second[part] <= first[part] for part in parts)


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


def test_batches_of_which_some_processes_would_have_more_parts_are_refused(shard: Path, tmp_path: Path) -> None:
    """Each part gathers weights and sums gradients, for which those with fewer would not come: the group would hang."""
    config = replace(CONFIG, sharding="fsdp", micro_batch_size=1)
    method = method_of("masked_lm", None, ElectraForMaskedLM(electra_config(VOCAB_SIZE)))
    dataset = TokenDataset([shard], "train", sequence_length=10, special_ids=SPECIAL_IDS)
    message = (
        "batch_size 6 gives some of the 4 processes 2 sequences and others 1, so 2 and 1 micro-batches of "
        "micro_batch_size 1; .* Give a --batch_size that 4 divides, or another --micro_batch_size"
    )
    with pytest.raises(ConfigError, match=message):
        train(method, dataset, config=config, checkpoints=tmp_path, hooks=Hooks(), group=Group(0, 4))
    with pytest.raises(ConfigError, match=message):  # at the start, where the config says how many there will be
        replace(config, num_nodes=2, processes_per_node=2)
    for size, micro_batch_size in ((4, 2), (4, None), (3, 1), (4, 6)):
        replace(config, micro_batch_size=micro_batch_size).check_processes(size)
    replace(config, sharding="ddp").check_processes(4)
