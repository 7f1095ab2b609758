"""Which fine-tunings there are, in which packs; and what becomes of those that fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import new_database
from safetensors.torch import load_file
from toys import save_detector

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import DataError, StoreError, TrackingError
from steps import finetune, scoring, tracking
from steps.finetune import PACK_PASSES, in_turn, job_key, job_name, list_packs
from steps.store import Store
from steps.tasks import check_tasks

SIZES = {"rte": 2490, "cola": 8551, "mrpc": 3668, "mnli": 392_702, "sst2": 67_349, "stsb": 5749, "ax": 0}
TASKS = {task: {"train": size} for task, size in SIZES.items()}


def packs_of(**changes: Any) -> list[list[dict[str, Any]]]:
    return list_packs(PretrainConfig(glue="folder", **changes), TASKS)


def test_every_task_seed_and_start_is_done_once() -> None:
    jobs = [job for pack in packs_of(tasks="rte,cola", seeds=3) for job in pack]
    assert len({job_name(job) for job in jobs}) == len(jobs) == 2 * 3 * 2
    assert len({job_key("runs/1", job) for job in jobs}) == len(jobs)


def test_small_tasks_share_a_pack_and_a_large_one_has_its_own() -> None:
    packs = packs_of(tasks="rte,cola,mrpc,mnli", seeds=2, untrained_baseline=False)
    assert [[job["task"] for job in pack] for pack in packs if len(pack) == 1] == [["mnli"], ["mnli"]]
    # 2 × (2490 × 10 + 8551 × 3 + 3668 × 3 × 2) = 145,122 passes at 100,000 a pack.
    assert PACK_PASSES == 100_000
    assert sorted(len(pack) for pack in packs) == [1, 1, 3, 3]


def test_many_small_jobs_are_packed() -> None:
    # 20 × 2490 × 10 = 498,000 passes: 5 packs of 4.
    packs = packs_of(tasks="rte", seeds=20, untrained_baseline=False)
    assert [len(pack) for pack in packs] == [4] * 5


def test_a_small_machine_has_work_for_each_core() -> None:
    assert len(packs_of(tasks="rte", seeds=2, finetune_max_examples=10)) == 4
    assert len(packs_of(tasks="rte", seeds=1, untrained_baseline=False)) == 1


def test_what_starts_from_mnli_follows_it_in_its_pack() -> None:
    packs = packs_of(tasks="rte,mrpc,stsb,sst2,mnli,ax", seeds=2, mnli_transfer=True)
    chains = [[job["task"] for job in pack if job["task"] != "sst2"] for pack in packs]
    assert sorted(chain for chain in chains if chain) == [["mnli", "rte", "mrpc", "stsb"]] * 4
    for pack in packs:
        assert len({(job["seed"], job["untrained"]) for job in pack if job["task"] != "sst2"}) <= 1
    assert not any(job["task"] == "ax" for pack in packs for job in pack)


def test_there_are_never_more_packs_than_metaflow_allows() -> None:
    # mnli alone, 1.2 million passes each, 30 seeds, two starts and three rates: 180 jobs that each deserve a pack.
    packs = packs_of(tasks="mnli", seeds=30, finetune_grid="1e-5,3e-5,1e-4")
    assert [len(pack) for pack in packs] == [2] * 84 + [1] * 12
    assert len({job_name(job) for pack in packs for job in pack}) == 180


def test_a_grid_multiplies_the_jobs_and_names_the_rate() -> None:
    jobs = [job for pack in packs_of(tasks="rte", seeds=1, finetune_grid="1e-4,3e-4") for job in pack]
    assert sorted(job_name(job) for job in jobs) == [
        "rte seed 0 untrained, rate 0.0001",
        "rte seed 0 untrained, rate 0.0003",
        "rte seed 0, rate 0.0001",
        "rte seed 0, rate 0.0003",
    ]


@pytest.mark.parametrize("seeds", [1, 5])
def test_packs_are_the_same_every_time(seeds: int) -> None:
    assert packs_of(seeds=seeds) == packs_of(seeds=seeds)


CHAIN = [{"task": task, "seed": 0, "untrained": False, "rate": None} for task in ("mnli", "rte", "mrpc")]


def test_what_an_earlier_attempt_began_and_did_not_end_comes_last(tmp_path: Path) -> None:
    config, store = PretrainConfig(glue="folder", tasks="mnli,rte,mrpc"), Store(str(tmp_path))
    (tmp_path / "empty").mkdir()
    for job in CHAIN[:2]:
        store.put_folder(tmp_path / "empty", f"{job_key('runs/1', job)}-begun")
    store.put_folder(tmp_path / "empty", job_key("runs/1", CHAIN[0]))  # begun and ended
    order = in_turn(CHAIN, config, store=store, run_key="runs/1")
    assert [job["task"] for job in order] == ["mnli", "mrpc", "rte"]


def test_what_starts_from_an_mnli_that_was_cut_off_stays_behind_it(tmp_path: Path) -> None:
    config, store = PretrainConfig(glue="folder", tasks="mnli,rte,mrpc", mnli_transfer=True), Store(str(tmp_path))
    (tmp_path / "empty").mkdir()
    store.put_folder(tmp_path / "empty", f"{job_key('runs/1', CHAIN[0])}-begun")
    other = {"task": "sst2", "seed": 0, "untrained": False, "rate": None}
    order = in_turn([*CHAIN, other], config, store=store, run_key="runs/1")
    assert [job["task"] for job in order] == ["sst2", "mnli", "rte", "mrpc"]


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """A run at the point where its fine-tunings begin, with a tiny encoder under the key `encoder`."""
    uri = new_database(tmp_path)
    config = PretrainConfig(
        tasks="mnli,rte,mrpc", mnli_transfer=True, finetune_max_examples=16, finetune_epochs=1.0,
        finetune_max_length=32, store=str(tmp_path / "store"), tracking_uri=uri, experiment="tests",
    )  # fmt: skip
    save_detector(tmp_path / "encoder", hidden_size=16, intermediate_size=16)
    Store(config.store).put_folder(tmp_path / "encoder", "encoder")
    return {
        "config": config.to_dict(),
        "tasks": check_tasks(config),
        "run_key": "runs/1",
        "pathspec": "PretrainFlow/1",
        "code": {},
        "corpus": {"digest": "d", "address": "a"},
        "tokenizer_key": "tokenizers/t",
        "mlflow_run_id": tracking.start_parent(uri, "tests", name="flow", tags={}, params={}),
    }


def test_rte_starts_from_the_encoder_fine_tuned_on_mnli(
    plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fast_electra_core import finetuning

    begun: list[dict[str, torch.Tensor]] = []
    really = finetuning.finetune

    def watch(model: Any, *args: Any, **more: Any) -> Any:
        begun.append({name: value.clone() for name, value in model.base_model.state_dict().items()})
        return really(model, *args, **more)

    monkeypatch.setattr(finetuning, "finetune", watch)
    results = scoring.finetune(plan, "encoder", CHAIN)
    assert [result["task"] for result in results if "scores" in result] == ["mnli", "rte", "mrpc"]
    store = Store(plan["config"]["store"])
    mnli = load_file(store.get_folder(job_key("runs/1", CHAIN[0])) / "model.safetensors")
    first, *others = begun
    assert len(others) == 2
    for name, value in first.items():
        start = load_file(tmp_path / "encoder" / "model.safetensors")[f"electra.{name}"]
        assert torch.equal(value, start), name
    for weights in others:
        for name, value in weights.items():
            assert torch.equal(value, mnli[f"electra.{name}"]), name
    assert not torch.equal(first["embeddings.word_embeddings.weight"], others[0]["embeddings.word_embeddings.weight"])


def test_where_mnli_failed_what_starts_from_it_says_so(plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(finetune, "finetune_settings", broken)
    results = scoring.finetune(plan, "encoder", CHAIN)
    assert results[0]["failed"] == "RuntimeError: no memory"
    assert results[1]["failed"] == "DataError: it starts from mnli seed 0, which failed"
    with pytest.raises(DataError) as caught:
        scoring.gather_scores({**plan, "config": {**plan["config"], "seeds": 1, "untrained_baseline": False}}, results)
    assert str(caught.value) == (
        "every fine-tuning failed, first mnli seed 0 (RuntimeError: no memory); mend the cause, then `resume finetune`"
    )


@pytest.mark.parametrize("away", [TrackingError("the server is away"), StoreError("S3 is away")])
def test_a_server_that_is_away_is_no_fault_of_a_fine_tunings_and_costs_no_score(
    away: Exception, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is stored, what becomes of it in MLflow is not: the next attempt at the step goes on from there."""
    monkeypatch.setitem(plan["config"], "mnli_transfer", False)
    really = tracking.log_metrics

    def fail(run_id: str, rows: Any) -> None:
        raise away

    monkeypatch.setattr(tracking, "log_metrics", fail)
    with pytest.raises(type(away)):
        scoring.finetune(plan, "encoder", CHAIN[1:])
    monkeypatch.setattr(tracking, "log_metrics", really)
    results = scoring.finetune(plan, "encoder", CHAIN[1:])
    assert [sorted(result["scores"]) for result in results] == [["accuracy"], ["accuracy", "f1"]]


def test_what_was_stored_counts_though_its_attempt_failed_behind_it(plan: dict[str, Any]) -> None:
    plan["config"] |= {"tasks": "rte,mrpc", "seeds": 1, "untrained_baseline": False, "mnli_transfer": False}
    results = scoring.finetune(plan, "encoder", CHAIN[1:])
    failed = {**CHAIN[1], "failed": "OSError: the disk is full"}
    scores, _ = scoring.gather_scores(plan, [failed, results[1]])
    assert {row["task"] for row in scores["rows"]} == {"rte", "mrpc"}
    assert scores["failures"] == []
