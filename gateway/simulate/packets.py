"""Socket.IO packets as a client of the namespace `/` writes and reads them, both generations (pure).

The generations differ in what means what, which is `gateway.simulate.wire`'s to know, and not in how a packet is
written. A client of ours sends JSON only; it reads binary too.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.engine.codec import Malformed

CONNECT, DISCONNECT, EVENT, ACK, ERROR, BINARY_EVENT, BINARY_ACK = "0123456"

MAX_ATTACHMENTS: Final = 100

# <type>[<attachments>-][/namespace,][<id>][JSON]; digits are bounded, so that int() takes them.
_HEAD = re.compile(r"([0-6])(?:([0-9]{1,9})-)?(?:(/[^,]*)(?:,|\Z))?([0-9]{1,18})?", re.DOTALL)


class SocketPacket(NamedTuple):
    """One packet; `attachments` binary messages follow and replace the placeholders in `data`."""

    kind: str
    data: Any = None
    id: int | None = None
    attachments: int = 0


def encode_event(name: str, args: Sequence[Any], id: int | None = None) -> str:
    """An EVENT; with an id the server is asked for an ack. The arguments are what msgspec encodes as JSON."""
    return f"{EVENT}{'' if id is None else id}{_json([name, *args])}"


def encode_ack(id: int, args: Sequence[Any]) -> str:
    """The ACK of an event that came with this id."""
    return f"{ACK}{id}{_json(list(args))}"


def decode(text: str) -> SocketPacket:
    """Read a packet. Raises Malformed."""
    head = _HEAD.match(text)
    if head is None:
        raise Malformed("no Socket.IO packet")
    kind, attachments, namespace, id = head.groups()
    count = int(attachments or 0)
    if namespace not in (None, "/") or count > MAX_ATTACHMENTS:
        raise Malformed("another namespace, or too many attachments")
    rest = text[head.end() :]
    try:
        data = msgspec.json.decode(rest) if rest else None
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise Malformed("bad JSON") from error
    if kind not in (CONNECT, DISCONNECT, ERROR) and not _is_call(kind, data, id):
        raise Malformed("an event without a name, or an ack without an id")
    return SocketPacket(kind, data, int(id) if id else None, count)


def fill(data: Any, attachments: Sequence[bytes]) -> Any:
    """Return `data` with its placeholders replaced by the attachments. Raises Malformed."""
    try:
        return _filled(data, attachments)
    except (RecursionError, IndexError, TypeError) as error:
        raise Malformed("bad placeholder") from error


def _filled(data: Any, attachments: Sequence[bytes]) -> Any:
    if isinstance(data, list):
        return [_filled(item, attachments) for item in data]
    if not isinstance(data, dict):
        return data
    if data.get("_placeholder") is True:
        return attachments[data.get("num")]  # type: ignore[index]  # what is no index raises TypeError
    return {key: _filled(value, attachments) for key, value in data.items()}


def _is_call(kind: str, data: Any, id: str | None) -> bool:
    """Whether an event has its name first, and an ack its id."""
    if not isinstance(data, list):
        return False
    return id is not None if kind in (ACK, BINARY_ACK) else bool(data) and isinstance(data[0], str)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
