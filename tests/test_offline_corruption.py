"""Corruption ahead of training, as tasks of a flow: drawn once, kept by what it depends on, shared by other runs."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_text
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ElectraConfig, ElectraForMaskedLM

import steps.corrupt
from fast_electra_core.config import PretrainConfig
from fast_electra_core.corruption_store import draw_samples
from fast_electra_core.errors import AuxiliaryError, DataError
from fast_electra_core.evaluation import unigram_counts
from fast_electra_core.method_building import build_frozen, curriculum_of
from fast_electra_core.tokenizer import train_tokenizer
from steps.auxiliary import fetch_candidates
from steps.config import resolve_pretrain
from steps.corpus import resolve_corpus
from steps.corrupt import corrupt
from steps.corruption_plan import digest_of, identity_of, list_ranges, list_tasks, range_key, range_of, summarise
from steps.frozen import load_members, record_of
from steps.pretrain import _mention_other_devices, _stored_samples, corruption_identity
from steps.store import Store
from steps.tokenization import tokenize_shard
from steps.training_run import TrainingRun

NUM_STEPS = 6
ALL = {"first_step": 0, "end_step": NUM_STEPS}
DECIDING = {
    "sequence_length": 16, "attention": "document", "batch_size": 4, "micro_batch_size": 2, "num_steps": 8, "seed": 1,
    "mask_fraction": 0.3,
    "schedule": "linear", "temperature_start": 3.0, "temperature_decay": 0.5, "temperature_end": 0.9,
    "precision": "fp32", "masking": "spans", "keep_fraction": 0.15, "auxiliary_dropout": 0.2, "unigram_share": 0.3,
    "top_k": 20, "top_p": 0.5,
}  # fmt: skip
SHARING = {
    "architecture": "modernbert", "num_layers": 3, "hidden_size": 64, "embedding_size": 16, "num_heads": 4,
    "intermediate_size": 32, "dropout": 0.5, "learning_rate": 0.5, "warmup_fraction": 0.5, "weight_decay": 0.5,
    "max_gradient_norm": 0.5, "warm_start": "embeddings", "rtd_weight": 1.0, "max_auxiliary_fraction": 2.0,
    "checkpoint_every_steps": 7, "log_every_steps": 7, "store": "elsewhere", "tracking_uri": "http://h",
    "experiment": "other", "glue": "folder", "tasks": "cola", "seeds": 9, "untrained_baseline": False,
    "finetune_learning_rate": 0.5, "finetune_batch_size": 7, "finetune_epochs": 0.5, "finetune_max_length": 33,
    "finetune_max_examples": 7, "layer_decay": 0.5, "num_nodes": 2,
    "finetune_recipe": "modernbert", "finetune_grid": "1e-4", "best_epoch": True, "mnli_transfer": True,
    "test_predictions": False, "keep_task_models": True, "initial_model": "folder", "price_per_hour": 0.5,
    "processes_per_node": 2, "sharding": "fsdp", "group_timeout_seconds": 60.0,
    "max_skipped_steps": 1, "auxiliary_shared_by": 7,
    "corpus_licence": "CC0",
    "activation_checkpointing": True, "compile_layers": True, "keep_checkpoints": 7, "milestone_every_steps": 2000,
    "promote": "never", "promotion_margin": 0.1,
    "waive_gates": "licence",
}  # fmt: skip
IN_THE_DIGESTS_OF_TEXT_AND_AUXILIARY = {
    "corpus", "text_field", "on_bad_text", "heldout_fraction", "shard_megabytes", "auxiliary", "ensemble_size",
}  # fmt: skip
REFUSED_OFFLINE = {"generator_learning_rate", "soft_target_share", "consistency_weight"}


class Place:
    """A store with tokenized text and a frozen auxiliary."""

    def __init__(self, folder: Path) -> None:
        text = write_text(folder / "text.txt", num_documents=60)
        tokenizer = train_tokenizer(iter(text.read_text().split("\n\n")), vocab_size=300)
        tokenizer.save_pretrained(folder / "auxiliary")
        shape = {
            "embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32,
        }  # fmt: skip
        torch.manual_seed(3)
        ElectraForMaskedLM(ElectraConfig(**shape, vocab_size=len(tokenizer))).save_pretrained(folder / "auxiliary")
        self.config = resolve_pretrain(
            {
                "preset": "tiny", "corpus": str(text), "heldout_fraction": 0.1, "auxiliary": str(folder / "auxiliary"),
                "store": str(folder / "store"), "num_steps": NUM_STEPS, "corruption": "offline",
            }
        )  # fmt: skip
        self.store = Store(self.config.store)
        self.auxiliary = record_of(fetch_candidates(self.config, self.store))
        self.tokenizer_key = f"tokenizers/{self.auxiliary['tokenizer_digest']}"
        corpus = resolve_corpus(str(text), store=self.store, text_field="text", shard_megabytes=1.0)
        plain = self.config.to_dict()
        self.shard_keys = [
            tokenize_shard(shard, plain, tokenizer_key=self.tokenizer_key, store=self.store)["key"]
            for shard in corpus.shards
        ]

    def run(self, name: str = "runs/first") -> TrainingRun:
        return TrainingRun(
            store=self.store,
            run_key=name,
            mlflow_run_id="none",
            shard_keys=self.shard_keys,
            tokenizer_key=self.tokenizer_key,
        )

    def corrupt(self, name: str = "runs/first", **changes: Any) -> dict[str, Any]:
        return corrupt(replace(self.config, **changes), self.run(name), ALL, auxiliary=self.auxiliary)

    def keys(self) -> list[str]:
        identity = corruption_identity(self.config, self.run(), self.auxiliary)
        return [range_key(identity, steps) for steps in list_ranges(self.config)]

    def drawn(self, config: PretrainConfig) -> list[list[int]]:
        """Every step's ids, drawn now."""
        dataset = self.run().dataset("train", config)
        members = load_members(self.auxiliary, self.store)
        proposal = build_frozen(config, members, dataset, counts=functools.partial(unigram_counts, dataset))
        curriculum = curriculum_of(config, vocab_size=members[0].config.vocab_size)
        every = range(config.num_steps)
        return [ids.tolist() for ids in draw_samples(proposal, dataset, config, steps=every, curriculum=curriculum)]

    def stored(self, config: PretrainConfig) -> list[list[int]]:
        """Every step's ids, as training reads them."""
        samples = _stored_samples(config, self.run(), self.auxiliary)
        return [samples.at(step).tolist() for step in range(config.num_steps)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The ranges of steps that are drawn from now on."""
    ranges: list[range] = []

    def counted(*arguments: Any, steps: range, **rest: Any) -> Any:
        ranges.append(steps)
        return draw_samples(*arguments, steps=steps, **rest)

    monkeypatch.setattr(steps.corrupt, "draw_samples", counted)
    return ranges


def forbid_the_auxiliary(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **rest: Any) -> Any:
        raise AssertionError("the auxiliary was loaded")

    monkeypatch.setattr(steps.corrupt, "load_members", load)


def test_training_reads_what_it_would_have_drawn(place: Place) -> None:
    place.corrupt()
    assert place.stored(place.config) == place.drawn(place.config)


def test_training_reads_what_it_would_have_drawn_whatever_shapes_it(place: Place) -> None:
    plain = place.drawn(place.config)
    shaped = {"auxiliary_dropout": 0.4, "unigram_share": 0.5, "top_k": 50, "top_p": 0.8}
    place.config = replace(place.config, **shaped)
    place.corrupt()
    assert place.stored(place.config) == place.drawn(place.config) != plain


def test_training_reads_what_the_members_of_an_ensemble_would_have_drawn(place: Place, tmp_path: Path) -> None:
    alone = place.drawn(place.config)
    shutil.copytree(tmp_path / "auxiliary", tmp_path / "other")
    torch.manual_seed(4)
    ElectraForMaskedLM(ElectraConfig.from_pretrained(tmp_path / "auxiliary")).save_pretrained(tmp_path / "other")
    addresses = f"{tmp_path / 'auxiliary'},{tmp_path / 'other'}"
    config = replace(place.config, auxiliary=addresses, ensemble_size=2)
    prices = dict.fromkeys(("flops_per_token", "flops_fraction", "num_parameters", "seconds_per_1k_tokens"), 1.0)
    place.auxiliary = record_of([{**each, **prices} for each in fetch_candidates(config, place.store)])
    place.corrupt(auxiliary=addresses, ensemble_size=2)
    assert place.stored(config) == place.drawn(config) != alone


@pytest.mark.parametrize("changes", [{"learning_rate": 0.5}, {"num_layers": 5, "hidden_size": 64, "dropout": 0.3}])
def test_another_run_does_no_auxiliary_work(
    changes: dict[str, Any], place: Place, draws: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.corrupt()
    assert draws == [range(0, 3), range(3, 6)]
    forbid_the_auxiliary(monkeypatch)
    second = place.corrupt("runs/second", **changes)
    assert (first["num_reused_steps"], second["num_reused_steps"]) == (0, NUM_STEPS)
    assert second["num_bytes"] == first["num_bytes"] > 0
    assert place.stored(replace(place.config, **changes)) == place.stored(place.config)


def test_an_interrupted_task_goes_on_at_its_first_missing_range(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[range] = []

    def killed_in_the_second(*arguments: Any, steps: range, **rest: Any) -> Any:
        asked.append(steps)
        for index, ids in enumerate(draw_samples(*arguments, steps=steps, **rest)):
            if (steps, index) == (range(3, 6), 1) and len(asked) == 2:
                raise KeyboardInterrupt
            yield ids

    monkeypatch.setattr(steps.corrupt, "draw_samples", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        place.corrupt()
    result = place.corrupt()
    assert asked == [range(0, 3), range(3, 6), range(3, 6)]
    assert result["num_reused_steps"] == 0, "what the run has drawn itself, at any attempt, is its own cost"
    assert place.stored(place.config) == place.drawn(place.config)
    assert not [path for path in place.store.folder.rglob("*") if "tmp" in path.name or "partial" in path.name]


@pytest.mark.parametrize("damage", ["cut short", "changed", "gone"])
def test_a_damaged_range_is_drawn_anew(
    damage: str, place: Place, draws: list[range], caplog: pytest.LogCaptureFixture
) -> None:
    place.corrupt()
    path = place.store.path(place.keys()[1]) / "samples.bin"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut short" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DataError, match=r"Resume from the step `corrupt`, which draws anew what is missing or damaged"):
        place.stored(place.config)
    draws.clear()
    place.corrupt("runs/second")
    assert draws == [range(3, 6)]
    assert "It is drawn anew" in caplog.text
    assert place.stored(place.config) == place.drawn(place.config)


def test_a_missing_range_is_an_error_in_training(place: Place) -> None:
    place.corrupt()
    place.store.delete(place.keys()[1])
    with pytest.raises(
        DataError, match=r"steps-000000003-000000006 is missing or incomplete; put it back, or `resume STEP`"
    ):
        place.stored(place.config)


def test_weights_that_are_not_the_frozen_ones_draw_nothing(place: Place) -> None:
    place.auxiliary["members"] = [{**place.auxiliary["members"][0], "digest": "0" * 16}]
    with pytest.raises(AuxiliaryError, match=r"has moved: its weights' digest was 0000000000000000"):
        place.corrupt()


def test_a_full_disk_is_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **rest: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steps.corrupt, "write_samples", full)
    with pytest.raises(DataError, match=r"corruption could not be written to the store .*No space left.*--store"):
        place.corrupt()


def test_the_fields_below_are_all_there_are() -> None:
    names = {field.name for field in fields(PretrainConfig)}
    decided_elsewhere = IN_THE_DIGESTS_OF_TEXT_AND_AUXILIARY | {"preset", "method", "corruption"}
    assert names == DECIDING.keys() | SHARING.keys() | REFUSED_OFFLINE | decided_elsewhere


def digest(place: Place, config: PretrainConfig) -> str:
    return digest_of(corruption_identity(config, place.run(), place.auxiliary))


def test_a_corruption_is_named_by_what_it_depends_on_and_by_nothing_else(place: Place) -> None:
    start = replace(place.config, hidden_size=32, embedding_size=32, tasks="mnli")
    ours = digest(place, start)
    same = {name for name, value in SHARING.items() if digest(place, changed(start, name, value)) == ours}
    others = {digest(place, changed(start, name, value)) for name, value in DECIDING.items()}
    assert same == SHARING.keys()
    assert len(others - {ours}) == len(DECIDING)
    assert digest(place, replace(start, micro_batch_size=start.batch_size)) == ours, "None is the whole batch"


def changed(config: PretrainConfig, name: str, value: Any) -> PretrainConfig:
    assert getattr(config, name) != value
    return replace(config, **{name: value})


def test_a_corruption_is_named_by_text_tokenizer_and_auxiliary_too(place: Place) -> None:
    ours = digest(place, place.config)
    run = place.run()
    changes: list[Callable[[], str]] = [
        lambda: digest_of(corruption_identity(place.config, replace(run, shard_keys=["other"]), place.auxiliary)),
        lambda: digest_of(corruption_identity(place.config, replace(run, tokenizer_key="other"), place.auxiliary)),
        lambda: digest_of(corruption_identity(place.config, run, place.auxiliary | {"digest": "other"})),
    ]
    assert len({change() for change in changes} | {ours}) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("attention", "document"), ("auxiliary_dropout", 0.1), ("unigram_share", 0.2), ("top_k", 5), ("top_p", 0.9)],
)
def test_what_is_off_is_not_in_the_identity_so_that_what_was_drawn_before_it_could_be_on_is_found(
    name: str, value: Any
) -> None:
    def identity(**given: Any) -> dict[str, Any]:
        return identity_of(PretrainConfig(**given), shard_keys=["a"], tokenizer_key="b", auxiliary_digest="c")

    assert name not in identity()
    assert identity(**{name: value}) == identity() | {name: value}


@settings(max_examples=50, deadline=None)
@given(
    num_steps=st.integers(1, 300_000),
    batch_size=st.sampled_from([1, 8, 128, 2048]),
    sequence_length=st.sampled_from([8, 128, 512]),
)
def test_every_step_is_in_one_range_and_every_range_in_one_task(
    num_steps: int, batch_size: int, sequence_length: int
) -> None:
    config = PretrainConfig(
        corruption="offline", num_steps=num_steps, batch_size=batch_size, sequence_length=sequence_length
    )
    ranges, tasks = list_ranges(config), list_tasks(config)
    assert [ranges[0].start, *(steps.stop for steps in ranges)] == [*(steps.start for steps in ranges), num_steps]
    assert [0, *(task["end_step"] for task in tasks)] == [*(task["first_step"] for task in tasks), num_steps]
    assert {task["first_step"] for task in tasks} <= {steps.start for steps in ranges}
    assert min(2, num_steps) <= len(tasks) <= 32
    assert max(len(steps) for steps in ranges) * batch_size * sequence_length <= max(8_388_608, 2048 * 512)
    for step in {0, num_steps // 3, num_steps - 1}:
        assert step in range_of(step, config) and range_of(step, config) in ranges


def test_online_there_is_one_task_and_it_has_no_steps() -> None:
    assert list_tasks(PretrainConfig()) == [{"first_step": 0, "end_step": 0}]


def test_the_tasks_add_up() -> None:
    config = PretrainConfig(corruption="offline", num_steps=10, batch_size=2, sequence_length=8)  # 160 tokens
    results = [
        {"num_reused_steps": 5, "num_bytes": 30, "devices": ["cpu"], "seconds": 1.5},
        {"num_reused_steps": 2, "num_bytes": 18, "devices": ["gpu", "cpu"], "seconds": 2.5},
    ]
    assert summarise(config, results, digest="abc") == {
        "corruption": "offline",
        "digest": "abc",
        "reused_fraction": 0.7,
        "drawing_seconds": 4.0,
        "bytes_per_token": 0.3,
        "devices": ["cpu", "gpu"],
    }
    online = {"corruption": "online", "reused_fraction": 0.0, "drawing_seconds": 0.0}
    assert summarise(PretrainConfig(), [{}], digest="abc") == online


def test_a_corruption_of_other_machines_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _mention_other_devices(["cpu"] if not torch.cuda.is_available() else [torch.cuda.get_device_name()])
    assert not caplog.text
    _mention_other_devices(["an old GPU"])
    assert "corruption was drawn on an old GPU, training is on" in caplog.text
