"""What systemd is told of the node: that it is ready, that its loop turns, and that it stops. See sd_notify(3)."""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

log = logging.getLogger(__name__)

PINGS: Final = 2  # within the time that the unit's WatchdogSec allows, as sd_watchdog_enabled(3) recommends


class ServiceManager:
    """The one whose socket NOTIFY_SOCKET names; without that nobody is told. To be used as a context, in a loop.

    The pings come from the loop itself: one that hangs sends none, and systemd kills and restarts the node.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # @: an abstract socket
        self._ping_every_s = _watchdog_s(environ) / PINGS
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._ping: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ping is not None:
            self._ping.cancel()
        self._socket.close()

    def ready(self) -> None:
        """Devices are served from now on. Begins the pings, if the unit wants them."""
        self._tell("READY=1")
        if self._ping_every_s:
            self._alive()

    def stopping(self, within_s: float) -> None:
        """The node stops, and takes up to so long, whatever the unit's TimeoutStopSec says."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(within_s * 1e6)}")

    def _alive(self) -> None:
        self._tell("WATCHDOG=1")
        self._ping = asyncio.get_running_loop().call_later(self._ping_every_s, self._alive)

    def _tell(self, what: str) -> None:
        if not self._address:
            return
        try:
            self._socket.sendto(what.encode(), self._address)
        except OSError as problem:
            log.warning("systemd was not told", extra={"what": what.partition("\n")[0], "problem": str(problem)})


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """How long systemd waits for a ping of this process; 0 if it waits for none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0"))) / 1e6
    except ValueError:
        return 0.0
