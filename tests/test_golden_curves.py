"""The loss curves of all arms are those of tests/golden_curves.json, and differ from each other where the arms do."""

import json
from pathlib import Path

import pytest
from golden_curves import CURVES, curve, golden_arms, golden_dataset

from fast_electra_core.data import TokenDataset

ARMS = golden_arms()
GOLDEN: dict[str, list[float]] = json.loads(CURVES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return golden_dataset(tmp_path_factory.mktemp("golden") / "shard")


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_has_its_golden_curve(name: str, dataset: TokenDataset, tmp_path: Path) -> None:
    # Another processor rounds otherwise; one sample of another token already moves a window's mean by more than this.
    assert curve(ARMS[name], dataset, tmp_path) == pytest.approx(GOLDEN[name], rel=1e-4), (
        "the curve has moved; if it was meant to, `python tests/golden_curves.py` writes it anew"
    )


def test_every_arm_has_a_curve_of_its_own_that_falls() -> None:
    assert GOLDEN.keys() == ARMS.keys()
    # fast_electra is the exponential schedule, which at this decay ends within 5e-5 of where the exact one does.
    assert len({tuple(losses) for losses in GOLDEN.values()}) == len(ARMS) - 2
    assert GOLDEN["fast_electra"] == GOLDEN["exponential"] == GOLDEN["exponential_exact"]
    assert all(losses[-1] < losses[0] for losses in GOLDEN.values())
