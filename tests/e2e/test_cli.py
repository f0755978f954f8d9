"""The commands of a service against a gateway: what they print, and their exit status."""

import asyncio
import json
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from gateway.brokers import LocalBroker
from tests.e2e.world import WAIT_S, Node, device, read_all


async def command(broker: LocalBroker, *words: str, **environ: str) -> tuple[int, list[str], list[str]]:
    """Run `gateway …` and return its exit status and the lines of stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *words),
        stdout=PIPE,
        stderr=PIPE,
        env=os.environ | {"GATEWAY_MQTT_URL": broker.url} | environ,
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines(), err.decode().splitlines()


async def test_a_call_to_several(broker: LocalBroker, node: Node, tmp_path: Path) -> None:
    async with device(node, "AC1") as first, device(node, "AC2") as second:
        first.answers["device_status"] = second.answers["device_status"] = lambda: {"ack": True, "status": "on"}
        assert await command(broker, "call", "AC1,AC2", "device_status") == (0, ["2 acked"], [])
        status, lines, errors = await command(broker, "call", "--online", "device_status", "--json")
        assert (status, errors) == (0, ["2 acked"])
        assert {(line["serial"], line["status"]) for line in map(json.loads, lines)} == {
            ("AC1", "acked"),
            ("AC2", "acked"),
        }
        await second.disconnect()
        source = tmp_path / "serials"
        source.write_text("AC1\n# gone\nAC2\n")
        done = await command(broker, "call", "--from-file", str(source), "device_status", "--timeout", "5")
        away = "offline" if broker.kind == "mosquitto" else "no_outcome"  # the embedded one makes QoS 1 of QoS 0
        assert (done[0], done[1]) == (1, [f"AC2  {away}", f"1 acked, 1 {away}"])
        status, lines, _ = await command(broker, "presence", "--json")
        assert (status, [json.loads(line)["serial"] for line in lines]) == (0, ["AC1"])
        status, lines, _ = await command(broker, "presence", "--all")
        assert [line.split()[:3] for line in lines] == [["AC1", "online", "gw-1"], ["AC2", "away", "gw-1"]]


@pytest.mark.mosquitto_only("the embedded broker makes QoS 1 of QoS 0, so no command is ever offline")
async def test_a_bar_on_a_terminal(broker: LocalBroker, node: Node) -> None:
    """It counts by status, and leaves the lines beside it whole; what is piped has nothing of it."""
    words = (sys.executable, "-m", "gateway", "call", "AC1,AC2,AC3", "text_stop", '{"stop": true}')
    environ = os.environ | {"GATEWAY_MQTT_URL": broker.url, "TERM": "xterm", "COLUMNS": "100"}
    async with device(node, "AC1"), device(node, "AC2") as second:
        await second.disconnect()
        async with device(node, "AC3") as third:
            third.answers["text_stop"] = lambda: {"ack": False}
            for piped in (False, True):
                ours, theirs = pty.openpty()
                process = await asyncio.create_subprocess_exec(
                    *words, stdout=PIPE if piped else theirs, stderr=theirs, env=environ
                )
                os.close(theirs)
                screen = await asyncio.to_thread(read_all, ours)
                out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
                assert process.returncode == 1
                assert "3/3" in screen
                assert "1 acked, 1 nacked, 1 offline" in screen
                if piped:
                    lines = out.decode().splitlines()
                else:  # a line starts where the bar was erased
                    lines = [line.rpartition("\x1b[K")[2] for line in screen.split("\r\n")]
                assert {"AC2  offline", "AC3  nacked: ack is not true"} <= set(lines)
                assert "1 acked, 1 nacked, 1 offline" in lines


@pytest.mark.parametrize(
    "words", [["presence"], ["call", "AC1", "device_status"], ["call", "--online", "device_status"], ["status"]]
)
async def test_a_reader_that_has_gone_is_not_the_fault_of_the_broker(
    words: list[str], broker: LocalBroker, node: Node
) -> None:
    """As in `gateway presence | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    async with device(node, "AC1") as plate:
        plate.answers["device_status"] = lambda: {"ack": True, "status": "on"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *words),
            stdout=writer,
            stderr=PIPE,
            env=os.environ | {"GATEWAY_MQTT_URL": broker.url},
        )
        os.close(writer)
        _, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert (process.returncode, err) == (1, b"")


async def test_a_call_that_is_broken_off_says_how_far_it_came(broker: LocalBroker, node: Node) -> None:
    words = ("call", "AC1,AC2", "device_status", "--json")
    async with device(node, "AC1") as first, device(node, "AC2") as second:
        first.answers["device_status"] = lambda: {"ack": True, "status": "on"}
        over = asyncio.Event()
        second.client.on("device_status", over.wait)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-um", "gateway", *words),
            stdout=PIPE,
            stderr=PIPE,
            env=os.environ | {"GATEWAY_MQTT_URL": broker.url},
        )
        assert process.stdout is not None
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), WAIT_S))["serial"] == "AC1"
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode == 1
        over.set()
        assert err.decode().split() == ["1", "acked", "Aborted!"]


async def test_watch_prints_events(broker: LocalBroker, node: Node) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-um", "gateway", "watch", "--serial", "AC1"),
        stdout=PIPE,
        env=os.environ | {"GATEWAY_MQTT_URL": broker.url},
    )
    assert process.stdout is not None
    async with device(node, "AC1") as plate, device(node, "AC2") as other:
        seen = asyncio.create_task(process.stdout.readline())
        while not seen.done():  # it does not say when it has subscribed
            await other.client.emit("hello", {"n": 2})
            await plate.client.emit("hello", {"n": 1})
            await asyncio.wait({seen}, timeout=0.1)
        assert seen.result() == b'AC1  hello {"n":1}\n'
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode == 0
