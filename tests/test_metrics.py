"""Metrics: closed label sets that are there from the start, and counts that come from facts and effects alone."""

from itertools import product
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import facts as f
from gateway.catalog import EVENTS, Catalog, Event
from gateway.engine.effects import CloseReason
from gateway.metrics import OTHER, RELAYED, SECONDS, STATUSES, Metrics
from gateway.mqtt import Message
from gateway.topics import Outcome

HOSTILE = 'evil"} 1\nforged{x="'


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def labels(registry: CollectorRegistry) -> dict[str, set[tuple[str, ...]]]:
    """The label values in use, by metric."""
    return {
        metric.name: {tuple(sample.labels.values()) for sample in metric.samples if sample.name.endswith("_total")}
        for metric in registry.collect()
        if metric.type == "counter"
    }


def counts(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample that is not zero, by `name label…`."""
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.value and not sample.name.endswith(("_created", "_bucket"))
    }


def command(event: str) -> f.Command:
    return f.Command("1", Catalog()[event], (), f.Answer("t"), 1, 60.0, 10.0)


def outcome(event: str, status: str, *, final: bool = True, late: bool = False, latency_ms: float = 0.0) -> f.Publish:
    said = Outcome("1", "s1", event, status, final, late=late, latency_ms=latency_ms)
    return f.Publish(Message("t"), outcome=said)


def test_every_label_is_there_before_anything_happens(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A rate over a counter that appears with its first event misses that event."""
    events = {(event,) for event in (*EVENTS, OTHER)}
    assert labels(registry) == {
        "gateway_commands": events,
        "gateway_outcomes": {(event, status) for (event,), status in product(events, STATUSES)},
        "gateway_device_events": events,
        "gateway_ignored": {(what,) for what in get_args(f.Ignored)},
        "gateway_dropped_events": {()},
        "gateway_takeovers": {()},
        "gateway_relayed": {(what,) for what in RELAYED},
        "gateway_closes": {(str(reason),) for reason in CloseReason},
    }
    assert counts(registry) == {}


def test_no_name_of_a_stranger_becomes_a_label(metrics: Metrics, registry: CollectorRegistry) -> None:
    before = labels(registry)
    for event in (HOSTILE, "", "x" * 10_000, "\ud800"):
        metrics.observe(command(event), [outcome(event, "rejected")])
        metrics.observe(f.Emitted(1, event, ()), [f.Ignore("bad_event")])
    assert labels(registry) == before
    assert b"evil" not in generate_latest(registry)
    assert counts(registry) == {
        "gateway_commands_total other": 4,
        "gateway_outcomes_total other rejected": 4,
        "gateway_device_events_total other": 4,
        "gateway_ignored_total bad_event": 4,
        "gateway_command_duration_seconds_count": 4,
    }


def test_a_deployments_own_events_are_labels_too(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, Catalog([Event("blink", "", "")]))
    metrics.observe(command("blink"), [])
    assert counts(registry) == {"gateway_commands_total blink": 1}
    assert labels(registry)["gateway_commands"] == {(event,) for event in (*EVENTS, "blink", OTHER)}


def test_counts_commands_and_device_events(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.observe(command("media_stop"), [])
    metrics.observe(command("media_stop"), [f.Emit(1, "media_stop", (), 1)])
    metrics.observe(f.Emitted(1, "cmd_result", ()), [f.Publish(Message("t"))])
    assert counts(registry) == {
        "gateway_commands_total media_stop": 2,
        "gateway_device_events_total cmd_result": 1,
    }


@pytest.mark.parametrize("status", STATUSES)
def test_counts_outcomes_by_what_became_of_the_command(
    metrics: Metrics, registry: CollectorRegistry, status: str
) -> None:
    metrics.observe(f.Ticked(), [outcome("media_stop", status), outcome("x", status)])
    counted = counts(registry)
    assert counted[f"gateway_outcomes_total media_stop {status}"] == 1
    assert counted[f"gateway_outcomes_total other {status}"] == 1


def test_the_duration_is_of_final_outcomes_that_are_in_time(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.observe(
        f.Ticked(),
        [
            outcome("media_stop", "queued", final=False, latency_ms=1e6),
            outcome("media_stop", "acked", late=True, latency_ms=1e6),
            outcome("media_stop", "acked", latency_ms=1500.0),
        ],
    )
    assert registry.get_sample_value("gateway_command_duration_seconds_count") == 1
    assert registry.get_sample_value("gateway_command_duration_seconds_sum") == 1.5
    assert registry.get_sample_value("gateway_command_duration_seconds_bucket", {"le": "1.0"}) == 0
    assert registry.get_sample_value("gateway_command_duration_seconds_bucket", {"le": "2.0"}) == 1


def test_the_service_levels_are_edges_of_buckets() -> None:
    assert {2, 10} < set(SECONDS)
    assert list(SECONDS) == sorted(set(SECONDS))


@pytest.mark.parametrize("what", get_args(f.Ignored))
def test_counts_what_is_ignored(metrics: Metrics, registry: CollectorRegistry, what: f.Ignored) -> None:
    metrics.observe(f.Ticked(), [f.Ignore(what)])
    assert counts(registry) == {f"gateway_ignored_total {what}": 1}


def test_other_facts_and_effects_count_nothing(metrics: Metrics, registry: CollectorRegistry) -> None:
    for fact in (f.Ticked(), f.LinkLost(), f.Moved(), f.Published(1), f.Acked(1, 1, ()), f.Replied("1", ())):
        metrics.observe(fact, [f.Puback(1), f.Drop(1, "replaced"), f.Reply(1, 1, ()), f.Publish(Message("t"))])
    assert counts(registry) == {}


def test_gauges(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.sockets.inc()
    metrics.devices.set(3)
    assert counts(registry) == {"gateway_sockets": 1, "gateway_devices": 3}
