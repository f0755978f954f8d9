"""Socket.IO packets of a client: vectors from the protocol documents, round trips, truncation and garbage."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.engine.codec import Malformed
from gateway.simulate.packets import SocketPacket, decode, encode_ack, encode_event, fill

VECTORS = [  # socket.io-protocol, v4-protocol and v5-protocol
    ("0", SocketPacket("0")),
    ('0{"sid":"oSO0OpakMV_3jnilAAAA"}', SocketPacket("0", {"sid": "oSO0OpakMV_3jnilAAAA"})),
    ("1", SocketPacket("1")),
    ('2["foo"]', SocketPacket("2", ["foo"])),
    ('212["foo",{"a":1}]', SocketPacket("2", ["foo", {"a": 1}], 12)),
    ('313["bar"]', SocketPacket("3", ["bar"], 13)),
    ("31[]", SocketPacket("3", [], 1)),
    ('4"Not authorized"', SocketPacket("4", "Not authorized")),
    ('4{"message":"Not authorized"}', SocketPacket("4", {"message": "Not authorized"})),
    (
        '51-["baz",{"_placeholder":true,"num":0}]',
        SocketPacket("5", ["baz", {"_placeholder": True, "num": 0}], None, 1),
    ),
    (
        '62-15["bar",{"_placeholder":true,"num":0}]',
        SocketPacket("6", ["bar", {"_placeholder": True, "num": 0}], 15, 2),
    ),
    ("0/,", SocketPacket("0")),
    ('2/,7["a"]', SocketPacket("2", ["a"], 7)),
]


@pytest.mark.parametrize(("text", "packet"), VECTORS)
def test_vectors(text: str, packet: SocketPacket) -> None:
    assert decode(text) == packet


NONE = ["", "7", "a", "2", "2{}", "2[]", "2[1]", '3["no id"]', "3", '2["a"', "2/admin,[", '0/admin,{"sid":"a"}']
NONE += ['5101-["a"]', '2["\ud800"]', "2" + "9" * 5000 + '["a"]', "2" + "[" * 100_000]


@pytest.mark.parametrize("text", NONE, ids=lambda text: repr(text[:20]))
def test_what_is_no_packet(text: str) -> None:
    with pytest.raises(Malformed):
        decode(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(json_values, max_size=3), st.none() | st.integers(0))
def test_an_event_is_read_as_it_was_written(name: str, args: list[Any], id: int | None) -> None:
    id = None if id is None else id % 10**18
    assert decode(encode_event(name, args, id)) == SocketPacket("2", [name, *args], id)


@given(st.lists(json_values, max_size=3), st.integers(0, 10**18 - 1))
def test_an_ack_is_read_as_it_was_written(args: list[Any], id: int) -> None:
    assert decode(encode_ack(id, args)) == SocketPacket("3", args, id)


@given(st.text())
@example('2["a"]')
@example('51-["a",{"_placeholder":true}]')
def test_garbage_is_malformed_or_read(text: str) -> None:
    for end in range(len(text) + 1):
        with suppress(Malformed):
            decode(text[:end])


def test_attachments_replace_their_placeholders() -> None:
    data = ["e", {"deep": [{"_placeholder": True, "num": 1}]}, {"_placeholder": True, "num": 0}, {"_placeholder": 1}]
    assert fill(data, [b"0", b"1"]) == ["e", {"deep": [b"1"]}, b"0", {"_placeholder": 1}]


@pytest.mark.parametrize("number", [1, "0", None])
def test_a_placeholder_of_nothing(number: object) -> None:
    with pytest.raises(Malformed):
        fill([{"_placeholder": True, "num": number}], [b"0"])
