"""What an operator sees of a node, against what happens outside of it: metrics, exemplars, traces and log lines."""

import asyncio
from bisect import bisect_left
from time import monotonic
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.brokers import LocalBroker
from gateway.session_metrics import COMMAND_S
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway, service, viewer
from tests.test_tracing import TRACE, TRACEPARENT, collector

JUNK = 'junk"} 1\njunk{x="'
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


async def scrape(node: Node, **headers: str) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"{node.admin}/metrics", headers=headers) as response:
        assert response.status == 200
        return await response.text()


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series by name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels.items())) for family in families for s in family.samples}


async def test_no_text_of_a_peer_is_in_a_metric(node: Node, api: Service) -> None:
    """Serials, rooms, events, ids, keys and trace ids of strangers change numbers, and nothing else."""
    before = series(await scrape(node))
    async with device(node, "junk-serial") as plate, viewer(node) as page:
        for event in ("junk-event", JUNK):
            await plate.client.emit(event, "junk-payload")
            await api.message("devices/junk-serial/events/+")
        await page.client.emit("join_room", {"room": "junk-room"})
        await page.next()
        await page.client.emit("authentication", {"signature": "junk-signature"})
        await page.expect("auth:fail")
        user = [("id", "junk-id"), ("traceparent", TRACEPARENT.replace("-01", "-00"))]
        await api.send("devices/junk-serial/commands/junk-event", {}, UserProperty=user)
        assert (await api.outcome("devices/junk-serial/acks/junk-event"))["status"] == "acked"
        await api.send("rooms/junk-room/events/junk-event", "junk-payload")
        await api.send("devices/junk-serial/replies/junk-event/junk-id", b"junk {")
        await node.logged("unusable message", serial="junk-serial")
    for headers in ({}, OPENMETRICS):
        text = await scrape(node, **headers)
        assert "junk" not in text
        assert TRACE not in text, "its trace is recorded by nobody"
    assert series(await scrape(node)) == before


@pytest.mark.parametrize("delay_s", [0.15, 0.7])
async def test_the_histogram_agrees_with_what_a_service_measures(node: Node, api: Service, delay_s: float) -> None:
    """To a bucket: what the service sees besides is the way to the broker, twice."""
    async with device(node, "AC1") as plate:

        async def slow(*_: Any) -> dict[str, bool]:
            await asyncio.sleep(delay_s)
            return {"ack": True}

        plate.client.on("media_stop", slow)
        for number in range(3):
            before = await buckets(node)
            sent = monotonic()
            await api.send(f"devices/AC1/commands/media_stop/{number}", {"stop": True})
            assert (await api.outcome(f"devices/AC1/acks/media_stop/{number}"))["status"] == "acked"
            outside = bisect_left(COMMAND_S, monotonic() - sent)
            inside = next(i for i, (old, new) in enumerate(zip(before, await buckets(node), strict=True)) if new > old)
            assert outside - 1 <= inside <= outside
    durations = {
        name: await node.metric(f"gateway_{name}_seconds_sum") for name in ("command_duration", "ack_duration")
    }
    assert 3 * delay_s <= durations["ack_duration"] <= durations["command_duration"] + 1e-5, "rounded to microseconds"
    assert await node.metric("gateway_overhead_seconds_count", stage="emit") == 3
    assert await node.metric("gateway_overhead_seconds_count", stage="publish") == 3
    assert await node.metric("gateway_overhead_seconds_sum") < durations["command_duration"] + 1


async def buckets(node: Node) -> list[float]:
    """How many acked commands took so long and no longer than each bound."""
    samples = [s for family in text_string_to_metric_families(await scrape(node)) for s in family.samples]
    wanted = ("gateway_command_duration_seconds_bucket", "online", "acked")
    return [s.value for s in samples if (s.name, s.labels.get("presence"), s.labels.get("status")) == wanted]


async def test_every_command_is_accounted_for(broker: LocalBroker, api: Service) -> None:
    """Received is ended, handed over, in flight or held; also while a device moves with its commands."""

    async def unaccounted(*nodes: Node) -> float:
        names = ("outcomes_total", "handed_over_total", "commands_in_flight", "commands_held")
        left = 0.0
        for node in nodes:
            parts = [await node.metric(f"gateway_{name}") for name in names]
            left += await node.metric("gateway_commands_total") - sum(parts)
        return left

    async with gateway(broker.url, "--node", "gw-1") as one, gateway(broker.url, "--node", "gw-2") as two:
        async with device(one, "AC1", transports=["websocket"]) as plate:
            never = asyncio.Event()

            async def silent(*_: Any) -> None:
                await never.wait()

            plate.client.on("bind_class", silent)
            for number in range(3):
                await api.send(f"devices/AC1/commands/bind_class/{number}", {"id": number})
                await api.send(f"devices/AC1/commands/text_stop/{number}", {"stop": True})
                assert (await api.outcome(f"devices/AC1/acks/text_stop/{number}"))["status"] == "acked"
            assert await one.metric("gateway_commands_in_flight") == 3
            assert await unaccounted(one, two) == 0
            async with device(two, "AC1", transports=["websocket"]):
                for number in range(3):
                    assert (await api.outcome(f"devices/AC1/acks/bind_class/{number}"))["status"] == "acked"
                await one.logged("device moved", serial="AC1")
                await asyncio.wait_for(plate.gone.wait(), WAIT_S)
            never.set()
        assert await one.metric("gateway_handed_over_total") == 3
        assert await one.metric("gateway_takeovers_total") == 1
        await api.presence("AC1", online=False)
        await api.send("devices/AC1/commands/bind_class/held", {"id": 1})
        assert (await api.json("devices/AC1/acks/bind_class/held"))["status"] == "queued"
        assert await two.metric("gateway_commands_held") == 1
        assert await two.metric("gateway_held_oldest_age_seconds") > 0
        assert await unaccounted(one, two) == 0
        for node in (one, two):
            assert await node.metric("gateway_commands_in_flight") == 0


async def test_sockets_are_counted_as_what_they_are(node: Node, api: Service) -> None:
    polling, upgraded, page = Device("AC1"), Device("AC2"), Device()
    await polling.connect(node.devices, transports=["polling"])
    assert await polling.authenticate() == "auth:ok"
    await upgraded.connect(node.devices, transports=["polling", "websocket"])
    assert await upgraded.authenticate() == "auth:ok"
    await page.connect(node.devices, transports=["websocket"])
    sockets = {
        ("device", "polling"): 1,
        ("device", "websocket"): 1,
        ("stranger", "websocket"): 1,
    }
    for (role, transport), number in sockets.items():
        assert await node.metric("gateway_sockets", role=role, transport=transport, generation="4") == number
    assert await node.metric("gateway_sockets") == 3
    assert await node.metric("gateway_connects_total", transport="polling") == 1, "the other had upgraded before"
    assert await node.metric("gateway_devices", presence="online") == 2
    assert await node.metric("gateway_links", state="up") == 2
    assert await node.metric("gateway_authentications_total", outcome="accepted") == 2
    for client in (polling, upgraded, page):
        await client.disconnect()
        await asyncio.wait_for(client.gone.wait(), WAIT_S)
    for serial in ("AC1", "AC2"):
        await api.presence(serial, online=False)
    while await node.metric("gateway_sockets"):
        pass
    assert await node.metric("gateway_closes_total", role="device") == 2
    assert await node.metric("gateway_closes_total", role="stranger") == 1
    assert await node.metric("gateway_devices", presence="away") == 2


async def test_a_broker_that_is_away_shows(broker: LocalBroker) -> None:
    async with gateway(broker.url) as node, device(node, "AC1", transports=["websocket"]) as plate:
        assert (await node.metric("gateway_ready"), await node.metric("gateway_broker_up")) == (1, 1)
        await broker.stop()
        await node.logged("broker lost")
        assert (await node.metric("gateway_ready"), await node.metric("gateway_broker_up")) == (0, 0)
        await plate.client.emit("reading", "x" * 1000)
        while not await node.metric("gateway_waiting_publish_bytes"):
            pass
        while await node.metric("gateway_links", state="up"):
            pass
        assert await node.metric("gateway_links", state="down") == 1
        assert await node.metric("gateway_link_failures_total", reason="lost") == 2


async def test_a_trace_goes_from_the_command_to_its_exemplar_its_spans_and_the_log(broker: LocalBroker) -> None:
    async with collector() as (url, received):
        environ = {"GATEWAY_TRACING_ENDPOINT": url, "GATEWAY_LOG_LEVEL": "debug"}
        async with (
            gateway(broker.url, environ=environ) as node,
            service(broker.url) as api,
            device(node, "AC1") as plate,
        ):
            await api.send(
                "devices/AC1/commands/media_stop/1", {"stop": True}, UserProperty=[("traceparent", TRACEPARENT)]
            )
            answer = await api.message("devices/AC1/acks/media_stop/1")
            assert ("traceparent", TRACEPARENT) in answer.properties.UserProperty  # type: ignore[union-attr]
            await plate.expect("media_stop")
            ended = await node.logged("command ended", trace_id=TRACE)
            assert {"serial": "AC1", "event": "media_stop", "id": "1", "status": "acked"}.items() <= ended.items()
            assert f'# {{trace_id="{TRACE}"}}' in await scrape(node, **OPENMETRICS)
            request = await asyncio.wait_for(received.get(), WAIT_S)
            while await node.metric("gateway_spans_total", result="exported") < 3:
                pass
        spans: list[Any] = [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        assert {span.trace_id.hex() for span in spans} == {TRACE}
        assert "command media_stop" in {span.name for span in spans}
