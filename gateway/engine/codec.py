"""Packets and payloads of Engine.IO, both generations (pure).

Decides what is on the wire and nothing else: no transport, no session, no time. A *packet* is a kind and its
data; a *frame* is one packet as one WebSocket message; a *payload* is the body of one HTTP long poll or POST.

What differs between the generations is a value, `Generation`, chosen once at the handshake. What a peer sends
either decodes or raises `Malformed`, never anything else. Sizes are bounded by whoever reads the bytes.

Sources: engine.io-protocol branches `v3` and `main`; engine.io-parser 1.x, 2.x and 5.x.
"""

import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qs

from gateway.value import Value

OPEN: Final = "0"
CLOSE: Final = "1"
PING: Final = "2"
PONG: Final = "3"
MESSAGE: Final = "4"
UPGRADE: Final = "5"
NOOP: Final = "6"
KINDS: Final = OPEN + CLOSE + PING + PONG + MESSAGE + UPGRADE + NOOP

MAX_PACKETS: Final = 16_384  # of one payload: bounds what a body of three-byte packets can make of 1 MB
MAX_LENGTH_DIGITS: Final = 10  # a length that needs more cannot be true
SEPARATOR: Final = "\x1e"
_STRING, _BINARY, _END_OF_LENGTH = 0, 1, 255


class Malformed(Exception):
    """What the peer sent is not Engine.IO of its generation."""


class Packet(Value):
    """One Engine.IO packet. Only a MESSAGE carries bytes."""

    __slots__ = ("data", "kind")

    def __init__(self, kind: str, data: str | bytes = "") -> None:
        self.kind: Final = kind
        self.data: Final = data


_BARE: Final = {kind: Packet(kind) for kind in KINDS}  # all heartbeats are two of these


@dataclass(frozen=True)
class Generation:
    """What differs on the wire; one value per generation, compared by identity."""

    revision: int
    """3 or 4, for those who shape Socket.IO packets."""
    client_pings: bool
    """The client pings and silence means it is gone; else the server pings and waits for the pong."""
    binary_prefix: bytes
    """What stands before the bytes of a binary WebSocket frame."""
    base64_prefix: str
    """What stands before the base64 of a binary packet that has to be text."""
    separator: str = ""
    """What stands between the packets of a text payload; none: each has its length before it."""
    binary_payloads: bool = False
    """Bodies of application/octet-stream exist."""
    binary_always: bool = False
    """Every body to the client is one of those."""
    jsonp: bool = False
    """`j=` asks for a script instead of a body."""
    twice_encoded: bool = False
    """Old clients encode UTF-8 twice; one layer is undone where that gives valid UTF-8."""


EIO4: Final = Generation(revision=4, client_pings=False, binary_prefix=b"", base64_prefix="b", separator=SEPARATOR)
EIO3: Final = Generation(
    revision=3,
    client_pings=True,
    binary_prefix=b"\x04",
    base64_prefix="b4",
    binary_payloads=True,
    jsonp=True,
    twice_encoded=True,
)
EIO2: Final = replace(EIO3, binary_always=True)  # browser builds of 1.0.x


def generation_of(eio: str | None, *, missing_is_3: bool) -> Generation | None:
    """The generation that the query parameter `EIO` names, or None."""
    if eio is None:
        return EIO3 if missing_is_3 else None
    return {"2": EIO2, "3": EIO3, "4": EIO4}.get(eio)


# -- frames: one packet, one WebSocket message ------------------------------------------------------------


def encode_frame(generation: Generation, packet: Packet, *, base64: bool = False) -> str | bytes:
    """One packet as one WebSocket message; `base64` for a client that cannot take binary."""
    data = packet.data
    if isinstance(data, str):
        return packet.kind + data
    if base64:
        return generation.base64_prefix + binascii.b2a_base64(data, newline=False).decode()
    return generation.binary_prefix + data


def decode_frame(generation: Generation, frame: str | bytes) -> Packet:
    """The packet of one WebSocket message.

    Raises:
        Malformed: no packet of this generation.
    """
    if isinstance(frame, bytes):
        prefix = generation.binary_prefix
        if not frame.startswith(prefix):
            raise Malformed("binary that is no message")
        return Packet(MESSAGE, frame[len(prefix) :])
    bare = _BARE.get(frame)
    if bare is not None:
        return bare
    if frame.startswith("b"):
        return _decode_base64(generation, frame)
    kind = frame[:1]
    if not kind or kind not in KINDS:
        raise Malformed("unknown packet type")
    data = frame[1:]
    return Packet(kind, _undo_twice(data) if generation.twice_encoded else data)


def _decode_base64(generation: Generation, text: str) -> Packet:
    """Lenient, as Node is: padding may be missing, line ends and the URL alphabet are taken."""
    prefix = generation.base64_prefix
    if not text.startswith(prefix):
        raise Malformed("base64 that is no message")
    digits = text[len(prefix) :].replace("-", "+").replace("_", "/")
    try:
        return Packet(MESSAGE, binascii.a2b_base64(digits + "=="))
    except ValueError as error:  # binascii.Error, and ValueError itself for text that is not ASCII
        raise Malformed("bad base64") from error


def _undo_twice(text: str) -> str:
    """Undo one layer of UTF-8 in text that a 1.x client encoded twice; other text comes back as it is."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


# -- payloads: many packets, one HTTP body ----------------------------------------------------------------


def encode_payload(
    generation: Generation,
    packets: Sequence[Packet],
    *,
    base64: bool = False,
    binary_over_bytes: int | None = None,
) -> str | bytes:
    """The body of one answered poll: str is text/plain, bytes is application/octet-stream.

    Args:
        base64: the client cannot take binary (`b64=1`, or JSONP).
        binary_over_bytes: text above this many characters goes out as binary where that exists,
            because 1.x browsers die on text bodies of a few hundred KB.
    """
    if generation.binary_payloads and not base64:
        is_text = all(isinstance(packet.data, str) for packet in packets)
        chars = sum(len(packet.data) for packet in packets)
        over = binary_over_bytes is not None and chars > binary_over_bytes
        if generation.binary_always or over or not is_text:
            return b"".join(_with_binary_length(encode_frame(generation, packet)) for packet in packets)
    texts = [str(encode_frame(generation, packet, base64=True)) for packet in packets]
    if generation.separator:
        return generation.separator.join(texts)
    return "".join(f"{_utf16_units(text)}:{text}" for text in texts)


def decode_payload(generation: Generation, body: bytes, *, binary: bool = False) -> list[Packet]:
    """The packets of a POST's body.

    Args:
        binary: the body came as application/octet-stream.

    Raises:
        Malformed: no payload of this generation.
    """
    if binary and not generation.binary_payloads:
        raise Malformed("binary body")
    if not body:
        raise Malformed("empty body")
    packets: list[Packet] = []
    try:
        frames = _split_binary(body) if binary else _split_text(generation, body.decode())
        for frame in frames:
            if len(packets) == MAX_PACKETS:
                raise Malformed("too many packets")
            packets.append(decode_frame(generation, frame))
    except UnicodeDecodeError as error:
        raise Malformed("bad UTF-8") from error
    return packets


def _split_text(generation: Generation, text: str) -> Iterator[str]:
    return iter(text.split(generation.separator)) if generation.separator else _split_lengths(text)


def _split_lengths(text: str) -> Iterator[str]:
    """`<length>:<packet>…`, lengths in UTF-16 code units (`1:` + `€` is one unit, an emoji is two)."""
    take = _take_characters if text.isascii() else _take_utf16_units
    start = 0
    while start < len(text):
        colon = text.find(":", start, start + MAX_LENGTH_DIGITS + 1)
        digits = text[start:colon]
        if colon < 0 or not (digits.isascii() and digits.isdigit()):
            raise Malformed("bad length")
        frame = take(text, colon + 1, int(digits))
        start = colon + 1 + len(frame)
        if frame:
            yield frame


def _take_characters(text: str, start: int, count: int) -> str:
    if start + count > len(text):
        raise Malformed("length beyond the body")
    return text[start : start + count]


def _take_utf16_units(text: str, start: int, count: int) -> str:
    """`count` UTF-16 units of `text`; a length that halves a pair is a UnicodeDecodeError."""
    units = text[start : start + count].encode("utf-16-le")[: 2 * count]
    if len(units) < 2 * count:
        raise Malformed("length beyond the body")
    return units.decode("utf-16-le")


def _utf16_units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _split_binary(body: bytes) -> Iterator[str | bytes]:
    """`<0|1> <length, a digit per byte> <255> <packet>…`, lengths in bytes."""
    start = 0
    while start < len(body):
        end = body.find(_END_OF_LENGTH, start + 1, start + MAX_LENGTH_DIGITS + 2)
        digits = body[start + 1 : max(end, start + 1)]  # compiled, a slice must not end before it begins
        if not digits or max(digits) > 9 or body[start] not in (_STRING, _BINARY):
            raise Malformed("bad binary length")
        stop = end + 1 + int("".join(map(str, digits)))
        if stop > len(body):
            raise Malformed("length beyond the body")
        frame = body[end + 1 : stop]
        yield frame.decode() if body[start] == _STRING else frame
        start = stop


def _with_binary_length(frame: str | bytes) -> bytes:
    marker, data = (_STRING, to_utf8(frame)) if isinstance(frame, str) else (_BINARY, frame)
    return bytes([marker, *map(int, str(len(data))), _END_OF_LENGTH]) + data


def to_utf8(text: str) -> bytes:
    """UTF-8 of any str: a lone surrogate, which has none, becomes `?`."""
    return text.encode("utf-8", "replace")


# -- JSONP: payloads as scripts and form fields ------------------------------------------------------------


def encode_jsonp(index: str, payload: str) -> str:
    """The script that hands `payload` to the client's callback number `index`."""
    digits = "".join(char for char in index[:20] if char in "0123456789")
    return f"___eio[{digits}]({json.dumps(payload)});"


def decode_jsonp(body: bytes) -> bytes:
    """The payload in the form field `d` of a JSONP POST.

    Raises:
        Malformed: no such field.
    """
    try:
        form = parse_qs(body.decode(), strict_parsing=True, errors="strict", max_num_fields=8)
        text = form["d"][0]
    except (ValueError, LookupError) as error:
        raise Malformed("no JSONP form") from error
    return to_utf8(_unescape_newlines(text))


def _unescape_newlines(text: str) -> str:
    r"""A form cannot carry newlines: clients send `\n` for one, and `\\n` for those two characters."""
    return re.sub(r"(\\)?\\n", lambda match: match[0] if match[1] else "\n", text).replace(r"\\n", r"\n")
