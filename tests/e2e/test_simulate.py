"""Simulated devices against a gateway: both client generations on every transport, and what goes wrong."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from gateway.brokers import LocalBroker
from gateway.client import DeviceEvent, Fleet
from gateway.simulate.device import SimulatedDevice
from gateway.simulate.fleet import SimulatedFleet, cast
from gateway.simulate.profiles import PROFILES, UPGRADE, Backoff, Behaviour, Flapping, Report, Transport
from tests.e2e.world import WAIT_S, Node, Service, gateway

QUICK = Backoff(first_s=0.1, max_s=0.5)
DEVICES = 200

clients = pytest.mark.parametrize(
    ("engine", "transports", "becomes"),
    [
        (engine, transports, transports[-1])
        for engine in (3, 4)
        for transports in (("polling",), ("websocket",), UPGRADE)
    ],
)


@pytest.fixture(params=["mosquitto"])
def kind(request: pytest.FixtureRequest) -> str:
    """The devices do not see the broker."""
    return str(request.param)


@pytest.fixture
async def fleet(broker: LocalBroker) -> AsyncIterator[Fleet]:
    async with Fleet(broker.url, max_inflight=100) as service:
        yield service


async def until(plates: SimulatedFleet, **counts: int) -> None:
    """Wait until the tally has at least these counts."""
    async with asyncio.timeout(WAIT_S):
        while any(getattr(plates.tally, name) < number for name, number in counts.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@clients
async def test_a_client_of_each_kind(
    engine: Literal[3, 4], transports: tuple[Transport, ...], becomes: str, node: Node, api: Service, fleet: Fleet
) -> None:
    """It acks, takes text and binary, emits, asks, and says goodbye; one that may upgrade does."""
    reports = (Report("hello", {"text": "留言 😀"}, 0.2), Report("question", 1, 0.2, asks=True))
    plate = SimulatedDevice("AC1", behaviour=Behaviour(engine, transports, reports=reports))
    lines: list[str] = []
    async with SimulatedFleet(node.devices, [plate], tell=lines.append) as plates:
        await plates.online()
        presence = await api.presence("AC1", online=True)
        assert presence["client"]["engine"] == engine
        outcome = await fleet.call("AC1", "face_data_count", timeout_s=WAIT_S)
        assert (outcome.status, outcome.data) == ("acked", {"ack": True, "count": 56})
        outcome = await fleet.call("AC1", "text_notifications", {"notifications": [{"content": "😀"}], "ended_at": "-"})
        assert outcome.status == "acked"
        assert (await fleet.call("AC1", "picture", b"\x00\xff")).status == "acked"
        assert await api.json("devices/AC1/events/hello") == {"text": "留言 😀"}
        question = await api.message("devices/AC1/events/question/+")
        await api.send(question.topic.value.removeprefix("gw/v1/").replace("/events/", "/replies/"), {"ok": True})
        await until(plates, answered=1)
        async with asyncio.timeout(WAIT_S):
            while plate.client != f"EIO{engine} {becomes}":  # noqa: ASYNC110 - the upgrade is told to nobody
                await asyncio.sleep(0.02)
        assert plates.tally.acked == {"face_data_count": 1, "text_notifications": 1, "picture": 1}
    assert (await api.presence("AC1", online=False))["reason"] == "client"
    assert 'AC1  text_notifications {"notifications":[{"content":"😀"}],"ended_at":"-"}' in lines
    assert 'AC1  answered {"ok":true}' in lines
    assert lines[-1] == "AC1  away"


async def test_a_mixed_fleet_acks_every_command(broker: LocalBroker, fleet: Fleet) -> None:
    """Both generations on every transport, some slow, some that drop their socket meanwhile: each command is acked."""
    profile = [_hurried(behaviour) for behaviour in PROFILES["mixed"]]
    devices = cast([f"SIM{n}" for n in range(DEVICES)], profile, lambda _: "key")
    async with gateway(broker.url) as node, SimulatedFleet(node.devices, devices, backoff=QUICK, seed=1) as plates:
        await until(plates, authenticated=DEVICES)
        serials = [device.serial for device in devices]
        ended = [called async for called in fleet.call_many(serials, "device_status", qos=1, timeout_s=WAIT_S)]
        assert Counter(called.status for called in ended) == {"acked": DEVICES}
        assert {called.serial for called in ended} == set(serials)
        await until(plates, reconnects=1)
        assert set(plates.summary().clients) == {"EIO3 polling", "EIO3 websocket", "EIO4 websocket"}
        assert plates.tally.received["device_status"] >= DEVICES
        assert plates.tally.ended["dropped"]
        assert set(plates.tally.ended) == {"dropped"}, "nobody else was cut off"


def _hurried(behaviour: Behaviour) -> Behaviour:
    """The same behaviour in a tenth of the time."""
    low, high = behaviour.ack_delay_s
    flapping = behaviour.flapping and Flapping(behaviour.flapping.online_s / 10)
    return msgspec.structs.replace(behaviour, ack_delay_s=(low / 10, high / 10), flapping=flapping)


async def test_all_come_back_after_a_storm(node: Node) -> None:
    devices = cast([f"SIM{n}" for n in range(20)], PROFILES["mixed"], lambda _: "key")
    async with SimulatedFleet(node.devices, devices, backoff=QUICK) as plates:
        await plates.online()
        plates.drop()
        await until(plates, auth_ok=40)
        await plates.online()
        assert plates.tally.ended == {"dropped": 20}
        assert plates.tally.reconnects == 20


async def test_a_gateway_that_goes_and_one_that_comes(broker: LocalBroker) -> None:
    devices = cast([f"SIM{n}" for n in range(20)], PROFILES["mixed"], lambda _: "key")
    async with AsyncExitStack() as stack:
        async with gateway(broker.url, "--node", "gw-1") as node:
            plates = await stack.enter_async_context(SimulatedFleet(node.devices, devices, backoff=QUICK))
            await plates.online()
        assert plates.tally.online == 0
        await asyncio.wait_for(_ended(plates, "unreachable"), WAIT_S)
        async with gateway(broker.url, "--node", "gw-1", listen=f"127.0.0.1:{node.devices.rpartition(':')[2]}"):
            await asyncio.wait_for(plates.online(), WAIT_S)


async def _ended(plates: SimulatedFleet, reason: str) -> None:
    while not plates.tally.ended[reason]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("profile", ["steady", "old"])
async def test_a_gateway_that_is_busy(profile: str, broker: LocalBroker, tmp_path: Path) -> None:
    """Whom it answers 503 comes back until there is room."""
    config = tmp_path / "slow.toml"
    config.write_text("[admission]\nhandshakes_per_address_per_s = 2\n")  # and 20 s' worth at once
    devices = cast([f"SIM{n}" for n in range(44)], PROFILES[profile], lambda _: "key")
    async with (
        gateway(broker.url, config=str(config)) as node,
        SimulatedFleet(node.devices, devices, backoff=QUICK) as plates,
    ):
        await asyncio.wait_for(plates.online(), WAIT_S)
        assert plates.tally.ended.keys() == {"busy"}
        assert plates.tally.auth_ok == 44


async def test_a_key_that_is_not_taken(broker: LocalBroker, tmp_path: Path) -> None:
    """It tries again for ever, with pauses that grow, and is told of once."""
    keys = tmp_path / "keys"
    keys.write_text("")
    lines: list[str] = []
    async with gateway(broker.url, "--auth", f"file:{keys}", environ={"GATEWAY_PEPPER": "p"}) as node:
        plate = SimulatedDevice("AC1", behaviour=Behaviour(3, UPGRADE))
        async with SimulatedFleet(node.devices, [plate], backoff=QUICK, tell=lines.append) as plates:
            await until(plates, auth_fail=3)
            assert plates.tally.auth_ok == 0
            assert len(lines) == 1
            assert lines[0].startswith("AC1  refused: ")


async def test_remote_debugging(node: Node, api: Service, fleet: Fleet) -> None:
    """It enters the room that it is told, and says what a command answered."""
    async with SimulatedFleet(node.devices, [SimulatedDevice("AC1")]) as plates:
        await plates.online()
        assert (await fleet.call("AC1", "enable_remote_cmd", {"room": "AC1"})).status == "acked"
        seen: asyncio.Task[Any] = asyncio.create_task(api.json("devices/AC1/events/cmd_result"))
        while not seen.done():  # the join has no ack
            await fleet.emit_room("AC1", "remote_cmd", {"encrypted_cmd": "a.b.c"})
            await asyncio.wait({seen}, timeout=0.1)
        assert seen.result() == {"result": "ok"}


async def test_a_question_of_a_device_reaches_the_service(broker: LocalBroker, node: Node) -> None:
    service = Fleet(broker.url)

    @service.answer("question")
    async def question(asked: DeviceEvent) -> dict[str, Any]:
        return {"heard": asked.payload}

    lines: list[str] = []
    plate = SimulatedDevice("AC1", behaviour=Behaviour(reports=(Report("question", {"n": 1}, 0.1, asks=True),)))
    async with service, SimulatedFleet(node.devices, [plate], tell=lines.append) as plates:
        await until(plates, answered=2)
    assert 'AC1  answered {"heard":{"n":1}}' in lines
