"""What the gateway has of python-socketio: its packet, with our JSON."""

import json
from importlib.metadata import version

import pytest
import socketio.packet
from hypothesis import given
from hypothesis import strategies as st

from gateway.socketio_packet import Json, Packet, to_ascii


def test_the_version_is_one_whose_packet_was_read() -> None:
    assert version("python-socketio").startswith("5.18.")


def test_our_json_is_ours_alone() -> None:
    assert socketio.packet.Packet.json is not Json
    packet = Packet(socketio.packet.EVENT, data=["a", {"b": "二😀"}], id=1)
    assert packet.encode() == '21["a",{"b":"\\u4e8c\\ud83d\\ude00"}]'


@given(st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_ascii_json_says_the_same(value: object) -> None:
    text = to_ascii(json.dumps(value, ensure_ascii=False))
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"\ud800"', "1e999", "nul"])
def test_bad_json_is_a_value_error(text: str) -> None:
    """The one exception that is expected of a packet's JSON."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        Json.loads(text)
