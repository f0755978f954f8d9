"""What a session asks of its edge, and the words for it (pure)."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec


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


class Deliver(msgspec.Struct, frozen=True):
    """Hand a message to the application."""

    data: str | bytes


class Write(msgspec.Struct, frozen=True):
    """Write a frame to the WebSocket that carries the session."""

    frame: str | bytes


class Answer(msgspec.Struct, frozen=True):
    """Answer the parked poll with what `take` gives."""


class WriteProbe(msgspec.Struct, frozen=True):
    """Write a frame to the WebSocket that probes."""

    frame: str | bytes


class Switch(msgspec.Struct, frozen=True):
    """The WebSocket that probes carries the session from here on."""


class DropProbe(msgspec.Struct, frozen=True):
    """Close the WebSocket that probes."""


class Closed(msgspec.Struct, frozen=True):
    """Tell the application, and close the WebSocket that carries the session."""

    reason: CloseReason


class Forget(msgspec.Struct, frozen=True):
    """No request may find the session any more; a poll that is being answered still is."""


Effect = Deliver | Write | Answer | WriteProbe | Switch | DropProbe | Closed | Forget
Effects = Sequence[Effect]
NOTHING: Final[Effects] = ()
