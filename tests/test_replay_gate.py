"""Claims about steps/replay.py: which of a version's scores is made once more."""

from pathlib import Path
from typing import Any

import pytest
from registry_toys import sheet_of

from steps import replay, tracking
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
