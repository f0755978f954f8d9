"""Files that are read again while the gateway runs: when they have changed, and when somebody asks for it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_EVERY_S: Final = 1.0

Stamp = tuple[int, ...] | None  # of a file: differs when the file does; None if it is not there


class Watched(Generic[T]):
    """The content of one file. What cannot be used is warned of, once, and the last good content counts.

    Attributes:
        content: what was read last.
        reads, failures: how often it was read again, and could not be used.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], T], content: T, stamp: Stamp, changed: Callable[[T, T], None]
    ) -> None:
        self.content = content
        self._path = path
        self._read = read
        self._stamp = stamp
        self._changed = changed
        self._told = content
        self._reading = asyncio.Lock()
        self.reads = self.failures = 0

    @classmethod
    def load(
        cls, path: Path, read: Callable[[Path], T], changed: Callable[[T, T], None] = lambda _old, _new: None
    ) -> "Watched[T]":
        """Read a file for the first time. Raises what `read` does: ValueError, one line, when it cannot be used.

        Args:
            read: from now on called in a thread.
            changed: told of the old and the new content by `look()`.
        """
        stamp = _stamp(path)  # before it is read, so that no change is missed
        return cls(path, read, read(path), stamp, changed)

    async def refresh(self, *, anyway: bool = False) -> None:
        """Read the file if it has changed, or `anyway`; of several at once, one reads and all wait for it."""
        if _stamp(self._path) == self._stamp and not anyway:
            return
        async with self._reading:
            stamp = _stamp(self._path)
            if stamp == self._stamp and not anyway:
                return
            try:
                self.content = await asyncio.to_thread(self._read, self._path)
            except ValueError as problem:
                self.failures += 1
                log.warning("file not usable, its last good content counts", extra={"problem": str(problem)})
            else:
                self.reads += 1
                log.info("file read again", extra={"file": str(self._path)})
            self._stamp = stamp

    async def look(self, *, anyway: bool = False) -> None:
        """Refresh, and tell of a new content when the file stayed as it is since the last look, or `anyway`.

        An editor may empty a file before it writes it: nobody is to be disconnected for that.
        """
        before = self._stamp
        await self.refresh(anyway=anyway)
        if self.content is not self._told and (self._stamp == before or anyway):
            old, self._told = self._told, self.content
            self._changed(old, self.content)


class Files:
    """All watched files of a node."""

    def __init__(self) -> None:
        self._files: list[Watched[Any]] = []
        self._asked = asyncio.Event()

    def watch(self, file: Watched[Any]) -> None:
        """Look at this file, too."""
        self._files.append(file)

    @property
    def reads(self) -> int:
        """How often a file was read again."""
        return sum(file.reads for file in self._files)

    @property
    def failures(self) -> int:
        """How often one could not be used."""
        return sum(file.failures for file in self._files)

    def reload(self) -> None:
        """Read every file again, soon, whether it seems to have changed or not."""
        log.info("reading files again", extra={"files": len(self._files)})
        self._asked.set()

    async def run(self) -> None:
        """Look at the files every LOOK_EVERY_S, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._asked.wait()
            anyway = self._asked.is_set()
            self._asked.clear()
            for file in self._files:
                try:
                    await file.look(anyway=anyway)
                except Exception:  # the other files, and the looks to come, still count
                    log.exception("watching a file failed")


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
