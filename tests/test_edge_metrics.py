"""What happens at the edges, counted: where a socket is counted, and what links say."""

import pytest

from gateway.engine.effects import CloseReason
from gateway.metrics import Metrics
from gateway.mqtt.values import (
    Closed,
    Down,
    Dropped,
    LinkEvent,
    Message,
    Opened,
    Published,
    Received,
    Refused,
    Subscribed,
    Unavailable,
)  # fmt: skip

HOSTILE = 'evil"} 1\nforged{x="'


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def counted(metrics: Metrics) -> dict[str, float]:
    return {
        " ".join((sample.name.removeprefix("gateway_"), *sample.labels.values())): sample.value
        for metric in metrics.instruments.collect()
        for sample in metric.samples
        if sample.value and not sample.name.endswith(("_bucket", "_sum", "_build_info"))
    }


def test_a_socket_is_counted_as_what_it_is_now(metrics: Metrics) -> None:
    sockets = metrics.sockets
    sockets.count_devices(lambda: 3)
    place = sockets.connected(3, "polling")
    assert counted(metrics) == {
        "sockets stranger 3 polling": 1,
        "connects_total 3 polling": 1,
        "devices away": 3,
    }
    place = sockets.moved(place, "stranger", 3, "websocket")
    place = sockets.moved(place, "device", 3, "websocket")
    assert counted(metrics) == {
        "sockets device 3 websocket": 1,
        "connects_total 3 polling": 1,
        "devices online": 1,
        "devices away": 2,
    }
    sockets.closed(place, "device", CloseReason.SLOW)
    assert counted(metrics) == {"closes_total device slow": 1, "connects_total 3 polling": 1, "devices away": 3}


def test_authentications(metrics: Metrics) -> None:
    metrics.sockets.authenticated("malformed")
    metrics.sockets.authenticated("accepted", 0.2)
    metrics.sockets.authenticated("full", 0.2)
    assert counted(metrics) == {
        "authentications_total malformed": 1,
        "authentications_total accepted": 1,
        "authentications_total full": 1,
        "authentication_duration_seconds_count accepted": 1,
        "authentication_duration_seconds_count full": 1,
    }


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Opened(True), {"link_opens_total resumed": 1}),
        (Opened(False), {"link_opens_total new": 1}),
        (Down(HOSTILE), {"link_failures_total lost": 1}),
        (Refused(0x87, HOSTILE), {"link_failures_total refused": 1}),
        (Unavailable(HOSTILE), {"link_failures_total unavailable": 1}),
        (Dropped(None), {"dropped_events_total device": 1}),
        (Published(1, 0, 0.0), {"pubacks_total success": 1, "publish_duration_seconds_count": 1}),
        (Published(None, 0x10, 0.0), {"pubacks_total no_matching_subscribers": 1, "publish_duration_seconds_count": 1}),
        (Published(1, 0x95), {"pubacks_total packet_too_large": 1}),
        (Published(1, 0xFE), {"pubacks_total other": 1}),
        (Received(Message("t"), None, False), {}),
        (Subscribed((), ()), {}),
        (Closed(0x8E, HOSTILE), {}),
    ],
)
def test_what_a_link_says(metrics: Metrics, event: LinkEvent, expected: dict[str, float]) -> None:
    if isinstance(event, Published):
        metrics.links.published(event, read_at=0.1)
    else:
        metrics.links.observe(event, "device")
    assert counted(metrics) == expected


def test_what_is_dropped_says_whose_it_was(metrics: Metrics) -> None:
    metrics.links.observe(Dropped(None), "room")
    assert counted(metrics) == {"dropped_events_total room": 1}


def test_links_are_up_or_down(metrics: Metrics) -> None:
    metrics.links.count_links(lambda: 5)
    metrics.links.serving.n += 2
    assert counted(metrics) == {"links up": 2, "links down": 3}


def test_a_certificate_says_when_it_ends_and_one_that_is_broken_says_nothing(metrics: Metrics) -> None:
    def broken() -> float:
        raise ValueError

    metrics.node.read_expiry("devices", lambda: 1_800_000_000.0)
    metrics.node.read_expiry("admin", broken)
    assert counted(metrics) == {"certificate_expiry_timestamp_seconds devices": 1_800_000_000}


def test_events_for_rooms(metrics: Metrics) -> None:
    metrics.rooms.emitted("memos_update", 3, 0.0002)
    metrics.rooms.emitted(HOSTILE, 0, 0.0002)
    assert counted(metrics) == {
        "room_events_total memos_update": 1,
        "room_events_total other": 1,
        "room_fanout_sockets_count": 2,
        "room_fanout_duration_seconds_count": 2,
    }
