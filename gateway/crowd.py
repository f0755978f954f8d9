"""Who is in a place that has room for so many, in all and from one address; and who has to make room. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from gateway.proxies import shared

Item = TypeVar("Item", bound=Hashable)


class Crowd(Generic[Item]):
    """Those who stay for a moment only: a newcomer takes the place of one who has been there for longest.

    From an address that has its number the oldest goes. When all places are taken the oldest goes of the address
    that has most, so that many from few addresses keep nobody else out; where the newcomer's own address has as many
    as that one, everybody is equal, and the newcomer has to come again.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._address_of: dict[Item, str] = {}
        self._each: dict[str, OrderedDict[Item, Item]] = {}  # address → who came, and who is there, the oldest first
        self._came_as: dict[Item, Item] = {}  # of those who took over a place: who came for it
        self._with: dict[int, OrderedDict[str, None]] = {}  # how many → addresses that have so many
        self._peak = 0  # the highest key of `_with`

    def __len__(self) -> int:
        return len(self._address_of)

    def __contains__(self, item: Item) -> bool:
        return item in self._address_of

    def refuses(self, address: str) -> bool:
        """Whether one who comes from there now would have to come again."""
        return self._refuses(len(self._each.get(shared(address), ())))

    def _refuses(self, number: int) -> bool:
        """Whether an address that has so many would."""
        return number < self._most_each and len(self) >= self._most and self._peak <= number + 1

    def enter(self, item: Item, address: str) -> Item | None:
        """Let one in, and return who has to go for it, if anybody: perhaps itself. That one is not in any more."""
        address = shared(address)
        mine = self._each.get(address)
        number = len(mine) if mine is not None else 0
        victim = None
        if self._refuses(number):
            return item
        if mine is not None and number >= self._most_each:
            victim = next(iter(mine.values()))
        elif len(self) >= self._most:
            victim = next(iter(self._each[next(iter(self._with[self._peak]))].values()))
        if victim is not None:
            self.leave(victim)
        self._address_of[item] = address
        self._each.setdefault(address, OrderedDict())[item] = item
        self._moved(address, -1)
        return victim

    def replace(self, item: Item, by: Item) -> None:
        """Let another have the place of one who may be in, and be no younger."""
        address = self._address_of.pop(item, None)
        if address is not None:
            self._address_of[by] = address
            self._came_as[by] = came_as = self._came_as.pop(item, item)
            self._each[address][came_as] = by

    def leave(self, item: Item) -> None:
        """Forget one, who need not be there."""
        address = self._address_of.pop(item, None)
        if address is None:
            return
        mine = self._each[address]
        del mine[self._came_as.pop(item, item)]
        if not mine:
            del self._each[address]
        self._moved(address, +1)

    def _moved(self, address: str, step: int) -> None:
        """Keep `_with`; before, the address had so many and `step`."""
        number = len(self._each.get(address, ()))
        before = number + step
        if before:
            peers = self._with[before]
            del peers[address]
            if not peers:
                del self._with[before]
        if number:
            self._with.setdefault(number, OrderedDict())[address] = None
        if number > self._peak or self._peak not in self._with:
            self._peak = number  # by one step, so it is the next that there is
