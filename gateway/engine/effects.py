"""What a session asks of its edge, and the words for it (pure)."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from gateway.value import Value


class CloseReason(StrEnum):
    """Why a session ended. Stable: they label metrics and stand in presence."""

    CLIENT = "client"
    SERVER = "server"
    PING_TIMEOUT = "ping-timeout"
    TRANSPORT_ERROR = "transport-error"
    SLOW = "slow"
    MALFORMED = "malformed"
    REPLACED = "replaced"
    SHUTDOWN = "shutdown"
    UNAUTHENTICATED = "unauthenticated"
    AUTH_UNAVAILABLE = "auth-unavailable"
    REVOKED = "revoked"
    TOKEN_EXPIRED = "token-expired"  # noqa: S105
    OVERLOADED = "overloaded"
    INTERNAL_ERROR = "internal-error"


# Reasons that are ours while the peer is fine: it is told, by the poll that it sends next if none is parked.
ORDERLY: Final = frozenset(
    {
        CloseReason.SERVER,
        CloseReason.REPLACED,
        CloseReason.SHUTDOWN,
        CloseReason.UNAUTHENTICATED,
        CloseReason.REVOKED,
        CloseReason.TOKEN_EXPIRED,
        CloseReason.OVERLOADED,
        CloseReason.INTERNAL_ERROR,
    }
)


class Transport(StrEnum):
    """What carries a session."""

    POLLING = "polling"
    WEBSOCKET = "websocket"


class Deliver(Value):
    """Hand a message to the application."""

    __slots__ = ("data",)

    def __init__(self, data: str | bytes) -> None:
        self.data: Final = data


class Write(Value):
    """Write a frame to the WebSocket that carries the session."""

    __slots__ = ("frame",)

    def __init__(self, frame: str | bytes) -> None:
        self.frame: Final = frame


class Answer(Value):
    """Answer the parked poll with what `take` gives."""

    __slots__ = ()


class WriteProbe(Value):
    """Write a frame to the WebSocket that probes."""

    __slots__ = ("frame",)

    def __init__(self, frame: str | bytes) -> None:
        self.frame: Final = frame


class Switch(Value):
    """The WebSocket that probes carries the session from here on."""

    __slots__ = ()


class DropProbe(Value):
    """Close the WebSocket that probes."""

    __slots__ = ()


class Closed(Value):
    """Tell the application, and close the WebSocket that carries the session."""

    __slots__ = ("reason",)

    def __init__(self, reason: CloseReason) -> None:
        self.reason: Final = reason


class Forget(Value):
    """No request may find the session any more; a poll that is being answered still is."""

    __slots__ = ()


Effect = Deliver | Write | Answer | WriteProbe | Switch | DropProbe | Closed | Forget
Effects = Sequence[Effect]
NOTHING: Final[Effects] = ()
