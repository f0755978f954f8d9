"""Connections before, between and after requests: bounded in number, in time, and in what they say."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from yarl import URL

from gateway.addresses import Listen, Network
from gateway.admission import AdmissionLimits, Refusal
from gateway.engine import peers
from gateway.engine.connection import STRANGER_BYTES
from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.engine.peers import MAX_HEAD_BYTES, PeerLimits
from gateway.engine.server import EngineServer
from gateway.listener import Listener
from gateway.proxies import Proxies

from .harness import CALM, Bench, Peer, bench, gone

WAIT_S = 10.0
Raw = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def options(**changes: Any) -> EngineOptions:
    return msgspec.structs.replace(CALM, **changes)


async def dial(server: Bench, said: bytes = b"", source: str = "127.0.0.1") -> Raw:
    url = URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(source, 0))
    writer.write(said)
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server closes."""
    async with asyncio.timeout(WAIT_S):
        return await reader.read()


def get(server: Bench, query: str = "EIO=4&transport=polling") -> bytes:
    return f"GET {URL(server.url).path}?{query} HTTP/1.1\r\nHost: x\r\n".encode()


@asynccontextmanager
async def strangers(server: Bench) -> AsyncIterator[Bench]:
    """Nobody is admitted by connecting."""
    server.engine.on_connected = lambda connection: server.connections.update({connection.sid: connection})
    yield server


# time


@pytest.mark.parametrize("said", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_head_that_does_not_come_is_answered_408(said: bytes) -> None:
    async with bench(limits=PeerLimits(head_s=0.05)) as server:
        reader, writer = await dial(server, said)
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert server.refusals == [Refusal.SLOW_REQUEST]
        writer.close()


async def test_a_head_that_drips_has_no_more_time(http: aiohttp.ClientSession) -> None:
    async with bench(limits=PeerLimits(head_s=0.2)) as server:
        reader, writer = await dial(server, get(server))
        answer = asyncio.ensure_future(rest(reader))
        while not answer.done() and not server.refusals:  # what comes after that would be answered by a reset
            writer.write(b"X-Drip: 1\r\n")
            await asyncio.wait({answer}, timeout=0.03)
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        assert server.refusals == [Refusal.SLOW_REQUEST]
        writer.close()


async def test_a_connection_between_requests_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IDLE_S", 0.05)
    async with bench() as server:
        reader, writer = await dial(server, get(server, "transport=none") + b"\r\n")
        answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert server.refusals == []
        writer.close()


async def test_a_second_head_that_does_not_come_is_answered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IDLE_S", 0.3)
    async with bench() as server:
        reader, writer = await dial(server, get(server, "transport=none") + b"\r\n")
        await reader.readuntil(b"unknown")
        writer.write(b"GET /")
        assert b"HTTP/1.1 408 " in await rest(reader)
        assert server.refusals == [Refusal.SLOW_REQUEST]
        writer.close()


async def test_a_response_that_nobody_takes_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, http: aiohttp.ClientSession
) -> None:
    monkeypatch.setattr(peers, "IDLE_S", 0.05)
    async with bench(options(max_buffer_bytes=50_000_000, compress_polls_over_bytes=None)) as server:
        peer = Peer(server.url, http, "4")
        await peer.open()
        server.connections[peer.sid].send("x" * 30_000_000)
        reader, writer = await dial(server, get(server, f"EIO=4&transport=polling&sid={peer.sid}") + b"\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await server.until("refusals")
        assert server.refusals == [Refusal.SLOW_REQUEST]
        writer.close()


async def test_what_is_posted_by_a_stranger_has_no_more_time_than_a_head(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench(options(request_timeout_s=0.1)) as server, strangers(server):
        peer = Peer(server.url, http, eio)
        await peer.open()
        query = f"EIO={eio}&transport=polling&sid={peer.sid}"
        path = URL(server.url).path
        said = f"POST {path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n4"
        reader, writer = await dial(server, said.encode())
        async with asyncio.timeout(WAIT_S):
            assert b" 408 " in await reader.readline()
        assert await server.closed(peer.sid) is CloseReason.TRANSPORT_ERROR
        assert server.refusals == [Refusal.SLOW_REQUEST]
        writer.close()


# number


async def test_the_connection_that_has_waited_longest_makes_room(http: aiohttp.ClientSession) -> None:
    async with bench(limits=PeerLimits(max_waiting=3, max_waiting_per_address=3)) as server:
        waiting = [await dial(server, b"GET /") for _ in range(20)]
        answers = [await rest(reader) for reader, _ in waiting[:16]]
        assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 503 Service Unavailable"}
        assert (await Peer(server.url, http, "4").open())["sid"], "and who has something to say is served"
        assert set(server.refusals) == {Refusal.CROWDED_OUT}
        for _, writer in waiting:
            writer.close()


async def test_who_says_a_byte_is_no_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    served, serve = asyncio.Event(), peers.Peers.serve

    def noting(*args: Any) -> None:
        serve(*args)
        served.set()

    monkeypatch.setattr(peers.Peers, "serve", noting)
    async with bench(limits=PeerLimits(max_waiting=3, max_waiting_per_address=3)) as server:
        waiting = [await dial(server) for _ in range(3)]
        waiting[0][1].write(b"G")
        async with asyncio.timeout(WAIT_S):
            await served.wait()
        waiting.append(await dial(server))
        assert (await rest(waiting[0][0])).startswith(b"HTTP/1.1 503 ")
        for _, writer in waiting:
            writer.close()


async def test_many_from_one_address_keep_nobody_else_out() -> None:
    async with bench(limits=PeerLimits(max_waiting=10, max_waiting_per_address=100)) as server:
        guest = await dial(server, get(server, "transport=none")[:-2], "127.0.0.3")
        flood = [await dial(server, b"GET /", "127.0.0.2") for _ in range(50)]
        await rest(flood[39][0])
        guest[1].write(b"\r\n\r\n")
        assert b" 400 " in await asyncio.wait_for(guest[0].readline(), WAIT_S), "it was served, after them all"
        for _, writer in (guest, *flood):
            writer.close()


async def test_who_left_or_is_served_takes_no_place(http: aiohttp.ClientSession) -> None:
    async with bench(limits=PeerLimits(max_waiting=2, max_waiting_per_address=2)) as server:
        sockets = []
        for eio in ("3", "4") * 4:
            _, writer = await dial(server, b"GET /")
            writer.close()
            peer = Peer(server.url, http, eio)
            socket, _ = await peer.open_websocket()
            sockets.append((peer, socket))
        for peer, socket in sockets:
            await socket.send_str("4hello")
            assert await socket.receive_str() == "4hello", peer.sid
            await socket.close()


# size


@pytest.mark.parametrize(
    "head",
    [b"GET /" + b"x" * 9000, b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101],
    ids=["line", "field", "fields"],
)
async def test_a_head_that_is_too_large_is_refused(head: bytes) -> None:
    async with bench() as server:
        reader, writer = await dial(server, head)
        writer.write(b"\r\n\r\n")
        assert b" 400 " in (await rest(reader)).partition(b"\r\n")[0]
        writer.close()


async def test_a_head_of_many_large_fields_is_refused() -> None:
    async with bench() as server:
        reader, writer = await dial(server, b"GET / HTTP/1.1\r\n")
        answer = asyncio.ensure_future(rest(reader))
        sent = 0
        while not answer.done():
            writer.write(b"X%d: %b\r\n" % (sent, b"x" * 4000))
            sent += 1
            await asyncio.wait({answer}, timeout=0.005)
        assert (await answer).startswith(b"HTTP/1.1 431 ")
        assert server.refusals == [Refusal.LARGE_REQUEST]
        assert sent < 4 * MAX_HEAD_BYTES / 4000
        writer.close()


async def test_what_is_sent_behind_a_parked_poll_is_bounded(http: aiohttp.ClientSession) -> None:
    async with bench(limits=PeerLimits(max_request_bytes=100_000)) as server:
        peer = Peer(server.url, http, "4")
        await peer.open()
        poll = get(server, f"EIO=4&transport=polling&sid={peer.sid}")
        reader, writer = await dial(server, poll + b"\r\n")
        await server.parked(peer.sid)
        for _ in range(100):
            writer.write(poll + b"".join(b"X%d: %b\r\n" % (n, b"x" * 4000) for n in range(10)) + b"\r\n")
        with suppress(ConnectionError):
            await rest(reader)
        assert server.refusals == [Refusal.LARGE_REQUEST]
        assert await server.closed(peer.sid) is CloseReason.TRANSPORT_ERROR
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("pieces", [1, 100])
async def test_a_stranger_says_64_kb_and_no_more(http: aiohttp.ClientSession, eio: str, pieces: int) -> None:
    """A WebSocket took whole megabytes of anybody, where a POST took 64 KB."""
    async with bench() as server, strangers(server):
        peer = Peer(server.url, http, eio)
        socket, _ = await peer.open_websocket()
        for _ in range(pieces):
            await socket.send_str("4" + "x" * (STRANGER_BYTES // pieces))
        await gone(socket)
        assert socket.close_code == 1009
        assert await server.closed(peer.sid) is CloseReason.MALFORMED
        assert server.refusals == [Refusal.STRANGER_BYTES]
        assert sum(map(len, server.messages)) < STRANGER_BYTES


async def test_a_stranger_that_upgrades_is_one_still(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench() as server, strangers(server):
        peer = Peer(server.url, http, eio)
        await peer.open()
        socket = await peer.upgrade()
        await socket.send_str("4" + "x" * STRANGER_BYTES)
        await gone(socket)
        assert await server.closed(peer.sid) is CloseReason.MALFORMED


async def test_a_stranger_that_posts_more_is_counted(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench() as server, strangers(server):
        peer = Peer(server.url, http, eio)
        await peer.open()
        assert (await peer.post(peer.payload("4" + "x" * STRANGER_BYTES)))[0] == 400
        assert server.refusals == [Refusal.STRANGER_BYTES]


@pytest.mark.parametrize("when", ["before", "after", "while it probes"])
async def test_who_is_admitted_says_what_it_likes(http: aiohttp.ClientSession, eio: str, when: str) -> None:
    async with bench() as server, strangers(server):
        peer = Peer(server.url, http, eio)
        if when == "after":
            socket, _ = await peer.open_websocket()
            server.connections[peer.sid].admit()
        else:
            await peer.open()
            if when == "before":
                server.connections[peer.sid].admit()
            socket = await peer.websocket()
            await socket.send_str("2probe")
            assert await socket.receive_str() == "3probe"
            if when == "while it probes":
                server.connections[peer.sid].admit()
            await socket.send_str("5")
        for _ in range(3):
            await socket.send_str("4" + "x" * 900_000)
            assert len(await socket.receive_str()) == 900_001
        await socket.close()


# rates


async def test_handshakes_over_the_rate_of_an_address_are_told_when_to_come_again(http: aiohttp.ClientSession) -> None:
    few = AdmissionLimits(handshakes_per_address_per_s=0.1)  # two at once
    async with bench(admission=few) as server:
        for _ in range(2):
            await Peer(server.url, http, "4").open()
        for transport in ("polling", "websocket"):
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"} if transport == "websocket" else {}
            query = {"EIO": "4", "transport": transport}
            async with http.get(server.url, params=query, headers=upgrade) as response:
                assert (response.status, response.headers["Connection"]) == (503, "close")
                assert await response.json() == {"code": 6, "message": "Too many handshakes"}
                assert 1 <= int(response.headers["Retry-After"]) <= 10
        assert server.refusals == [Refusal.ADDRESS_HANDSHAKE_RATE] * 2
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with aiohttp.ClientSession(connector=connector) as other:
            await Peer(server.url, other, "4").open()


async def test_upgrades_count_as_handshakes(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench(admission=AdmissionLimits(handshakes_per_address_per_s=0.1)) as server:
        peer = Peer(server.url, http, eio)
        await peer.open()
        await (await peer.websocket()).close()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await peer.websocket()
        assert (refused.value.status, server.refusals) == (503, [Refusal.ADDRESS_HANDSHAKE_RATE])
        await peer.send("4hello")
        assert server.messages == ["hello"], "and the session goes on polling"


async def test_strangers_over_the_limit_of_an_address_close_the_oldest(http: aiohttp.ClientSession) -> None:
    async with bench(admission=AdmissionLimits(max_strangers_per_address=2)) as server, strangers(server):
        found = []
        for _ in range(4):
            peer = Peer(server.url, http, "4")
            found.append((await peer.open_websocket(), peer.sid))
        for (socket, _), sid in found[:2]:
            await gone(socket)
            assert await server.closed(sid) is CloseReason.UNAUTHENTICATED
        assert server.refusals == [Refusal.CROWDED_OUT] * 2
        for (socket, _), sid in found[2:]:
            server.connections[sid].admit()
            await socket.close()
            assert await server.closed(sid) is CloseReason.CLIENT
        assert len(server.engine.admission.strangers) == 0


async def test_a_handshake_that_comes_to_nothing_leaves_no_stranger(http: aiohttp.ClientSession) -> None:
    async with bench() as server:
        query = {"EIO": "4", "transport": "websocket"}
        async with http.get(server.url, params=query, headers={"Upgrade": "websocket"}) as response:
            assert response.status == 400
        assert len(server.engine.admission.strangers) == 0


async def test_a_foreign_origin_is_counted(http: aiohttp.ClientSession, calm: Bench) -> None:
    async with http.get(calm.url, headers={"Origin": "https://evil.example"}) as response:
        assert (response.status, calm.refusals) == (403, [Refusal.ORIGIN])


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_who_sends_too_fast_is_read_slowly_and_loses_nothing(
    http: aiohttp.ClientSession, eio: str, transport: str
) -> None:
    """Its heartbeat is behind what it sent, and it is not closed for that."""
    slow = options(messages_per_s=20.0, ping_interval_s=0.5, ping_timeout_s=0.5)  # 200 at once
    async with bench(slow) as server:
        server.echo = False
        peer, other = Peer(server.url, http, eio), Peer(server.url, http, eio)
        if transport == "polling":
            await peer.open()
            sending = asyncio.ensure_future(peer.send(*(f"4{n}" for n in range(230))))
        else:
            socket, _ = await peer.open_websocket()
            for n in range(230):
                await socket.send_str(f"4{n}")
        await server.until("refusals")
        bystander, _ = await other.open_websocket()
        for n in range(20):
            await bystander.send_str(f"4bystander{n}")
        await server.until("messages", 250)
        mine = [message for message in server.messages if not str(message).startswith("bystander")]
        assert mine == [str(n) for n in range(230)]
        assert server.messages.index("bystander19") < 249, "others do not wait"
        assert set(server.refusals) == {Refusal.MESSAGE_RATE}
        if transport == "polling":
            await sending
        else:
            await socket.close()
        await bystander.close()


async def test_large_messages_are_slowed_by_their_size(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench(options(bytes_per_s=100_000.0)) as server:  # a million at once
        server.echo = False
        socket, _ = await Peer(server.url, http, eio).open_websocket()
        for _ in range(11):
            await socket.send_bytes(b"\x04" * 100_000)
        await server.until("messages", 10)
        assert server.refusals == [] or len(server.messages) >= 10
        await server.until("refusals")
        await socket.close()


# proxies


async def test_a_client_behind_a_trusted_proxy_has_its_own_address(http: aiohttp.ClientSession) -> None:
    few = AdmissionLimits(handshakes_per_address_per_s=0.05)  # one
    async with bench(admission=few, proxies=Proxies([Network("127.0.0.0/8")])) as server:
        for n in range(3):
            peer = Peer(server.url, http, "4")
            http.headers["X-Forwarded-For"] = f"203.0.113.7, 198.51.100.{n}"
            await peer.open()
            assert server.connections[peer.sid].environ["REMOTE_ADDR"] == f"198.51.100.{n}"
        assert (await Peer(server.url, http, "4").get())[0] == 503


async def test_a_proxy_that_is_not_trusted_is_warned_of_when_its_clients_are_refused(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    http.headers["X-Forwarded-For"] = "198.51.100.1"
    async with bench(admission=AdmissionLimits(handshakes_per_address_per_s=0.05)) as server:
        peer = Peer(server.url, http, "4")
        await peer.open()
        assert server.connections[peer.sid].environ["REMOTE_ADDR"] == "127.0.0.1"
        assert not caplog.records
        for _ in range(3):
            assert (await Peer(server.url, http, "4").get())[0] == 503
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def alive() -> list[peers.Peer]:
    return [found for found in gc.get_objects() if isinstance(found, peers.Peer)]


async def test_nothing_is_left_of_connections_that_went(http: aiohttp.ClientSession) -> None:
    """Places, deadlines and callbacks go with the connection."""
    engine, app = EngineServer(CALM), web.Application()
    engine.attach(app)
    listener = Listener("test", Listen("127.0.0.1", 0), app, engine.refused)
    await listener.start()
    url = f"{listener.url}/engine.io/"
    assert listener._peers is not None
    raw = [await asyncio.open_connection("127.0.0.1", URL(url).port) for _ in range(20)]
    for _, writer in raw:
        writer.write(b"GET /")
    for eio in ("3", "4"):
        socket, _ = await Peer(url, http, eio).open_websocket()
        await socket.close()
    assert len(alive()) >= 20
    for _, writer in raw:
        writer.close()
        await writer.wait_closed()
    for _ in range(5):
        async with aiohttp.ClientSession() as session:  # round trips: the server has seen the ends
            await session.get(url)
    while listener._peers._waiting:  # noqa: ASYNC110 - the server has no such event
        await asyncio.sleep(0)
    assert len(engine.admission.strangers) == len(listener._peers._alarms) == 0
    await listener.close()
    await engine.shutdown()
    gc.collect()
    assert alive() == []
