"""Checkpoints are whole or not there, damage is noticed, and a full disk costs no earlier one."""

import errno
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from fast_electra_core import checkpoint as checkpoint_module
from fast_electra_core.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_latest,
    restore_training_tensors,
    save_checkpoint,
    training_tensors,
)
from fast_electra_core.errors import CheckpointError

FILES = ["tensors.safetensors", "state.json", "manifest.json"]


def save(root: Path, *steps: int, keep: int = 10) -> list[Path]:
    return [
        save_checkpoint(root, Checkpoint(step, {"weight": torch.full((3,), float(step))}, {"note": step}), keep=keep)
        for step in steps
    ]


def newest_step(root: Path) -> int:
    loaded = load_latest(root)
    assert loaded is not None
    assert loaded.tensors["weight"].tolist() == [float(loaded.step)] * 3
    assert loaded.state == {"note": loaded.step}
    return loaded.step


def steps_of(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def flip(path: Path, offset: int, *, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= bits
    path.write_bytes(data)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.arange(6.0).reshape(2, 3).t(),  # not contiguous
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "count": torch.tensor(2**40),
        "half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    state = {"identity": {"seed": 3, "micro_batch_size": None, "dropout": 0.1}}
    save_checkpoint(tmp_path / "new" / "folder", Checkpoint(7, tensors, state))
    loaded = load_latest(tmp_path / "new" / "folder")
    assert loaded is not None
    assert (loaded.step, loaded.state) == (7, state)
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], value.detach()) for name, value in tensors.items())
    assert all(loaded.tensors[name].dtype == value.dtype for name, value in tensors.items())


def test_an_empty_or_missing_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "missing") is None


def test_the_newest_is_that_of_the_latest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for age, folder in enumerate(save(tmp_path, 2, 9, 10)):
        os.utime(folder, (1e9 - age, 1e9 - age))
    assert newest_step(tmp_path) == 10


def test_those_of_later_steps_go_for_they_were_damaged(tmp_path: Path) -> None:
    """Training would have gone on from them."""
    save(tmp_path, 4, 6, 8, keep=3)
    save_checkpoint(tmp_path, Checkpoint(5, {}, {}), keep=1, milestone_every=4)
    assert steps_of(tmp_path) == ["step-000000004", "step-000000005"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep=3)
    assert steps_of(tmp_path) == ["step-000000003", "step-000000004", "step-000000005"]


def test_two_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    for step in range(1, 5):
        save_checkpoint(tmp_path, Checkpoint(step, {}, {}))
    assert steps_of(tmp_path) == ["step-000000003", "step-000000004"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 4)
    save_checkpoint(tmp_path, Checkpoint(4, {"weight": torch.zeros(1)}, {}))
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.tensors["weight"].tolist() == [0.0]
    assert steps_of(tmp_path) == ["step-000000004"]


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 1)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"PK", b"\x80")), f"{path.name} is a zip archive or a pickle"


class Killed(BaseException):
    """The process ends here: nothing is cleaned up."""


@pytest.mark.parametrize("edge", ["save_file", "_sha256", "_flush_to_disk"])
def test_a_half_written_checkpoint_is_never_picked(
    edge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, edge, die)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert len(steps_of(tmp_path)) == 2, "the partial folder lies there"
    assert newest_step(tmp_path) == 1
    assert not caplog.records
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2


def test_what_a_killed_attempt_has_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    """Another process's, of a step that need not come again: each is as large as a checkpoint."""
    left_over = tmp_path / ".step-000000001.4711.partial"
    left_over.mkdir()
    (left_over / "tensors.safetensors").write_bytes(b"half of")
    save(tmp_path, 2)
    assert steps_of(tmp_path) == ["step-000000002"]


def test_all_of_a_checkpoint_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, flushed = os.fsync, list[Path]()

    def fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        assert steps_of(tmp_path) == [f".step-000000001.{os.getpid()}.partial"]
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, 1)
    partial = tmp_path / f".step-000000001.{os.getpid()}.partial"
    assert sorted(flushed) == sorted([partial, *(partial / name for name in FILES)])


def test_checkpoints_are_listed_from_the_newest_on(tmp_path: Path) -> None:
    save(tmp_path, 2, 9, 10)
    (tmp_path / "step-000000011").write_text("a file")
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [
        "step-000000010", "step-000000009", "step-000000002"
    ]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(offset=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(name: str, offset: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _, newest = save(root, 1, 2)
        flip(newest / name, offset, bits=1 << bit)
        assert newest_step(root) == 1


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("damage", ["cut short", "missing", "flipped"])
def test_the_warning_names_the_damaged_checkpoint_and_what_is_wrong(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, newest = save(tmp_path, 1, 2)
    path = newest / name
    if damage == "flipped":
        flip(path, 20)
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_step(tmp_path) == 1
    (record,) = caplog.records
    assert f"checkpoint {newest} is damaged" in record.getMessage()
    assert name in record.getMessage()
    assert "trying the one before" in record.getMessage()


def test_a_missing_manifest_is_damage_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, newest = save(tmp_path, 1, 2)
    (newest / "manifest.json").unlink()
    assert newest_step(tmp_path) == 1
    assert f"checkpoint {newest} is damaged: FileNotFoundError" in caplog.text
    assert "manifest.json" in caplog.text


@pytest.mark.parametrize("manifest", [b"", b"{", b"{}", b'{"sha256": "\xff"}'])
def test_a_manifest_that_cannot_be_read_is_damage(manifest: bytes, tmp_path: Path) -> None:
    _, newest = save(tmp_path, 1, 2)
    (newest / "manifest.json").write_bytes(manifest)
    assert newest_step(tmp_path) == 1


def test_when_every_checkpoint_is_damaged_nothing_is_guessed(tmp_path: Path) -> None:
    for folder in save(tmp_path, 1, 2):
        flip(folder / "tensors.safetensors", 40)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged; delete the folder to start from"):
        load_latest(tmp_path)


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [NO_SPACE, SafetensorError("Error while serializing: I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_earlier_checkpoints_as_they_were(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fill(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half of")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "save_file", fill)
        with pytest.raises(
            CheckpointError, match=r"no checkpoint could be written to .*step-000000003: .*No space left"
        ):
            save(tmp_path, 3, keep=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert newest_step(tmp_path) == 2


def test_a_disk_that_fills_up_at_the_last_moment_costs_no_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def refuse(descriptor: int) -> None:
        raise NO_SPACE

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(CheckpointError, match="Free some disk space, or set --store, and resume"):
            save(tmp_path, 2)
    assert steps_of(tmp_path) == ["step-000000001"]


def test_a_root_that_is_a_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint could be written to"):
        save(tmp_path / "occupied", 1)


def model_and_optimizer(*, width: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    embedding, output = torch.nn.Embedding(5, width), torch.nn.Linear(width, 5)
    output.weight = embedding.weight  # tied
    model = torch.nn.Sequential(embedding, output)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train_a_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    model(torch.tensor([step % 5])).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_model_and_optimizer_go_on_from_their_tensors_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    for step in range(3):
        train_a_step(model, optimizer, step)
    save_checkpoint(tmp_path, Checkpoint(3, training_tensors(model, optimizer), {}))
    train_a_step(model, optimizer, 3)

    resumed, resumed_optimizer = model_and_optimizer()
    loaded = load_latest(tmp_path)
    assert loaded is not None
    restore_training_tensors(loaded.tensors, resumed, resumed_optimizer)
    train_a_step(resumed, resumed_optimizer, 3)
    expected, found = training_tensors(model, optimizer), training_tensors(resumed, resumed_optimizer)
    assert expected.keys() == found.keys()
    assert {name.split(".")[0] for name in found} == {"model", "optimizer"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    model, optimizer = model_and_optimizer()
    tensors = training_tensors(model, optimizer)
    assert sorted(tensors) == ["model.0.weight", "model.1.bias"]
    resumed, resumed_optimizer = model_and_optimizer()
    restore_training_tensors({name: value + 1 for name, value in tensors.items()}, resumed, resumed_optimizer)
    assert resumed[1].weight is resumed[0].weight  # type: ignore[index]


def test_tensors_of_another_model_are_refused() -> None:
    tensors = training_tensors(*model_and_optimizer())
    with pytest.raises(CheckpointError, match="of another model: names or shapes of its weights differ"):
        restore_training_tensors(tensors, *model_and_optimizer(width=4))
    del tensors["model.1.bias"]
    with pytest.raises(CheckpointError, match="of another model"):
        restore_training_tensors(tensors, *model_and_optimizer())


def test_files_next_to_the_checkpoints_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, 1, 2, keep=1)
    assert steps_of(tmp_path) == ["notes.txt", "step-000000002"]
    shutil.rmtree(tmp_path / "step-000000002")
    assert load_latest(tmp_path) is None
