"""The contract of the port: one suite on every authenticator, on a real mosquitto and a real HTTP server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.auth.base import DeviceKey, Verdict
from gateway.auth.broker import BrokerAuthenticator
from tests.auth.registries import KeyFile, OpenRegistry, Plate, Registry, key_service, mosquitto

OPEN, FILE, HTTP, BROKER = "open", "file", "http", "broker"


@pytest.fixture
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    match request.param:
        case "open":
            yield OpenRegistry()
        case "file":
            yield KeyFile(tmp_path / "keys")
        case "http":
            async with key_service() as service:
                yield service
        case "broker":
            async with mosquitto(tmp_path) as broker:
                yield broker


def on(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("registry", kinds, indirect=True)


@on(OPEN, FILE, HTTP, BROKER)
@pytest.mark.parametrize("key", ["right", "a:b", "密钥", "k" * 200])
async def test_a_right_key_is_accepted_again_and_again(registry: Registry, key: str) -> None:
    await registry.put("AC1", key)
    for _ in range(3):
        assert await registry.authenticator.check(DeviceKey("AC1", key)) is Verdict.ACCEPTED


@on(FILE, HTTP, BROKER)
async def test_a_wrong_key_and_an_unknown_serial_get_one_answer(registry: Registry) -> None:
    await registry.put("AC1", "right")
    await registry.put("AC2", "other")
    for serial, key in (("AC1", "wrong"), ("AC1", "other"), ("AC3", "right"), ("ac1", "right"), ("AC1", "right ")):
        assert await registry.authenticator.check(DeviceKey(serial, key)) is Verdict.DENIED, (serial, key)


@on(FILE, HTTP, BROKER)
@pytest.mark.parametrize("key", ["\x00", "wrong\x00", "\n", '"', "k" * 1000, "\U0010ffff", "$1"])
async def test_no_key_is_too_odd_for_an_answer(registry: Registry, key: str) -> None:
    await registry.put("AC1", "right")
    assert await registry.authenticator.check(DeviceKey("AC1", key)) is Verdict.DENIED


@on(OPEN, FILE, HTTP, BROKER)
async def test_each_of_many_at_once_gets_its_own_answer(registry: Registry) -> None:
    await registry.put("AC1", "right")
    await registry.put("AC2", "other")
    claims = [DeviceKey("AC1", "right"), DeviceKey("AC1", "wrong"), DeviceKey("AC2", "other"), DeviceKey("AC3", "x")]
    verdicts = await asyncio.gather(*map(registry.authenticator.check, claims * 5))
    right = [Verdict.ACCEPTED, Verdict.DENIED, Verdict.ACCEPTED, Verdict.DENIED] * 5
    assert verdicts == (right if not isinstance(registry, OpenRegistry) else [Verdict.ACCEPTED] * 20)


@on(FILE, HTTP, BROKER)
async def test_devices_come_change_their_keys_and_go(registry: Registry) -> None:
    old, new = DeviceKey("AC1", "old"), DeviceKey("AC1", "new")
    await registry.put("AC2", "other")
    assert await registry.authenticator.check(old) is Verdict.DENIED
    await registry.put("AC1", "old")
    assert await registry.authenticator.check(old) is Verdict.ACCEPTED
    await registry.put("AC1", "new")
    assert await registry.authenticator.check(old) is Verdict.DENIED
    assert await registry.authenticator.check(new) is Verdict.ACCEPTED
    await registry.remove("AC1")
    assert await registry.authenticator.check(new) is Verdict.DENIED
    assert await registry.authenticator.check(DeviceKey("AC2", "other")) is Verdict.ACCEPTED


@on(OPEN, FILE, HTTP, BROKER)
async def test_a_device_that_is_registered_is_known(registry: Registry) -> None:
    """And after its removal where that can be seen without its key."""
    await registry.put("AC1", "key")
    await registry.authenticator.check(DeviceKey("AC1", "key"))
    assert registry.authenticator.knows("AC1")
    await registry.remove("AC1")
    await registry.authenticator.check(DeviceKey("AC1", "key"))
    assert registry.authenticator.knows("AC1") is not isinstance(registry, KeyFile)


@on(HTTP, BROKER)
async def test_an_outage_is_no_wrong_key(registry: Registry) -> None:
    await registry.put("AC1", "right")
    right, wrong = DeviceKey("AC1", "right"), DeviceKey("AC1", "wrong")
    await registry.fail()
    for claim in (right, wrong, DeviceKey("AC9", "x")):
        assert await registry.authenticator.check(claim) is Verdict.UNAVAILABLE
    await registry.recover()
    assert await registry.authenticator.check(right) is Verdict.ACCEPTED
    assert await registry.authenticator.check(wrong) is Verdict.DENIED


@on(OPEN, FILE, HTTP, BROKER)
async def test_a_check_may_be_given_up(registry: Registry) -> None:
    await registry.put("AC1", "right")
    for _ in range(3):
        check = asyncio.create_task(registry.authenticator.check(DeviceKey("AC1", "right")))
        await asyncio.sleep(0)
        check.cancel()
        await asyncio.wait({check})
    assert await registry.authenticator.check(DeviceKey("AC1", "right")) is Verdict.ACCEPTED


@on(OPEN, FILE, HTTP, BROKER)
async def test_no_key_is_logged_and_closing_twice_does_nothing(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await registry.put("AC1", "geheim-1")
    for key in ("geheim-1", "geheim-2"):
        await registry.authenticator.check(DeviceKey("AC1", key, "192.0.2.1"))
    assert "geheim" not in repr([vars(record) for record in caplog.records])
    assert "geheim" not in repr(registry.authenticator)
    await registry.authenticator.close()
    await registry.authenticator.close()


async def test_a_device_that_has_gone_to_another_node_is_not_asked_for() -> None:
    assert await BrokerAuthenticator(Plate(None)).check(DeviceKey("AC1", "key")) is Verdict.MOVED
