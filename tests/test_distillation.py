"""Distillation is Hinton's loss to the last gradient, its teacher stands still, and what cannot teach is refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from toys import MASK, dataset_of, electra_config, save_auxiliary
from transformers import BertConfig, BertForMaskedLM, ElectraForMaskedLM, ElectraForPreTraining

import steps.pretrain
from fast_electra_core import distillation
from fast_electra_core.config import AuxiliaryConfig, TrainingConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.distillation import DistilledMaskedLM, distillation_loss_sum
from fast_electra_core.errors import AuxiliaryError, CheckpointError, ConfigError
from fast_electra_core.methods import Batch, MaskedLanguageModel, Method, Stats, Totals
from fast_electra_core.tokenizer import load_tokenizer
from fast_electra_core.trainer import training_identity
from steps.config import resolve_auxiliary
from steps.distill import fetch_teacher, load_teacher
from steps.model_source import weights_digest
from steps.pretrain import train_auxiliary
from steps.store import Store
from steps.trace import origin_tags
from steps.training_run import TrainingRun

VOCAB_SIZE = 40


def reference(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """torch's own, on all rows at once, with autograd's gradient."""
    return temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, dim=-1),
        functional.softmax(teacher / temperature, dim=-1),
        reduction="sum",
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 9),
    vocab_size=st.integers(1, 30),
    chunk_rows=st.integers(1, 10),
    temperature=st.floats(0.2, 8),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_are_those_of_torch_whatever_the_chunks(
    rows: int, vocab_size: int, chunk_rows: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (3 * torch.randn(rows, vocab_size, generator=generator) for _ in range(2))
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    asked: list[slice] = []

    def teacher_logits_of(part: slice) -> Tensor:
        asked.append(part)
        return teacher[part]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "_CHUNK_ROWS", {"cpu": chunk_rows})
        loss = 0.5 * distillation_loss_sum(ours, teacher_logits_of, temperature=temperature)
    expected = 0.5 * reference(theirs, teacher.double(), temperature)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    for result in (loss, expected):
        result.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)
    assert [index for part in asked for index in range(rows)[part]] == list(range(rows))
    assert max([len(range(rows)[part]) for part in asked], default=0) <= chunk_rows


def test_the_distance_by_hand() -> None:
    """At T = 2 the teacher says 3 : 1, the student 1 : 1: 4 · (.75 ln 1.5 + .25 ln .5), gradient 2 · (.5 - .75)."""
    logits = torch.zeros(1, 2, requires_grad=True)
    teacher = torch.tensor([[2 * np.log(3), 0.0]])
    loss = distillation_loss_sum(logits, lambda rows: teacher[rows], temperature=2.0)
    assert loss.item() == pytest.approx(4 * 0.130812, abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == [[pytest.approx(-0.5), pytest.approx(0.5)]]


def test_the_gradient_has_the_students_precision() -> None:
    logits = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = distillation_loss_sum(logits, lambda rows: torch.ones(3, 4)[rows].cumsum(1), temperature=1.0)
    assert loss.dtype == torch.float32
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def spread(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def electra_teacher() -> Any:
    return ElectraForMaskedLM(electra_config(VOCAB_SIZE, dropout=0.3, hidden_size=16, num_hidden_layers=2))


def bert_teacher() -> Any:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(**sizes, intermediate_size=24, max_position_embeddings=16))


def make(teacher: Callable[[], Any] = electra_teacher, *, share: float = 0.3) -> DistilledMaskedLM:
    torch.manual_seed(0)
    student = spread(ElectraForMaskedLM(electra_config(VOCAB_SIZE)))
    return DistilledMaskedLM(student, spread(teacher()), share=share, temperature=2.0, mask_token_id=MASK)


def make_batch(rows: int = 6, length: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=generator)
    is_selected = torch.rand(rows, length, generator=generator) < 0.3
    is_selected[0] = False
    is_selected[1, :3] = True
    is_masked = is_selected & (torch.rand(rows, length, generator=generator) < 0.8)
    return Batch(ids, is_selected, torch.rand(rows, length).double(), is_masked=is_masked)


def gradients_of(method: Method, batches: list[Batch], totals: Totals) -> tuple[float, dict[str, Tensor], Stats]:
    method.zero_grad()
    loss, stats = 0.0, {}
    for batch in batches:
        part = method.loss(batch, totals, progress=0.5, stats=stats)
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    return loss, {name: value.grad.clone() for name, value in method.named_parameters()}, stats


def totals_of(batch: Batch) -> Totals:
    return Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))


@pytest.mark.parametrize("teacher", [electra_teacher, bert_teacher])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_loss_and_gradients_of_a_step_are_those_of_full_forward_passes(
    teacher: Callable[[], Any], share: float
) -> None:
    method, batch = make(teacher, share=share), make_batch()
    loss, gradients, stats = gradients_of(method, [batch], totals_of(batch))
    assert batch.is_masked is not None
    seen = torch.where(batch.is_masked, MASK, batch.input_ids)
    labels = batch.input_ids.masked_fill(~batch.is_selected, -100)
    output = method.model(seen, labels=labels)
    with torch.no_grad():
        taught = method.teacher(seen).logits[batch.is_selected]
    distance = reference(output.logits[batch.is_selected], taught, 2.0) / batch.is_selected.sum()
    expected = (1 - share) * output.loss + share * distance
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    method.zero_grad()
    expected.backward()  # type: ignore[no-untyped-call]
    for name, value in method.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-4, atol=1e-5, msg=name)
    row = method.summarise({name: float(value) for name, value in stats.items()}, progress=0.5)
    assert row["loss"] == pytest.approx(output.loss.item(), rel=1e-5), "beside the held-out masked loss"
    assert row["distillation_loss"] == pytest.approx(distance.item(), rel=1e-5)
    assert 0 <= row["masked_accuracy"] <= 1


def test_accumulation_over_micro_batches_equals_the_full_batch() -> None:
    method, batch = make(), make_batch()
    whole = gradients_of(method, [batch], totals_of(batch))
    parts = gradients_of(method, batch.split(4), totals_of(batch))
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(parts[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert {name: float(value) for name, value in parts[2].items()} == {
        name: pytest.approx(float(value), rel=1e-5) for name, value in whole[2].items()
    }


def test_the_teacher_does_not_move_and_is_no_part_of_what_is_trained_or_stored() -> None:
    method = make()
    before = {name: value.numpy().tobytes() for name, value in method.teacher.state_dict().items()}
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    for _ in range(3):
        method.train()
        assert not any(module.training for module in method.teacher.modules())
        method.loss(make_batch(), totals_of(make_batch()), progress=0.0, stats={}).backward()  # type: ignore[no-untyped-call]
        assert all(value.grad is None for value in method.teacher.parameters())
        optimizer.step()
    assert {name: value.numpy().tobytes() for name, value in method.teacher.state_dict().items()} == before
    assert all(name.startswith("model.") for name in method.state_dict())


def test_a_student_learns_its_teachers_output() -> None:
    method, batch = make(share=1.0), make_batch()
    optimizer, distances = torch.optim.AdamW(method.parameters(), lr=0.05), []
    for _ in range(30):
        stats: Stats = {}
        method.loss(batch, totals_of(batch), progress=0.0, stats=stats).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        distances.append(float(stats["distillation_loss"] / stats["num_selected"]))
    assert distances[-1] < 0.1 * distances[0]


# As a flow does it


def test_knobs_without_a_teacher_and_a_tokenizer_beside_one_are_refused() -> None:
    for name, value in (("distill_share", 0.5), ("distill_temperature", 2.0)):
        with pytest.raises(
            ConfigError, match=f"{name} has no effect without distill_from; name a model there, or leave"
        ):
            resolve_auxiliary({name: value})
        assert getattr(resolve_auxiliary({name: value, "distill_from": "folder"}), name) == value
    for name, value in (("tokenizer", "train"), ("vocab_size", 300)):
        with pytest.raises(
            ConfigError, match=f"{name} has no effect with distill_from: the tokenizer is that of folder"
        ):
            resolve_auxiliary({name: value, "distill_from": "folder"})


class Place:
    """A store, and a teacher that has more logits than its tokenizer has tokens."""

    def __init__(self, root: Path) -> None:
        self.folder = save_auxiliary(root / "teacher", ["kara moden lis", "lis lis pel"])
        self.num_tokens = len(load_tokenizer(self.folder))
        shape = electra_config(self.num_tokens + 3, max_position_embeddings=64, num_hidden_layers=2)
        spread(ElectraForMaskedLM(shape)).save_pretrained(self.folder)
        self.store = Store(str(root / "store"))
        self.config = resolve_auxiliary({"preset": "tiny", "distill_from": str(self.folder), "distill_share": 0.7})

    def fetch(self) -> dict[str, Any]:
        fetched = fetch_teacher(self.config, self.store)
        assert fetched is not None
        return fetched


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_teacher_is_kept_by_content_and_named_in_the_lineage(place: Place) -> None:
    teacher = place.fetch()
    assert teacher["digest"] == weights_digest(place.folder) == weights_digest(place.store.get_folder(teacher["key"]))
    loaded = load_teacher(teacher, place.store).state_dict()
    assert all(
        torch.equal(loaded[name], value) for name, value in load_file(place.folder / "model.safetensors").items()
    )
    assert origin_tags({"teacher": teacher}) == {
        "teacher.digest": teacher["digest"], "teacher.address": str(place.folder), "teacher.version": "not registered",
    }  # fmt: skip
    assert origin_tags({"teacher": None}) == {}


def test_a_teacher_that_is_not_there_is_refused_by_the_name_of_its_parameter(tmp_path: Path) -> None:
    with pytest.raises(AuxiliaryError, match=r"^distill_from 'nowhere' is not a folder.*auxiliary_flow\.py run"):
        fetch_teacher(AuxiliaryConfig(distill_from="nowhere"), Store(str(tmp_path)))


def test_without_the_parameter_there_is_no_teacher(tmp_path: Path) -> None:
    assert fetch_teacher(AuxiliaryConfig(), Store(str(tmp_path))) is None


def test_a_teacher_that_has_moved_is_refused(place: Place) -> None:
    teacher = place.fetch()
    path = place.store.get_folder(teacher["key"]) / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"distill_from .*teacher has moved: its weights' digest was [0-9a-f]{16}"
    ):
        load_teacher(teacher, place.store)


def test_a_model_that_cannot_teach_is_refused_before_anything_costs(place: Place) -> None:
    ElectraForPreTraining(electra_config(place.num_tokens)).save_pretrained(place.folder)
    with pytest.raises(
        AuxiliaryError, match=r"^distill_from .*teacher cannot teach: auxiliary .* has no masked-LM head"
    ):
        place.fetch()
    assert place.store.list_keys("auxiliaries") == []


class Begun(BaseException):
    """Training would begin here."""


class RunOnToys(TrainingRun):
    """Reads random sequences instead of token shards."""

    def dataset(self, part: str, config: TrainingConfig) -> TokenDataset:
        folder = self.store.folder / part
        return dataset_of(folder, [np.arange(5, 12)] * 40, vocab_size=20, sequence_length=config.sequence_length)


@pytest.mark.parametrize("is_taught", [True, False])
def test_training_learns_from_the_teacher_and_a_checkpoint_of_anothers_is_of_another_run(
    is_taught: bool, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begun: list[Any] = []

    def begin(method: Any, dataset: Any, config: TrainingConfig, *_: Any, **__: Any) -> None:
        begun.extend((method, config))
        raise Begun

    monkeypatch.setattr(steps.pretrain, "train_in_run", begin)
    teacher = place.fetch()
    place.store.put_folder(place.folder, "tokenizers/1")
    run = RunOnToys(store=place.store, run_key="r", mlflow_run_id="", shard_keys=[], tokenizer_key="tokenizers/1")
    with pytest.raises(Begun):
        train_auxiliary(place.config, run, teacher=teacher if is_taught else None)
    method, config = begun
    if not is_taught:
        assert type(method) is MaskedLanguageModel
        assert method.model.config.vocab_size == place.num_tokens
        return
    assert isinstance(method, DistilledMaskedLM)
    assert method.model.config.vocab_size == method.teacher.config.vocab_size == place.num_tokens + 3
    assert training_identity(config)["distill_from"] == teacher["digest"]
    saved = load_file(place.folder / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in method.teacher.state_dict().items() if name in saved)
    assert (method._share, method._temperature) == (0.7, 2.0)
