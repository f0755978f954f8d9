import asyncio
import logging
import threading

import pytest

from gateway import pulse
from gateway.pulse import Pulse


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.01)
    monkeypatch.setattr(pulse, "STUCK_S", 0.2)
    monkeypatch.setattr(pulse, "LOOK_S", 0.01)


async def test_it_beats_and_says_how_late(fast: None) -> None:
    lags: list[float] = []
    beats = asyncio.Semaphore(0)
    beating = Pulse(lags.append, beats.release)
    beating.start()
    for _ in range(3):
        await beats.acquire()
    beating.stop()
    assert len(lags) == 3
    assert all(lag >= 0 for lag in lags)
    assert beating.late_s < 10


async def test_a_loop_that_is_stuck_is_told_once_with_what_holds_it_up(
    fast: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop is held up until the thread has said so, and then beats with that delay."""
    told = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    def holds_it_up() -> None:
        assert told.wait(20)

    lags: list[float] = []
    beats = asyncio.Semaphore(0)
    beating = Pulse(lags.append, beats.release)
    logger, handler = logging.getLogger("gateway.pulse"), Told()
    logger.addHandler(handler)
    try:
        beating.start()
        holds_it_up()
        await beats.acquire()
    finally:
        logger.removeHandler(handler)
        beating.stop()
    (line,) = caplog.records
    assert line.message == "event loop is stuck"
    assert "holds_it_up (tests.test_pulse:" in vars(line)["at"]
    assert max(lags) >= 0.2
