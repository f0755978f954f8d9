"""Clients older than the specifications, and HTTP around the protocol: paths, origins, cookies, compression."""

import json
from typing import Any

import aiohttp
import msgspec
import pytest
import yarl
from aiohttp import web

from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.engine.server import EngineServer
from gateway.engine.websocket import encode_header

from .harness import CALM, FAST, Bench, Peer, bench


def options(**changes: Any) -> EngineOptions:
    return msgspec.structs.replace(CALM, **changes)


# -- old clients --------------------------------------------------------------------------------------------


async def test_eio_2_always_gets_binary_bodies(calm: Bench, http: aiohttp.ClientSession) -> None:
    peer = Peer(calm.url, http, "2")
    content_type, body = await peer.get_bytes()
    assert content_type == "application/octet-stream"
    assert body.startswith(b"\x00")
    peer.sid = json.loads(body[body.index(b"{") :])["sid"]
    await peer.send("2")
    assert await peer.get_bytes() == ("application/octet-stream", b"\x00\x01\xff3")


async def test_eio_may_be_missing_where_that_is_configured(http: aiohttp.ClientSession) -> None:
    async with (
        bench(options(missing_eio_is_3=True)) as server,
        http.get(server.url, params={"transport": "polling"}) as response,
    ):
        assert response.status == 200
        (connection,) = server.connections.values()
        assert connection.generation.revision == 3


async def test_binary_post_of_eio3_clients(calm: Bench, http: aiohttp.ClientSession) -> None:
    """Java clients up to 0.9 always post this."""
    peer = Peer(calm.url, http, "3")
    await peer.open()
    body = "\x00\x09\xff".encode("latin-1") + "4中文é".encode() + b"\x01\x03\xff\x04\x00\xff"
    assert await peer.post(body, "application/octet-stream") == (200, "ok")
    assert calm.messages == ["中文é", b"\x00\xff"]


async def test_binary_post_of_eio4_clients_is_refused(calm: Bench, http: aiohttp.ClientSession) -> None:
    peer = Peer(calm.url, http, "4")
    await peer.open()
    assert (await peer.post(b"4hello", "application/octet-stream"))[0] == 400
    assert await calm.closed(peer.sid) is CloseReason.MALFORMED


async def test_polling_text_that_1x_clients_encode_twice(calm: Bench, http: aiohttp.ClientSession) -> None:
    peer = Peer(calm.url, http, "3")
    await peer.open()
    await peer.send("4中文😀".encode().decode("latin-1"))
    assert calm.messages == ["中文😀"]


async def test_jsonp(calm: Bench, http: aiohttp.ClientSession) -> None:
    peer = Peer(calm.url, http, "3")
    status, script = await peer.get(j="0")
    assert status == 200
    assert script.startswith('___eio[0]("')
    assert script.endswith('");')
    peer.sid = json.loads(json.loads(script[10:-2]).partition(":")[2][1:])["sid"]
    form = aiohttp.FormData({"d": "5:4中文\\n€3:4ab"})
    async with http.post(peer.url, params=peer.query("polling", j="0"), data=form) as response:
        assert (response.status, await response.text()) == (200, "ok")
    calm.connections[peer.sid].send(b"\x01")
    assert await peer.get(j="1") == (
        200,
        '___eio[1]("6:4\\u4e2d\\u6587\\n\\u20ac3:4ab6:b4AQ==");'.replace("6:4", "5:4", 1),
    )


async def test_b64_over_a_websocket(calm: Bench, http: aiohttp.ClientSession) -> None:
    socket, _ = await Peer(calm.url, http, "3").open_websocket(b64="1")
    await socket.send_str("b4AQI=")
    assert await socket.receive_str() == "b4AQI="
    await socket.close()


# -- HTTP around it -----------------------------------------------------------------------------------------


async def test_path_needs_no_slash_at_its_end(calm: Bench, http: aiohttp.ClientSession, eio: str) -> None:
    await Peer(calm.url.rstrip("/"), http, eio).open()


ORIGIN = "https://school.example"


@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",)])
async def test_allowed_origin_is_echoed_with_credentials(http: aiohttp.ClientSession, origins: tuple[str, ...]) -> None:
    async with bench(options(origins=origins)) as server:
        headers = {"Origin": ORIGIN, "Access-Control-Request-Headers": "x-token"}
        query = {"EIO": "3", "transport": "polling"}
        async with http.get(server.url, params=query, headers=headers) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
            assert response.headers["Vary"] == "Origin"
        async with http.options(server.url, headers=headers) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert response.headers["Access-Control-Allow-Headers"] == "x-token"
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
        async with http.get(server.url, headers=headers) as response:
            assert response.status == 400
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN  # or the page cannot read it
        socket = await http.ws_connect(server.url, params={"EIO": "4", "transport": "websocket"}, origin=ORIGIN)
        await socket.close()


async def test_other_origins_are_refused(http: aiohttp.ClientSession) -> None:
    async with bench(options(origins=(ORIGIN,))) as server:
        headers = {"Origin": "https://evil.example"}
        for method in ("GET", "OPTIONS", "POST"):
            query = {"EIO": "4", "transport": "polling"}
            async with http.request(method, server.url, params=query, headers=headers) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(server.url, params={"EIO": "4", "transport": "websocket"}, origin=headers["Origin"])
        assert refused.value.status == 403
        assert not server.connections


async def test_cookie_is_set_where_it_is_asked_for(http: aiohttp.ClientSession, eio: str) -> None:
    async with bench(options(cookie="io")) as server:
        query = {"EIO": eio, "transport": "polling"}
        async with http.get(server.url, params=query) as response:
            (sid,) = server.connections
            assert response.headers["Set-Cookie"] == f"io={sid}; Path=/; HttpOnly; SameSite=Lax"
        socket = await http.ws_connect(server.url, params=query | {"transport": "websocket"})
        assert list(server.connections)[1] in socket._response.headers["Set-Cookie"]
        await socket.close()


async def test_long_polls_are_gzipped_for_those_who_accept_it(calm: Bench, peer: Peer) -> None:
    await peer.open()
    connection = calm.connections[peer.sid]
    for text, accept, encoding in (
        ("short", "gzip", None),
        ("long" * 1000, "gzip, deflate", "gzip"),
        ("long" * 1000, "identity", None),
    ):
        connection.send(text)
        headers = {"Accept-Encoding": accept}
        async with peer.http.get(peer.url, params=peer.query("polling"), headers=headers) as response:
            assert response.headers.get("Content-Encoding") == encoding
            assert await response.text() == peer.payload("4" + text)


async def test_deflate_is_off_by_default(calm: Bench, http: aiohttp.ClientSession, eio: str) -> None:
    """It was negotiated unless told not to, at four times the memory."""
    query = {"EIO": eio, "transport": "websocket"}
    socket = await http.ws_connect(calm.url, params=query, compress=15)
    assert not socket.compress
    await socket.close()


@pytest.mark.parametrize("window_bits", [9, 15])
async def test_deflate_where_it_is_asked_for(http: aiohttp.ClientSession, eio: str, window_bits: int) -> None:
    async with bench(options(deflate_websockets_over_bytes=100)) as server:
        query = {"EIO": eio, "transport": "websocket"}
        socket = await http.ws_connect(server.url, params=query, compress=window_bits)
        assert socket.compress
        await socket.receive_str()
        for text in ("4short", "4" + "long" * 1000, "4" + "中文" * 50_000, "4short again"):
            await socket.send_str(text)
            assert await socket.receive_str() == text
        await socket.close()


@pytest.mark.parametrize(("length", "header"), [(125, 2), (126, 4), (65_535, 4), (65_536, 10)])
def test_frame_header(length: int, header: int) -> None:
    assert len(encode_header(1, length)) == header
    assert encode_header(2, length, deflated=True)[0] == 0xC2


async def test_announced_intervals_are_whole_milliseconds(http: aiohttp.ClientSession, eio: str) -> None:
    """Intervals below a second were cut to nothing."""
    async with bench(msgspec.structs.replace(FAST, ping_interval_s=1.5, ping_timeout_s=0.001)) as server:
        handshake = await Peer(server.url, http, eio).open()
        assert (handshake["pingInterval"], handshake["pingTimeout"]) == (1500, 1)


def test_attach_serves_the_path_of_the_application() -> None:
    app = web.Application()
    EngineServer().attach(app, "/socket/socket.io")
    paths = {resource.canonical for resource in app.router.resources()}
    assert paths == {"/socket/socket.io", "/socket/socket.io/"}


async def test_pages_of_the_server_itself_are_allowed(http: aiohttp.ClientSession) -> None:
    """Some native clients name the server as their origin; behind a proxy that ends TLS its scheme differs."""
    async with bench(options(origins=())) as server:
        host = str(yarl.URL(server.url).authority)
        for scheme in ("http", "https"):
            headers = {"Origin": f"{scheme}://{host}"}
            async with http.get(server.url, params={"EIO": "4", "transport": "polling"}, headers=headers) as response:
                assert response.status == 200


async def test_nobody_is_told_which_version_answers(calm: Bench, peer: Peer) -> None:
    for query in ({}, peer.query("polling")):
        async with peer.http.get(calm.url, params=query) as response:
            assert "Server" not in response.headers
    socket, _ = await peer.open_websocket()
    assert "Server" not in socket._response.headers
    await socket.close()
