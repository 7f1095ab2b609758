"""Which fine-tunings there are, in which packs; and what becomes of those that fail."""

from typing import Any

import pytest

from fast_electra_core.config import PretrainConfig
from steps.finetune import PACK_PASSES, job_key, job_name, list_packs

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
