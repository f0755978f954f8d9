"""What the official Socket.IO suites check, for both revisions, through python-socketio on `EngineServer`.

Source of the cases: socket.io-protocol, the test suite of revision 5; for revision 4 the same cases in the
shapes of that revision (its readme).
"""

from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from gateway.engine.options import EngineOptions
from gateway.socketio_server import MAX_ATTACHMENTS, Server

from .harness import CALM, FAST, Peer, gone, serving
from .seam import echo_server

TWO_BINARIES = '["{}",{{"_placeholder":true,"num":0}},{{"_placeholder":true,"num":1}}]'
Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture
def options() -> EngineOptions:
    return CALM


@pytest.fixture
def sockets(options: EngineOptions) -> Server:
    return echo_server(options)


@pytest.fixture
async def peer(sockets: Server, http: aiohttp.ClientSession, eio: str) -> AsyncIterator[Peer]:
    async with serving(sockets.eio, path="socket.io") as url:
        yield Peer(url, http, eio)


async def connected(peer: Peer) -> Socket:
    """A WebSocket that has joined `/`."""
    socket, handshake = await peer.open_websocket()
    if peer.eio == "4":
        await socket.send_str("40")
    joined = await socket.receive_str()
    assert joined == "40" if peer.eio == "3" else joined.startswith('40{"sid":')
    assert await socket.receive_str() == '42["auth",{}]'
    assert handshake["sid"] == peer.sid
    return socket


def attachment(peer: Peer, data: bytes) -> bytes:
    return data if peer.eio == "4" else b"\x04" + data


# -- connect ----------------------------------------------------------------------------------------------


async def test_joins_the_main_namespace(peer: Peer, sockets: Server) -> None:
    socket, _ = await peer.open_websocket()
    if peer.eio == "4":
        await socket.send_str("40")
        sid = msgspec.json.decode((await socket.receive_str())[2:])["sid"]
        assert sid != peer.sid
    else:
        assert await socket.receive_str() == "40"
        sid = peer.sid  # which the client takes for its socket id
    assert await socket.receive_str() == '42["auth",{}]'
    assert sockets.manager.is_connected(sid, "/")
    await socket.close()


@pytest.mark.parametrize("eio", ["4"])
async def test_joins_the_main_namespace_with_a_payload(peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_str('40{"token":"123"}')
    assert (await socket.receive_str()).startswith('40{"sid":')
    assert await socket.receive_str() == '42["auth",{"token":"123"}]'
    await socket.close()


@pytest.mark.parametrize("auth", [{}, {"token": "abc"}], ids=["bare", "with a payload"])
async def test_joins_a_custom_namespace(peer: Peer, sockets: Server, auth: dict[str, str]) -> None:
    socket = await connected(peer)
    if peer.eio == "4":
        await socket.send_str("40/custom," + (msgspec.json.encode(auth).decode() if auth else ""))
        assert (await socket.receive_str()).startswith('40/custom,{"sid":')
    else:
        await socket.send_str("40/custom" + ("?token=abc," if auth else ","))
        assert (await socket.receive_str()).rstrip(",") == "40/custom"
        assert sockets.manager.is_connected(f"/custom#{peer.sid}", "/custom")
    assert await socket.receive_str() == f'42/custom,["auth",{msgspec.json.encode(auth).decode()}]'
    await socket.close()


async def test_refuses_an_unknown_namespace(peer: Peer) -> None:
    socket = await connected(peer)
    await socket.send_str("40/random")
    error = '"Invalid namespace"' if peer.eio == "3" else '{"message":"Invalid namespace"}'
    assert await socket.receive_str() == f"44/random,{error}"
    await socket.close()


async def test_bad_first_packet_closes(peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_str("4abc")
    await gone(socket)


@pytest.mark.parametrize("eio", ["4"])
@pytest.mark.parametrize("options", [msgspec.structs.replace(CALM, admission_timeout_s=0.1)])
async def test_who_joins_no_namespace_is_closed(peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await gone(socket)


async def test_polling_brings_the_implicit_connect_with_the_handshake(peer: Peer) -> None:
    _, body = await peer.get()
    assert body.endswith(peer.payload("40", '42["auth",{}]') if peer.eio == "3" else "}")


# -- disconnect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [FAST])
async def test_leaves_the_main_namespace_and_stays_connected(peer: Peer, sockets: Server) -> None:
    socket = await connected(peer)
    await socket.send_str("41")
    if peer.eio == "3":
        await socket.send_str("2")
    assert await socket.receive_str() == ("3" if peer.eio == "3" else "2")
    assert sockets.manager.rooms == {}
    await socket.close()


async def test_leaves_a_custom_namespace_only(peer: Peer) -> None:
    socket = await connected(peer)
    await socket.send_str("40/custom")
    assert (await socket.receive_str()).startswith("40/custom")
    assert await socket.receive_str() == '42/custom,["auth",{}]'
    await socket.send_str("41/custom")
    await socket.send_str('42["message","message to main namespace"]')
    assert await socket.receive_str() == '42["message-back","message to main namespace"]'
    await socket.close()


# -- messages ---------------------------------------------------------------------------------------------

TEXT = {
    "event": ('42["message",1,"2",{"3":[true]}]', '42["message-back",1,"2",{"3":[true]}]'),
    "event with an ack": ('42456["message-with-ack",1,"2",{"3":[false]}]', '43456[1,"2",{"3":[false]}]'),
}


@pytest.mark.parametrize(("sent", "answer"), TEXT.values(), ids=TEXT.keys())
async def test_text(peer: Peer, sent: str, answer: str) -> None:
    socket = await connected(peer)
    await socket.send_str(sent)
    assert await socket.receive_str() == answer
    await socket.close()


BINARY = {
    "event": ("452-" + TWO_BINARIES.format("message"), "452-" + TWO_BINARIES.format("message-back")),
    "event with an ack": (
        "452-789" + TWO_BINARIES.format("message-with-ack"),
        '462-789[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]',
    ),
}


@pytest.mark.parametrize(("sent", "answer"), BINARY.values(), ids=BINARY.keys())
async def test_attachments(peer: Peer, sent: str, answer: str) -> None:
    socket = await connected(peer)
    parts = [attachment(peer, bytes([1, 2, 3])), attachment(peer, bytes([4, 5, 6]))]
    await socket.send_str(sent)
    for part in parts:
        await socket.send_bytes(part)
    assert await socket.receive_str() == answer
    assert [await socket.receive_bytes() for _ in parts] == parts
    await socket.close()


BAD_PACKETS = {
    "unknown type": "4abc",
    "no list": "42{}",
    "no event name": "42[]",
    "bad ack id": '42abc["message-with-ack",1]',
    "no JSON": "42[",
    "JSON that nests for ever": "42" + "[" * 100_000,
    "too many attachments": f'45{MAX_ATTACHMENTS + 1}-["message"]',
    "text instead of an attachment": '451-["message",{"_placeholder":true,"num":0}]|42["message"]',
    "ack without an id": "43[]",
    "one attachment in many places": '451-["message",{"_placeholder":true,"num":0},[{"_placeholder":true,"num":0}]]',
    "an attachment that has no place": '452-["message",{"a":{"_placeholder":true,"num":0}}]',
    "the place of no attachment": '451-["message",{"_placeholder":true,"num":1}]',
    "an error to a server": '44{"message":"x"}',
}


@pytest.mark.parametrize("packets", BAD_PACKETS.values(), ids=BAD_PACKETS.keys())
async def test_bad_packet_closes(peer: Peer, packets: str) -> None:
    socket = await connected(peer)
    for packet in packets.split("|"):
        await socket.send_str(packet)
    await gone(socket)


async def test_unannounced_attachment_closes(peer: Peer) -> None:
    socket = await connected(peer)
    await socket.send_bytes(attachment(peer, b"\x00"))
    await gone(socket)


async def test_polling_carries_events_and_acks(peer: Peer) -> None:
    await peer.open()
    if peer.eio == "4":
        await peer.send("40")
        assert (await peer.get())[1].endswith('42["auth",{}]')
    await peer.send('42["message","中文😀"]', '421["message-with-ack"]')
    answer = peer.payload('42["message-back","\\u4e2d\\u6587\\ud83d\\ude00"]', "431[]")
    assert await peer.get() == (200, answer)


async def test_room_of_both_generations(sockets: Server, peer: Peer) -> None:
    """A binary broadcast reaches polls and WebSockets, old and new, each in its own framing."""
    async with aiohttp.ClientSession() as http:
        peers = [Peer(peer.url, http, eio) for eio in ("3", "4", "3", "4")]
        streams = [await connected(one) for one in peers[:2]]
        for poller in peers[2:]:
            await poller.open()
        await peers[3].send("40")
        await peers[3].get()
        await sockets.emit("news", b"\x00\xff")
        header = '451-["news",{"_placeholder":true,"num":0}]'
        for one, stream in zip(peers[:2], streams, strict=True):
            assert await stream.receive_str() == header
            assert await stream.receive_bytes() == attachment(one, b"\x00\xff")
            await stream.close()
        _, old = await peers[2].get_bytes()
        assert header.encode() in old
        assert old.endswith(b"\x01\x03\xff\x04\x00\xff")
        assert await peers[3].get() == (200, peers[3].payload(header, "bAP8="))
