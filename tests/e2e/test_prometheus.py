"""A real Prometheus watches a fleet with faults: alerts fire and clear, and every expression has data.

The rules are the shipped ones with each duration a hundredth as long; promtool tests the real ones by alerts_test.yml.
"""

import asyncio
import json
import os
import re
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Final

import mqtt5
import pytest
import pytest_asyncio
import socketio

from gateway import keyfile
from gateway.auth.file import hash_key
from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.client import DeviceEvent, Fleet
from gateway.simulate.fleet import SimulatedFleet, cast
from gateway.simulate.profiles import PROFILES, Behaviour
from tests.certificates import Authority
from tests.clients.install import missing
from tests.e2e.cutter import Cutter
from tests.e2e.hostile import RawSocket
from tests.e2e.monitoring import DEPLOY, SCRAPE_S, Pager, Prometheus, expressions, hurried, prometheus
from tests.e2e.world import Device, Node, Service, device, gateway, service, viewer, workers_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.mosquitto_only("it has an access control list")]

DASHBOARDS: Final = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PEPPER: Final = "pepper"
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
FLEET: Final = 30
ONLY_PROMTOOL: Final = {  # alerts whose fault takes too long here; alerts_test.yml has them
    "GatewayVersionsDiffer": "there is one version",
    "GatewayNodeRestarts": "a machine under load needs longer for three restarts than the window is in a hurry",
}
METRIC: Final = re.compile(r"\b(?:gateway|process)_\w+")
LASTS: Final = {"GatewayAckBudgetBurnsSlowly", "GatewayOutcomeBudgetBurnsSlowly"}  # their windows are minutes even so
CONFIG: Final = """
[rooms]
rules = [{ match = "{serial}", allow = "self" }, { match = "bp_student_*", allow = "anyone" }]
[commands]
reply_timeout_s = 0.5
[mqtt]
max_waiting_bytes = 1024
reconnect_min_s = 0.05
reconnect_max_s = 0.2
[devices]
max_buffer_bytes = 65_536
drain_s = 60
[admission]
max_viewers = 2
trusted_proxies = ["127.0.0.1/32"]
"""


class World:
    """Three nodes at one broker, watched."""

    def __init__(self, directory: Path, broker: LocalBroker, cutter: Cutter, pager: Pager, watcher: Prometheus) -> None:
        self.broker = broker
        self.cutter = cutter
        self.pager = pager
        self.watcher = watcher
        self.nodes: dict[str, Node] = {}
        self.since = datetime.now(UTC)
        self._config = directory / "gateway.toml"
        self._config.write_text(CONFIG, "utf-8")
        self.authority = Authority(directory, "authority")
        self.keys = directory / "keys"
        serials = [f"{kind}{n}" for kind in ("SIM", "LATE", "FLAP", "CUT", "BIG") for n in range(FLEET)]
        alone = ["AWAY", "MUTE", "ASKS", "TALKS", "STAYS"]
        keyfile.put(self.keys, {serial: hash_key(serial, "key", PEPPER.encode()) for serial in (*serials, *alone)})

    @asynccontextmanager
    async def node(self, name: str, broker_url: str, **more: str) -> AsyncIterator[Node]:
        """Run a node and have it watched."""
        environ = {"GATEWAY_PEPPER": PEPPER, **more}
        known = {"broker refused the node"}
        async with gateway(
            broker_url, "--node", name, "--auth", f"file:{self.keys}",
            config=str(self._config), environ=environ, errors=known, debug=False,
        ) as running:  # fmt: skip
            self.nodes[name] = running
            self.watcher.watch(self.nodes)
            yield running

    def forget(self, name: str) -> None:
        """Watch a node no longer."""
        del self.nodes[name]
        self.watcher.watch(self.nodes)


def fleet(node: Node, kind: str, number: int, *behaviours: Behaviour) -> SimulatedFleet:
    """Simulated devices."""
    return SimulatedFleet(
        node.devices, cast([f"{kind}{n}" for n in range(number)], behaviours or PROFILES["steady"], lambda _: "key")
    )


async def answer(asked: DeviceEvent) -> dict[str, bool]:
    """What a service does."""
    return {"ok": True}


# --- What goes on when all is well ----------------------------------------------------------------


async def daily_business(world: World, services: Fleet, api: Service) -> None:
    """Some of everything that is counted, so that every panel has something to show."""
    node = world.nodes["gw-1"]
    async with viewer(node) as page, device(node, "STAYS") as plate:
        await page.client.emit("join_room", {"room": "bp_student_1"})
        await page.expect("join_room:ok")
        await services.emit_room("bp_student_1", "memos_update", {"memo_id": 1})
        await page.expect("memos_update")
        assert await plate.client.call("question", {"what": "time"}) == {"ok": True}
        async for called in services.call_many([f"SIM{n}" for n in range(FLEET)], "device_status"):
            assert called.status == "acked"
        traceparent = f"00-{TRACE}-b7ad6b7169203331-01"
        await api.send("devices/STAYS/commands/media_stop", {"stop": True}, UserProperty=[("traceparent", traceparent)])
        assert (await api.outcome("devices/STAYS/acks/media_stop"))["status"] == "acked"
    async with device(world.nodes["gw-2"], "STAYS"):  # it goes to another node
        pass


# --- Faults: each ends when its alerts were heard, and returns when they are over --------------------
#
# What is counted goes on until then: a machine under load misses scrapes, and with them a fault of a moment.


async def late_acks(world: World, services: Fleet) -> None:
    """Devices take longer than 2 s; then the services send so much that it does not matter any more."""
    async with fleet(world.nodes["gw-1"], "LATE", 15, Behaviour(ack_delay_s=(2.1, 2.2))) as devices:
        await devices.online()
        while not {"GatewayAckBudgetBurnsFast", "GatewayAckBudgetBurnsSlowly"} <= world.pager.heard.keys():
            async for called in services.call_many([f"LATE{n}" for n in range(15)], "device_status"):
                assert called.status == "acked"
    async for called in services.call_many([f"SIM{n % FLEET}" for n in range(2000)], "device_status", concurrency=50):
        assert called.status == "acked"
    await over(world, "GatewayAckBudgetBurnsFast")


async def refused_outcomes(world: World, api: Service) -> None:
    """The broker takes no outcome of one device."""
    alerts = {"GatewayOutcomeBudgetBurnsFast", "GatewayOutcomeBudgetBurnsSlowly", "GatewayPublishesRefused"}
    async with device(world.nodes["gw-1"], "MUTE") as plate:
        while not alerts <= world.pager.heard.keys():
            for number in range(15):
                await api.send(f"devices/MUTE/commands/media_stop/{number}", {"stop": True})
            for _ in range(15):
                await plate.expect("media_stop")
            await asyncio.sleep(SCRAPE_S)
    await over(world, "GatewayOutcomeBudgetBurnsFast", "GatewayPublishesRefused")


async def bad_commands(world: World, api: Service) -> None:
    while "GatewayCommandsRejected" not in world.pager.heard:
        for number in range(30):
            await api.send(f"devices/SIM1/commands/bind_class/bad-{number}", b"not JSON")
        for number in range(30):
            assert (await api.outcome(f"devices/SIM1/acks/bind_class/bad-{number}"))["status"] == "rejected"
    await over(world, "GatewayCommandsRejected")


async def a_device_that_is_away(world: World, api: Service) -> None:
    node = world.nodes["gw-1"]
    async with device(node, "AWAY"):
        pass
    await api.send("devices/AWAY/commands/bind_class/held", {"id": 1})
    await heard(world, "GatewayHeldCommandsOld")
    async with device(node, "AWAY") as plate:
        await plate.expect("bind_class")
        await over(world, "GatewayHeldCommandsOld")


async def wrong_keys(world: World) -> None:
    """From many addresses, as one would be slowed down."""

    async def guess(number: int) -> None:
        plate = Device(f"SIM{number}")
        address = {"X-Forwarded-For": f"192.0.2.{number}"}
        await plate.connect(world.nodes["gw-1"].devices, headers=address)
        assert await plate.authenticate("wrong") == "auth:fail"
        await plate.disconnect()

    while "GatewayAuthenticationsFail" not in world.pager.heard:
        async with asyncio.TaskGroup() as group:
            for number in range(25):
                group.create_task(guess(number))
    await over(world, "GatewayAuthenticationsFail")


async def one_serial_on_two_nodes(world: World) -> None:
    one, two = world.nodes["gw-1"], world.nodes["gw-2"]
    async with fleet(one, "FLAP", 12), fleet(two, "FLAP", 12):
        await heard(world, "GatewayDevicesFlap")
    await over(world, "GatewayDevicesFlap")


async def devices_that_do_not_read(world: World, api: Service) -> None:
    node = world.nodes["gw-2"]
    while "GatewaySlowDevices" not in world.pager.heard:
        before = await node.metric("gateway_closes_total", role="device", reason="slow")
        async with AsyncExitStack() as stack:
            for number in range(12):
                peer = await stack.enter_async_context(RawSocket.open(node, f"BIG{number}"))
                peer.text('42["join_room",{"room":"bp_student_2"}]')
                await peer.until('42["join_room:ok"')
                peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while await node.metric("gateway_closes_total", role="device", reason="slow") < before + 12:
                await api.send("rooms/bp_student_2/events/memos_update", {"memo_id": 1, "more": "x" * 900_000})
            await asyncio.sleep(SCRAPE_S)
    await over(world, "GatewaySlowDevices")


async def questions_without_an_answer(world: World) -> None:
    async with device(world.nodes["gw-1"], "ASKS") as plate:
        while "GatewayQuestionsUnanswered" not in world.pager.heard:
            assert await plate.client.call("question", {"what": "time"}) == {"ok": True}
            async with asyncio.TaskGroup() as group:
                for _ in range(15):
                    group.create_task(_unanswered(plate))
    await over(world, "GatewayQuestionsUnanswered")


async def _unanswered(plate: Device) -> None:
    with suppress(socketio.exceptions.TimeoutError):
        await plate.client.call("anybody", {}, timeout=1)


async def more_viewers_than_may_be(world: World) -> None:
    node = world.nodes["gw-2"]
    async with viewer(node) as one, viewer(node) as two, viewer(node) as third:
        for page in (one, two):
            await page.client.emit("join_room", {"room": "bp_student_3"})
            await page.expect("join_room:ok")
        while "GatewayRefusesSockets" not in world.pager.heard:
            for _ in range(30):
                await third.client.emit("join_room", {"room": "bp_student_3"})
                await third.expect("join_room:fail")
            await asyncio.sleep(SCRAPE_S)
    await over(world, "GatewayRefusesSockets")


async def a_broken_file(world: World) -> None:
    """The nodes go on with what they read before."""
    good, bad = world.keys.with_suffix(".good"), world.keys.with_suffix(".bad")
    good.write_bytes(world.keys.read_bytes())
    bad.write_text("this is no file of keys\n", "utf-8")
    bad.rename(world.keys)
    await heard(world, "GatewayReloadFailed")
    good.rename(world.keys)
    await over(world, "GatewayReloadFailed")


async def a_node_in_trouble(world: World, api: Service, stack: AsyncExitStack) -> None:
    """One after the other, on a node of its own: files, links, the broker, a drain that does not end, and death."""
    node = world.nodes["gw-3"]
    await too_few_files(world, node)
    await held_up(world, node)
    async with fleet(node, "CUT", 12) as devices:
        await devices.online()
        world.cutter.spared = 1
        world.cutter.refuse_with = mqtt5.ConnAckReasonCode.SERVER_BUSY
        await world.cutter.cut()
        await heard(world, "GatewayLinksDown")
        world.cutter.spared = 0
        await world.cutter.cut()
        await heard(world, "GatewayErrorsLogged")
        world.cutter.refuse_with = None
        await over(world, "GatewayLinksDown", "GatewayEventLoopLag")
    await drained_for_ever(world, node, api)
    await heard(world, "GatewayNodeDown")
    await stack.enter_async_context(world.node("gw-3", world.cutter.url))
    await over(world, "GatewayNodeNotReady", "GatewayNodeDown", "GatewayErrorsLogged")


async def too_few_files(world: World, node: Node) -> None:
    limits = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
    opened = len(os.listdir(f"/proc/{node.process.pid}/fd"))  # noqa: PTH208
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (int(opened / 0.85), limits[1]))
    await heard(world, "GatewayOpenFiles")
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, limits)
    await over(world, "GatewayOpenFiles")


async def held_up(world: World, node: Node) -> None:
    while "GatewayEventLoopLag" not in world.pager.heard:
        node.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.6)  # the fault
        node.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.6)  # time to be scraped


async def drained_for_ever(world: World, node: Node, api: Service) -> None:
    """A node that was told to stop, and waits for a device that does not ack."""
    async with device(node, "TALKS") as plate:
        got, release = asyncio.Event(), asyncio.Event()

        async def slow(event: str, *_: object) -> dict[str, bool]:
            got.set()
            await release.wait()
            return {"ack": True}

        plate.client.on("*", slow)
        await api.send("devices/TALKS/commands/media_stop", {"stop": True}, qos=0)
        await got.wait()
        node.process.terminate()
        await heard(world, "GatewayNodeNotReady")
        release.set()
        await node.process.wait()


async def a_worker_that_always_dies(world: World) -> None:
    """Each time its supervisor takes longer to start it again."""
    environ = {"GATEWAY_PEPPER": PEPPER}
    flags = ("--node", "gw-5", "--workers", "2", "--auth", f"file:{world.keys}")
    async with gateway(
        world.broker.url, *flags, environ=environ, errors={"worker ended"}, await_ready=False
    ) as supervisor:
        supervisor.admin = (await supervisor.logged("workers started"))["admin"]
        world.nodes["gw-5"] = supervisor
        world.watcher.watch(world.nodes)
        while "GatewayWorkerDown" not in world.pager.heard:
            for pid in workers_of(supervisor, "gw-5.2"):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(SCRAPE_S)
        await over(world, "GatewayWorkerDown")
    world.forget("gw-5")


async def a_certificate_that_ends(world: World) -> None:
    """It is renewed in time."""
    until = datetime.now(UTC) + timedelta(days=1)
    files = world.authority.issue("gw-4", until=until)
    settings = {"GATEWAY_DEVICES_TLS_CERT": str(files.certificate), "GATEWAY_DEVICES_TLS_KEY": str(files.key)}
    async with world.node("gw-4", world.broker.url, **settings):
        await heard(world, "GatewayCertificateExpires", "GatewayCertificateExpiresSoon")
        world.authority.issue("gw-4", over=files)
        await over(world, "GatewayCertificateExpires", "GatewayCertificateExpiresSoon")
    world.forget("gw-4")


async def no_broker(world: World) -> None:
    """For all nodes; what devices say meanwhile does not fit."""
    async with device(world.nodes["gw-1"], "TALKS", transports=["websocket"]) as plate:
        await world.broker.stop()
        await heard(world, "GatewayBrokerUnreachable", "GatewayNoNodeReady")
        while "GatewayEventsDropped" not in world.pager.heard:
            await plate.client.emit("reading", "x" * 1000)
            await asyncio.sleep(SCRAPE_S)
        await world.broker.start()
        await over(world, "GatewayBrokerUnreachable", "GatewayNoNodeReady", "GatewayEventsDropped")


async def heard(world: World, *alerts: str) -> None:
    for alert in alerts:
        await world.pager.hears(alert)


async def over(world: World, *alerts: str) -> None:
    for alert in alerts:
        await world.pager.forgets(alert)


# --- The story, told once -------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """All faults have been; Prometheus still knows."""
    directory = tmp_path_factory.mktemp("monitored")
    acl = directory / "acl"
    acl.write_text("topic readwrite #\ntopic deny gw/v1/devices/MUTE/acks/#\n", "utf-8")
    acl.chmod(0o600)
    pager = Pager()
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(local_broker("mosquitto", directory, {"acl_file": str(acl)}))
        except BrokerUnavailable as problem:
            missing(str(problem))
        cutter = await stack.enter_async_context(Cutter(int(broker.url.rpartition(":")[2])))
        await stack.enter_async_context(pager.listening())
        watcher = await stack.enter_async_context(prometheus(directory, pager))
        told = World(directory, broker, cutter, pager, watcher)
        await heard(told, "GatewayAbsent")
        await tell(told, stack)
        yield told


async def tell(world: World, stack: AsyncExitStack) -> None:
    """Start the nodes, then break what can be broken."""
    for name, url in (("gw-1", world.broker.url), ("gw-2", world.broker.url), ("gw-3", world.cutter.url)):
        await stack.enter_async_context(world.node(name, url))
    await over(world, "GatewayAbsent")
    async with fleet(world.nodes["gw-1"], "SIM", FLEET, *PROFILES["modern"], *PROFILES["old"]) as devices:
        await devices.online()
        services = Fleet(world.broker.url)
        services.answer("question")(answer)
        async with services, service(world.broker.url) as api:
            await daily_business(world, services, api)
            assert not world.pager.firing, "nothing is wrong yet"
            async with asyncio.TaskGroup() as group:  # first those that start nodes, which takes long beside the others
                for fault in (
                    a_node_in_trouble(world, api, stack),
                    a_certificate_that_ends(world),
                    a_worker_that_always_dies(world),
                ):
                    group.create_task(fault)
            async with asyncio.TaskGroup() as group:
                for fault in (
                    late_acks(world, services),
                    refused_outcomes(world, api),
                    bad_commands(world, api),
                    a_device_that_is_away(world, api),
                    wrong_keys(world),
                    one_serial_on_two_nodes(world),
                    devices_that_do_not_read(world, api),
                    questions_without_an_answer(world),
                    more_viewers_than_may_be(world),
                    a_broken_file(world),
                ):
                    group.create_task(fault)
        await over(world, "GatewayMassDisconnect")  # of those that left in the meantime
        world.pager.heard.pop("GatewayMassDisconnect", None)
    await heard(world, "GatewayMassDisconnect")
    await over(world, "GatewayMassDisconnect")
    await no_broker(world)


# --- What Prometheus has to say -------------------------------------------------------------------


async def test_every_alert_fires_when_its_fault_is_there_and_not_after(world: World) -> None:
    alerts = {rule["name"] for rule in await world.watcher.rules() if rule["type"] == "alerting"}
    assert alerts - world.pager.heard.keys() == ONLY_PROMTOOL.keys()
    await over(world, *sorted({json.loads(key)["alertname"] for key in world.pager.firing} - LASTS))


async def test_alerts_say_what_they_mean(world: World) -> None:
    for alert in world.pager.heard.values():
        text = " ".join(alert["annotations"].values())
        assert not re.search(r"{{|<no value>|error (calling|executing)|NaN", text), text


async def test_no_rule_fails_and_each_recording_rule_records(world: World) -> None:
    for rule in await world.watcher.rules():
        assert rule["health"] == "ok", rule
        if rule["type"] == "recording":
            assert await has_data(world, rule["name"]), rule["name"]


async def test_alerts_that_did_not_fire_look_at_what_there_is(world: World) -> None:
    for rule in await world.watcher.rules():
        for metric in METRIC.findall(rule["query"]) if rule["name"] in ONLY_PROMTOOL else ():
            assert await has_data(world, metric), (rule["name"], metric)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
async def test_every_expression_of_a_dashboard_has_data(world: World, path: Path) -> None:
    since = (datetime.now(UTC) - world.since).total_seconds()
    ranges = {"__rate_interval": f"{int(8 * SCRAPE_S)}s", "__range": f"{int(since)}s"}
    empty = [
        (title, expr)
        for title, expr in expressions(json.loads(path.read_text("utf-8")), ranges)
        if not await has_data(world, expr)
    ]
    assert not empty


async def test_every_expression_of_the_runbook_has_data(world: World) -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text("utf-8")
    found = re.findall(r"```promql\n(.*?)```", text, re.DOTALL)
    assert found
    assert [expr for expr in found if not await has_data(world, hurried(expr))] == []


async def has_data(world: World, expr: str) -> bool:
    """Whether it had a number at any time; a week ago counts as now, as there was nothing then."""
    now = re.sub(r" offset \d+[hd]", "", expr)
    return any(isfinite(number) for number in await world.watcher.numbers(now, world.since))


async def test_no_node_has_more_series_after_all_that_than_before(world: World) -> None:
    """Labels are closed sets, and all there from the start."""
    for name in world.nodes:
        scraped = await world.watcher.numbers(f'scrape_samples_scraped{{instance="{name}"}} > 0', world.since)
        assert len(set(scraped)) == 1, (name, set(scraped))


async def test_every_command_is_accounted_for_after_all_that(world: World) -> None:
    vanished = await world.watcher.numbers("instance:gateway_commands_unaccounted:sum", world.since)
    assert set(vanished) == {0.0}


async def test_a_slow_command_leads_to_its_trace(world: World) -> None:
    span = {"start": world.since.isoformat(), "end": datetime.now(UTC).isoformat()}
    data = await world.watcher.get("query_exemplars", query="gateway_command_duration_seconds_bucket", **span)
    traces = {exemplar["labels"]["trace_id"] for series in data for exemplar in series["exemplars"]}
    assert traces == {TRACE}
