"""The codec: vectors of the specifications, round trips, truncation at every length, garbage."""

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.engine import codec
from gateway.engine.codec import EIO2, EIO3, EIO4, MESSAGE, PING, PONG, Generation, Malformed, Packet

GENERATIONS = [EIO2, EIO3, EIO4]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1e"))
packets = st.lists(st.builds(Packet, st.just(MESSAGE), texts | st.binary()), min_size=1, max_size=8)


def test_generation_is_chosen_by_the_query() -> None:
    chosen = [codec.generation_of(eio, missing_is_3=False) for eio in ("2", "3", "4", "5", "", None)]
    assert chosen == [EIO2, EIO3, EIO4, None, None, None]
    assert codec.generation_of(None, missing_is_3=True) is EIO3


FRAMES: list[tuple[Generation, Packet, str | bytes]] = [
    (EIO3, Packet(MESSAGE, "hello"), "4hello"),
    (EIO4, Packet(PING, "probe"), "2probe"),
    (EIO4, Packet(PONG), "3"),
    (EIO3, Packet(MESSAGE, b"\x01\x02"), b"\x04\x01\x02"),
    (EIO4, Packet(MESSAGE, b"\x01\x02"), b"\x01\x02"),
]


@pytest.mark.parametrize(("generation", "packet", "frame"), FRAMES)
def test_frame(generation: Generation, packet: Packet, frame: str | bytes) -> None:
    assert codec.encode_frame(generation, packet) == frame
    assert codec.decode_frame(generation, frame) == packet


BASE64 = [
    (EIO3, "b4AQIDBA==", b"\x01\x02\x03\x04"),
    (EIO4, "bAQIDBA==", b"\x01\x02\x03\x04"),
    (EIO4, "bAQIDBA", b"\x01\x02\x03\x04"),  # padding forgotten
    (EIO3, "b4AQID\r\nBA==", b"\x01\x02\x03\x04"),  # as Java's MIME encoder breaks lines
    (EIO4, "b-_8=", b"\xfb\xff"),  # the URL alphabet
    (EIO4, "b", b""),
]


@pytest.mark.parametrize(("generation", "frame", "data"), BASE64)
def test_base64_is_read_leniently(generation: Generation, frame: str, data: bytes) -> None:
    assert codec.decode_frame(generation, frame) == Packet(MESSAGE, data)


BAD_FRAMES: list[tuple[Generation, str | bytes]] = [
    *[(generation, frame) for generation in GENERATIONS for frame in ("", "x", "7", "٤", "b\x80", "bA", "\x1e")],
    (EIO3, b""),
    (EIO3, b"\x02probe"),
    (EIO3, "b3AQ=="),
]


@pytest.mark.parametrize(("generation", "frame"), BAD_FRAMES)
def test_bad_frame_is_malformed(generation: Generation, frame: str | bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode_frame(generation, frame)


PAYLOADS: list[tuple[Generation, list[Packet], dict[str, Any], str | bytes]] = [
    (EIO3, [Packet(MESSAGE, "€")], {}, "2:4€"),
    (EIO3, [Packet(MESSAGE, "😀"), Packet(PONG)], {}, "3:4😀1:3"),
    (EIO3, [Packet(MESSAGE, b"\x01\x02\x03\x04")], {"base64": True}, "10:b4AQIDBA=="),
    (EIO3, [Packet(MESSAGE, "é"), Packet(MESSAGE, b"\x01")], {}, b"\x00\x03\xff4\xc3\xa9\x01\x02\xff\x04\x01"),
    (EIO3, [Packet(MESSAGE, "a" * 12)], {"binary_over_bytes": 10}, b"\x00\x01\x03\xff4" + b"a" * 12),
    (EIO3, [Packet(MESSAGE, "aaa")], {"binary_over_bytes": 2, "base64": True}, "4:4aaa"),
    (EIO2, [Packet(PONG)], {}, b"\x00\x01\xff3"),
    (EIO2, [Packet(PONG)], {"base64": True}, "1:3"),
    (EIO4, [Packet(MESSAGE, "€"), Packet(MESSAGE, b"\x01\x02\x03\x04")], {}, "4€\x1ebAQIDBA=="),
    (EIO4, [Packet(MESSAGE, "a" * 12)], {"binary_over_bytes": 10}, "4" + "a" * 12),
]


@pytest.mark.parametrize(("generation", "parts", "how", "body"), PAYLOADS)
def test_payload(generation: Generation, parts: list[Packet], how: dict[str, Any], body: str | bytes) -> None:
    assert codec.encode_payload(generation, parts, **how) == body
    raw = body.encode() if isinstance(body, str) else body
    assert codec.decode_payload(generation, raw, binary=isinstance(body, bytes)) == parts


def test_text_that_1x_clients_encode_twice_is_read() -> None:
    packet = '42["中文😀"]'
    once = packet.encode().decode("latin-1")  # a 1.x client counts, and sends, these characters
    assert codec.decode_payload(EIO3, f"{len(once)}:{once}".encode()) == [Packet(MESSAGE, packet[1:])]
    assert codec.decode_frame(EIO3, once) == Packet(MESSAGE, packet[1:])
    assert codec.decode_frame(EIO3, "4é") == Packet(MESSAGE, "é")
    assert codec.decode_frame(EIO4, once) == Packet(MESSAGE, once[1:])


def test_a_length_that_halves_a_surrogate_pair_is_malformed() -> None:
    with pytest.raises(Malformed):
        codec.decode_payload(EIO3, "2:4😀".encode())


def test_an_empty_packet_between_others_is_passed_over() -> None:
    assert codec.decode_payload(EIO3, b"0:2:4a0:") == [Packet(MESSAGE, "a")]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_more_than_sixteen_packets_are_no_limit_but_there_is_one(generation: Generation) -> None:
    many = [Packet(PONG)] * codec.MAX_PACKETS
    body = codec.encode_payload(generation, many, base64=True)
    assert isinstance(body, str)
    assert codec.decode_payload(generation, body.encode()) == many
    one_more = codec.encode_payload(generation, [*many, Packet(PONG)], base64=True)
    assert isinstance(one_more, str)
    with pytest.raises(Malformed):
        codec.decode_payload(generation, one_more.encode())


def test_lone_surrogates_do_not_break_a_body() -> None:
    assert codec.to_utf8("4\ud800") == b"4?"
    assert codec.encode_payload(EIO3, [Packet(MESSAGE, "\ud800")]) == "2:4\ud800"
    assert codec.encode_payload(EIO2, [Packet(MESSAGE, "\ud800")]) == b"\x00\x02\xff4?"


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("base64", [False, True])
@given(parts=packets)
@example(parts=[Packet(MESSAGE, "Ã©")])  # looks encoded twice
def test_round_trip(generation: Generation, base64: bool, parts: list[Packet]) -> None:
    body = codec.encode_payload(generation, parts, base64=base64)
    raw = body.encode() if isinstance(body, str) else body
    decoded = codec.decode_payload(generation, raw, binary=isinstance(body, bytes))
    assert decoded == [_as_read(generation, part) for part in parts]


def _as_read(generation: Generation, packet: Packet) -> Packet:
    """What looks like text encoded twice is read as that: the price of serving 1.x."""
    if generation is EIO4 or isinstance(packet.data, bytes):
        return packet
    try:
        return Packet(packet.kind, packet.data.encode("latin-1").decode())
    except UnicodeError:
        return packet


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("base64", [False, True])
def test_truncated_payload_is_malformed_or_a_prefix(generation: Generation, base64: bool) -> None:
    parts = [Packet(MESSAGE, "中文😀"), Packet(MESSAGE, b"\x00\xff\x1e"), Packet(PING, "probe")]
    body = codec.encode_payload(generation, parts, base64=base64)
    raw = body.encode() if isinstance(body, str) else body
    for length in range(len(raw)):
        try:
            got = codec.decode_payload(generation, raw[:length], binary=isinstance(body, bytes))
        except Malformed:
            continue
        if generation is not EIO4:  # which has no lengths: a cut text is a shorter text
            assert got == parts[: len(got)]
            assert len(got) < len(parts)


@pytest.mark.parametrize("generation", GENERATIONS)
@given(body=st.binary(max_size=64), binary=st.booleans())
@example(body=b"\xff" * 20, binary=True)
@example(body=b"\x01" + b"\x09" * 400 + b"\xff", binary=True)
@example(body=b"9" * 5000 + b":4", binary=False)
@example(body="٣:4ab".encode(), binary=False)
@example(body=b"b\xc2\x80", binary=False)
def test_garbage_decodes_or_is_malformed(generation: Generation, body: bytes, binary: bool) -> None:
    try:
        decoded = codec.decode_payload(generation, body, binary=binary)
    except Malformed:
        return
    assert all(packet.kind in codec.KINDS for packet in decoded)


@pytest.mark.parametrize("generation", GENERATIONS)
@given(frame=st.text(max_size=32) | st.binary(max_size=32))
def test_garbage_frame_decodes_or_is_malformed(generation: Generation, frame: str | bytes) -> None:
    with contextlib.suppress(Malformed):
        assert codec.decode_frame(generation, frame).kind in codec.KINDS


def test_jsonp_script() -> None:
    assert codec.encode_jsonp("3", '2:4"\u2028') == '___eio[3]("2:4\\"\\u2028");'
    assert codec.encode_jsonp("0];alert(1)//", "1:6") == '___eio[01]("1:6");'


JSONP = {
    b"d=6%3A4hello": b"6:4hello",
    b"d=%E4%B8%AD": "中".encode(),
    b"d=a+b": b"a b",
    rb"d=4a\nb": b"4a\nb",  # a newline
    rb"d=4a\\nb": rb"4a\nb",  # a backslash and an n
}


@pytest.mark.parametrize(("form", "payload"), JSONP.items())
def test_jsonp_form(form: bytes, payload: bytes) -> None:
    assert codec.decode_jsonp(form) == payload


@given(body=st.binary(max_size=64))
@example(body=b"")
@example(body=b"x=1")
@example(body=b"d=%ff")
@example(body=b"a=1&" * 1000)
def test_garbage_form_is_read_or_malformed(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        codec.decode_jsonp(body)
