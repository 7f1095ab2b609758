"""Several processes train the model that one would: real gloo groups on the CPU."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from processes import CONFIG, FORKED, VOCAB_SIZE, together, train_toy
from torch.nn.parallel import DistributedDataParallel
from toys import METHODS, SPECIAL_IDS, dataset_of

from fast_electra_core import batches
from fast_electra_core.batches import batch_at
from fast_electra_core.checkpoint import list_checkpoints, load_latest
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import ConfigError
from fast_electra_core.parallel import ALONE, Group, GroupLost, joined
from fast_electra_core.randomness import uniforms
from fast_electra_core.trainer import SKIPPED


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven sequences."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("shard")
    dataset_of(folder, [rng.integers(5, VOCAB_SIZE, 21) for _ in range(4)], vocab_size=VOCAB_SIZE, sequence_length=10)
    return folder


def run(
    size: int, name: str, shard: Path, checkpoints: Path, *, stop_after: int = 0, bad_step: int = -1, **changes: Any
) -> list[Any]:
    return together(size, train_toy, name, shard, checkpoints, changes, stop_after, bad_step)


def without_speed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def close(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


def tensors_of(root: Path) -> dict[str, bytes]:
    newest = load_latest(root)
    assert newest is not None
    return {name: value.numpy().tobytes() for name, value in newest.tensors.items()}


@pytest.mark.parametrize("name", METHODS)
def test_one_two_and_four_processes_end_with_the_same_weights_and_metrics(
    name: str, shard: Path, tmp_path: Path
) -> None:
    """Six rows: with four processes two have one row, two have two."""
    (alone,) = run(1, name, shard, tmp_path / "1")
    assert len(alone["rows"]) == 3
    for size in (2, 4):
        first, *others = run(size, name, shard, tmp_path / str(size))
        close(first["weights"], alone["weights"])
        for found, expected in zip(without_speed(first["rows"]), without_speed(alone["rows"]), strict=True):
            close(found, expected)
        assert all(each["weights"] == first["weights"] for each in others)  # the same bits


def test_with_activations_computed_again_they_do_so_too(shard: Path, tmp_path: Path) -> None:
    (alone,) = run(1, "electra_gdes", shard, tmp_path / "1")
    first, _ = run(2, "electra_gdes", shard, tmp_path / "2", activation_checkpointing=True)
    close(first["weights"], alone["weights"])


def test_the_first_process_alone_scores_and_writes(shard: Path, tmp_path: Path) -> None:
    first, *others = run(2, "fast_electra", shard, tmp_path)
    assert first["scored"] == [4, 6]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000006", "step-000000004"]
    assert [(each["scored"], each["rows"]) for each in others] == [([], [])]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_stopped_group_resumes_to_the_same_bits(dropout: float, shard: Path, tmp_path: Path) -> None:
    """The signal reaches the last of three processes only; all end with the step that they have in common. Sums of
    three terms depend on their order, so the layout of what is exchanged must be the same from the first step on."""
    run(3, "fast_electra", shard, tmp_path / "whole", dropout=dropout)
    stopped = run(3, "fast_electra", shard, tmp_path / "parts", dropout=dropout, stop_after=2)
    assert [each["steps"] for each in stopped] == [[1, 2, -1]] * 3
    resumed = run(3, "fast_electra", shard, tmp_path / "parts", dropout=dropout)
    assert [each["steps"] for each in resumed] == [[3, 4, 5, 6]] * 3
    assert tensors_of(tmp_path / "parts") == tensors_of(tmp_path / "whole")


def test_two_then_one_then_two_processes_end_as_one_would(shard: Path, tmp_path: Path) -> None:
    """A seek: each attempt does the steps that are left, and no more; with another micro-batch besides."""
    (alone,) = run(1, "electra", shard, tmp_path / "alone")
    run(2, "electra", shard, tmp_path / "parts", stop_after=2)
    (second,) = run(1, "electra", shard, tmp_path / "parts", stop_after=4)
    first, _ = run(2, "electra", shard, tmp_path / "parts", micro_batch_size=1)
    assert (second["steps"], first["steps"]) == ([3, 4, -1], [5, 6])
    close(first["weights"], alone["weights"])
    (row,) = [row for row in without_speed(first["rows"]) if row["step"] == 6]
    (expected,) = [row for row in without_speed(alone["rows"]) if row["step"] == 6]
    close(row, expected)


def test_a_gradient_that_is_not_finite_in_one_process_is_left_out_by_all(shard: Path, tmp_path: Path) -> None:
    first, second = run(2, "fast_electra", shard, tmp_path, bad_step=1)
    assert first["weights"] == second["weights"]
    (alone,) = run(1, "fast_electra", shard, tmp_path / "alone", bad_step=1)
    close(first["weights"], alone["weights"])
    assert [row.get("skipped_steps") for row in first["rows"]] == [1, None, None]
    assert len((tmp_path / SKIPPED).read_text().splitlines()) == 1


def test_stored_replacements_go_to_the_rows_that_they_were_drawn_for(shard: Path) -> None:
    dataset = TokenDataset([shard], "train", sequence_length=10, special_ids=SPECIAL_IDS)
    num_selected = int(batch_at(3, dataset, CONFIG).is_selected.sum())

    def samples_at(step: int) -> torch.Tensor:
        return torch.arange(num_selected) % 20 + 5

    whole = batch_at(3, dataset, CONFIG, samples_at=samples_at)
    parts = [batch_at(3, dataset, CONFIG, samples_at=samples_at, rows=Group(rank, 4).rows(6)) for rank in range(4)]
    assert whole.corrupted_ids is not None
    assert torch.equal(torch.cat([part.corrupted_ids for part in parts]), whole.corrupted_ids)
    assert torch.equal(torch.cat([part.selected().pick(part.corrupted_ids) for part in parts]), samples_at(3))


@pytest.mark.parametrize("masking", ["tokens", "spans"])
def test_for_stored_replacements_a_process_draws_no_numbers_for_the_rows_of_others(
    masking: str, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2048 sequences of 512 that took an eighth of a second of each step, in every process."""
    continues_word = torch.arange(VOCAB_SIZE) % 2 == 0
    dataset = TokenDataset([shard], "train", sequence_length=10, special_ids=SPECIAL_IDS, continues_word=continues_word)
    config = replace(CONFIG, masking=masking)
    samples = torch.arange(int(batch_at(3, dataset, config).is_selected.sum())) + 5
    expected = batch_at(3, dataset, config, samples_at=lambda step: samples).rows(slice(1, 3))
    drawn: list[int] = []

    def counted(sequence: torch.Tensor, **more: Any) -> torch.Tensor:
        drawn.append(len(sequence))
        return uniforms(sequence, **more)

    monkeypatch.setattr(batches, "uniforms", counted)
    found = batch_at(3, dataset, config, samples_at=lambda step: samples, rows=Group(1, 4).rows(6))
    assert set(drawn) == {2}
    assert found.corrupted_ids is not None and expected.corrupted_ids is not None
    assert torch.equal(found.corrupted_ids, expected.corrupted_ids)
    assert torch.equal(found.sample_uniforms, expected.sample_uniforms)


def test_rows_are_shared_out_without_gaps_and_evenly() -> None:
    slices = [Group(rank, 4).rows(10) for rank in range(4)]
    assert [list(range(10))[each] for each in slices] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert ALONE.rows(10) == slice(0, 10)
    assert [Group(rank, 3).rows(3) for rank in range(3)] == [slice(0, 1), slice(1, 2), slice(2, 3)]


class Replica(DistributedDataParallel):
    """Without a group."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        yield


class Watched(Group):
    """Notes which micro-batches are said to be a batch's last."""

    last: ClassVar[list[bool]] = []

    def accumulating(self, module: torch.nn.Module, *, is_last: bool) -> Any:
        self.last.append(is_last)
        return super().accumulating(module, is_last=is_last)


def test_gradients_are_exchanged_once_a_batch(shard: Path, tmp_path: Path) -> None:
    """The numbers do not tell: with each micro-batch it is the same sum, three times the traffic."""
    assert not isinstance(Group(0, 2).accumulating(Replica(), is_last=False), contextlib.nullcontext)
    assert isinstance(Group(0, 2).accumulating(Replica(), is_last=True), contextlib.nullcontext)
    assert isinstance(ALONE.accumulating(torch.nn.Linear(1, 1), is_last=False), contextlib.nullcontext)
    train_toy(Watched(), "masked_lm", shard, tmp_path, {}, 0, -1)
    assert Watched.last == [False, False, True] * 6


def test_more_processes_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size must be at least the number of processes, 4, got 3: .*Give a"):
        Group(0, 4).rows(3)


def noted_by_two(work: Callable[[Path, int], None], folder: Path) -> list[str]:
    """What each of two processes has left in the file of its rank."""
    processes = [FORKED.Process(target=work, args=(folder, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [(folder / str(rank)).read_text() for rank in range(2)]


def work_longest_in_the_first(folder: Path, rank: int) -> None:
    """Both have trained; the first has still to save, and each notes whether that was done when the group ended."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    calls = []
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda: calls.append((folder / "saved").exists())  # type: ignore[assignment]
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    with joined(torch.device("cpu"), timeout_seconds=60, store=store) as group:
        if group.is_first:
            time.sleep(0.5)
            (folder / "saved").touch()
    (folder / str(rank)).write_text(str(calls))
    destroy()


def test_no_process_leaves_before_the_first_has_saved(tmp_path: Path) -> None:
    """Its launcher would wait for the others for a few minutes only, and take the launchers' meeting place with it."""
    assert noted_by_two(work_longest_in_the_first, tmp_path) == ["[True]", "[True]"]


def leave(folder: Path, rank: int) -> None:
    """Join a group of two and leave it, the second process by an error; the file says how often it was destroyed."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    calls = []
    torch.distributed.destroy_process_group = lambda: calls.append("destroyed")  # type: ignore[assignment]
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    with contextlib.suppress(OSError, GroupLost), joined(torch.device("cpu"), timeout_seconds=60, store=store):
        if rank == 1:
            raise OSError("no space left on device")
    (folder / str(rank)).write_text(str(calls))
    os._exit(0)


def test_behind_an_error_a_process_does_not_wait_for_the_others_to_leave_with_it(tmp_path: Path) -> None:
    """Between GPUs the end of a group is an exchange: those that train on would let it wait until they give up."""
    assert noted_by_two(leave, tmp_path) == ["[]", "[]"]
