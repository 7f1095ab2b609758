"""Claims about steps/replay.py: which of a version's scores is made once more."""

from pathlib import Path
from typing import Any

import pytest
from registry_toys import sheet_of
from toys import save_detector

from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest
from steps import replay, tracking
from steps.model_source import weights_digest
from steps.store import Store

SHEET = sheet_of({"rte": {0: 0.6, 1: 0.62}})


@pytest.mark.parametrize(
    ("seed", "score", "deleted", "way"),
    [
        ("1", "0.62", False, "_rescore"),
        ("1", "0.53", False, "_finetune_again"),  # of an evaluation that was shorter
        ("7", "0.62", False, "_finetune_again"),  # of one with more seeds
        ("1", "0.62", True, "_finetune_again"),
    ],
)
def test_a_task_model_that_is_gone_or_of_other_fine_tunings_than_the_scores_says_nothing_of_them(
    seed: str, score: str, deleted: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"tags": {"pretrained.digest": "a", "seed": seed, "score": score}}
    ways: list[str] = []
    for name in ("_rescore", "_finetune_again"):
        monkeypatch.setattr(replay, name, lambda *_, name=name: ways.append(name) or (True, ""))
    monkeypatch.setattr(replay, "_moved", lambda *_: "")
    there = {} if deleted else {"models:/fast-electra-rte/9": model}
    tuned = [{"name": "fast-electra-rte", "version": "8"}, {"name": "fast-electra-rte", "version": "9"}]
    links = {("pretrained.version", "fast-electra/3"): tuned[:1] if deleted else tuned}
    monkeypatch.setattr(tracking, "model_version_info", there.__getitem__)
    monkeypatch.setattr(tracking, "find_versions", lambda *asked: links[asked])
    version: dict[str, Any] = {"name": "fast-electra", "version": "3"}
    version |= {"tags": {"weights.digest": "a", "task.rte": "fast-electra-rte/9"}}
    assert replay.replay(tmp_path, version, SHEET, Store(str(tmp_path)))[0]
    assert ways == [way]


def test_the_task_model_of_the_smallest_dev_set_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = sheet_of({task: {0: 0.6} for task in ("cola", "rte", "mrpc")})
    for task, num_dev in (("cola", 1043), ("rte", 277), ("mrpc", 408)):
        sheet["tasks"][task]["num_dev"] = num_dev
    names = {task: f"fast-electra-{task}" for task in sheet["tasks"]}
    tuned = [{"name": name, "version": "1"} for name in names.values()]
    monkeypatch.setattr(replay, "_moved", lambda *_: "")
    monkeypatch.setattr(replay, "_rescore", lambda task, address, *_: (True, f"{task} by {address}"))
    monkeypatch.setattr(tracking, "find_versions", lambda *_: tuned)
    monkeypatch.setattr(tracking, "model_version_info", lambda _: {"tags": {"seed": "0", "score": "0.6"}})
    tags = {"weights.digest": "a", **{f"task.{task}": f"{name}/1" for task, name in names.items()}}
    version = {"name": "fast-electra", "version": "3", "tags": tags}
    said = replay.replay(tmp_path, version, sheet, Store(str(tmp_path)))
    assert said == (True, "rte by models:/fast-electra-rte/1")


@pytest.mark.parametrize("name", ["weights.digest", "tokenizer.digest"])
def test_what_is_not_the_files_that_were_scored_fails_before_anything_is_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_detector(tmp_path / "model")
    tags = {
        "weights.digest": weights_digest(tmp_path / "model"),
        "tokenizer.digest": tokenizer_digest(load_tokenizer(tmp_path / "model")),
    }
    monkeypatch.setattr(replay, "_finetune_again", lambda *_: (True, "as scored"))
    version: dict[str, Any] = {"name": "fast-electra", "version": "3", "tags": tags}
    assert replay.replay(tmp_path / "model", version, SHEET, Store(str(tmp_path))) == (True, "as scored")
    now, tags[name] = tags[name], "another"
    said = replay.replay(tmp_path / "model", version, SHEET, Store(str(tmp_path)))
    assert said == (False, f"{name} in the registry is {now}, scored was another")


@pytest.mark.parametrize(
    ("now", "is_same"), [(0.6, True), (0.64, True), (0.56, True), (0.65, False), (0.55, False), (float("nan"), False)]
)
def test_two_examples_of_a_hundred_may_be_on_the_other_side(now: float, is_same: bool) -> None:
    """Each moves a correlation by up to twice its share, so 0.04 in all."""
    assert replay._same(now, 0.6, replay._resolution({"num_dev": 100}) + 1e-12, "rte")[0] == is_same
