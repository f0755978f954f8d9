"""Whether the event loop turns: how late a timer comes, and, while it does not come at all, what holds it up."""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Final

log = logging.getLogger(__name__)

BEAT_S: Final = 0.25
STUCK_S: Final = 5.0  # devices are still there: their heartbeats may be later than that
LOOK_S: Final = 1.0
MAX_FRAMES: Final = 8


class Pulse:
    """The heartbeat of the running event loop.

    Args:
        observe: told how late each beat came, in seconds.
        also: called at each beat.
    """

    def __init__(self, observe: Callable[[float], None], also: Callable[[], None]) -> None:
        self._observe = observe
        self._also = also
        self._due = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def late_s(self) -> float:
        """How late the next beat is; 0 while it is not due."""
        return max(0.0, monotonic() - self._due)

    def start(self) -> None:
        """Beat from now on, and have a thread see to it."""
        self._set()
        loop_thread = threading.get_ident()
        self._watcher = threading.Thread(target=self._watch, args=(loop_thread,), name="pulse", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.join()

    def _set(self) -> None:
        self._due = monotonic() + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        self._observe(self.late_s)
        self._set()
        self._also()

    def _watch(self, loop_thread: int) -> None:
        stuck = False
        while not self._stopped.wait(LOOK_S):
            late_s = self.late_s
            if late_s < STUCK_S:
                stuck = False
            elif not stuck:
                stuck = True
                frame = sys._current_frames().get(loop_thread)  # noqa: SLF001 - its documented use
                log.error("event loop is stuck", extra={"late_s": round(late_s, 1), "at": where(frame)})


def where(frame: FrameType | None) -> str:
    """The innermost calls, innermost first."""
    calls: list[str] = []
    while frame is not None and len(calls) < MAX_FRAMES:
        calls.append(f"{frame.f_code.co_name} ({frame.f_globals.get('__name__')}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(calls)
