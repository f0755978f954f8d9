"""The two roads of a WebSocket's handshake: past aiohttp where it comes first and whole, else through it."""

import asyncio
import re
import socket
import time
from unittest.mock import Mock

import aiohttp
import msgspec
import pytest
from aiohttp.http_parser import HttpRequestParserPy
from yarl import URL

from gateway.addresses import Network
from gateway.admission import AdmissionLimits, Refusal
from gateway.engine import polling
from gateway.engine.websocket import encode_header
from gateway.proxies import Proxies
from gateway.relay import Relay

from .harness import CALM, Bench, Peer, bench

WAIT_S = 10.0
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
ASKS = ("Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", KEY)
QUERY = "EIO=4&transport=websocket"
EVERYTHING = msgspec.structs.replace(CALM, cookie="io", origins=("http://a",), deflate_websockets_over_bytes=1024)
PROXIES = Proxies([Network("127.0.0.0/8")])  # so that X-Forwarded-For is read
HELLO = b"4hello"
FRAME = bytes((encode_header(1, len(HELLO))[0], 0x80 | len(HELLO), 0, 0, 0, 0)) + HELLO  # masked with zeros


def head(*headers: str, query: str = QUERY, path: str = "/engine.io/", line: str = "GET {} HTTP/1.1") -> bytes:
    return "\r\n".join((line.format(f"{path}?{query}"), *headers, "", "")).encode("latin-1")


def without(name: str, *more: str) -> tuple[str, ...]:
    """The headers of a handshake, but one, and others."""
    return (*(header for header in ASKS if not header.startswith(name)), *more)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What came to the engine through aiohttp."""
    seen: list[str] = []
    handler = polling.handler

    def noting(serve: polling.Handler) -> polling.Handler:
        async def note(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            seen.append(request.query_string)
            return await serve(request)

        return handler(note)

    monkeypatch.setattr(polling, "handler", noting)
    return seen


async def say(server: Bench, said: bytes) -> tuple[bytes, asyncio.StreamWriter]:
    """What the server answers, but for what differs each time: until its first packet, if it lets us in."""
    url = URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(said)
    async with asyncio.timeout(WAIT_S):
        answer = await reader.readuntil(b"\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 101 "):
            answer += await reader.readuntil(b"}")
        elif size := re.search(rb"Content-Length: (\d+)", answer):
            answer += await reader.readexactly(int(size[1]))
    return re.sub(rb'Date: [^\r]+|"sid":"[^"]+"|io=[^;]+', b"", answer), writer


HEADS = {
    "plain": head(*ASKS),
    "engine 3": head(*ASKS, query="EIO=3&transport=websocket&b64=1"),
    "no slash": head(*ASKS, path="/engine.io"),
    "two tokens": head(*without("Connection", "Connection: keep-alive, upgrade")),
    "two lines": head(*without("Connection", "Connection: keep-alive", "Connection: Upgrade")),
    "capitals": head(*without("Upgrade", "UPGRADE: WebSocket ")),
    "protocols": head(*ASKS, "Sec-WebSocket-Protocol: , \xff, b, c"),
    "deflate": head(*ASKS, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
    "deflate, badly": head(*ASKS, "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99"),
    "deflate, endlessly": head(
        *ASKS, f"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={'9' * 5000}"
    ),
    "listed origin": head(*ASKS, "Origin: http://a"),
    "own origin": head(*ASKS, "Origin: http://x"),
    "other origin": head(*ASKS, "Origin: http://b"),
    "HTTP/1.0": head(*ASKS, line="GET {} HTTP/1.0"),
    "escaped query": head(*ASKS, query="EIO=4&transport=web%73ocket"),
    "escaped path": head(*ASKS, path="/engine%2Eio/"),
    "escaped slash": head(*ASKS, path="/%2Fengine.io/"),
    "other path": head(*ASKS, path="/other/"),
    "whole URL": head(*ASKS, path="http://x/engine.io/"),
    "no host": head(*without("Host")),
    "no key": head(*without("Sec-WebSocket-Key")),
    "short key": head(*without("Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAA")),
    "no base64": head(*without("Sec-WebSocket-Key", "Sec-WebSocket-Key: =")),
    "key beyond ASCII": head(*without("Sec-WebSocket-Key", "Sec-WebSocket-Key: \xff")),
    "no version": head(*without("Sec-WebSocket-Version")),
    "other version": head(*without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 12")),
    "no upgrade": head(*without("Upgrade")),
    "other upgrade": head(*without("Upgrade", "Upgrade: h2c")),
    "no connection": head(*without("Connection")),
    "other connection": head(*without("Connection", "Connection: close")),
    "polling": head(*ASKS, query="EIO=4&transport=polling"),
    "two transports": head(*ASKS, query="EIO=4&transport=polling&transport=websocket"),
    "no EIO": head(*ASKS, query="transport=websocket"),
    "EIO 9": head(*ASKS, query="EIO=9&transport=websocket"),
    "unknown sid": head(*ASKS, query=f"{QUERY}&sid=x"),
    "empty sid": head(*ASKS, query=f"{QUERY}&sid="),
    "post": head(*ASKS, line="POST {} HTTP/1.1"),
    "options": head(*ASKS, line="OPTIONS {} HTTP/1.1"),
    "body": head(*ASKS, "Content-Length: 2") + b"ab",
    "expectation": head(*ASKS, "Expect: tea"),
    "no header": head(*ASKS, "nonsense"),
    "long header": head(*ASKS, f"X: {'x' * 9000}"),
    "no HTTP": head(*ASKS, line="GET {} HTTP/x"),
    "query beyond ASCII": head(*ASKS, query=f"{QUERY}&a=\xff"),
    "EIO beyond ASCII": head(*ASKS, query="EIO=%ff&transport=websocket"),
    "sid beyond ASCII": head(*ASKS, query=f"{QUERY}&s%69d=%ff"),
    "own origin beyond ASCII": head(*without("Host", "Host: \xff", "Origin: http://\xff")),
    **{
        f"{name} beyond ASCII": head(*without(name), f"{name}: \xff")
        for name in (
            "Authorization", "Connection", "Cookie", "Host", "Origin", "Sec-WebSocket-Extensions",
            "Sec-WebSocket-Version", "Upgrade", "User-Agent", "X-Forwarded-For",
        )
    },
}  # fmt: skip
FORGED = {
    "relay": head(*ASKS, "X-Gateway-Relay: now 00"),
    "relay beyond ASCII": head(*ASKS, "X-Gateway-Relay: now \xff"),
    "relay of a query beyond ASCII": head(*ASKS, "X-Gateway-Relay: now 00", query=f"{QUERY}&a=%ff"),
    "relay at no time": head(*ASKS, "X-Gateway-Relay: \xff 00"),
}


async def both_roads(said: bytes) -> list[tuple[bytes, list[Refusal]]]:
    """What a server answers that takes what other nodes relay, and what it counts: past aiohttp, and through it."""
    answers = []
    for cancelling in (True, False):  # without it, nobody is asked before aiohttp
        async with bench(EVERYTHING, cancelling=cancelling, proxies=PROXIES) as server:
            server.engine.relay = Relay(
                "n", b"secret", {}, max_requests=1, max_bytes=1, poll_s=WAIT_S, relayed=lambda _: None
            )
            answer, writer = await say(server, said)
            answers.append((answer, server.refusals))
            writer.close()
    return answers


@pytest.mark.parametrize("said", HEADS.values(), ids=HEADS)
async def test_both_roads_give_the_same_answer(said: bytes) -> None:
    past, through = await both_roads(said)
    assert past == through


async def assert_forged(said: bytes) -> None:
    for answer, refusals in await both_roads(said.replace(b"now", str(int(time.time())).encode())):
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert refusals == [Refusal.FORGED_RELAY]


@pytest.mark.parametrize("said", FORGED.values(), ids=FORGED)
async def test_both_roads_refuse_what_no_other_node_relayed(said: bytes) -> None:
    await assert_forged(said)


async def test_a_query_beyond_ascii_is_refused_where_aiohttp_lets_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parser in Python does, which it has where nobody compiled the other."""
    for user in ("gateway.engine.handshake", "aiohttp.web_protocol"):
        monkeypatch.setattr(f"{user}.HttpRequestParser", HttpRequestParserPy)
    await assert_forged(head(*ASKS, "X-Gateway-Relay: now \xff", query=f"{QUERY}&a=\xff"))


@pytest.mark.parametrize("name", ["plain", "engine 3", "no slash", "two tokens", "deflate", "own origin", "protocols"])
async def test_a_handshake_that_comes_whole_is_no_request_of_aiohttp(requests: list[str], name: str) -> None:
    async with bench(EVERYTHING) as server:
        answer, writer = await say(server, HEADS[name])
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert requests == []
        writer.close()


@pytest.mark.parametrize(("name", "through_aiohttp"), [("plain", 0), ("escaped query", 1)])
async def test_the_kernel_looks_after_a_connection_on_either_road(
    requests: list[str], name: str, through_aiohttp: int
) -> None:
    """A peer that is gone is noticed, too, where nothing is sent to it."""
    async with bench() as server:
        _, writer = await say(server, HEADS[name])
        assert len(requests) == through_aiohttp
        (connection,) = server.engine.connections
        assert connection._socket is not None
        kernel = connection._socket._transport.get_extra_info("socket")
        assert kernel.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        writer.close()


async def test_frames_that_come_with_the_handshake_are_taken(requests: list[str]) -> None:
    async with bench() as server:
        _, writer = await say(server, HEADS["plain"] + FRAME + FRAME[:4])
        writer.write(FRAME[4:])
        await server.until("messages", 2)
        assert server.messages == ["hello", "hello"]
        assert requests == []
        writer.close()


async def test_a_handshake_may_follow_another_request_on_its_connection(requests: list[str]) -> None:
    """So a proxy does that keeps connections: aiohttp has it then."""
    async with bench() as server:
        answer, writer = await say(server, head("Host: x", query="transport=none") + HEADS["plain"] + FRAME)
        assert answer.startswith(b"HTTP/1.1 400 ")
        await server.until("messages")
        assert server.messages == ["hello"]
        assert requests == ["transport=none", QUERY]
        writer.close()


async def test_a_handshake_may_come_in_pieces(requests: list[str]) -> None:
    said = HEADS["plain"]
    async with bench() as server:
        url = URL(server.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for at in range(len(said)):
            writer.write(said[at : at + 1])
            await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 101 ")
        assert requests == [QUERY]
        writer.close()


async def test_who_is_refused_pays_once(requests: list[str]) -> None:
    """Being asked twice, before aiohttp and by it, would take two from the address's allowance."""
    limits = AdmissionLimits(handshakes_per_address_per_s=0.1, max_strangers=1)  # two at once
    async with bench(admission=limits) as server:
        server.engine.on_connected = lambda connection: None
        answers = [await say(server, HEADS["plain"]) for _ in range(3)]
        statuses = [answer.split(b" ")[1] for answer, _ in answers]
        assert statuses == [b"101", b"503", b"503"]
        assert server.refusals == [Refusal.STRANGERS, Refusal.ADDRESS_HANDSHAKE_RATE]
        assert requests == [QUERY, QUERY]
        for _, writer in answers:
            writer.close()


async def test_a_stranger_makes_room_for_one_past_aiohttp_too(requests: list[str]) -> None:
    async with bench(admission=AdmissionLimits(max_strangers_per_address=1)) as server:
        server.engine.on_connected = lambda connection: None
        writers = [(await say(server, HEADS["plain"]))[1] for _ in range(2)]
        assert server.refusals == [Refusal.CROWDED_OUT]
        assert len(server.engine.connections) == 1
        assert requests == []
        for writer in writers:
            writer.close()


async def test_a_server_that_shuts_down_refuses_a_handshake(http: aiohttp.ClientSession) -> None:
    async with bench() as server:
        await server.engine.shutdown()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await Peer(server.url, http, "4").websocket()
        assert refused.value.status == 503


async def test_a_session_that_never_began_has_no_place() -> None:
    async with bench() as server:
        transport = Mock(asyncio.Transport)
        transport.get_extra_info.return_value = None
        transport.set_protocol.side_effect = OSError
        with pytest.raises(OSError):  # noqa: PT011 - whatever it says
            server.engine.take(transport, HEADS["plain"])
        assert len(server.engine.admission.strangers) == 0
