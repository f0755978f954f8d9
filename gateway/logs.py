"""Log lines for people or for machines. Peers' strings lose their control characters; keys never get here."""

import logging
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.config import Log

MAX_VALUE_CHARS: Final = 500
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(settings: Log) -> None:
    """Send the log to stderr, in the configured form."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if settings.format == "json" else _Human())
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


class Sparse:
    """Has something that a peer can do at any rate logged at most every `every_s` seconds."""

    __slots__ = ("_every_s", "_left_out", "_next")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next = 0.0
        self._left_out = 0

    def left_out(self, now: float) -> int | None:
        """How many were left out since the last line, or None if this one is to be, too; `now` is monotonic."""
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + self._every_s
        count, self._left_out = self._left_out, 0
        return count


class _Human(logging.Formatter):
    """`2026-01-31T12:00:00.123+08:00 INFO    message key=value …`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(timespec="milliseconds")
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        text = f"{time} {record.levelname:<7} {_clean(record.getMessage())}{fields}"
        return "\n  ".join((text, *_traceback(self, record)))


class _Json(logging.Formatter):
    """`{"time", "level", "logger", "message", …}`, `time` in Unix seconds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = "\n".join(_traceback(self, record))
        return msgspec.json.encode(line).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    extra = ((key, value) for key, value in vars(record).items() if key not in _STANDARD)
    return {key: value if isinstance(value, int | float) else _clean(str(value)) for key, value in extra}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Lines; an exception may quote a peer, so they are cleaned too, and no line of it can begin like a log line."""
    return [_clean(line) for line in formatter.formatException(record.exc_info).splitlines()] if record.exc_info else []


def _clean(text: str) -> str:
    if len(text) > MAX_VALUE_CHARS:
        text = f"{text[:MAX_VALUE_CHARS]}…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text
