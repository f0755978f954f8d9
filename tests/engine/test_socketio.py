"""What the official Socket.IO suites check, for both revisions, of the sockets that devices get.

Source of the cases: socket.io-protocol, the test suite of revision 5; for revision 4 the same cases in the
shapes of that revision (its readme). Others than in the suites are the cases of a second namespace, as there is
none, and of who leaves the only one, who is disconnected.
"""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import aiohttp
import msgspec
import pytest

from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.socketio_server import MAX_ATTACHMENTS, Namespace

from .echo import Echo
from .harness import CALM, Peer, gone, serving

TWO_BINARIES = '["{}",{{"_placeholder":true,"num":0}},{{"_placeholder":true,"num":1}}]'
Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture
def options() -> EngineOptions:
    return CALM


@pytest.fixture
def echo(options: EngineOptions) -> Echo:
    return Echo(options)


@pytest.fixture
async def peer(echo: Echo, http: aiohttp.ClientSession, eio: str) -> AsyncIterator[Peer]:
    async with serving(echo.engine, path="socket.io") as url:
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


async def test_joins_the_main_namespace(peer: Peer, echo: Echo) -> None:
    socket, _ = await peer.open_websocket()
    if peer.eio == "4":
        await socket.send_str("40")
        sid = msgspec.json.decode((await socket.receive_str())[2:])["sid"]
        assert sid != peer.sid
    else:
        assert await socket.receive_str() == "40"  # the client takes the id of the connection
    assert await socket.receive_str() == '42["auth",{}]'
    assert len(echo.sockets) == 1
    await socket.close()


@pytest.mark.parametrize("eio", ["4"])
async def test_joins_the_main_namespace_with_a_payload(peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_str('40{"token":"123"}')
    assert (await socket.receive_str()).startswith('40{"sid":')
    assert await socket.receive_str() == '42["auth",{"token":"123"}]'
    await socket.close()


@pytest.mark.parametrize("joins", ["40/random", "40/custom,", '40/custom,{"token":"abc"}', "40/custom?token=abc,"])
async def test_refuses_another_namespace(peer: Peer, joins: str) -> None:
    socket = await connected(peer)
    await socket.send_str(joins)
    error = '"Invalid namespace"' if peer.eio == "3" else '{"message":"Invalid namespace"}'
    namespace = joins[2:].partition(",")[0].partition("?")[0]
    assert await socket.receive_str() == f"44{namespace},{error}"
    await socket.send_str("41/custom")
    await socket.send_str('42["message","message to main namespace"]')
    assert await socket.receive_str() == '42["message-back","message to main namespace"]'
    await socket.close()


async def test_refuses_as_its_owner_says(peer: Peer, echo: Echo) -> None:
    """Engine.IO 3 has joined by then, and stays."""
    socket, _ = await peer.open_websocket()
    if peer.eio == "3":
        assert [await socket.receive_str() for _ in range(2)] == ["40", '42["auth",{}]']
    await socket.send_str("40/?refuse=no," if peer.eio == "3" else '40{"refuse":"no"}')
    assert await socket.receive_str() == ('44"no"' if peer.eio == "3" else '44{"message":"no"}')
    assert len(echo.sockets) == (1 if peer.eio == "3" else 0)
    await socket.close()


async def test_joins_once(peer: Peer) -> None:
    """Who is in it already is told no; Engine.IO 3 may say then who it is, and is welcomed again."""
    socket = await connected(peer)
    await socket.send_str("40")
    assert (await socket.receive_str()).startswith("44")
    await socket.send_str("40/?token=abc," if peer.eio == "3" else '40{"token":"abc"}')
    assert (await socket.receive_str()).startswith("40" if peer.eio == "3" else "44")
    await socket.send_str('42["message"]')
    assert await socket.receive_str() == '42["message-back"]'
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


async def test_who_leaves_the_main_namespace_is_disconnected(peer: Peer, echo: Echo) -> None:
    socket = await connected(peer)
    await socket.send_str("41")
    await gone(socket)
    async with asyncio.timeout(10):
        assert await echo.closes.get() is CloseReason.CLIENT
    assert len(echo.sockets) == 0


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


@pytest.mark.parametrize("sent", ['42/custom,["message",1]', '42/custom,7["message-with-ack",1]', "43/custom,1[1]"])
async def test_what_is_for_another_namespace_is_passed_over(peer: Peer, sent: str) -> None:
    socket = await connected(peer)
    await socket.send_str(sent)
    await socket.send_str('42["message",2]')
    assert await socket.receive_str() == '42["message-back",2]'
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


@pytest.mark.parametrize(
    ("packet", "ours"), [('42["message"]', "emitted"), ("430[]", "acked"), ("40", "join"), ("41", "leave")]
)
async def test_a_fault_of_ours_is_not_the_peers(
    echo: Echo, peer: Peer, packet: str, ours: str, caplog: pytest.LogCaptureFixture
) -> None:
    socket, _ = await peer.open_websocket() if ours == "join" else (await connected(peer), None)

    def failing(*_: object) -> None:
        raise ValueError

    echo.sockets._server._namespace = cast("Namespace", SimpleNamespace(**{ours: failing}))
    reasons: list[CloseReason] = []
    echo.engine.on_closed = lambda _, reason: reasons.append(reason)
    await socket.send_str(packet)
    await gone(socket)
    assert reasons == [CloseReason.INTERNAL_ERROR]
    assert "application callback failed" in caplog.messages


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


async def test_room_of_both_generations(echo: Echo, peer: Peer) -> None:
    """A binary broadcast reaches polls and WebSockets, old and new, each in its own framing."""
    async with aiohttp.ClientSession() as http:
        peers = [Peer(peer.url, http, eio) for eio in ("3", "4", "3", "4")]
        streams = [await connected(one) for one in peers[:2]]
        for poller in peers[2:]:
            await poller.open()
        await peers[3].send("40")
        await peers[3].get()
        echo.sockets.emit_to(echo.sockets, "news", (b"\x00\xff",))
        header = '451-["news",{"_placeholder":true,"num":0}]'
        for one, stream in zip(peers[:2], streams, strict=True):
            assert await stream.receive_str() == header
            assert await stream.receive_bytes() == attachment(one, b"\x00\xff")
            await stream.close()
        _, old = await peers[2].get_bytes()
        assert header.encode() in old
        assert old.endswith(b"\x01\x03\xff\x04\x00\xff")
        assert await peers[3].get() == (200, peers[3].payload(header, "bAP8="))
