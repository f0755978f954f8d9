"""Bodies in pieces, sizes, drops, silence and slowness: each is bounded and costs nobody else anything."""

import asyncio
import gzip
from collections.abc import Awaitable
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from gateway.engine.connection import Connection
from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions

from .harness import CALM, Bench, Peer, bench, gone, raw_websocket


def options(**changes: Any) -> EngineOptions:
    return msgspec.structs.replace(CALM, **changes)


# -- a POST arrives as TCP pleases --------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True], ids=["two segments", "chunked"])
async def test_post_in_pieces_is_delivered(calm: Bench, peer: Peer, chunked: bool) -> None:
    """A POST that arrives in two TCP segments, or chunked, was answered 200 and lost."""
    await peer.open()
    url = URL(peer.url)
    head, tail = (part.encode() for part in (peer.payload("4hel lo")[:4], peer.payload("4hel lo")[4:]))
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(head + tail)}"
    query = f"EIO={peer.eio}&transport=polling&sid={peer.sid}"
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {url.path}?{query} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
    writer.write(b"%x\r\n%b\r\n" % (len(head), head) if chunked else head)
    await writer.drain()
    await peer.http.get(calm.url)  # a round trip: the server has seen the first piece alone
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(tail), tail) if chunked else tail)
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    assert calm.messages == ["hel lo"]
    writer.close()


async def test_post_that_breaks_off_closes_the_session(calm: Bench, peer: Peer) -> None:
    await peer.open()
    url = URL(peer.url)
    query = f"EIO={peer.eio}&transport=polling&sid={peer.sid}"
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {url.path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n4a".encode())
    await writer.drain()
    writer.close()
    assert await calm.closed(peer.sid) is CloseReason.TRANSPORT_ERROR
    assert calm.messages == []


async def test_post_that_never_ends_is_bounded_in_time(fast: Bench, quick: Peer) -> None:
    await quick.open()
    url = URL(quick.url)
    query = f"EIO={quick.eio}&transport=polling&sid={quick.sid}"
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {url.path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n4a".encode())
    assert b"408" in await reader.readuntil(b"\r\n\r\n")
    assert await fast.closed(quick.sid) in (CloseReason.PING_TIMEOUT, CloseReason.TRANSPORT_ERROR)
    writer.close()


async def test_two_posts_at_a_time_close_the_session(calm: Bench, peer: Peer) -> None:
    await peer.open()
    calm.connections[peer.sid].posting = True
    assert (await peer.post(peer.payload("4x")))[0] == 400
    assert await calm.closed(peer.sid) is CloseReason.TRANSPORT_ERROR


# -- sizes --------------------------------------------------------------------------------------------------


async def test_body_of_max_payload_is_taken_and_one_byte_more_is_not(http: aiohttp.ClientSession, eio: str) -> None:
    """An oversized POST hung."""
    async with bench(options(max_payload_bytes=1000)) as server:
        peer = Peer(server.url, http, eio)
        assert (await peer.open())["maxPayload"] == 1000
        exact = peer.payload("4" + "x" * (999 if eio == "4" else 995))
        assert len(exact) == 1000
        assert await peer.post(exact) == (200, "ok")
        assert (await peer.post(exact + "x"))[0] == 400
        assert await server.closed(peer.sid) is CloseReason.MALFORMED


@pytest.mark.parametrize("size", [1000, 1001])
async def test_message_of_max_payload_is_taken_and_one_byte_more_is_not(
    http: aiohttp.ClientSession, eio: str, size: int
) -> None:
    async with bench(options(max_payload_bytes=1000)) as server:
        peer = Peer(server.url, http, eio)
        socket, _ = await peer.open_websocket()
        message = "4" + "x" * (size - 1)
        await socket.send_str(message)
        if size == 1000:
            assert await socket.receive_str() == message
            await socket.close()
        else:
            await gone(socket)
            assert await server.closed(peer.sid) is CloseReason.MALFORMED


async def test_body_that_inflates_over_max_payload_is_refused(calm: Bench, peer: Peer) -> None:
    await peer.open()
    bomb = gzip.compress(b"4" * 50_000_000)
    query = peer.query("polling")
    async with peer.http.post(peer.url, params=query, data=bomb, headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 400
    assert await calm.closed(peer.sid) is CloseReason.MALFORMED


async def test_poll_of_many_packets(calm: Bench, peer: Peer) -> None:
    """More than 16 packets in one payload failed."""
    await peer.open()
    await peer.send(*(f"4{number}" for number in range(100)))
    assert calm.messages == [str(number) for number in range(100)]
    assert await peer.get() == (200, peer.payload(*(f"4{number}" for number in range(100))))


async def test_long_eio3_poll_goes_out_in_binary_framing(calm: Bench, http: aiohttp.ClientSession) -> None:
    """1.x browsers die on long text bodies; who cannot take binary still gets text."""
    text = "x" * 300_000
    for base64, content_type in (("", "application/octet-stream"), ("1", "text/plain")):
        peer = Peer(calm.url, http, "3")
        await peer.open(b64=base64)
        await peer.send("4" + text)
        got, body = await peer.get_bytes()
        assert got == content_type
        assert body.endswith(b"4" + text.encode())


# -- drops, silence, slowness -------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelling", [True, False])
async def test_dropped_poll_ends_the_session_instead_of_swallowing_a_message(
    http: aiohttp.ClientSession, eio: str, cancelling: bool
) -> None:
    """The message after a dropped poll was written to nobody, and the session went on."""
    async with bench(CALM, cancelling=cancelling) as server:
        peer = Peer(server.url, http, eio)
        await peer.open()
        url = URL(server.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        query = f"EIO={eio}&transport=polling&sid={peer.sid}"
        writer.write(f"GET {url.path}?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await server.parked(peer.sid)
        writer.close()
        await writer.wait_closed()
        await http.get(server.url)  # a round trip: the server has seen the end of the connection
        server.connections[peer.sid].send("lost")
        assert await server.closed(peer.sid) is CloseReason.TRANSPORT_ERROR
        assert (await peer.get())[0] == 400


async def test_silent_upgrade_starves_nobody(calm: Bench, peer: Peer) -> None:
    """Messages waited for an upgrade that never came."""
    await peer.open()
    socket = await peer.websocket()
    await socket.send_str("2probe")
    assert await socket.receive_str() == "3probe"
    for number in range(3):
        calm.connections[peer.sid].send(str(number))
        assert await peer.get() == (200, peer.payload(f"4{number}"))
    await socket.close()


async def test_silent_upgrade_times_out(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench(options(upgrade_timeout_s=0.05)) as server:
        peer = Peer(server.url, http, eio)
        await peer.open()
        await gone(await peer.websocket())
        server.connections[peer.sid].send("still here")
        assert await peer.get() == (200, peer.payload("4still here"))


async def test_broken_websocket_closes_the_session(calm: Bench, peer: Peer) -> None:
    socket, _ = await peer.open_websocket()
    transport = socket.get_extra_info("socket")
    assert transport is not None
    socket._writer.transport.abort()
    assert await calm.closed(peer.sid) is CloseReason.TRANSPORT_ERROR


async def test_slow_reader_is_closed_and_others_see_nothing(http: aiohttp.ClientSession, eio: str) -> None:
    """What a stalled peer did not read was queued without bound."""
    async with bench(options(max_buffer_bytes=100_000)) as server:
        lively = Peer(server.url, http, eio)
        reader, writer = await raw_websocket(server.url, eio)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        (sid,) = server.connections
        socket, _ = await lively.open_websocket()
        connection = server.connections[sid]
        transport = connection._socket._transport  # type: ignore[union-attr]
        waiting = []
        for number in range(10_000):
            connection.send("x" * 1000)
            waiting.append(transport.get_write_buffer_size())
            if number % 100 == 0:
                await socket.send_str(f"4{number}")
                assert await socket.receive_str() == f"4{number}"
        assert await server.closed(sid) is CloseReason.SLOW
        assert max(waiting) <= 100_000 + 1100
        assert waiting[-1] == 0
        assert sid not in {one.sid for one in server.engine.connections}
        writer.close()
        await socket.close()


async def test_device_whose_work_is_not_done_is_not_read(calm: Bench, peer: Peer) -> None:
    """Callbacks of one device ran at the same time and out of order."""
    release = asyncio.Event()
    calls: list[str | bytes] = []
    running = 0

    async def work(data: str | bytes) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await release.wait()
        calls.append(data)
        running -= 1

    begun = asyncio.Event()

    def on_message(_: Connection, data: str | bytes) -> Awaitable[None]:
        begun.set()
        return work(data)

    calm.engine.on_message = on_message
    socket, _ = await peer.open_websocket()
    for number in range(1000):
        await socket.send_str(f"4{number}")
    await begun.wait()
    await peer.http.get(calm.url)  # a round trip: the server has had time to go wrong
    assert (calls, running) == ([], 1)
    release.set()
    while len(calls) < 1000:
        await peer.http.get(calm.url)
    assert calls == [str(number) for number in range(1000)]
    await socket.close()


async def test_closed_comes_after_the_callback_that_is_running(calm: Bench, peer: Peer) -> None:
    release = asyncio.Event()
    begun = asyncio.Event()
    order: list[str] = []

    async def work() -> None:
        begun.set()
        await release.wait()
        order.append("message")

    def on_closed(connection: Connection, reason: CloseReason) -> None:
        order.append("closed")
        calm._closed(connection, reason)

    calm.engine.on_message = lambda connection, data: work()
    calm.engine.on_closed = on_closed
    await peer.open()
    post = asyncio.ensure_future(peer.post(peer.payload("4x")))
    await begun.wait()
    calm.connections[peer.sid].close()
    assert order == []
    release.set()
    assert await calm.closed(peer.sid) is CloseReason.SERVER
    assert order == ["message", "closed"]
    await post


async def test_peer_that_leaves_while_it_is_introduced_is_closed(calm: Bench, eio: str) -> None:
    """The application may take its time over a handshake; the connection does not wait for ever."""
    introduced: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def never(connection: Connection) -> None:
        introduced.set_result(connection)
        await asyncio.Event().wait()

    calm.engine.on_connected = never
    url = URL(calm.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"GET {url.path}?EIO={eio}&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    connection = await introduced
    writer.close()
    assert await calm.closed(connection.sid) is CloseReason.TRANSPORT_ERROR
    assert not calm.engine.connections


async def test_a_compressed_body_is_not_taken(calm: Bench, peer: Peer) -> None:
    """A stranger's 65 KB became 64 MB, and took the time of a hundred handshakes."""
    await peer.open()
    body, headers = gzip.compress(peer.payload("4x").encode()), {"Content-Encoding": "gzip"}
    async with peer.http.post(calm.url, params=peer.query("polling"), data=body, headers=headers) as response:
        assert response.status == 400
    assert await calm.closed(peer.sid) is CloseReason.MALFORMED
    assert calm.messages == []
