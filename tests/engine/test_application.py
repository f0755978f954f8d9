"""What the application is told, in which order, and what it may do wrong."""

import asyncio
import gc
import logging
from collections.abc import Awaitable
from typing import Any

import aiohttp
import msgspec
import pytest

from gateway.admission import AdmissionLimits, Refusal
from gateway.engine.connection import Connection
from gateway.engine.effects import CloseReason, Transport
from gateway.engine.options import EngineOptions

from .harness import CALM, Bench, Peer, bench, gone


def options(**changes: Any) -> EngineOptions:
    return msgspec.structs.replace(CALM, **changes)


# -- the application ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["on_connected", "on_message"])
@pytest.mark.parametrize("how", ["sync", "async"])
async def test_failing_callback_closes_its_connection(
    calm: Bench, peer: Peer, caplog: pytest.LogCaptureFixture, which: str, how: str
) -> None:
    """An exception in the connect handler left the client connected to nothing."""
    before = calm.engine.on_connected

    def fail(connection: Connection, *_: object) -> Awaitable[None] | None:
        before(connection)
        if how == "sync":
            raise ZeroDivisionError
        return fail_later()

    async def fail_later() -> None:
        raise ZeroDivisionError

    setattr(calm.engine, which, fail)
    socket, _ = await peer.open_websocket()
    await socket.send_str("4x")
    await gone(socket)
    assert await calm.closed(peer.sid) is CloseReason.INTERNAL_ERROR
    assert [record.message for record in caplog.records] == ["application callback failed"]


async def test_who_is_not_admitted_goes_and_gives_its_place_back(http: aiohttp.ClientSession, eio: str) -> None:
    """A peer that never joined anything lived for ever."""
    async with bench(options(admission_timeout_s=0.1), admission=AdmissionLimits(max_strangers=1)) as server:
        server.engine.on_connected = lambda connection: None
        stranger = Peer(server.url, http, eio)
        socket, _ = await stranger.open_websocket()
        for transport in ("polling", "websocket"):
            query = {"EIO": eio, "transport": transport}
            headers = {"Connection": "Upgrade", "Upgrade": "websocket"} if transport == "websocket" else {}
            async with http.get(server.url, params=query, headers=headers) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "5"
        assert server.refusals == [Refusal.STRANGERS] * 2
        assert await server.closed(stranger.sid) is CloseReason.UNAUTHENTICATED
        await gone(socket)
        await Peer(server.url, http, eio).open()


async def test_disconnect_is_immediate(calm: Bench, peer: Peer) -> None:
    """It took interval and timeout."""
    socket, _ = await peer.open_websocket()
    calm.engine.close(peer.sid)
    assert calm.reasons == {peer.sid: [CloseReason.SERVER]}
    await gone(socket)


async def test_shutdown_closes_everyone_and_waits_for_the_callbacks(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench(CALM) as server:
        told: list[CloseReason] = []

        async def note(reason: CloseReason) -> None:
            await asyncio.sleep(0)
            told.append(reason)

        server.engine.on_closed = lambda connection, reason: note(reason)
        polls, streams = Peer(server.url, http, eio), Peer(server.url, http, eio)
        await polls.open()
        poll = asyncio.ensure_future(polls.get())
        await server.parked(polls.sid)
        socket, _ = await streams.open_websocket()
        await server.engine.shutdown()
        assert told == [CloseReason.SHUTDOWN] * 2
        assert await poll == (200, polls.payload("1"))
        await gone(socket)
        polls.sid = ""
        assert (await polls.get())[0] == 503


async def test_closed_connection_is_not_held(calm: Bench, peer: Peer) -> None:
    """A wheel or a registry that holds on to the dead makes every reconnect a leak."""
    socket, _ = await peer.open_websocket()
    await socket.close()
    assert await calm.closed(peer.sid) is CloseReason.CLIENT
    del calm.connections[peer.sid]
    assert len(calm.engine.connections) == 0
    assert len(calm.engine._alarms) == 0
    for _ in range(20):  # round trips: the handler has to end
        await peer.http.get(calm.url)
        gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Connection) and one.sid == peer.sid]


async def test_environ_tells_where_the_peer_is(calm: Bench, peer: Peer) -> None:
    """REMOTE_ADDR was always the same."""
    peer.http.headers["User-Agent"] = "Plate/1.0"
    await peer.open(serial="AC1")
    environ = calm.connections[peer.sid].environ
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["HTTP_USER_AGENT"] == "Plate/1.0"
    assert f"EIO={peer.eio}&transport=polling&serial=AC1" == environ["QUERY_STRING"]


async def test_payloads_are_not_logged(calm: Bench, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await peer.open()
    await peer.send("4secret-key")
    await peer.get()
    socket = await peer.upgrade()
    await socket.send_str("4secret-key")
    assert await socket.receive_str() == "4secret-key"
    await socket.close()
    assert "secret-key" not in caplog.text


async def test_what_others_left_with_a_browser_is_not_kept(calm: Bench, peer: Peer) -> None:
    async with peer.http.get(calm.url, params=peer.query("polling"), headers={"Cookie": "theirs=secret"}) as response:
        assert response.status == 200
    (connection,) = calm.connections.values()
    assert "secret" not in repr(connection.environ)


async def test_an_upgrade_is_told_once_the_websocket_carries_the_session(calm: Bench, peer: Peer) -> None:
    told: list[tuple[str, Transport]] = []
    calm.engine.on_upgraded = lambda connection: told.append((connection.sid, connection.transport))
    await peer.open()
    assert not told
    socket = await peer.upgrade()
    await socket.send_str("4x")
    assert (await socket.receive()).data == "4x"
    assert told == [(peer.sid, Transport.WEBSOCKET)]
