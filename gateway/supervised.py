"""What a worker and its supervisor tell each other, over the pipes that are the worker's stdin and stdout."""

import asyncio
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

READY: Final = b"ready\n"  # what a worker says once it listens


class Supervised:
    """The worker's end. To be used as a context, in a loop.

    Args:
        orphaned: called when the supervisor is gone; nobody would stop this process any more.
    """

    def __init__(self, orphaned: Callable[[], None]) -> None:
        self._orphaned = orphaned

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(sys.stdin, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin)

    def ready(self) -> None:
        """Devices are served from now on."""
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()

    def stopping(self, within_s: float) -> None:
        """It stops: the supervisor asked for that, and knows how long it takes."""

    def _read(self) -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            asyncio.get_running_loop().remove_reader(sys.stdin)
            self._orphaned()
