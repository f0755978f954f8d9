"""A device that emits escape sequences does not write into the clipboard of who watches it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.brokers import LocalBroker
from gateway.cli.terminal import printable
from tests.e2e.conftest import broker, node
from tests.e2e.world import WAIT_S, Node, device

__all__ = ["broker", "node"]


@pytest.fixture
def kind() -> str:
    return "mosquitto"


@given(st.text(st.characters()))
def test_nothing_is_left_that_steers_a_terminal(text: str) -> None:
    assert printable(text).isprintable()


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_means_the_same(value: object) -> None:
    assert msgspec.json.decode(printable(msgspec.json.encode(value).decode())) == value


def test_what_can_be_read_stays_as_it_is() -> None:
    assert printable('AC1  留言 ["a b", 1]') == 'AC1  留言 ["a b", 1]'


async def test_watch_shows_what_a_device_emits(broker: LocalBroker, node: Node) -> None:
    attack = "\x1b]52;c;cm0gLXJm\x07\x9b2J\u202e\r\n"
    command = (sys.executable, "-um", "gateway", "watch", "--serial", "AC1")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, env={**os.environ, "GATEWAY_MQTT_URL": broker.url, "PYTHONIOENCODING": "utf-8"}
    )
    assert process.stdout is not None
    first = asyncio.create_task(process.stdout.readline())
    try:
        async with device(node, "AC1") as plate, asyncio.timeout(WAIT_S):
            while not first.done():  # it does not say when it has subscribed
                await plate.client.emit(attack, attack)
                await asyncio.wait({first}, timeout=0.1)
        line = first.result().decode().rstrip("\n")
        assert line.startswith("AC1  \\u001b]52;c;")
        assert line.isprintable()
    finally:
        process.terminate()
        await process.communicate()
