"""Claims about steps/gates.py: what each gate says of tags, scores and a replay, and what a waiver makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from registry_toys import sheet_of
from safetensors.torch import save_file

from fast_electra_core.errors import DataError, TrackingError
from steps import gates
from steps.gates import LINEAGE_TAGS, SCHEDULE_TAGS, Gate
from steps.store import Store

TAGS = dict.fromkeys((*LINEAGE_TAGS, *SCHEDULE_TAGS), "x")
GOOD = {0: 0.6, 1: 0.62}
LEVEL = {0: 0.375, 1: 0.625}
"""Its mean is what the majority class has."""


@pytest.mark.parametrize(
    ("scores", "waived", "status", "reason"),
    [
        ({"rte": GOOD, "cola": GOOD}, [], "pass", "beats the majority class on rte, cola"),
        ({"rte": LEVEL}, [], "fail", "rte 0.500, not above 0.500"),
        ({"rte": {}, "cola": GOOD}, [], "fail", "rte has no score; beats the majority class on cola"),
        ({"rte": {0: float("nan")}}, [], "fail", "rte nan, not above 0.500"),
        (
            {"rte": LEVEL, "cola": GOOD},
            ["majority:rte"],
            "waived",
            "rte 0.500, not above 0.500 (waive_gates); beats the majority class on cola",
        ),
        (
            {"rte": LEVEL, "mrpc": LEVEL, "cola": GOOD},
            ["majority:mrpc"],
            "fail",
            "rte 0.500, not above 0.500; mrpc 0.500, not above 0.500; beats the majority class on cola",
        ),
        (None, ["majority:rte"], "fail", "no scores are kept with the version"),
    ],
)
def test_every_task_is_above_the_majority_class_but_those_that_are_waived(
    scores: dict[str, dict[int, float]] | None, waived: list[str], status: str, reason: str
) -> None:
    sheet = None if scores is None else sheet_of(scores)
    assert gates._majority(sheet, waived) == ("majority", status, reason)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({}, "pass", "every tag is given"),
        ({"temperature_end": " ", "corpus.digest": ""}, "fail", "tags missing: corpus.digest, temperature_end"),
        ({"code.git_sha": "unknown"}, "fail", "code.git_sha is unknown"),
        ({"code.git_sha": "unknown", "code.digest": "abc"}, "pass", "every tag is given"),
    ],
)
def test_a_version_leads_to_what_it_was_made_from(changes: dict[str, str], status: str, reason: str) -> None:
    found = gates._lineage({**TAGS, **changes})
    assert found.status == status
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("licence", "status"), [("MIT", "pass"), ("unstated", "waived"), (" ", "fail"), ("", "fail"), (None, "fail")]
)
def test_the_licence_of_the_text_is_stated_or_waived(licence: str | None, status: str) -> None:
    assert gates._licence({} if licence is None else {"corpus.licence": licence}).status == status


@pytest.mark.parametrize(("weight", "status"), [(1.0, "pass"), (float("inf"), "fail"), (float("nan"), "fail")])
def test_one_weight_that_is_not_finite_fails_its_gate(weight: float, status: str, tmp_path: Path) -> None:
    save_file({"count": torch.ones(2, dtype=torch.long)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.ones(3), "b": torch.tensor([0.0, weight])}, tmp_path / "model-2.safetensors")
    assert gates._finite(tmp_path).status == status


def test_what_a_version_lacks_to_be_served_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = {"models:/m/1": [], "models:/m/2": ["outputs", "input example"]}
    monkeypatch.setattr(gates.tracking, "missing_of_signature", lacks.__getitem__)
    assert gates._signature("models:/m/1").status == "pass"
    assert gates._signature("models:/m/2") == ("signature", "fail", "the version has no outputs, no input example")


@pytest.mark.parametrize(
    ("before", "waived", "after"), [("pass", True, "pass"), ("fail", True, "waived"), ("fail", False, "fail")]
)
def test_a_waiver_changes_what_fails_and_nothing_else(before: str, waived: bool, after: str) -> None:
    found = gates._waive(Gate("finite", before, "found"), ["finite"] if waived else ["replay"])
    assert found == ("finite", after, "found (waive_gates)" if after == "waived" else "found")


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        ((True, "the same"), "pass", "the same"),
        ((False, "another"), "fail", "another"),
        (DataError("no rows"), "fail", "cannot be replayed: no rows"),
    ],
)
def test_a_replay_that_cannot_be_made_fails_its_gate(answer: Any, status: str, reason: str, tmp_path: Path) -> None:
    assert replayed(answer, tmp_path) == ("replay", status, reason)


def test_a_server_that_is_away_fails_no_gate(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="away"):
        replayed(TrackingError("away"), tmp_path)


def replayed(answer: Any, folder: Path) -> Gate:
    def replay(*_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return gates._guarded(replay, folder, {}, None, Store(str(folder)))
