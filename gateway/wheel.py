"""A timer wheel for many deadlines: of sessions, links or connections (pure).

A deadline costs two dictionary operations, however many there are. An item is due in the first tick
at or after its time, at most one grain late; a deadline that only moves back is not touched until the old
one passes, so a device that talks all the time costs nothing.
"""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Wheel(Generic[Item]):
    """Items by the tick in which they are due. Holds no item that is cancelled or due."""

    __slots__ = ("_due", "_grain_s", "_now", "_slots")

    def __init__(self, now: float, *, grain_s: float = 0.05) -> None:
        """`now` in seconds of any monotonic clock; `grain_s` is the width of a slot."""
        self._grain_s = grain_s
        self._now = int(now / grain_s)
        self._slots: dict[int, set[Item]] = {}
        self._due: dict[Item, int] = {}

    def __iter__(self) -> Iterator[Item]:
        return iter(tuple(self._due))

    def __len__(self) -> int:
        return len(self._due)

    def next_turn(self, now: float) -> float:
        """When to call `advance` next, if the wheel is not empty."""
        return (int(now / self._grain_s) + 1) * self._grain_s

    def schedule(self, item: Item, at: float) -> None:
        """Make `item` due at `at` at the latest. It may come up earlier, once, and asks again then."""
        tick = max(int(at / self._grain_s), self._now) + 1
        due = self._due.get(item)
        if due is not None:
            if due <= tick:
                return
            self.cancel(item)
        self._due[item] = tick
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = set()
        slot.add(item)

    def cancel(self, item: Item) -> None:
        """Forget `item`, which need not be there."""
        tick = self._due.pop(item, None)
        if tick is None:
            return
        slot = self._slots[tick]
        slot.discard(item)
        if not slot:
            del self._slots[tick]

    def advance(self, now: float) -> list[Item]:
        """Take out all that is due."""
        tick = int(now / self._grain_s)
        passed = range(self._now + 1, tick + 1)
        if len(passed) > len(self._slots):
            ticks = sorted(slot for slot in self._slots if slot <= tick)
        else:
            ticks = [slot for slot in passed if slot in self._slots]
        self._now = max(self._now, tick)
        due = [item for slot in ticks for item in self._slots.pop(slot)]
        for item in due:
            del self._due[item]
        return due
