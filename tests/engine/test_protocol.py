"""What the official Engine.IO suites check, for both generations, over real HTTP and WebSockets.

Source of the cases: engine.io-protocol, the test suites of revisions 3 and 4.
"""

import asyncio
from typing import Any

import aiohttp
import pytest

from gateway.engine.effects import CloseReason

from .harness import FAST, Bench, Peer, gone

BINARY = bytes([1, 2, 3, 4])


def binary_frame(eio: str) -> bytes:
    return BINARY if eio == "4" else b"\x04" + BINARY


def check_announced(handshake: dict[str, Any], upgrades: list[str]) -> None:
    assert handshake.pop("sid")
    assert handshake == {
        "upgrades": upgrades,
        "pingInterval": 300,
        "pingTimeout": 200,
        "maxPayload": FAST.max_payload_bytes,
    }


# -- handshake --------------------------------------------------------------------------------------------


async def test_polling_opens_a_session(quick: Peer) -> None:
    check_announced(await quick.open(), ["websocket"])


async def test_websocket_opens_a_session(quick: Peer) -> None:
    socket, handshake = await quick.open_websocket()
    check_announced(handshake, [])
    await socket.close()


BAD_HANDSHAKES = {
    "no EIO": ("GET", {"transport": "polling"}),
    "unknown EIO": ("GET", {"EIO": "abc", "transport": "polling"}),
    "EIO of the future": ("GET", {"EIO": "5", "transport": "polling"}),
    "no transport": ("GET", {"EIO": "4"}),
    "unknown transport": ("GET", {"EIO": "3", "transport": "abc"}),
    "websocket without an upgrade": ("GET", {"EIO": "4", "transport": "websocket"}),
    "POST": ("POST", {"EIO": "4", "transport": "polling"}),
    "PUT": ("PUT", {"EIO": "3", "transport": "polling"}),
    "unknown sid": ("GET", {"EIO": "4", "transport": "polling", "sid": "nobody"}),
    "POST to an unknown sid": ("POST", {"EIO": "3", "transport": "polling", "sid": "nobody"}),
}


@pytest.mark.parametrize(("method", "query"), BAD_HANDSHAKES.values(), ids=BAD_HANDSHAKES.keys())
async def test_refuses_a_request(calm: Bench, http: aiohttp.ClientSession, method: str, query: dict[str, str]) -> None:
    async with http.request(method, calm.url, params=query) as response:
        assert response.status == 400
        assert set(await response.json()) == {"code", "message"}
    assert not calm.connections


BAD_WEBSOCKETS = {
    "no EIO": {"transport": "websocket"},
    "unknown EIO": {"EIO": "abc", "transport": "websocket"},
    "no transport": {"EIO": "4"},
    "unknown transport": {"EIO": "3", "transport": "abc"},
    "polling": {"EIO": "4", "transport": "polling"},
    "unknown sid": {"EIO": "4", "transport": "websocket", "sid": "nobody"},
}


@pytest.mark.parametrize("query", BAD_WEBSOCKETS.values(), ids=BAD_WEBSOCKETS.keys())
async def test_refuses_a_websocket(calm: Bench, http: aiohttp.ClientSession, query: dict[str, str]) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect(calm.url, params=query)
    assert refused.value.status == 400
    assert not calm.connections


# -- messages ---------------------------------------------------------------------------------------------


async def test_polling_carries_one_text_packet(peer: Peer) -> None:
    await peer.open()
    await peer.send("4hello")
    assert await peer.get() == (200, peer.payload("4hello"))


async def test_polling_carries_several_text_packets(peer: Peer) -> None:
    await peer.open()
    await peer.send("4test1", "4test2", "4test3")
    assert await peer.get() == (200, peer.payload("4test1", "4test2", "4test3"))


async def test_polling_carries_text_and_base64(peer: Peer) -> None:
    await peer.open(**({"b64": "1"} if peer.eio == "3" else {}))
    packets = ("4hello", "b4AQIDBA==" if peer.eio == "3" else "bAQIDBA==")
    await peer.send(*packets)
    assert await peer.get() == (200, peer.payload(*packets))


async def test_polling_answers_eio3_with_binary_framing(calm: Bench, http: aiohttp.ClientSession) -> None:
    peer = Peer(calm.url, http, "3")
    await peer.open()
    await peer.send("4hello", "b4AQIDBA==")
    expected = bytes([0, 6, 255]) + b"4hello" + bytes([1, 5, 255, 4]) + BINARY
    assert await peer.get_bytes() == ("application/octet-stream", expected)


async def test_websocket_carries_text(peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_str("4hello")
    assert await socket.receive_str() == "4hello"
    await socket.close()


async def test_websocket_carries_binary(peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_bytes(binary_frame(peer.eio))
    assert await socket.receive_bytes() == binary_frame(peer.eio)
    await socket.close()


BAD_BODIES = {
    "3": ["abc", "", "b\x80", "7", "1:", "-1:4", "99999:4a", "0x2:4a", "2:7x", "2:4a3", "٢:4a", "2:b5", "4:b4A="],
    "4": ["abc", "", "b\x80", "bA", "7", "4a\x1e", "\x1e4a", "4a\x1eabc"],
}


@pytest.mark.parametrize(("eio", "body"), [(eio, body) for eio in BAD_BODIES for body in BAD_BODIES[eio]])
async def test_bad_payload_closes_the_session(calm: Bench, peer: Peer, body: str) -> None:
    await peer.open()
    assert (await peer.post(body))[0] == 400
    assert (await peer.get())[0] == 400
    assert await calm.closed(peer.sid) is CloseReason.MALFORMED


@pytest.mark.parametrize("frame", ["abc", "", "b\x80", "7"])
async def test_bad_frame_closes_the_session(calm: Bench, peer: Peer, frame: str) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_str(frame)
    await gone(socket)
    assert await calm.closed(peer.sid) is CloseReason.MALFORMED


async def test_two_polls_at_a_time_end_both_and_the_session(calm: Bench, peer: Peer) -> None:
    await peer.open()
    polls = [asyncio.ensure_future(peer.get()), asyncio.ensure_future(peer.get(t="burst"))]
    (first, second) = sorted(await asyncio.gather(*polls))
    assert first == (200, peer.payload("1"))
    assert second[0] == 400
    assert (await peer.get())[0] == 400
    assert await calm.closed(peer.sid) is CloseReason.TRANSPORT_ERROR


async def test_dropped_poll_closes_the_session(calm: Bench, peer: Peer) -> None:
    await peer.open()
    poll = asyncio.ensure_future(peer.get())
    await calm.parked(peer.sid)
    poll.cancel()
    assert await calm.closed(peer.sid) is CloseReason.TRANSPORT_ERROR
    assert (await peer.get())[0] == 400


# -- heartbeats -------------------------------------------------------------------------------------------


async def test_polling_heartbeat(quick: Peer) -> None:
    await quick.open()
    for _ in range(3):
        if quick.eio == "3":
            await quick.send("2")
            assert await quick.get() == (200, quick.payload("3"))
        else:
            assert await quick.get() == (200, quick.payload("2"))
            await quick.send("3")


async def test_websocket_heartbeat(quick: Peer) -> None:
    socket, _ = await quick.open_websocket()
    for _ in range(3):
        if quick.eio == "3":
            await socket.send_str("2")
            assert await socket.receive_str() == "3"
        else:
            assert await socket.receive_str() == "2"
            await socket.send_str("3")
    await socket.close()


async def test_silence_on_polling_closes_the_session(fast: Bench, quick: Peer) -> None:
    await quick.open()
    assert await fast.closed(quick.sid) is CloseReason.PING_TIMEOUT
    assert (await quick.get())[0] == 400
    assert (await quick.post(quick.payload("2")))[0] == 400


async def test_silence_on_a_websocket_closes_the_session(fast: Bench, quick: Peer) -> None:
    socket, _ = await quick.open_websocket()
    await gone(socket)
    assert await fast.closed(quick.sid) is CloseReason.PING_TIMEOUT


async def test_heartbeat_in_the_wrong_direction_closes_the_session(calm: Bench, peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    await socket.send_str("3" if peer.eio == "3" else "2")
    await gone(socket)
    assert await calm.closed(peer.sid) is CloseReason.MALFORMED


# -- close ------------------------------------------------------------------------------------------------


async def test_client_closes_polling(calm: Bench, peer: Peer) -> None:
    await peer.open()
    poll, post = await asyncio.gather(peer.get(), peer.post(peer.payload("1")))
    assert (poll, post) == ((200, peer.payload("6")), (200, "ok"))
    assert (await peer.get())[0] == 400
    assert await calm.closed(peer.sid) is CloseReason.CLIENT


@pytest.mark.parametrize("how", ["packet", "close frame"])
async def test_client_closes_a_websocket(calm: Bench, peer: Peer, how: str) -> None:
    socket, _ = await peer.open_websocket()
    if how == "packet":
        await socket.send_str("1")
        await gone(socket)
    else:
        await socket.close()
    assert await calm.closed(peer.sid) is CloseReason.CLIENT


async def test_server_closes_polling(calm: Bench, peer: Peer) -> None:
    """The poll that is parked, or the next one, brings what waits and then CLOSE."""
    for parked in (True, False):
        peer.sid = ""
        await peer.open()
        connection = calm.connections[peer.sid]
        poll = asyncio.ensure_future(peer.get())
        if parked:
            await calm.parked(peer.sid)
        connection.send("bye")
        connection.close()
        assert await poll == (200, peer.payload("4bye", "1"))
        assert (await peer.get())[0] == 400
        assert await calm.closed(peer.sid) is CloseReason.SERVER


async def test_server_closes_a_websocket(calm: Bench, peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    calm.connections[peer.sid].send("bye")
    calm.connections[peer.sid].close(CloseReason.REPLACED)
    assert await socket.receive_str() == "4bye"
    await gone(socket)
    assert socket.close_code == 1000
    assert await calm.closed(peer.sid) is CloseReason.REPLACED


# -- upgrade ----------------------------------------------------------------------------------------------


async def test_upgrade_releases_the_poll_and_moves_the_session(calm: Bench, peer: Peer) -> None:
    await peer.open()
    socket = await peer.websocket()
    await socket.send_str("2probe")
    assert await socket.receive_str() == "3probe"
    assert await peer.get() == (200, peer.payload("6"))
    assert calm.connections[peer.sid].transport == "polling"
    await socket.send_str("5")
    await socket.send_str("4hello")
    assert await socket.receive_str() == "4hello"
    assert calm.connections[peer.sid].transport == "websocket"
    await socket.close()


async def test_poll_after_the_upgrade_is_refused(peer: Peer) -> None:
    await peer.open()
    socket = await peer.upgrade()
    await socket.send_str("4hello")
    assert await socket.receive_str() == "4hello"
    assert (await peer.get())[0] == 400
    assert (await peer.post(peer.payload("4x")))[0] == 400
    await socket.send_str("4again")
    assert await socket.receive_str() == "4again"
    await socket.close()


@pytest.mark.parametrize("when", ["during", "after"])
async def test_second_websocket_is_closed(peer: Peer, when: str) -> None:
    await peer.open()
    if when == "after":
        socket = await peer.upgrade()
        await socket.send_str("4hello")
        assert await socket.receive_str() == "4hello"
    else:
        socket = await peer.websocket()
    await gone(await peer.websocket())
    await socket.send_str("5")
    await socket.send_str("4still")
    assert await socket.receive_str() == "4still"
    await socket.close()


async def test_what_waits_moves_to_the_websocket_in_order(calm: Bench, peer: Peer) -> None:
    await peer.open()
    for number in range(5):
        calm.connections[peer.sid].send(str(number))
    socket = await peer.upgrade()
    assert [await socket.receive_str() for _ in range(5)] == ["40", "41", "42", "43", "44"]
    await socket.close()


@pytest.mark.parametrize("end", ["garbage", "close"])
async def test_failed_probe_leaves_polling_alone(calm: Bench, peer: Peer, end: str) -> None:
    await peer.open()
    socket = await peer.websocket()
    if end == "garbage":
        await socket.send_str("4no probe")
        await gone(socket)
    else:
        await socket.close()
    calm.connections[peer.sid].send("still here")
    assert await peer.get() == (200, peer.payload("4still here"))
    second = await peer.upgrade()  # and it may try again
    await second.close()
    assert await calm.closed(peer.sid) is CloseReason.CLIENT
