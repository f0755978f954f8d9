"""The authenticator with a service of one's own: what it asks, what it remembers, and how much it asks at once."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.auth.base import DeviceKey, Verdict
from gateway.auth.http import HttpAuthenticator, Service
from tests.auth.registries import KeyService, http_authenticator, key_service

CLAIM = DeviceKey("AC1", "right", "192.0.2.7")
WRONG = DeviceKey("AC1", "wrong", "192.0.2.7")


@pytest.fixture
async def service() -> AsyncIterator[KeyService]:
    async with key_service() as running:
        running.keys["AC1"] = "right"
        yield running


@pytest.fixture
async def asking(service: KeyService) -> AsyncIterator[HttpAuthenticator]:
    authenticator = http_authenticator(service.url)
    yield authenticator
    await authenticator.close()


async def requests(service: KeyService, count: int) -> None:
    """Wait until so many requests are there."""
    async with asyncio.timeout(10):
        while len(service.requests) < count:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.001)


async def test_asks_with_serial_key_and_address(service: KeyService) -> None:
    authenticator = http_authenticator(service.url, "s3cret")
    assert await authenticator.check(CLAIM) is Verdict.ACCEPTED
    assert await authenticator.check(DeviceKey("AC2", "密钥:")) is Verdict.DENIED
    (first, headers), (second, _) = service.requests
    assert first == {"serial": "AC1", "key": "right", "address": "192.0.2.7"}
    assert second == {"serial": "AC2", "key": "密钥:"}
    assert (headers["Authorization"], headers["Content-Type"]) == ("Bearer s3cret", "application/json")
    await authenticator.close()


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(200, Verdict.ACCEPTED), (204, Verdict.ACCEPTED)]
    + [(status, Verdict.DENIED) for status in (401, 403, 404)]
    + [(status, Verdict.UNAVAILABLE) for status in (201, 202, 301, 307, 400, 402, 405, 407, 429, 500, 502, 503)],
)
async def test_what_a_status_means(
    service: KeyService, asking: HttpAuthenticator, status: int, verdict: Verdict
) -> None:
    service.status = status
    assert await asking.check(CLAIM) is verdict
    assert len(service.requests) == 1, "a redirect is not followed: it would take the key elsewhere"


async def test_nobody_there_too_late_or_nonsense_is_no_answer(service: KeyService, unused_tcp: str) -> None:
    slow = http_authenticator(service.url, timeout_s=0.05)
    service.hold.clear()
    for authenticator in (slow, http_authenticator(unused_tcp)):
        assert await authenticator.check(CLAIM) is Verdict.UNAVAILABLE
        await authenticator.close()

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x00\xffnot HTTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    confused = http_authenticator(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert await confused.check(CLAIM) is Verdict.UNAVAILABLE
    await confused.close()
    server.close()


@pytest.fixture
async def unused_tcp() -> str:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}/check"


async def test_answers_are_remembered_and_outages_are_not(service: KeyService, asking: HttpAuthenticator) -> None:
    for _ in range(3):
        assert await asking.check(CLAIM) is Verdict.ACCEPTED
        assert await asking.check(WRONG) is Verdict.DENIED
    assert len(service.requests) == 2
    assert await asking.check(DeviceKey("AC1", "right", "192.0.2.8")) is Verdict.ACCEPTED
    assert len(service.requests) == 3, "the service may decide by the address"
    service.status = 503
    claim = DeviceKey("AC2", "x")
    for number in range(3):
        assert await asking.check(claim) is Verdict.UNAVAILABLE
        assert len(service.requests) == 4 + number
    assert await asking.check(CLAIM) is Verdict.ACCEPTED, "what is remembered needs no service"


@pytest.mark.parametrize(("cache_s", "negative_cache_s", "asked"), [(0.0, 60.0, 4), (60.0, 0.0, 4), (0.0, 0.0, 6)])
async def test_each_cache_can_be_turned_off(
    service: KeyService, cache_s: float, negative_cache_s: float, asked: int
) -> None:
    authenticator = http_authenticator(service.url, cache_s=cache_s, negative_cache_s=negative_cache_s)
    for _ in range(3):
        await authenticator.check(CLAIM)
        await authenticator.check(WRONG)
    assert len(service.requests) == asked
    await authenticator.close()


async def test_checks_of_one_claim_share_a_request(service: KeyService, asking: HttpAuthenticator) -> None:
    service.hold.clear()
    checks = [asyncio.create_task(asking.check(claim)) for claim in (CLAIM, WRONG) * 10]
    await requests(service, 2)
    service.hold.set()
    assert await asyncio.gather(*checks) == [Verdict.ACCEPTED, Verdict.DENIED] * 10
    assert len(service.requests) == 2


async def test_who_gives_up_takes_nobody_along(service: KeyService, asking: HttpAuthenticator) -> None:
    service.hold.clear()
    gives_up, waits = (asyncio.create_task(asking.check(CLAIM)) for _ in range(2))
    await requests(service, 1)
    gives_up.cancel()
    await asyncio.wait({gives_up})
    service.hold.set()
    assert await waits is Verdict.ACCEPTED
    assert len(service.requests) == 1


async def test_a_request_that_nobody_waits_for_ends(service: KeyService, asking: HttpAuthenticator) -> None:
    service.hold.clear()
    check = asyncio.create_task(asking.check(CLAIM))
    await requests(service, 1)
    (request,) = (task for task in asyncio.all_tasks() if task.get_name() == "ask")
    check.cancel()
    await asyncio.wait({check, request}, timeout=10)
    assert request.cancelled()
    again = asyncio.create_task(asking.check(CLAIM))  # not that of the one who gave up
    await requests(service, 2)
    service.hold.set()
    assert await again is Verdict.ACCEPTED
    assert asking._asking == {}


async def test_so_many_requests_at_once_and_no_more(service: KeyService) -> None:
    authenticator = http_authenticator(service.url, max_requests=3)
    service.hold.clear()
    checks = [asyncio.create_task(authenticator.check(DeviceKey("AC1", f"{number}"))) for number in range(20)]
    await requests(service, 3)
    service.hold.set()
    assert set(await asyncio.gather(*checks)) == {Verdict.DENIED}
    assert (service.peak, len(service.requests)) == (3, 20)
    await authenticator.close()


async def test_no_key_is_kept_in_memory(service: KeyService, asking: HttpAuthenticator) -> None:
    service.keys["AC7"] = "geheim-right"
    for key in ("right", "wrong"):
        await asking.check(DeviceKey("AC7", f"geheim-{key}"))
    seen: set[int] = set()
    waiting: list[object] = [asking._verdicts, asking._asking, asking._secret]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type):
            seen.add(id(one))
            assert b"geheim" not in (one if isinstance(one, bytes) else str(one).encode())
            waiting.extend(gc.get_referents(one))
    assert len(asking._verdicts) == 2


async def test_an_outage_is_logged_once_and_so_is_its_end(
    service: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway")
    authenticator = http_authenticator(service.url, "s3cret", cache_s=0)
    for status in (None, 500, 502, None, None, 503):
        service.status = status
        await authenticator.check(CLAIM)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
    assert caplog.records[0].__dict__["problem"] == "status 500"
    assert "s3cret" not in repr([vars(record) for record in caplog.records])
    assert "s3cret" not in repr(Service("http://h", 1.0, 1, "s3cret"))
    await authenticator.close()


async def test_connections_are_used_again(asking: HttpAuthenticator, service: KeyService) -> None:
    """A handshake for each device would make a slow service slower."""
    peers: set[object] = set()

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    authenticator = http_authenticator(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    for number in range(5):
        assert await authenticator.check(DeviceKey("AC1", f"{number}")) is Verdict.ACCEPTED
    assert len(peers) == 1
    await authenticator.close()
    await runner.cleanup()
