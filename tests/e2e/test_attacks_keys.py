"""Keys that are guessed: from one address, from many, and from where the real device is, which gets in all the same."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway import keyfile
from gateway.auth.file import hash_key
from gateway.brokers import LocalBroker
from tests.e2e.hostile import RawSocket, bear, counted, counts, unharmed
from tests.e2e.world import Device, Node, Service, device, gateway

PEPPER = "pepper"
KEYS = {"AC1": "right", "AC2": "other", "BYSTANDER": "key"}
REFUSALS = "gateway_refusals_total"


@pytest.fixture
def kind() -> str:
    return "mosquitto"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    keyfile.put(path, {serial: hash_key(serial, key, PEPPER.encode()) for serial, key in KEYS.items()})
    return path


@asynccontextmanager
async def guarded(broker: LocalBroker, keys: Path, auth_timeout_s: int) -> AsyncIterator[Node]:
    """A node that knows the keys; who guesses waits for a third of the time to authenticate, and 64 s, at most."""
    environ = {"GATEWAY_PEPPER": PEPPER, "GATEWAY_DEVICES_AUTH_TIMEOUT_S": str(auth_timeout_s)}
    async with gateway(broker.url, "--auth", f"file:{keys}", environ=environ) as running:
        yield running


@pytest.fixture
async def node(broker: LocalBroker, keys: Path) -> AsyncIterator[Node]:
    """Nobody waits for longer than 6 s: each is answered while the test lasts."""
    async with guarded(broker, keys, 18) as running:
        yield running


@pytest.fixture
async def patient(broker: LocalBroker, keys: Path) -> AsyncIterator[Node]:
    """Who failed twelve times waits for a minute: nobody that waits is answered while the test lasts."""
    async with guarded(broker, keys, 600) as running:
        yield running


async def guess(node: Node, source: str, serial: str, number: int) -> None:
    """Wrong keys, one after the other."""
    async with RawSocket.open(node, source=source) as peer:
        for attempt in range(number):
            assert await peer.authenticate(serial, f"wrong{attempt}") == "auth:fail"


async def stammer(peer: RawSocket, number: int) -> None:
    """No keys at all: each is answered at once, and fails as a wrong one does."""
    for _ in range(number):
        peer.text('42["authentication",{"signature":"%%%"}]')
        await peer.until('42["auth:fail"')


@asynccontextmanager
async def crowd(node: Node, sources: Sequence[str]) -> AsyncIterator[list[RawSocket]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RawSocket.open(node, source=source)) for source in sources]


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


async def test_from_many_addresses_at_one_serial(patient: Node, api: Service) -> None:
    """The right key from an address without a failure does not wait; all the guesses do."""
    async with (
        device(patient, "BYSTANDER") as bystander,
        unharmed(patient, api, bystander, REFUSALS, 30, reason="delayed-key"),
        crowd(patient, [f"127.0.1.{n}" for n in range(1, 31)]) as peers,
    ):
        for peer in peers:
            assert await peer.authenticate("AC1", "first guess") == "auth:fail"
        for peer in peers:
            peer.claim("AC1", "second guess")
        await counts(patient, len(peers), REFUSALS, reason="delayed-key")
        assert await enter(patient, "AC1", "127.0.0.3") == "auth:ok"
        assert await counted(patient, REFUSALS, reason="wrong-key") == len(peers), "no second guess was checked"


async def test_from_where_the_device_is(patient: Node) -> None:
    """A school has one address: who was there before does not wait, the guesses and who comes for the first time do."""
    school = "127.0.0.4"
    assert await enter(patient, "AC1", school) == "auth:ok"
    async with crowd(patient, [school] * 21) as (newcomer, *peers):
        await stammer(peers[0], 12)
        for peer in peers:
            peer.claim("BYSTANDER", "guess")
        newcomer.claim("AC2", KEYS["AC2"])
        await counts(patient, len(peers) + 1, REFUSALS, reason="delayed-key")
        assert await enter(patient, "AC1", school) == "auth:ok"
        assert await counted(patient, REFUSALS, reason="wrong-key") == 0, "no guess was checked"
        assert await counted(patient, "gateway_authentications_total", outcome="accepted") == 2, "nor the newcomer"


async def test_each_is_answered_in_the_end(node: Node) -> None:
    """The guesses are told no, and the right key among them gets in."""
    school = "127.0.0.4"
    async with crowd(node, [school] * 21) as (newcomer, *peers):
        await stammer(peers[0], 7)
        for peer in peers:
            peer.claim("BYSTANDER", "guess")
        newcomer.claim("AC2", KEYS["AC2"])
        await counts(node, len(peers) + 1, REFUSALS, reason="delayed-key")
        for peer in peers:
            await peer.until('42["auth:fail"')
        await newcomer.until('42["auth:ok"')
    assert await counted(node, REFUSALS, reason="wrong-key") == len(peers)


async def test_what_is_no_signature_waits_like_a_wrong_key(patient: Node) -> None:
    async with RawSocket.open(patient, source="127.0.0.2") as peer:
        await stammer(peer, 12)
        peer.claim("AC1", KEYS["AC1"])
        await counts(patient, 1, REFUSALS, reason="delayed-key")
    assert await counted(patient, REFUSALS, reason="malformed-signature") == 12
    assert await counted(patient, "gateway_authentications_total", outcome="accepted") == 0, "the right one waits, too"


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
