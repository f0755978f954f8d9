"""The operator's side: whether the node lives, whether it is ready, and its metrics, over HTTP.

Decides nothing: readiness and metrics are the caller's. Not for the internet; it has no authentication.
"""

import asyncio
from collections.abc import Callable, Iterator

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


def application(
    late_s: Callable[[], float],
    readiness: Callable[[], list[str]],
    registry: CollectorRegistry,
    contract: Callable[[], str],
) -> web.Application:
    """The routes.

    Args:
        late_s: by how much the event loop is late.
        readiness: why the node is not ready, nothing when it is.
        contract: the AsyncAPI YAML.
    """

    async def index(_: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def healthz(_: web.Request) -> web.Response:
        late = late_s()
        if late >= STUCK_S:
            return web.Response(text=f"the event loop is {late:.1f} s late", status=503)
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        reasons = readiness()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def metrics(request: web.Request) -> web.Response:
        return await _exposition(registry, request.headers.get("Accept", ""))

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


async def _exposition(registry: CollectorRegistry, accept: str) -> web.Response:
    """The metrics of one moment, in the format that the client prefers; the plain one if it asks for nonsense.

    Written a family at a time, between which the loop turns: all at once takes it 5 to 10 ms (measured).
    """
    try:
        encode, content_type = choose_encoder(accept)
        encode(_Family())
    except (TypeError, ValueError):  # the library trusts the header
        encode, content_type = choose_encoder("")
    end = encode(_Family())  # of OpenMetrics
    body = bytearray()
    for metric in tuple(registry.collect()):
        body += encode(_Family(metric)).removesuffix(end)
        await asyncio.sleep(0)
    return web.Response(body=bytes(body + end), headers={"Content-Type": content_type})


class _Family(CollectorRegistry):
    """A registry of what was collected before."""

    def __init__(self, *metrics: Metric) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """See CollectorRegistry."""
        return iter(self._metrics)
