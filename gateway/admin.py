"""The operator's side: whether the node lives, whether it is ready, and its metrics, over HTTP.

Decides nothing: readiness and metrics are the caller's. Not for the internet; it has no authentication.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.pulse import STUCK_S

INDEX = """\
socketio-mqtt-gateway
/healthz  200 while the event loop turns
/readyz   200 when devices can be served, 503 and the reasons when not
/metrics  Prometheus or OpenMetrics text
/asyncapi.yaml  the contract with services, as AsyncAPI 3.0
"""


def registry(*collectors: Collector) -> CollectorRegistry:
    """A new registry of these, and the metrics of the process, the platform and the garbage collector."""
    fresh = CollectorRegistry()
    for collector in collectors:
        fresh.register(collector)
    for of_process in (ProcessCollector, PlatformCollector, GCCollector):
        of_process(registry=fresh)
    return fresh


class Subject(Protocol):
    """Whom the pages are about."""

    async def unwell(self) -> str | None:
        """What is wrong with it, if it had better be started anew."""

    async def reasons(self) -> list[str]:
        """Why it is not ready, nothing when it is."""

    async def metrics(self, accept: str) -> tuple[str, str]:
        """Its metrics as a page, and the Content-Type of that; `accept` is what the client asks for."""


class ThisProcess:
    """One node.

    Args:
        late_s: by how much its event loop is late.
        reasons: why it is not ready.
        registry: its metrics.
    """

    def __init__(
        self, late_s: Callable[[], float], reasons: Callable[[], list[str]], registry: CollectorRegistry
    ) -> None:
        self._late_s = late_s
        self._reasons = reasons
        self._registry = registry

    async def unwell(self) -> str | None:
        """See `Subject`."""
        late = self._late_s()
        return f"the event loop is {late:.1f} s late" if late >= STUCK_S else None

    async def reasons(self) -> list[str]:
        """See `Subject`."""
        return self._reasons()

    async def metrics(self, accept: str) -> tuple[str, str]:
        """See `Subject`."""
        return await exposition(self._registry, accept)


def application(subject: Subject, contract: Callable[[], str]) -> web.Application:
    """The routes; `contract` is the AsyncAPI YAML."""

    async def index(_: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def healthz(_: web.Request) -> web.Response:
        problem = await subject.unwell()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    async def readyz(_: web.Request) -> web.Response:
        reasons = await subject.reasons()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def metrics(request: web.Request) -> web.Response:
        page, content_type = await subject.metrics(request.headers.get("Accept", ""))
        return web.Response(body=page.encode(), headers={"Content-Type": content_type})

    async def asyncapi(_: web.Request) -> web.Response:
        return web.Response(text=await asyncio.to_thread(contract), content_type="application/yaml")

    app = web.Application()
    app.add_routes(
        [
            web.get("/", index),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/asyncapi.yaml", asyncapi),
        ]
    )
    return app


async def exposition(collector: Collector, accept: str) -> tuple[str, str]:
    """The metrics of this moment, and the Content-Type: what the client prefers, plain if it asks for nonsense.

    Written a family at a time, between which the loop turns: all at once takes it 5 to 10 ms (measured).
    """
    try:
        encode, content_type = choose_encoder(accept)
        encode(_Family())
    except (TypeError, ValueError):  # the library trusts the header
        encode, content_type = choose_encoder("")
    end = encode(_Family())  # of OpenMetrics
    body = bytearray()
    for metric in tuple(collector.collect()):
        body += encode(_Family(metric)).removesuffix(end)
        await asyncio.sleep(0)
    return (body + end).decode(), content_type


class _Family(CollectorRegistry):
    """A registry of what was collected before."""

    def __init__(self, *metrics: Metric) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """See CollectorRegistry."""
        return iter(self._metrics)
