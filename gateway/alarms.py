"""One timer of the event loop for the deadlines of many: a timer for each would cost more than what it is for."""

import asyncio
from collections.abc import Callable, Hashable, Iterator
from time import monotonic
from typing import Final, Generic, TypeVar

from gateway.wheel import Wheel

Item = TypeVar("Item", bound=Hashable)

TIMER_GRAIN_S: Final = 0.001  # uvloop's timers round to milliseconds: one that is early would only be set again


class Alarms(Generic[Item]):
    """Deadlines of items, one of each; for the thread of one event loop.

    Args:
        ring: told of an item that is due, and the time. What it raises ends the turn, not the alarms of the others.
        grain_s: how late it may be told. Items that are due within one are told of together.
    """

    __slots__ = ("_ring", "_stopped", "_timer", "_wheel")

    def __init__(self, ring: Callable[[Item, float], None], grain_s: float) -> None:
        self._ring = ring
        self._wheel: Wheel[Item] = Wheel(monotonic(), grain_s=grain_s)
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[Item]:
        return iter(self._wheel)

    def __len__(self) -> int:
        return len(self._wheel)

    def set(self, item: Item, at: float) -> None:
        """Ring for an item at `at` in monotonic seconds. It may ring earlier, once, where that was set before."""
        self._wheel.schedule(item, at)
        if self._timer is None:
            self._arm()

    def cancel(self, item: Item) -> None:
        """Forget an item, which need not be there; within a turn it may still ring."""
        self._wheel.cancel(item)

    def stop(self) -> None:
        """Ring no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if len(self._wheel) and not self._stopped:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._wheel.next_turn(loop.time()) + TIMER_GRAIN_S, self._turn)

    def _turn(self) -> None:
        now = monotonic()
        due = self._wheel.advance(now)
        try:
            while due:
                self._ring(due.pop(), now)
        finally:
            for item in due:  # who comes after one that failed has its turn with the next
                self._wheel.schedule(item, now)
            self._timer = None
            self._arm()
