"""The packet of python-socketio, with our JSON, which is all that we have of it (docs/adr/0006).

Its base is a class that mypyc does not know, so this cannot be compiled.
"""

import re
from typing import Any, Final

import msgspec
from socketio import packet as sio

CONNECT: Final = 0
DISCONNECT: Final = 1
EVENT: Final = 2
ACK: Final = 3
CONNECT_ERROR: Final = 4
BINARY_EVENT: Final = 5
BINARY_ACK: Final = 6

_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
_UNIT: Final = re.compile("....")  # a UTF-16 code unit in hexadecimal


class Json:
    """The JSON module of our packets: ASCII, so that every client reads it, and `msgspec.Raw` passes through."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        """Encode; Engine.IO 3 counts characters, so all of them are ASCII."""
        return to_ascii(msgspec.json.encode(value).decode())

    @staticmethod
    def loads(text: str, **_: Any) -> Any:
        """Decode. Raises ValueError."""
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as problem:
            raise ValueError(str(problem)) from None


class Packet(sio.Packet):  # type: ignore[misc]
    """A Socket.IO packet; on a class of ours, because python-socketio's `json` option is one for the process."""

    json = Json


def to_ascii(json: str) -> str:
    r"""Return JSON with every character beyond ASCII as `\uXXXX`: then characters, UTF-16 units and bytes agree."""
    if json.isascii():
        return json
    return _BEYOND_ASCII.sub(lambda run: _UNIT.sub(r"\\u\g<0>", run[0].encode("utf-16-be").hex()), json)
