import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder

from gateway import admin
from gateway.metrics import Metrics


@asynccontextmanager
async def serving(
    reasons: list[str], registry: CollectorRegistry, late_s: float = 0.0
) -> AsyncIterator[aiohttp.ClientSession]:
    """The admin port on a free port of 127.0.0.1, and a client of it."""
    subject = admin.ThisProcess(lambda: late_s, lambda: reasons, registry)
    runner = web.AppRunner(admin.application(subject, lambda: "asyncapi: 3.0.0\n"))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield session
    finally:
        await runner.cleanup()


async def test_healthz_answers_whether_ready_or_not() -> None:
    async with serving(["the broker is away"], CollectorRegistry()) as http, http.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok")


async def test_healthz_tells_of_a_loop_that_does_not_turn() -> None:
    async with serving([], CollectorRegistry(), late_s=7.0) as http, http.get("/healthz") as response:
        assert (response.status, await response.text()) == (503, "the event loop is 7.0 s late")


async def test_readyz_follows_the_reasons() -> None:
    reasons: list[str] = []
    async with serving(reasons, CollectorRegistry()) as http:
        async with http.get("/readyz") as response:
            assert (response.status, await response.json()) == (200, {"ready": True, "reasons": []})
        reasons.append("the broker is away")
        async with http.get("/readyz") as response:
            assert response.status == 503
            assert await response.json() == {"ready": False, "reasons": ["the broker is away"]}


async def test_the_index_names_the_pages_and_there_are_no_others() -> None:
    async with serving([], CollectorRegistry()) as http:
        async with http.get("/") as response:
            text = await response.text()
        assert response.content_type == "text/plain"
        for page in ("/healthz", "/readyz", "/metrics", "/asyncapi.yaml"):
            assert page in text
        async with http.get("/other") as response:
            assert response.status == 404
        async with http.post("/metrics") as response:
            assert response.status == 405


async def test_has_the_contract() -> None:
    async with serving([], CollectorRegistry()) as http, http.get("/asyncapi.yaml") as response:
        assert (response.content_type, await response.text()) == ("application/yaml", "asyncapi: 3.0.0\n")


async def test_metrics_in_the_format_that_is_asked_for() -> None:
    registry = CollectorRegistry()
    Counter("gateway_things", "Things", registry=registry).inc(3)
    async with serving([], registry) as http:
        async with http.get("/metrics") as response:
            plain = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "gateway_things_total 3.0\n" in plain
        assert "# EOF" not in plain
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with http.get("/metrics", headers=accept) as response:
            opened = await response.text()
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert opened.endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_metrics_are_written_as_the_library_writes_them_at_once(accept: str) -> None:
    """With exemplars, where the format has them."""
    make = Metrics()
    histogram = make.sessions._events["media_stop"].ack
    histogram.observe(0.3)
    histogram.exemplify(0.3, "4bf92f3577b34da6a3ce929d0e0e4736", 1700000000.0)
    registry = CollectorRegistry()
    registry.register(make.instruments)
    async with serving([], registry) as http, http.get("/metrics", headers={"Accept": accept}) as response:
        text = await response.text()
    encode, _ = choose_encoder(accept)
    assert text == encode(registry).decode()
    assert ("4bf92f3577b34da6a3ce929d0e0e4736" in text) is bool(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "text/plain;version=x",
        "application/openmetrics-text;version=1.é",
    ],
)
async def test_a_nonsensical_accept_header_gets_the_plain_format(accept: str) -> None:
    """The library's version parser raises TypeError on these, which was a 500."""
    async with (
        serving([], CollectorRegistry()) as http,
        http.get("/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")


async def test_the_registry_has_the_process() -> None:
    gc.collect()
    async with serving([], admin.registry()) as http, http.get("/metrics") as response:
        text = await response.text()
    for name in ("process_resident_memory_bytes", "python_info", "python_gc_collections_total"):
        assert f"\n{name}" in text


def test_registries_are_independent() -> None:
    assert admin.registry() is not admin.registry()
