"""Log lines for people or for machines. Peers' strings lose their control characters; keys never get here.

Of one message, and one reason where it has a closed set of them, so many lines are written in ten seconds; a line says
how many were not. So a storm of devices, or a peer that does the same again and again, cannot fill a disk.
"""

import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

import msgspec

from gateway.config import Log

MAX_VALUE_CHARS: Final = 500
WINDOW_S: Final = 10.0
LEVELS: Final = ("debug", "info", "warning", "error")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

Key = tuple[str, str, str]  # logger, message, reason
MAX_KEYS: Final = 1000
ELSE: Final[Key] = ("gateway", "anything else", "")  # what of one window is beyond so many keys


class LogHandler(logging.StreamHandler[Any]):
    """Writes to stderr, and counts.

    Attributes:
        records: how many there were of each level, those not written too.
        suppressed: how many were not written.
    """

    def __init__(self, settings: Log, fields: dict[str, str] | None = None) -> None:
        """`fields` stand in every line."""
        super().__init__()
        self.setFormatter(_Json(fields or {}) if settings.format == "json" else _Human(fields or {}))
        self.records = dict.fromkeys(LEVELS, 0)
        self.suppressed = 0
        self._throttle = Throttle(round(settings.lines_per_s * WINDOW_S))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless there were too many like it; and first how many were not."""
        self.tell_suppressed()
        self.records[LEVELS[min(max(record.levelno // 10 - 1, 0), 3)]] += 1
        if self._throttle.admits(_key(record), record.levelno, time.monotonic()):
            super().emit(record)
        else:
            self.suppressed += 1

    def tell_suppressed(self, *, anyway: bool = False) -> None:
        """Say what was suppressed in the windows that are over, or `anyway`."""
        self.acquire()
        try:
            for (logger, message, reason), level, count in self._throttle.over(time.monotonic(), anyway=anyway):
                fields = {"of": message, "count": count} | ({"reason": reason} if reason else {})
                head = {"name": logger, "levelno": level, "levelname": logging.getLevelName(level)}
                super().emit(logging.makeLogRecord({**head, "msg": "lines suppressed", **fields}))
        finally:
            self.release()

    def close(self) -> None:
        """Say what was suppressed, and close."""
        self.tell_suppressed(anyway=True)
        super().close()


class _Window:
    __slots__ = ("level", "lines", "since")

    def __init__(self, level: int, since: float) -> None:
        self.level = level
        self.since = since
        self.lines = 0


class Throttle:
    """So many lines of one key in each window, which begins with its first line. `now` is in monotonic seconds."""

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._windows: dict[Key, _Window] = {}  # in the order in which they end

    def admits(self, key: Key, level: int, now: float) -> bool:
        """Count a line; whether it may be written. Ask `over` first."""
        if key not in self._windows and len(self._windows) >= MAX_KEYS:
            key = ELSE
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(level, now)
        window.lines += 1
        return window.lines <= self._most

    def over(self, now: float, *, anyway: bool = False) -> Iterator[tuple[Key, int, int]]:
        """End the windows that are over, or all; of each that had too many lines its key, level, and how many."""
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if now - window.since < WINDOW_S and not anyway:
                return
            del self._windows[key]
            if window.lines > self._most:
                yield key, window.level, window.lines - self._most


def configure(settings: Log, node: str | None = None) -> LogHandler:
    """Send the log to stderr, in the configured form; with a node, each line names it.

    No line says where in the code it was written, by which thread, task or process: so nobody has to find that out.
    """
    handler = LogHandler(settings, {} if node is None else {"node": node})
    logging._srcfile = None  # noqa: SLF001 - as the HOWTO of logging has it, under Optimization
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    return handler


def _key(record: logging.LogRecord) -> Key:
    reason = getattr(record, "reason", None)
    return record.name, str(record.msg), str(reason) if isinstance(reason, Enum) else ""


class _Formatter(logging.Formatter):
    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__()
        self._constant = fields

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        both = (self._constant | extra).items()
        return {key: value if isinstance(value, int | float) else _clean(str(value)) for key, value in both}


class _Human(_Formatter):
    """`2026-01-31T12:00:00.123+08:00 INFO    message key=value …`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(timespec="milliseconds")
        fields = "".join(f" {key}={value}" for key, value in self._fields(record).items())
        text = f"{time} {record.levelname:<7} {_clean(record.getMessage())}{fields}"
        return "\n  ".join((text, *_traceback(self, record)))


class _Json(_Formatter):
    """`{"time", "level", "logger", "message", …}`, `time` in Unix seconds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **self._fields(record),
        }
        if record.exc_info:
            line["exception"] = "\n".join(_traceback(self, record))
        return msgspec.json.encode(line).decode()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Lines; an exception may quote a peer, so they are cleaned too, and no line of it can begin like a log line."""
    return [_clean(line) for line in formatter.formatException(record.exc_info).splitlines()] if record.exc_info else []


def _clean(text: str) -> str:
    if len(text) > MAX_VALUE_CHARS:
        text = f"{text[:MAX_VALUE_CHARS]}…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text
