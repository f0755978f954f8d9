"""Prometheus metrics, derived from facts and effects in this one place. Labels are closed sets, never a peer's text."""

from collections.abc import Iterable
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway import facts as f
from gateway.catalog import EVENTS, Event
from gateway.engine.effects import CloseReason

STATUSES: Final = ("queued", "acked", "nacked", "timeout", "lost", "offline", "expired", "rejected")
OTHER: Final = "other"  # an event that is not in the catalogue
# The service levels are at 2 s and 10 s: both are edges of a bucket.
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600)


class Metrics:
    """The gateway's metrics in one registry.

    Args:
        catalog: the events that are labels; any other is `other`.
    """

    def __init__(self, registry: CollectorRegistry, catalog: Iterable[Event] = EVENTS.values()) -> None:
        events = (*(event.name for event in catalog), OTHER)
        commands = Counter("gateway_commands", "Commands received.", ["event"], registry=registry)
        self._commands = {event: commands.labels(event) for event in events}
        outcomes = Counter("gateway_outcomes", "Outcomes published.", ["event", "status"], registry=registry)
        self._outcomes = {(e, status): outcomes.labels(e, status) for e in events for status in STATUSES}
        self._duration = Histogram(
            "gateway_command_duration_seconds",
            "From a command's arrival over MQTT to its final outcome.",
            buckets=SECONDS,
            registry=registry,
        )
        received = Counter("gateway_device_events", "Events that devices emitted.", ["event"], registry=registry)
        self._received = {event: received.labels(event) for event in events}
        ignored = Counter("gateway_ignored", "What peers did without meaning.", ["what"], registry=registry)
        self._ignored = {what: ignored.labels(what) for what in get_args(f.Ignored)}
        closes = Counter("gateway_closes", "Sockets closed.", ["reason"], registry=registry)
        self.closes = {reason: closes.labels(reason) for reason in CloseReason}
        self.takeovers = Counter("gateway_takeovers", "Devices that went to another node.", registry=registry)
        self.dropped = Counter(
            "gateway_dropped_events", "Events of devices dropped while the broker was away.", registry=registry
        )
        self.sockets = Gauge("gateway_sockets", "Open socket.io connections.", registry=registry)
        self.devices = Gauge("gateway_devices", "Devices whose link is here.", registry=registry)
        self.anonymous_room_rules = Gauge(
            "gateway_anonymous_room_rules", "Rules that let anybody join rooms without a token.", registry=registry
        )

    def observe(self, fact: f.Fact, effects: list[f.Effect]) -> None:
        """Count one step of a device's session."""
        match fact:
            case f.Command():
                self._commands[self._label(fact.event.name)].inc()
            case f.Emitted():
                self._received[self._label(fact.event)].inc()
        for effect in effects:
            match effect:
                case f.Publish(outcome=outcome) if outcome is not None:
                    self._outcomes[self._label(outcome.event), outcome.status].inc()
                    if outcome.final and not outcome.late:
                        self._duration.observe(outcome.latency_ms / 1000)
                case f.Ignore():
                    self._ignored[effect.what].inc()

    def _label(self, event: str) -> str:
        return event if event in self._commands else OTHER
