"""Claims about batches that are made ahead: the same ones, in time, and nothing left behind."""

import threading
from contextlib import closing

import pytest
import torch

from fast_electra_core.prefetch import made_ahead

CPU = torch.device("cpu")


def test_items_come_in_order_and_each_is_made_once() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    assert list(made_ahead(make, range(3, 8), device=CPU)) == [9, 16, 25, 36, 49]
    assert made == [3, 4, 5, 6, 7]
    assert list(made_ahead(make, range(4, 4), device=CPU)) == []


def test_the_next_two_are_made_while_one_is_worked_on_and_no_more() -> None:
    third, fourth = threading.Event(), threading.Event()

    def make(step: int) -> int:
        if step == 2:
            third.set()
        if step == 3:
            fourth.set()
        return step

    with closing(made_ahead(make, range(10), device=CPU)) as items:
        assert next(items) == 0
        assert third.wait(10)  # 0 is not given back, and 1 and 2 are made
        assert not fourth.wait(0.2)
        assert next(items) == 1
        assert fourth.wait(10)


def test_an_error_is_raised_where_its_item_is_asked_for() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("no such batch")
        return step

    items = made_ahead(make, range(3), device=CPU)
    assert next(items) == 0
    with pytest.raises(ValueError, match="no such batch"):
        next(items)


def test_no_thread_is_left_behind_by_who_stops_early() -> None:
    before = threading.active_count()
    with closing(made_ahead(lambda step: step, range(1000), device=CPU)) as items:
        assert next(items) == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_thread_belongs_to_the_gpu_that_its_items_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself a thread is the first GPU's, and what it pins takes some hundred MB there."""
    calls: list[tuple[str, object]] = []

    def name() -> str:
        return threading.current_thread().name

    monkeypatch.setattr("torch.cuda.set_device", lambda device: calls.append((name(), device)))
    gpu = torch.device("cuda", 1)
    made = list(made_ahead(lambda step: calls.append((name(), step)), range(2), device=gpu))
    assert made == [None, None]
    thread = calls[0][0]
    assert thread != name() and calls == [(thread, gpu), (thread, 0), (thread, 1)]
    list(made_ahead(lambda step: step, range(2), device=CPU))
    assert len(calls) == 3
