"""What training survives of its store: objects lost or damaged, an S3 that answers badly or not at all, a full disk."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import files_no_larger_than, new_database
from flaky import flaky
from safetensors import SafetensorError
from toys import MASK, dataset_of, electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core import checkpoint as checkpoint_module
from fast_electra_core import trainer
from fast_electra_core.checkpoint import Checkpoint, list_checkpoints, load_latest, save_checkpoint
from fast_electra_core.checkpoint_writer import CheckpointWriter
from fast_electra_core.config import AuxiliaryConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import CheckpointError, Interrupted, StoreError
from fast_electra_core.methods import MaskedLanguageModel
from steps import checkpoints as checkpoints_module
from steps import store as store_module
from steps import tracking
from steps.checkpoints import Curve, fetch_checkpoints, keep_checkpoint
from steps.store import Store
from steps.training_run import TrainingRun, save_model, train_in_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("shard")
    return dataset_of(folder, [np.arange(5, 29)] * 4, vocab_size=30, sequence_length=10)


@pytest.fixture
def mlflow_run(tmp_path: Path) -> str:
    uri = new_database(tmp_path)
    tracking.check_server(uri, "tests")
    return tracking.start_parent(uri, "tests", name="flow", tags={}, params={})


def toy_config(**changes: Any) -> AuxiliaryConfig:
    values: dict[str, Any] = {"num_steps": 8, "batch_size": 4, "sequence_length": 10, "log_every_steps": 4}
    return AuxiliaryConfig(**{**values, "checkpoint_every_steps": 2, "precision": "fp32", "dropout": 0.0, **changes})


def train(dataset: TokenDataset, run: TrainingRun, config: AuxiliaryConfig) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The result, and the weights."""
    torch.manual_seed(0)
    model = ElectraForMaskedLM(electra_config(30))
    method = MaskedLanguageModel(model, mask_token_id=MASK)
    result = train_in_run(method, dataset, config, run, evaluate=dict, label="test")
    return result, {name: value.detach().numpy().tobytes() for name, value in model.named_parameters()}


def training_run(run_id: str, *, root: str = "s3://bucket/store") -> TrainingRun:
    return TrainingRun(store=Store(root), run_key="runs/1", shard_keys=[], tokenizer_key="", mlflow_run_id=run_id)


def spoil(checkpoint: Path) -> None:
    """One byte of it is flipped."""
    file = checkpoint / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def at_step(befallen: int, what: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """`what` befalls training in that step, counted from 0."""
    really = trainer._backward

    def backward(*arguments: Any, step: int, **more: Any) -> Any:
        if step == befallen:
            what()
        return really(*arguments, step=step, **more)

    patch.setattr(trainer, "_backward", backward)


def steps_in_s3(s3: Any) -> list[int]:
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]
    return sorted(int(name.split("/step-")[1].split("/")[0]) for name in names if name.endswith(".complete"))


def forget_local_copy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on another machine."""
    monkeypatch.setenv("FAST_ELECTRA_CACHE", str(folder))


@pytest.mark.parametrize("damage", ["an object is gone", "a byte is flipped", "the upload broke off"])
def test_on_another_machine_the_newest_sound_checkpoint_in_s3_is_used(
    damage: str,
    s3: Any,
    mlflow_run: str,
    dataset: TokenDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, whole = train(dataset, training_run(mlflow_run, root=str(tmp_path / "store")), toy_config())
    train(dataset, training_run(mlflow_run), toy_config(num_steps=8))
    newest = "store/runs/1/checkpoints/step-000000008"
    if damage == "an object is gone":
        s3.delete_object(Bucket="bucket", Key=f"{newest}/tensors.safetensors")
    elif damage == "a byte is flipped":
        data = bytearray(s3.get_object(Bucket="bucket", Key=f"{newest}/tensors.safetensors")["Body"].read())
        data[len(data) // 2] ^= 1
        s3.put_object(Bucket="bucket", Key=f"{newest}/tensors.safetensors", Body=bytes(data))
    else:
        s3.delete_object(Bucket="bucket", Key=f"{newest}/.complete")
    forget_local_copy(monkeypatch, tmp_path / "another")
    result, weights = train(dataset, training_run(mlflow_run), toy_config())
    assert result["resumed_from"] == 6
    assert weights == whole
    assert [row["step"] for row in result["curve"] if "loss" in row] == [4, 8]
    said = "step-000000008 is damaged" in caplog.text
    assert said == (damage != "the upload broke off")


def test_milestones_stay_in_s3_and_another_machine_fetches_the_newest_alone(
    s3: Any, mlflow_run: str, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(keep_checkpoints=1, milestone_every_steps=4, num_steps=10)
    train(dataset, training_run(mlflow_run), config)
    assert steps_in_s3(s3) == [4, 8, 10]
    forget_local_copy(monkeypatch, tmp_path / "another")
    run = training_run(mlflow_run)
    result, _ = train(dataset, run, config)
    assert result["resumed_from"] == 10
    assert [folder.name for folder in list_checkpoints(run.store.path(run.checkpoint_prefix))] == ["step-000000010"]
    assert steps_in_s3(s3) == [4, 8, 10]


def test_a_checkpoint_that_s3_did_not_take_is_gone_on_from_where_it_is_with_its_curve(
    s3: Any, mlflow_run: str, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind step 7, while S3 had taken that of step 2 alone."""
    config = toy_config(log_every_steps=1)
    _, whole = train(dataset, training_run(mlflow_run, root=str(tmp_path / "store")), config)
    upload = store_module.Store._upload

    def refuse(store: Store, folder: Path, key: str) -> None:
        if folder.name > "step-000000002":
            raise StoreError("S3 is away")
        upload(store, folder, key)

    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module.Store, "_upload", refuse)
        at_step(7, die, patch)
        train(dataset, training_run(mlflow_run), config)
    assert steps_in_s3(s3) == [2]
    result, weights = train(dataset, training_run(mlflow_run), config)
    assert result["resumed_from"] == 6
    assert [row["step"] for row in result["curve"] if "loss" in row] == list(range(1, 9))
    assert weights == whole


def test_a_damaged_copy_on_this_machine_does_not_hide_the_sound_one_in_s3(
    s3: Any, mlflow_run: str, dataset: TokenDataset
) -> None:
    run = training_run(mlflow_run)
    train(dataset, run, toy_config())
    spoil(run.store.path(run.checkpoint_prefix) / "step-000000008")
    result, _ = train(dataset, training_run(mlflow_run), toy_config())
    assert result["resumed_from"] == 8


def test_where_every_checkpoint_in_s3_is_damaged_both_places_are_named(
    s3: Any, mlflow_run: str, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataset, training_run(mlflow_run), toy_config(keep_checkpoints=1))
    s3.put_object(Bucket="bucket", Key="store/runs/1/checkpoints/step-000000008/tensors.safetensors", Body=b"no")
    forget_local_copy(monkeypatch, tmp_path / "another")
    expected = r"in s3://bucket/store/runs/1/checkpoints is damaged. Delete them there, and the folder .*/another/"
    with pytest.raises(CheckpointError, match=expected):
        train(dataset, training_run(mlflow_run), toy_config())


@pytest.mark.parametrize("root", ["a folder", "s3://bucket/store"])
def test_behind_damaged_checkpoints_the_next_one_is_kept(
    root: str, s3: Any, mlflow_run: str, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damaged ones are of later steps than what training goes on from, and than a stop in between."""
    root = root if root.startswith("s3://") else str(tmp_path / "store")
    config = toy_config(keep_checkpoints=1, milestone_every_steps=4, num_steps=10)
    run = training_run(mlflow_run, root=root)
    train(dataset, run, config)
    folder = run.store.path(run.checkpoint_prefix)
    for step in (8, 10):
        name = f"step-{step:09d}"
        spoil(folder / name)
        if run.store.is_s3:
            s3.put_object(Bucket="bucket", Key=f"store/{run.checkpoint_prefix}/{name}/tensors.safetensors", Body=b"no")
    stopped = training_run(mlflow_run, root=root)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(4, lambda: signal.raise_signal(signal.SIGTERM), patch)
        train(dataset, stopped, config)
    kept = ["step-000000005", "step-000000004"]
    assert [path.name for path in list_checkpoints(folder)] == kept
    if run.store.is_s3:
        assert steps_in_s3(s3) == [4, 5]
    result, _ = train(dataset, training_run(mlflow_run, root=root), config)
    assert result["resumed_from"] == 5


class Elsewhere(Store):
    """A store whose other side is a folder."""

    def __init__(self, here: Path, there: Path) -> None:
        super().__init__(str(here))
        self.is_s3, self._there = True, there

    def list_keys(self, prefix: str) -> list[str]:
        return sorted(f"{prefix}/{folder.name}" for folder in self._there.iterdir())

    def get_folder(self, key: str, *, anew: bool = False) -> Path:
        if anew or not self.path(key).exists():
            shutil.copytree(self._there / Path(key).name, self.path(key), dirs_exist_ok=True)
        return self.path(key)


@pytest.mark.parametrize(
    "here, there, curve_there, found, curve",
    [
        ([], [], True, [], "here"),
        ([], [2, 4], True, [4], "of 4"),  # the newest, and no other
        ([], [2, -4], True, [2, -4], "of 2"),
        ([2], [2, 4], True, [2, 4], "of 4"),
        ([2], [2, 4], False, [2, 4], "here"),  # of a run that has had no row yet
        ([2, 4], [2], True, [2, 4], "here"),
        ([4], [4], True, [4], "here"),  # rows that are here alone are not undone
        ([2, -4], [2, 4], True, [2, 4], "of 4"),
        ([2], [-4], True, [2, -4], "here"),
    ],
)
def test_the_newest_sound_checkpoint_is_fetched_and_its_curve_where_it_is_newer_than_what_is_here(
    here: list[int], there: list[int], curve_there: bool, found: list[int], curve: str, tmp_path: Path
) -> None:
    """Checkpoints by step, the damaged ones negative."""
    store = Elsewhere(tmp_path / "here", tmp_path / "there")
    folder = store.path("run/checkpoints")
    for root, steps in ((folder, here), (tmp_path / "there", there)):
        root.mkdir(parents=True)
        for step in steps:
            name = f"step-{abs(step):09d}"
            save_checkpoint(root, Checkpoint(abs(step), {"weight": torch.ones(3)}, {}), keep=9)
            if curve_there:
                (root / name / "curve.jsonl").write_text(f"of {abs(step)}")
            if step < 0:
                spoil(root / name)
    (folder.parent / "curve.jsonl").write_text("here")
    assert fetch_checkpoints(store, "run/checkpoints") == folder
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{abs(step):09d}" for step in found]
    newest = load_latest(folder)
    assert (newest.step if newest else None) == max((step for step in found if step > 0), default=None)
    assert (folder.parent / "curve.jsonl").read_text() == curve


def test_training_survives_an_s3_that_answers_503_and_resets_connections(
    s3: Any,
    s3_endpoint: str,
    mlflow_run: str,
    dataset: TokenDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, whole = train(dataset, training_run(mlflow_run, root=str(tmp_path / "store")), toy_config())
    with flaky(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fates = ["pass", "503", "pass", "reset", "pass"]
        _, weights = train(dataset, training_run(mlflow_run), toy_config(num_steps=8, checkpoint_every_steps=4))
        assert proxy.num_spoiled >= 6
        forget_local_copy(monkeypatch, tmp_path / "another")
        again, same = train(dataset, training_run(mlflow_run), toy_config(num_steps=8, checkpoint_every_steps=4))
    assert weights == same == whole
    assert again["resumed_from"] == 8
    assert steps_in_s3(s3) == [4, 8]


def test_training_goes_on_while_s3_takes_nothing_and_says_so(
    s3: Any,
    s3_endpoint: str,
    mlflow_run: str,
    dataset: TokenDataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It comes back behind the second checkpoint. The client is one that gives up soon."""
    import boto3
    from botocore.config import Config

    def impatient() -> Any:
        return boto3.client("s3", endpoint_url=proxy.url, config=Config(retries={"max_attempts": 1}))

    with flaky(s3_endpoint) as proxy:
        run = training_run(mlflow_run)
        monkeypatch.setattr(store_module, "s3_client", impatient)
        really = store_module.Store.put_folder

        def put_folder(store: Store, local: Path, key: str) -> str:
            proxy.fates = ["reset"] if local.name <= "step-000000004" else ["pass"]
            return really(store, local, key)

        monkeypatch.setattr(store_module.Store, "put_folder", put_folder)
        result, _ = train(dataset, run, toy_config())
    assert result["resumed_from"] == 0
    assert steps_in_s3(s3) == [6, 8]
    warnings = [record.getMessage() for record in caplog.records if "on this machine alone" in record.getMessage()]
    assert len(warnings) == 2
    assert "step-000000002 is on this machine alone, S3 does not take it" in warnings[0]


# Writing beside training


def writer(root: Path, written: list[Path], **changes: Any) -> CheckpointWriter:
    return CheckpointWriter(root, **{"keep": 2, "milestone_every": None, "on_written": written.append, **changes})


def test_a_checkpoint_is_written_beside_training_as_its_tensors_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    really = checkpoint_module.save_file

    def save_late(*arguments: Any) -> None:
        assert may_write.wait(30)
        really(*arguments)

    monkeypatch.setattr(checkpoint_module, "save_file", save_late)
    weight, written = torch.ones(3), list[Path]()
    with writer(tmp_path, written) as writing:
        writing.write(Checkpoint(1, {"weight": weight}, {}))
        weight.mul_(7)  # training goes on
        assert not written
        may_write.set()
    assert [path.name for path in written] == ["step-000000001"]
    newest = load_latest(tmp_path)
    assert newest is not None
    assert newest.tensors["weight"].tolist() == [1, 1, 1]


def test_as_many_are_kept_as_is_said_and_the_milestones(tmp_path: Path) -> None:
    with writer(tmp_path, [], keep=1, milestone_every=2) as writing:
        for step in range(1, 7):
            writing.write(Checkpoint(step, {"weight": torch.ones(1)}, {}))
    assert [int(path.name[-1]) for path in list_checkpoints(tmp_path)] == [6, 4, 2]


def test_what_befalls_the_last_checkpoint_is_raised_at_the_end_and_once(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise CheckpointError(f"no room for {folder.name}")

    writing = writer(tmp_path, [], on_written=fail)
    with pytest.raises(CheckpointError, match="no room for step-000000001"), writing:
        writing.write(Checkpoint(1, {"weight": torch.ones(1)}, {}))
    writing.wait()


def test_what_befalls_a_checkpoint_does_not_hide_the_error_on_its_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of whatever kind it is."""

    def fail(folder: Path) -> None:
        raise ConnectionError(f"nobody takes {folder.name}")

    with pytest.raises(RuntimeError, match="another error"), writer(tmp_path, [], on_written=fail) as writing:
        writing.write(Checkpoint(1, {"weight": torch.ones(1)}, {}))
        raise RuntimeError("another error")
    assert "nobody takes step-000000001" in caplog.text


def test_a_disk_that_is_full_where_the_curve_is_written_is_said_with_what_to_do(tmp_path: Path) -> None:
    """/dev/full is that."""
    curve = Curve(tmp_path / "curve.jsonl", first_step=0)
    curve._path = Path("/dev/full")
    with pytest.raises(
        CheckpointError, match=r"No space left on device. Free some disk space, or set --store, and res"
    ):
        curve.append({"step": 1, "loss": 1.0})


def fill(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_where_a_checkpoint_is_sent_off_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve goes with it."""
    monkeypatch.setenv("FAST_ELECTRA_CACHE", str(tmp_path))
    store = Store("s3://bucket/store")
    monkeypatch.setattr(checkpoints_module.shutil, "copyfile", fill)
    folder = store.path("run/checkpoints/step-000000001")
    with pytest.raises(CheckpointError, match=rf"{folder} could not be written: .*No space.*Free some disk space"):
        keep_checkpoint(folder, store, "run/checkpoints", AuxiliaryConfig())


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_disk_that_is_full_where_the_trained_model_is_saved_is_said_with_what_to_do(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise kind("I/O error: No space left on device")

    run = TrainingRun(store=Store(str(tmp_path)), run_key="run", mlflow_run_id="", shard_keys=(), tokenizer_key="")
    model = ElectraForMaskedLM(electra_config(30))
    monkeypatch.setattr(model, "save_pretrained", fill)
    with pytest.raises(CheckpointError, match=r"/run/auxiliary could not be written: .*No space.*Free some disk space"):
        save_model(model, run, "auxiliary")


def test_a_disk_that_is_still_full_on_resume_costs_no_row(tmp_path: Path) -> None:
    """A file may have 100 bytes here."""
    path = tmp_path / "curve.jsonl"
    rows = [{"step": step, "loss": 0.5} for step in range(1, 21)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with files_no_larger_than(100), pytest.raises(CheckpointError, match=r"File too large. Free some disk space"):
        Curve(path, first_step=20)
    assert Curve(path, first_step=20).rows == rows


def test_a_row_that_a_kill_cut_short_is_left_out_of_the_curve_and_those_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.25}\n{"step": 6, "loss": 0.125}\n{"step": 8, "lo')
    curve = Curve(path, first_step=4)
    assert curve.rows == [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}]
    curve.append({"step": 6, "loss": 1.0})
    assert path.read_text() == '{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.25}\n{"step": 6, "loss": 1.0}\n'


def test_a_disk_that_fills_up_is_said_at_the_latest_when_the_next_checkpoint_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[Path] = []
    with pytest.raises(CheckpointError, match=r"step-000000002: .*No space left"), writer(tmp_path, written) as writing:
        writing.write(Checkpoint(1, {"weight": torch.ones(1)}, {}))
        writing.wait()
        monkeypatch.setattr(checkpoint_module, "save_file", fill)
        writing.write(Checkpoint(2, {"weight": torch.ones(1)}, {}))
        writing.write(Checkpoint(3, {"weight": torch.ones(1)}, {}))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000001"]
    with pytest.raises(RuntimeError, match="another error"), writer(tmp_path, written) as writing:
        writing.write(Checkpoint(4, {"weight": torch.ones(1)}, {}))
        raise RuntimeError("another error")
    assert "step-000000004: [Errno 28] No space left on device" in caplog.text
    newest = load_latest(tmp_path)
    assert newest is not None and newest.step == 1
