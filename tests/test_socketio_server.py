"""The short roads of Socket.IO: what most packets take comes out as what any packet takes."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.socketio_packet import ACK, EVENT, Packet
from gateway.socketio_server import encode, encode_event, plain

JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(), st.lists)
NAMES = st.text() | st.sampled_from(["bind_class", "auth:ok", 'say "a"', "a\\b", "a\x7f", "班牌", ""])
IDS = st.none() | st.integers(0, 10**15 - 1)


@given(NAMES, st.lists(JSON, max_size=3), IDS)
def test_an_event_is_put_together_as_it_is_encoded(name: str, values: list[Any], id: int | None) -> None:
    """JSON that passes through may have any character of its own, and spaces that no encoder writes."""
    args = tuple(msgspec.Raw(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")) for value in values)
    text = encode_event(name, args, id)
    assert text == encode(EVENT, [name, *args], id)
    assert text == Packet(EVENT, data=[name, *args], id=id).encode()


@given(NAMES, JSON)
def test_an_event_whose_argument_is_no_text_is_encoded(name: str, value: object) -> None:
    assert encode_event(name, (value,)) == encode(EVENT, [name, value])
    assert encode_event(name, (b"\0",)) == encode(EVENT, [name, b"\0"])


def test_json_that_passes_through_is_utf8() -> None:
    with pytest.raises(UnicodeDecodeError):
        encode_event("a", (msgspec.Raw(b'"\xff"'),))


@given(st.sampled_from("23"), IDS, st.lists(JSON))
def test_what_is_plain_is_read_as_any_packet_is(kind: str, id: int | None, data: list[Any]) -> None:
    text = f"{kind}{'' if id is None else id}{json.dumps(data)}"
    at = plain(text)
    packet = Packet(encoded_packet=text)
    assert at
    assert (int(kind), id) == (packet.packet_type, packet.id)
    assert (text[1:at], json.loads(text[at:])) == ("" if id is None else str(id), packet.data)


@given(st.text('0123456789[]{},/-?"²٣ \x00', max_size=24))
@example("2" + "1" * 15 + "[")
@example("2" + "1" * 16 + "[")
@example("3²[")
@example("3٣[")
def test_only_digits_stand_between_the_kind_and_the_list(text: str) -> None:
    at = plain(text)
    head, bracket, _ = text.partition("[")
    digits = head[1:]
    is_plain = head[:1] in ("2", "3") and bracket == "[" and len(digits) <= 15 and set(digits) <= set("0123456789")
    assert at == (len(head) if is_plain else 0)
    assert not at or str(EVENT if text[0] == "2" else ACK) == text[0]
