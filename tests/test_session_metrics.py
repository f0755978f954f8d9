"""What sessions do, counted: a session of its own makes the facts and effects, so the two cannot drift apart."""

from typing import Any, get_args

import pytest

from gateway import facts as f
from gateway.bodies import STATUSES, Client, Life, Outcome
from gateway.catalog import Catalog, Event
from gateway.instruments import Histogram
from gateway.limits import Limits, Shared
from gateway.metrics import Metrics
from gateway.mqtt.values import Message
from gateway.session import DeviceSession
from gateway.session_metrics import COMMAND_S, WAIT_S
from gateway.topics import Topics

CATALOG = Catalog()
AT = "2026-01-01T00:00:00.000+00:00"
OK = ({"ack": True},)
TRACE = "0af7651916cd43dd8448eb211c80319c"
Counted = dict[str, float]


class World:
    """A session whose every step is observed, and a clock."""

    def __init__(self, **limits: Any) -> None:
        self.metrics = Metrics()
        self.shared = Shared(10_000, 1 << 30)
        self.metrics.sessions.count_open(lambda: self.shared.commands.used, lambda: self.shared.bytes.used)
        self.session = DeviceSession(
            "AC1", Life("gw-1", AT), Topics("gw/v1"), CATALOG, Limits(**limits), self.shared, "n"
        )
        self.now = 1000.0
        self.sent = 0
        self.effects: list[f.Effect] = []
        self.tell(f.LinkOpened(resumed=False))

    def tell(self, fact: f.Fact, after_s: float = 0.0) -> Histogram | None:
        self.now += after_s
        self.effects = self.session.handle(fact, self.now)
        overhead = self.metrics.sessions.observe(fact, self.effects, self.now)
        for effect in self.effects:
            if isinstance(effect, f.Puback) and effect.confirm:
                self.tell(f.Settled(effect.delivery))
        return overhead

    def attach(self) -> None:
        self.tell(f.Attached(1, Client(4, "websocket", ""), AT))

    def send(self, event: str = "bind_class", qos: int = 1, **fields: Any) -> Histogram | None:
        self.sent += 1
        fields = {"delivery": self.sent if qos else None, "id": f"c{self.sent}", "lifetime_s": 60.0} | fields
        answer = f.Answer("t", traceparent=fields.pop("traceparent", None))
        more: dict[str, Any] = {"ack_timeout_s": 10.0} | fields
        return self.tell(f.Command(event=CATALOG[event], args=(), answer=answer, qos=qos, **more))

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        return [
            (sample.name, sample.labels, sample.value)
            for metric in self.metrics.instruments.collect()
            for sample in metric.samples
        ]

    def counted(self, *prefixes: str) -> Counted:
        """The samples that are not zero, by `name label…` without `gateway_`; of histograms only how many."""
        return {
            " ".join((sample.name.removeprefix("gateway_"), *sample.labels.values())): sample.value
            for metric in self.metrics.instruments.collect()
            for sample in metric.samples
            if sample.value
            and not sample.name.endswith(("_bucket", "_sum", "_build_info"))
            and any(prefix in sample.name for prefix in prefixes or ("",))
        }


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_has_been_counted_at_first(world: World) -> None:
    assert world.counted() == {}


def test_a_command_that_is_acked(world: World) -> None:
    world.attach()
    assert world.send(size_bytes=100) is world.metrics.sessions._emit_overhead
    assert world.counted() == {
        "commands_total bind_class": 1,
        "emissions_total bind_class first": 1,
        "commands_in_flight": 1,
        "open_command_bytes": 100,
    }
    assert world.tell(f.Acked(1, 1, OK), after_s=1.5) is world.metrics.sessions._publish_overhead
    assert world.tell(f.Published(1)) is None
    assert world.counted() == {
        "commands_total bind_class": 1,
        "emissions_total bind_class first": 1,
        "outcomes_total bind_class acked": 1,
        "command_duration_seconds_count online acked": 1,
        "ack_duration_seconds_count bind_class": 1,
    }


def test_a_command_that_is_not_held_up_by_anything_is_counted_as_any_other() -> None:
    """The short way for those is one of counting only: a command with a trace takes the other."""
    short, long = World(), World()
    for world, trace in ((short, None), (long, f"00-{TRACE}-b7ad6b7169203331-00")):
        world.attach()
        for number, took_s in enumerate((0.0, 0.0005, 0.5, 2, 61, 400, 4000), 1):
            overheads = [
                world.send(traceparent=trace, ack_timeout_s=5000.0, lifetime_s=5000.0),
                world.tell(f.Acked(1, number, OK), after_s=took_s),
                world.tell(f.Published(number)),
            ]
            sessions = world.metrics.sessions
            assert overheads == [sessions._emit_overhead, sessions._publish_overhead, None]
    assert short.metrics.sessions._events["bind_class"].prompt.count == 7
    assert long.metrics.sessions._events["bind_class"].prompt.count == 0
    assert short.samples() == long.samples()


def sum_of(world: World, name: str) -> float:
    return sum(
        sample.value
        for metric in world.metrics.instruments.collect()
        for sample in metric.samples
        if sample.name == f"gateway_{name}_sum"
    )


def test_the_ack_is_timed_from_the_emission_that_it_answers_and_the_command_from_its_arrival(world: World) -> None:
    world.attach()
    world.send()
    world.tell(f.Ticked(), after_s=10)  # emitted again
    world.tell(f.Acked(1, 2, OK), after_s=0.25)
    assert world.counted("emissions") == {
        "emissions_total bind_class first": 1,
        "emissions_total bind_class repeat": 1,
    }
    assert sum_of(world, "ack_duration_seconds") == pytest.approx(0.25)
    assert sum_of(world, "command_duration_seconds") == pytest.approx(10.25)


def test_a_late_ack_is_counted_as_such_and_not_as_another_outcome(world: World) -> None:
    world.attach()
    world.send(qos=0)
    world.tell(f.Ticked(), after_s=10)
    assert world.tell(f.Acked(1, 1, OK), after_s=3) is not None
    assert world.counted("outcomes", "late", "ack_duration", "command_duration", "in_flight") == {
        "outcomes_total bind_class timeout": 1,
        "late_acks_total bind_class": 1,
        "ack_duration_seconds_count bind_class": 1,
        "command_duration_seconds_count online timeout": 1,
    }
    assert sum_of(world, "ack_duration_seconds") == pytest.approx(13)


def test_commands_that_are_held_and_how_long_the_oldest_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.session_metrics.monotonic", lambda: world.now)
    assert world.send() is None, "it is not emitted, so there is nothing to time"
    world.tell(f.Ticked(), after_s=5)
    world.send("media_stop")
    world.now += 1
    held = {"commands_held": 2, "held_oldest_age_seconds": 6}
    assert world.counted("held", "in_flight") == held
    assert world.counted("queued") == {"queued_total bind_class": 1, "queued_total media_stop": 1}
    world.attach()
    assert world.counted("held", "in_flight") == {"commands_in_flight": 2}
    world.tell(f.Acked(1, 1, OK), after_s=1)
    assert world.counted("command_duration") == {"command_duration_seconds_count away acked": 1}
    world.tell(f.Lost(1, "client", AT))
    world.now += 2
    assert world.counted("held", "in_flight") == {"commands_held": 1, "held_oldest_age_seconds": 2}
    world.tell(f.Ticked(), after_s=60)
    assert world.counted("held", "in_flight", "outcomes") == {
        "outcomes_total bind_class acked": 1,
        "outcomes_total media_stop timeout": 1,
    }


def test_every_outcome_has_its_status(world: World) -> None:
    world.send(qos=0)
    world.send(refusal="no")
    world.send(lifetime_s=-1)
    for token in (1, 2, 3):
        world.tell(f.Published(token))
    world.attach()
    world.send("restart_device")
    world.tell(f.Lost(1, "client", AT))
    world.attach()
    world.send()
    world.tell(f.Acked(1, 2, ()))
    assert world.counted("outcomes") == {
        "outcomes_total bind_class offline": 1,
        "outcomes_total bind_class rejected": 1,
        "outcomes_total bind_class expired": 1,
        "outcomes_total bind_class nacked": 1,
        "outcomes_total restart_device lost": 1,
    }


def test_a_redelivery_is_no_other_command(world: World) -> None:
    world.attach()
    world.send(id="one", delivery=1)
    world.send(id="one", delivery=2, duplicate=True)
    world.tell(f.Acked(1, 1, OK))
    world.send(id="one", delivery=3, duplicate=True)
    assert world.counted("commands_", "redeliveries", "outcomes") == {
        "commands_total bind_class": 1,
        "redeliveries_total": 2,
        "outcomes_total bind_class acked": 1,
    }
    world.send(id="two", delivery=4, duplicate=True)
    assert world.counted("commands_total") == {"commands_total bind_class": 2}, "redelivered, but new here"


def test_what_moves_with_the_device_is_handed_over(world: World) -> None:
    world.attach()
    world.send()
    world.send(qos=0)
    world.tell(f.Moved())
    assert world.counted("handed", "outcomes", "in_flight", "held") == {
        "handed_over_total": 1,
        "outcomes_total bind_class lost": 1,
    }
    world.send()
    world.send(qos=0)
    world.tell(f.Moved())
    assert world.counted("handed", "held") == {"handed_over_total": 2}


def test_an_outcome_that_the_broker_refuses_twice_is_unpublished(world: World) -> None:
    world.attach()
    world.send()
    world.tell(f.Acked(1, 1, OK))
    world.tell(f.Published(1, 0x95))
    assert world.counted("unpublished") == {}
    world.tell(f.Published(2, 0x87))
    assert world.counted("unpublished", "outcomes") == {
        "outcomes_unpublished_total": 1,
        "outcomes_total bind_class acked": 1,
    }


def test_events_of_devices_and_replies_to_them(world: World) -> None:
    world.attach()
    assert world.tell(f.Emitted(1, "cmd_result", ({"result": ""},))) is world.metrics.sessions._event_overhead
    world.tell(f.Emitted(1, "ask", (), ack_id=7))
    topic = next(effect.message.topic for effect in world.effects if isinstance(effect, f.Publish))
    world.tell(f.Replied(topic.rsplit("/", 1)[1], ()), after_s=2)
    assert world.tell(f.Emitted(9, "ask", (), ack_id=7)) is None
    assert world.counted() == {
        "device_events_total cmd_result": 1,
        "device_events_total other": 2,
        "questions_total": 1,
        "reply_duration_seconds_count": 1,
        "ignored_total stale_socket": 1,
    }
    assert sum_of(world, "reply_duration_seconds") == pytest.approx(2)


@pytest.mark.parametrize("what", get_args(f.Ignored))
def test_what_is_ignored(world: World, what: f.Ignored) -> None:
    world.metrics.sessions.observe(f.Ticked(), [f.Ignore(what)], world.now)
    assert world.counted() == {f"ignored_total {what}": 1}


def test_the_trace_of_a_sampled_command_is_an_exemplar(world: World) -> None:
    world.attach()
    for flags in ("01", "00"):
        world.send(traceparent=f"00-{TRACE if flags == '01' else 'f' * 32}-b7ad6b7169203331-{flags}")
        world.tell(f.Acked(1, world.sent, OK), after_s=1.5)
    world.send()
    world.tell(f.Acked(1, world.sent, OK), after_s=1.5)
    exemplars = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for metric in world.metrics.instruments.collect()
        for sample in metric.samples
        if sample.exemplar is not None
    ]
    assert [exemplar[:2] for exemplar in exemplars] == [("2.0", {"trace_id": TRACE})]
    assert exemplars[0][2] == pytest.approx(1.5)


def test_the_service_levels_are_bounds_of_buckets() -> None:
    for bounds in (WAIT_S, COMMAND_S):
        assert {2, 10} < set(bounds)
        assert list(bounds) == sorted(set(bounds))


@pytest.mark.parametrize("event", ['evil"} 1\nforged{x="', "", "x" * 10_000, "other"])
def test_no_name_of_a_stranger_becomes_a_label(world: World, event: str) -> None:
    before = [labels for metric in world.metrics.instruments.collect() for labels in metric.samples]
    world.attach()
    world.send(event)
    world.tell(f.Acked(1, 1, OK))
    world.tell(f.Emitted(1, event, ()))
    world.tell(f.Emitted(1, "\ud800", ()))
    after = [labels for metric in world.metrics.instruments.collect() for labels in metric.samples]
    assert [(s.name, s.labels) for s in before] == [(s.name, s.labels) for s in after]
    assert world.counted("commands_total", "outcomes", "ack_duration", "device_events") == {
        "commands_total other": 1,
        "outcomes_total other acked": 1,
        "ack_duration_seconds_count other": 1,
        "device_events_total other": 2,
    }


def test_a_deployments_own_events_are_labels_too() -> None:
    metrics = Metrics(Catalog([Event("blink", "", "")]))
    metrics.sessions.observe(f.Emitted(1, "blink", ()), [], 0.0)
    assert metrics.sessions._events["blink"].received.n == 1


def test_an_outcome_that_is_said_again_is_not_counted_again(world: World) -> None:
    for status in STATUSES:
        outcome = Outcome("1", "s1", "bind_class", status, status != "queued")
        world.metrics.sessions.observe(f.Published(1, 0x80), [f.Publish(Message("t"), outcome=outcome)], 0.0)
    assert world.counted() == {}
