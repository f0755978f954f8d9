"""The timer wheel: on time, lazily moved, holding nothing that is gone."""

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from gateway.wheel import Wheel

times = st.floats(0, 100, allow_nan=False)


def test_is_due_in_the_first_turn_at_or_after_its_time() -> None:
    wheel: Wheel[str] = Wheel(0.0, grain_s=0.05)
    wheel.schedule("a", 0.12)
    assert wheel.next_turn(0.12) == 0.15000000000000002
    assert wheel.advance(0.12) == []
    assert wheel.advance(0.16) == ["a"]
    assert wheel.advance(9.0) == []


def test_earlier_deadline_counts_and_later_one_waits_for_its_turn() -> None:
    wheel: Wheel[str] = Wheel(0.0, grain_s=1.0)
    wheel.schedule("a", 10.0)
    wheel.schedule("a", 20.0)
    wheel.schedule("a", 5.0)
    assert wheel.advance(4.0) == []
    assert wheel.advance(6.0) == ["a"]
    assert len(wheel) == 0


def test_past_deadline_is_due_in_the_next_turn() -> None:
    wheel: Wheel[str] = Wheel(100.0, grain_s=1.0)
    wheel.schedule("a", 3.0)
    assert wheel.advance(101.0) == ["a"]


def test_cancelled_item_is_neither_due_nor_held() -> None:
    class Item:
        pass

    wheel: Wheel[Item] = Wheel(0.0)
    item = Item()
    held = weakref.ref(item)
    wheel.schedule(item, 1.0)
    wheel.cancel(item)
    wheel.cancel(item)
    del item
    gc.collect()
    assert held() is None
    assert len(wheel) == 0
    assert wheel.advance(2.0) == []


@given(deadlines=st.lists(times, min_size=1, max_size=50), turns=st.lists(times, max_size=20))
def test_nothing_is_early_by_more_than_a_grain_late_or_lost(deadlines: list[float], turns: list[float]) -> None:
    wheel: Wheel[int] = Wheel(0.0, grain_s=0.05)
    for item, at in enumerate(deadlines):
        wheel.schedule(item, at)
    seen: list[int] = []
    for now in [*sorted(turns), 101.0]:
        due = wheel.advance(now)
        assert all(deadlines[item] <= now for item in due)
        seen += due
        assert {item for item, at in enumerate(deadlines) if at <= now - 0.05} <= set(seen)
    assert sorted(seen) == list(range(len(deadlines)))
