"""Spans of commands: from a session's facts and effects, and to a collector over OTLP."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gateway import facts as f
from gateway import tracing
from gateway.bodies import Client, Life
from gateway.catalog import Catalog
from gateway.limits import Limits, Shared
from gateway.session import DeviceSession
from gateway.topics import Topics
from gateway.tracing import Tracer

CATALOG = Catalog()
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
OK = ({"ack": True},)


class World:
    """A session whose every step is traced; its clock is the real one and only its differences count."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = Tracer(exporter or self.exporter, "gw-1")
        self.session = DeviceSession(
            "AC1", Life("gw-1", "2026"), Topics("gw/v1"), CATALOG, Limits(max_attempts=2), Shared(999, 1 << 20), "n"
        )
        self.now = 1000.0
        self.sent = 0
        self.tell(f.LinkOpened(resumed=False))

    def tell(self, fact: f.Fact, after_s: float = 0.0) -> list[f.Effect]:
        self.now += after_s
        effects = self.session.handle(fact, self.now)
        self.tracer.observe("AC1", fact, effects, self.now)
        return effects

    def attach(self) -> None:
        self.tell(f.Attached(1, Client(4, "websocket", ""), ""))

    def send(self, traceparent: str | None = TRACEPARENT, qos: int = 1) -> None:
        self.sent += 1
        answer = f.Answer("t", traceparent=traceparent)
        delivery = self.sent if qos else None
        self.tell(f.Command(f"c{self.sent}", CATALOG["bind_class"], (), answer, qos, 60.0, 10.0, delivery))

    def spans(self) -> dict[str, ReadableSpan]:
        """The spans by name, once all of them are exported."""
        self.tracer.close()
        spans = self.exporter.get_finished_spans()
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}


def took_s(span: ReadableSpan) -> float:
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def test_a_command_its_emission_and_its_outcome_are_children_of_the_senders_span() -> None:
    world = World()
    world.attach()
    world.send()
    world.tell(f.Acked(1, 1, OK), after_s=1.5)
    world.tell(f.Published(1), after_s=0.25)
    spans = world.spans()
    assert set(spans) == {"command bind_class", "emit", "publish"}
    command = spans["command bind_class"]
    assert all(f"{span.context.trace_id:032x}" == TRACE for span in spans.values() if span.context)
    assert parent_of(command) == PARENT
    assert command.context is not None
    assert parent_of(spans["emit"]) == parent_of(spans["publish"]) == f"{command.context.span_id:016x}"
    assert [took_s(spans[name]) for name in ("command bind_class", "emit", "publish")] == pytest.approx(
        [1.5, 1.5, 0.25], abs=0.01
    )
    assert command.attributes == {
        "messaging.system": "mqtt",
        "messaging.message.id": "c1",
        "gateway.serial": "AC1",
        "gateway.event": "bind_class",
        "gateway.qos": 1,
        "gateway.status": "acked",
        "gateway.attempts": 1,
    }
    assert spans["publish"].attributes == {"mqtt.reason_code": 0}
    assert command.status.status_code is StatusCode.UNSET
    assert command.resource.attributes["service.instance.id"] == "gw-1"
    assert (world.tracer.exported, world.tracer.dropped) == (3, 0)


def test_what_a_held_command_waits_is_a_span_and_so_is_each_attempt() -> None:
    world = World()
    world.send()
    world.now += 4
    world.attach()
    world.tell(f.Ticked(), after_s=10)
    world.tell(f.Ticked(), after_s=10)
    world.tracer.close()
    spans = world.exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == ["command bind_class", "emit", "emit", "publish", "wait"]
    (wait,) = (span for span in spans if span.name == "wait")
    assert took_s(wait) == pytest.approx(4, abs=0.01)
    (command,) = (span for span in spans if span.name == "command bind_class")
    assert took_s(command) == pytest.approx(24, abs=0.01)
    assert command.status.status_code is StatusCode.ERROR
    assert command.status.description == "no ack within 10 s"


def test_a_late_ack_is_a_span_of_its_own() -> None:
    world = World()
    world.attach()
    world.send(qos=0)
    world.tell(f.Ticked(), after_s=10)
    world.tell(f.Acked(1, 1, OK), after_s=5)
    late = world.spans()["late ack"]
    assert parent_of(late) == PARENT
    assert took_s(late) == pytest.approx(15, abs=0.01)


@pytest.mark.parametrize("traceparent", [None, f"00-{TRACE}-{PARENT}-00"])
def test_nothing_is_made_of_a_command_whose_trace_nobody_records(traceparent: str | None) -> None:
    world = World()
    world.attach()
    world.send(traceparent)
    world.tell(f.Acked(1, 1, OK))
    assert world.spans() == {}
    assert not world.tracer._emissions


def test_nothing_is_kept_of_commands_that_move_away() -> None:
    world = World()
    world.attach()
    world.send()
    world.tell(f.Moved())
    assert world.spans() == {}
    assert not world.tracer._emissions


class Hanging(SpanExporter):
    """A collector that says nothing for a while, and then no."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        assert self.released.wait(20)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing to end."""


def test_what_no_collector_takes_is_dropped_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_PUBLISHING", 10)
    hanging = Hanging()
    world = World(hanging)
    world.attach()
    for number in range(1, 2001):
        world.send()
        world.tell(f.Acked(1, number, OK))
    assert world.tracer._made <= tracing.MAX_WAITING + 3
    assert len(world.tracer._publishing) <= 10
    unmade = world.tracer.dropped
    assert 1000 < unmade < 2000
    hanging.released.set()
    world.tracer.close()
    assert world.tracer.exported == 0
    assert world.tracer.dropped == unmade + world.tracer._made


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, "asyncio.Queue[ExportTraceServiceRequest]"]]:
    """An OTLP receiver: its URL, and what it was sent."""
    received: asyncio.Queue[ExportTraceServiceRequest] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        received.put_nowait(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1/traces", received
    finally:
        await runner.cleanup()


async def test_spans_reach_a_collector() -> None:
    async with collector() as (url, received):
        world = World()
        world.tracer = Tracer.to(url, "gw-1")
        world.attach()
        world.send()
        world.tell(f.Acked(1, 1, OK))
        await asyncio.to_thread(world.tracer.close)
        request = received.get_nowait()
    (resource,) = request.resource_spans
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["command bind_class", "emit", "publish"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}


def test_nothing_is_imported_when_it_is_off() -> None:
    """Nor does a gateway need the packages, which an extra brings."""
    code = (
        "import sys; from gateway.app import Gateway; from gateway.config import load; "
        "import asyncio; asyncio.run(asyncio.sleep(0)); "
        "from gateway.observers import tracer_of; assert tracer_of(load(None, {}, {}).tracing, 'gw') is None; "
        "print(sorted(name for name in sys.modules if name.startswith(('opentelemetry', 'google'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n", done.stdout + done.stderr
