"""Spans of commands, exported to an OpenTelemetry collector; made from the facts and effects of sessions.

A command whose `traceparent` says that its trace is recorded gets a span `command`, from its arrival to its outcome, as
a child of the sender's; children of it are `wait` (until the first emission, if it was held), `emit` (one for each
attempt, until the next or the end) and `publish` (the outcome, until its PUBACK). An ack after the outcome is a span
`late ack`. Spans are made afterwards, from the times that sessions know, and exported by a thread.

Imported only where tracing is on, because it needs the packages of the extra `otel`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from time import monotonic, time_ns
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from gateway import __version__
from gateway import facts as f

MAX_WAITING: Final = 2048  # spans that are not exported yet; more are dropped
EVERY_MS: Final = 1000
EXPORT_S: Final = 5.0  # for one export, and for what is left at the end
MAX_PUBLISHING: Final = 1000
HELD_S: Final = 0.00005  # what came and was emitted at once differs by a rounding error


class Tracer:
    """Makes spans of commands and has them exported.

    Args:
        exporter: where they go.
        node: the name of this node.
    """

    def __init__(self, exporter: SpanExporter, node: str) -> None:
        self._counted = _Counted(exporter)
        service = {"name": "socketio-mqtt-gateway", "version": __version__, "instance.id": node}
        resource = Resource.create({f"service.{key}": value for key, value in service.items()})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor = BatchSpanProcessor(
            self._counted, max_queue_size=2 * MAX_WAITING, schedule_delay_millis=EVERY_MS, max_export_batch_size=512
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("gateway", __version__)
        self._made = self._unmade = 0
        self._emissions: dict[int, list[float]] = {}  # id() of a command, which lives → when it was emitted
        self._publishing: OrderedDict[tuple[str, int], Span] = OrderedDict()  # serial and token → span

    @classmethod
    def to(cls, endpoint: str, node: str) -> "Tracer":
        """Export with OTLP over HTTP; headers and certificates as OTEL_EXPORTER_OTLP_… of the environment say."""
        return cls(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_S), node)

    @property
    def exported(self) -> int:
        """How many spans a collector has."""
        return self._counted.exported

    @property
    def dropped(self) -> int:
        """How many spans no collector has: it did not take them, or too many waited for it."""
        return self._counted.failed + self._unmade

    def observe(self, serial: str, fact: f.Fact, effects: list[f.Effect], now: float) -> None:
        """Take note of one step of a session, at `now` (monotonic seconds)."""
        concluded: Span | None = None
        for effect in effects:
            match effect:
                case f.Emit(command=command) if command.answer.is_sampled:
                    self._emissions.setdefault(id(command), []).append(now)
                case f.Conclude(command=command) if command.answer.is_sampled:
                    concluded = self._conclude(serial, effect, now)
                case f.HandOver(command=command):
                    self._emissions.pop(id(command), None)
                case f.Publish(token=token, outcome=outcome) if concluded is not None and outcome is not None:
                    if token is not None:
                        self._publish(serial, token, concluded, now)
                    concluded = None
        if isinstance(fact, f.Published) and (span := self._publishing.pop((serial, fact.token), None)) is not None:
            span.set_attribute("mqtt.reason_code", fact.code)
            span.end(_unix_ns(now))

    def close(self) -> None:
        """Export what is left. Takes up to EXPORT_S: call it in a thread."""
        for span in self._publishing.values():
            span.end()
        self._provider.shutdown()

    def _conclude(self, serial: str, effect: f.Conclude, now: float) -> Span | None:
        command, outcome = effect.command, effect.outcome
        emissions = self._emissions.pop(id(command), [])
        if self._made - self._counted.exported - self._counted.failed > MAX_WAITING:
            self._unmade += 1
            return None
        parent = set_span_in_context(NonRecordingSpan(_context(command.answer)))
        if outcome.late:
            since = now if effect.emitted_at is None else effect.emitted_at
            late = self._start("late ack", since, parent)
            late.set_attribute("gateway.status", outcome.status)
            late.end(_unix_ns(now))
            return None
        received_at = now - outcome.latency_ms / 1000
        span = self._start(f"command {command.event.name}", received_at, parent, SpanKind.CONSUMER)
        span.set_attributes(
            {
                "messaging.system": "mqtt",
                "messaging.message.id": command.id,
                "gateway.serial": serial,
                "gateway.event": command.event.name,
                "gateway.qos": command.qos,
                "gateway.status": outcome.status,
                "gateway.attempts": outcome.attempts,
            }
        )
        if outcome.status != "acked":
            span.set_status(Status(StatusCode.ERROR, outcome.error or outcome.status))
        inside = set_span_in_context(span)
        first = emissions[0] if emissions else now
        if first - received_at > HELD_S:
            self._start("wait", received_at, inside).end(_unix_ns(first))
        for at, until in zip(emissions, [*emissions[1:], now], strict=True):
            self._start("emit", at, inside, SpanKind.CLIENT).end(_unix_ns(until))
        span.end(_unix_ns(now))
        return span

    def _publish(self, serial: str, token: int, span: Span, now: float) -> None:
        publishing = self._start("publish", now, set_span_in_context(span), SpanKind.PRODUCER)
        self._publishing[serial, token] = publishing
        if len(self._publishing) > MAX_PUBLISHING:
            self._publishing.popitem(last=False)[1].end()

    def _start(self, name: str, at: float, parent: object, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        self._made += 1
        return self._tracer.start_span(name, context=parent, kind=kind, start_time=_unix_ns(at))  # type: ignore[arg-type]


class _Counted(SpanExporter):
    """Exports by another exporter, and counts."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.exported = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
        else:
            self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _context(answer: f.Answer) -> SpanContext:
    """The sender's span."""
    assert answer.traceparent is not None
    span_id = int(answer.traceparent[36:52], 16)
    return SpanContext(int(answer.trace_id, 16), span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _unix_ns(at: float) -> int:
    """Unix time of a time in monotonic seconds, in nanoseconds."""
    return time_ns() - round((monotonic() - at) * 1e9)
