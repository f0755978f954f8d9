"""Alarms: one timer for all, on time, and one that fails takes nobody with it."""

import asyncio
from typing import Any

import pytest

from gateway.alarms import Alarms

GRAIN_S = 0.01


class Rung:
    """What rings; `all` is done when so many have."""

    def __init__(self, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.times: dict[str, float] = {}
        self.all: asyncio.Future[None] = self.loop.create_future()
        self._count = count

    def __call__(self, item: str, now: float) -> None:
        self.times[item] = now
        if len(self.times) == self._count:
            self.all.set_result(None)


def timers() -> int:
    """How many are set in the event loop for alarms."""
    loop: Any = asyncio.get_running_loop()
    owners = [getattr(timer._callback, "__self__", None) for timer in loop._scheduled if not timer.cancelled()]
    return sum(isinstance(owner, Alarms) for owner in owners)


async def test_one_timer_rings_for_all_when_they_are_due() -> None:
    rung = Rung(30)
    alarms: Alarms[str] = Alarms(rung, GRAIN_S)
    start = rung.loop.time()
    at = {str(n): start + n / 500 for n in range(30)}
    for item, due in at.items():
        alarms.set(item, due)
    assert timers() == 1
    async with asyncio.timeout(10):
        await rung.all
    assert all(rung.times[item] >= due for item, due in at.items())
    assert (len(alarms), timers()) == (0, 0)


async def test_one_that_fails_takes_no_other_with_it() -> None:
    """Else one broken device would end the heartbeats and the keep-alives of all."""
    rung, failed = Rung(9), []

    def ring(item: str, now: float) -> None:
        if item == "4":
            raise RuntimeError(item)
        rung(item, now)

    rung.loop.set_exception_handler(lambda _, context: failed.append(str(context["exception"])))
    alarms: Alarms[str] = Alarms(ring, GRAIN_S)
    for n in range(10):
        alarms.set(str(n), rung.loop.time())
    async with asyncio.timeout(10):
        await rung.all
    assert failed == ["4"]
    alarms.set("x", rung.loop.time())
    assert timers() == 1


@pytest.mark.parametrize("cancel", [True, False])
async def test_what_is_cancelled_or_stopped_rings_no_more(*, cancel: bool) -> None:
    rung, other = Rung(1), Rung(1)
    alarms: Alarms[str] = Alarms(rung, GRAIN_S)
    alarms.set("a", rung.loop.time())
    if cancel:
        alarms.cancel("a")
    else:
        alarms.stop()
    later: Alarms[str] = Alarms(other, GRAIN_S)
    later.set("b", rung.loop.time() + 3 * GRAIN_S)
    async with asyncio.timeout(10):
        await other.all
    assert not rung.times
