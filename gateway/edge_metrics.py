"""What happens at the edges, counted: sockets, authentication, rooms, links to the broker, and the node itself."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from gateway.admission import Refusal
from gateway.engine.effects import CloseReason, Transport
from gateway.instruments import Count, Histogram, Instruments
from gateway.logs import LEVELS
from gateway.mqtt.values import Down, Dropped, LinkEvent, Opened, Published, Refused, Unavailable
from gateway.session_metrics import MICRO_S, PRESENCES, WAIT_S

GENERATIONS: Final = ("3", "4")
RELAYED: Final = ("poll", "websocket", "failed", "gone", "full")
REFUSALS: Final = "gateway_refusals_total"
REFUSALS_HELP: Final = "What peers were refused, or slowed down in."
ROLES: Final = ("device", "viewer", "stranger")
VERDICTS: Final = ("accepted", "denied", "moved", "full", "abandoned")  # of an admission, which waits for one
PUBLISH_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30,
)  # fmt: skip
SOCKETS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_CODES: Final = {  # reason codes of a PUBACK (MQTT 5, 3.4.2.1), and of what is not even sent
    0x00: "success",
    0x10: "no_matching_subscribers",
    0x87: "not_authorized",
    0x90: "topic_name_invalid",
    0x95: "packet_too_large",
    0x97: "quota_exceeded",
    0x99: "payload_format_invalid",
}
_OTHER_CODE: Final = "other"
_FAILURES: Final[Mapping[type, str]] = {Down: "lost", Refused: "refused", Unavailable: "unavailable"}


class SocketMetrics:
    """Sockets and how they authenticate."""

    def __init__(self, make: Instruments) -> None:
        transports = [str(transport) for transport in Transport]
        shape = {"generation": GENERATIONS, "transport": transports}
        self._open = make.gauge("gateway_sockets", "Open Socket.IO connections.", role=ROLES, **shape)
        self._devices = [self._open["device", gen, transport] for gen in GENERATIONS for transport in transports]
        self.devices = make.gauge("gateway_devices", "Devices whose link is here.", presence=PRESENCES)
        self._connects = make.counter("gateway_connects_total", "Sockets opened.", **shape)
        self._closes = make.counter("gateway_closes_total", "Sockets closed.", role=ROLES, reason=map(str, CloseReason))
        self._authentications = make.counter(
            "gateway_authentications_total", "What became of authentication.", outcome=(*VERDICTS, "malformed")
        )
        self._authentication_duration = make.histogram(
            "gateway_authentication_duration_seconds", "From authentication to its answer.", WAIT_S, outcome=VERDICTS
        )
        self.refusals = make.counter(REFUSALS, REFUSALS_HELP, reason=map(str, Refusal))
        self.takeovers = make.counter("gateway_takeovers_total", "Devices that went to another node.")[()]
        self.flaps = make.counter("gateway_flaps_total", "Of these, devices that go back and forth.")[()]
        self._relayed = make.counter("gateway_relayed_total", "Requests of sessions of other nodes.", what=RELAYED)
        self.pauses = make.counter("gateway_device_pauses_total", "How often a device was not read for a while.")[()]

    def connected(self, generation: int, transport: str) -> Count:
        """A socket was opened, by a stranger; returns where it is counted."""
        self._connects[str(generation), transport].n += 1
        return self.moved(None, "stranger", generation, transport)

    def moved(self, counted: Count | None, role: str, generation: int, transport: str) -> Count:
        """A socket is something else now; `counted` is where it was counted, what returns where it is."""
        if counted is not None:
            counted.n -= 1
        now = self._open[role, str(generation), transport]
        now.n += 1
        return now

    def closed(self, counted: Count, role: str, reason: CloseReason) -> None:
        """A socket is gone."""
        counted.n -= 1
        self._closes[role, str(reason)].n += 1

    def relayed(self, what: str) -> None:
        """What became of a request of another node's session."""
        self._relayed[what].n += 1

    def authenticated(self, outcome: str, took_s: float | None = None) -> None:
        """What became of an authentication, and how long it took unless it was malformed."""
        self._authentications[outcome].n += 1
        if took_s is not None:
            self._authentication_duration[outcome].observe(took_s)

    def count_devices(self, linked: Callable[[], int]) -> None:
        """Count devices from here on: `linked` is how many have a link here, and those online have a socket."""

        def online() -> float:
            return sum(count.n for count in self._devices)

        self.devices.read(online, "online")
        self.devices.read(lambda: max(0, linked() - online()), "away")


class LinkMetrics:
    """Links to the broker, the node's own among them."""

    def __init__(self, make: Instruments) -> None:
        self.up = make.gauge("gateway_broker_up", "Whether the node has what it needs of the broker.")
        self._links = make.gauge("gateway_links", "Links of devices.", state=("up", "down"))
        self.serving = self._links["up"]
        opens = make.counter("gateway_link_opens_total", "Connections accepted.", session=("resumed", "new"))
        self._opens = {True: opens["resumed"], False: opens["new"]}
        self._failures = make.counter("gateway_link_failures_total", "Links cut or refused.", reason=_FAILURES.values())
        duration = make.histogram("gateway_publish_duration_seconds", "From a PUBLISH to its PUBACK.", PUBLISH_S)
        self._accepted, self._not_accepted = duration[()], Histogram(PUBLISH_S)
        duration.include(self._not_accepted)
        codes = make.counter("gateway_pubacks_total", "Answers to publishes.", code=(*_CODES.values(), _OTHER_CODE))
        self._codes = {code: codes[name] for code, name in _CODES.items()}
        self._other_code = codes[_OTHER_CODE]
        codes.read(lambda: self._accepted.count, _CODES[0])
        self.waiting_bytes = make.gauge("gateway_waiting_publish_bytes", "Publishes that wait to be written.")
        self._dropped = make.counter("gateway_dropped_events_total", "Events dropped.", what=("device", "room"))

        self._on: Mapping[type, Callable[[Any, str], None]] = {
            Opened: self._opened,
            Dropped: self._drop,
            **dict.fromkeys(_FAILURES, self._failed),
        }

    def count_links(self, linked: Callable[[], int]) -> None:
        """Count links from here on: `linked` is how many there are."""
        self._links.read(lambda: max(0, linked() - self.serving.n), "down")

    def published(self, event: Published, read_at: float) -> None:
        """Count an answer to a publish, which was read at `read_at`, or that it was not even sent."""
        if event.sent_at is not None and not event.code:
            self._accepted.observe(read_at - event.sent_at)  # and that is all: its code is counted with it
            return
        self._codes.get(event.code, self._other_code).n += 1
        if event.sent_at is not None:
            self._not_accepted.observe(read_at - event.sent_at)

    def observe(self, event: LinkEvent, owner: str) -> None:
        """Count what else a link says; `owner` names whose events are dropped: of a device, or for a room."""
        on_event = self._on.get(type(event))
        if on_event is not None:
            on_event(event, owner)

    def _opened(self, event: Opened, _: str) -> None:
        self._opens[event.session_present].n += 1

    def _failed(self, event: LinkEvent, _: str) -> None:
        self._failures[_FAILURES[type(event)]].n += 1

    def _drop(self, _: Dropped, owner: str) -> None:
        self._dropped[owner].n += 1


class RoomMetrics:
    """Rooms, and the events for them."""

    def __init__(self, make: Instruments, events: Iterable[str]) -> None:
        self.rooms = make.gauge("gateway_rooms", "Rooms that have a socket here.")
        self.sockets = make.gauge("gateway_room_sockets", "Sockets in rooms.")
        self.anonymous_rules = make.gauge("gateway_anonymous_room_rules", "Rules that let anybody join a room.")
        self.joins = make.counter(
            "gateway_room_joins_total", "What became of join_room.", outcome=("joined", "refused")
        )
        received = make.counter("gateway_room_events_total", "Events for rooms.", event=events)
        self._received = {event: received[event] for event in events}
        self._fanout = make.histogram("gateway_room_fanout_sockets", "How many sockets an event went to.", SOCKETS)[()]
        self._duration = make.histogram(
            "gateway_room_fanout_duration_seconds", "From reading an event to the last socket.", MICRO_S
        )[()]

    def emitted(self, event: str, sockets: int, took_s: float) -> None:
        """An event for a room went to so many sockets of this node."""
        self._received.get(event, self._received["other"]).n += 1
        self._fanout.observe(sockets)
        self._duration.observe(took_s)


class ProcessMetrics:
    """A process of the gateway, its files and its log."""

    def __init__(self, make: Instruments, certificates: Iterable[str]) -> None:
        self.loop_lag = make.histogram("gateway_event_loop_lag_seconds", "How late a timer came.", WAIT_S)[()]
        self._reloads = make.counter("gateway_config_reloads_total", "Files read again.", result=("ok", "failed"))
        self._expiry = make.gauge(
            "gateway_certificate_expiry_timestamp_seconds", "When a certificate ends.", use=certificates
        )
        for use in self._expiry.labels["use"]:
            self._expiry.read(lambda: None, use)
        self._log_records = make.counter("gateway_log_records_total", "Lines of the log.", level=LEVELS)
        self._log_suppressed = make.counter("gateway_log_suppressed_total", "Lines that were not written.")

    def count_reloads(self, reads: Callable[[], int], failures: Callable[[], int]) -> None:
        """Count files that were read again from here on, and those that were not usable."""
        self._reloads.read(reads, "ok")
        self._reloads.read(failures, "failed")

    def read_expiry(self, use: str, not_after: Callable[[], float]) -> None:
        """Say when a certificate ends, in Unix time; not while `not_after` raises ValueError."""

        def read() -> float | None:
            try:
                return not_after()
            except ValueError:
                return None

        self._expiry.read(read, use)

    def read_log(self, records: Mapping[str, int], suppressed: Callable[[], int]) -> None:
        """Count the lines of the log from here on: all by level, and those that were not written."""
        for level in LEVELS:
            self._log_records.read(partial(records.__getitem__, level), level)
        self._log_suppressed.read(suppressed)


class NodeMetrics(ProcessMetrics):
    """The process of a node."""

    def __init__(self, make: Instruments, build: dict[str, str]) -> None:
        super().__init__(make, ("devices", "admin", "mqtt"))
        self.ready = make.gauge("gateway_ready", "Whether /readyz says yes.")
        self.spans = make.counter("gateway_spans_total", "Spans.", result=("exported", "dropped"))
        info = make.gauge("gateway_build_info", "Always 1.", **{label: (value,) for label, value in build.items()})
        info[tuple(build.values())].n = 1.0


class SupervisorMetrics(ProcessMetrics):
    """The process that keeps the workers running."""

    def __init__(self, make: Instruments, nodes: Iterable[str]) -> None:
        super().__init__(make, ("admin",))
        self.up = make.gauge("gateway_worker_up", "Whether a worker answers.", instance=nodes)
        self._refusals = make.counter(REFUSALS, REFUSALS_HELP, reason=(str(Refusal.ADMIN_TOKEN),))

    def refused(self, reason: Refusal) -> None:
        """Somebody had no token for the admin port; who came too slowly or too large is not counted."""
        if reason is Refusal.ADMIN_TOKEN:
            self._refusals[str(reason)].n += 1
