"""Keys that are guessed: from one address, from many, and from where the real device is, which gets in all the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway import keyfile
from gateway.auth.file import hash_key
from gateway.brokers import LocalBroker
from tests.e2e.hostile import RawSocket, bear, counted, counts
from tests.e2e.world import Device, Node, Service, device, gateway

PEPPER = "pepper"
KEYS = {"AC1": "right", "AC2": "other", "BYSTANDER": "key"}
REFUSALS = "gateway_refusals_total"


@pytest.fixture
def kind() -> str:
    return "mosquitto"


@pytest.fixture
async def node(broker: LocalBroker, tmp_path: Path) -> AsyncIterator[Node]:
    """It lets nobody wait for longer than 6 s."""
    path = tmp_path / "keys"
    keyfile.put(path, {serial: hash_key(serial, key, PEPPER.encode()) for serial, key in KEYS.items()})
    environ = {"GATEWAY_PEPPER": PEPPER, "GATEWAY_DEVICES_AUTH_TIMEOUT_S": "18"}
    async with gateway(broker.url, "--auth", f"file:{path}", environ=environ) as running:
        yield running


async def guess(node: Node, source: str, serial: str, number: int) -> None:
    """Wrong keys, one after the other."""
    async with RawSocket.open(node, source=source) as peer:
        for attempt in range(number):
            assert await peer.authenticate(serial, f"wrong{attempt}") == "auth:fail"


async def enter(node: Node, serial: str, source: str) -> str:
    async with RawSocket.open(node, source=source) as peer:
        return await peer.authenticate(serial, KEYS[serial])


async def test_from_one_address(node: Node, api: Service) -> None:
    """Each guess waits longer, devices are served, and the one whose key it is comes in from its own address."""

    async def attack() -> None:
        await guess(node, "127.0.0.2", "AC1", 3)

    async def seen() -> bool:
        assert await enter(node, "AC1", "127.0.0.3") == "auth:ok"
        return await counted(node, REFUSALS, reason="delayed-key") > 10

    async with device(node, "BYSTANDER") as bystander:
        await bear(node, api, bystander, attack, seen, peers=20)
        assert await counted(node, REFUSALS, reason="wrong-key") > 5


async def test_from_many_addresses_at_one_serial(node: Node) -> None:
    """The right key from an address without a failure does not wait; all the guesses do."""
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(RawSocket.open(node, source=f"127.0.1.{n}")) for n in range(1, 31)]
        for peer in peers:
            assert await peer.authenticate("AC1", "first guess") == "auth:fail"
        guesses = [asyncio.create_task(peer.authenticate("AC1", "second guess")) for peer in peers]
        await counts(node, len(peers), REFUSALS, reason="delayed-key")
        assert await enter(node, "AC1", "127.0.0.3") == "auth:ok"
        assert not any(guess.done() for guess in guesses)
        assert set(await asyncio.gather(*guesses)) == {"auth:fail"}, "each is answered in the end"
    assert await counted(node, REFUSALS, reason="wrong-key") == 2 * len(peers)


async def test_from_where_the_device_is(node: Node) -> None:
    """A school has one address: who was there before does not wait, who comes for the first time waits a while."""
    school = "127.0.0.4"
    assert await enter(node, "AC1", school) == "auth:ok"
    await guess(node, school, "BYSTANDER", 7)
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(RawSocket.open(node, source=school)) for _ in range(20)]
        guesses = [asyncio.create_task(peer.authenticate("BYSTANDER", "guess")) for peer in peers]
        await counts(node, len(peers), REFUSALS, reason="delayed-key")
        newcomer = asyncio.create_task(enter(node, "AC2", school))
        assert await enter(node, "AC1", school) == "auth:ok"
        assert not newcomer.done()
        assert await newcomer == "auth:ok"
        assert set(await asyncio.gather(*guesses)) == {"auth:fail"}


async def test_what_is_no_signature_waits_like_a_wrong_key(node: Node) -> None:
    async with RawSocket.open(node, source="127.0.0.2") as peer:
        for _ in range(8):
            peer.text('42["authentication",{"signature":"%%%"}]')
            await peer.until('42["auth:fail"')
        waits = asyncio.create_task(peer.authenticate("AC1", "guess"))
        await counts(node, 1, REFUSALS, reason="delayed-key")
        assert not waits.done()
        assert await waits == "auth:fail"
    assert await counted(node, REFUSALS, reason="malformed-signature") == 8


async def test_a_guess_under_way_is_the_only_one_of_its_socket(node: Node) -> None:
    """Who sends more meanwhile is not heard: there is one check at a time."""
    async with RawSocket.open(node, source="127.0.0.2") as peer:
        for attempt in range(6):
            await peer.authenticate("AC1", f"wrong{attempt}")
        waits = asyncio.create_task(peer.authenticate("AC1", "guess"))
        await counts(node, 1, REFUSALS, reason="delayed-key")
        for attempt in range(100):
            peer.text(f'42["authentication",{{"signature":"QUMxOndyb25n{attempt:04}"}}]')
        assert await waits == "auth:fail"
    plate = Device("AC1")
    await plate.connect(node.devices)
    assert await plate.authenticate("right") == "auth:ok"
    await plate.disconnect()
    assert await counted(node, REFUSALS, reason="wrong-key") < 12
