"""Steps that are left out: how many in a row, what is noted of them, and what of the weights behind them."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra_core.data import BatchIndex
from fast_electra_core.errors import NonFiniteLossError
from fast_electra_core.skipping import Skipper


def skipper_of(max_in_a_row: int, *, note: Path | None = None) -> Skipper:
    def batch_of(step: int) -> BatchIndex:
        return BatchIndex(torch.tensor([step // 2]), torch.tensor([10 * step]))

    return Skipper(max_in_a_row, batch_of=batch_of, note=note)


def sift(skipper: Skipper, step: int, *, is_sound: bool) -> dict[str, float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    values = {"loss": torch.tensor(2.0), "gradient_norm": torch.tensor(0.5 if is_sound else float("inf"))}
    return {name: float(value) for name, value in skipper.sift(step, optimizer, values).items()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), most=st.integers(0, 3))
def test_more_in_a_row_than_may_be_end_the_run_wherever_one_looks(steps: list[tuple[bool, bool]], most: int) -> None:
    """Each step is sound or not, and looked at or not; one looks at the end."""
    skipper = skipper_of(most)
    runs = [len(list(run)) for is_sound, run in itertools.groupby(is_sound for is_sound, _ in steps) if not is_sound]
    ended = False
    try:
        for step, (is_sound, is_looked_at) in enumerate(steps):
            sift(skipper, step, is_sound=is_sound)
            if is_looked_at:
                skipper.look()
        skipper.look()
    except NonFiniteLossError:
        ended = True
    assert ended == (max(runs, default=0) > most)


def test_sums_of_a_step_that_is_left_out_are_zero_and_it_is_counted() -> None:
    skipper = skipper_of(1)
    assert sift(skipper, 0, is_sound=True) == {"loss": 2.0, "gradient_norm": 0.5, "num_steps": 1.0, "num_skipped": 0.0}
    assert sift(skipper, 1, is_sound=False) == {"loss": 0, "gradient_norm": 0, "num_steps": 0.0, "num_skipped": 1.0}


def test_counts_that_float32_does_not_hold_stay_exact() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    values = {"num_tokens": torch.tensor(2**24 + 1, dtype=torch.float64), "gradient_norm": torch.tensor(0.5)}
    assert skipper_of(1).sift(0, optimizer, values)["num_tokens"].item() == 2**24 + 1


def test_the_error_says_where_the_batches_are_noted_and_what_to_do(tmp_path: Path) -> None:
    note = tmp_path / "skipped.jsonl"
    skipper = skipper_of(0, note=note)
    sift(skipper, 3, is_sound=True)
    sift(skipper, 4, is_sound=False)
    with pytest.raises(
        NonFiniteLossError, match=rf"kept, the batches are in {note}\. Start a new run with a lower --l"
    ):
        skipper.look()
    assert [json.loads(line)["step"] for line in note.read_text().splitlines()] == [4]


def test_each_step_that_is_left_out_is_noted_once_in_a_folder_that_need_not_be_there(tmp_path: Path) -> None:
    note = tmp_path / "not" / "yet" / "skipped.jsonl"
    skipper = skipper_of(1, note=note)
    for step, is_sound in enumerate((False, True, True, False)):
        sift(skipper, step, is_sound=is_sound)
        skipper.look()
    assert [json.loads(line) for line in note.read_text().splitlines()] == [
        {"step": 0, "epoch": [0], "sequence": [0]},
        {"step": 3, "epoch": [1], "sequence": [30]},
    ]


def test_a_single_weight_that_is_not_finite_is_refused_behind_a_step_that_was_left_out_and_named() -> None:
    skipper = skipper_of(1)
    weights = {"model.sound": torch.ones(3), "model.damaged": torch.tensor([1.0, float("nan"), 1.0])}
    sift(skipper, 0, is_sound=True)
    skipper.look()
    skipper.check_weights(weights)
    sift(skipper, 1, is_sound=False)
    skipper.look()
    with pytest.raises(NonFiniteLossError, match=r"^model\.damaged is not finite\. The checkpoint before is kept"):
        skipper.check_weights(weights)
    skipper.check_weights({"model.sound": weights["model.sound"]})


def test_a_disk_that_is_full_costs_the_note_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes").write_text("")  # a file in the folder's place: an OSError as good as that of a full disk
    skipper = skipper_of(1, note=tmp_path / "notes" / "skipped.jsonl")
    sift(skipper, 3, is_sound=False)
    skipper.look()
    assert skipper.in_a_row == 1
    assert "skipped.jsonl could not be written (File exists)" in caplog.text
    assert '{"step": 3, "epoch": [1], "sequence": [30]}' in caplog.text
