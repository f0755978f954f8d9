"""`gateway simulate` as a person or a script runs it."""

import asyncio
import json
import os
import pty
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.brokers import LocalBroker
from gateway.client import Fleet
from tests.e2e.world import WAIT_S, Node, gateway, read_all


@pytest.fixture(params=["mosquitto"])
def kind(request: pytest.FixtureRequest) -> str:
    """The devices do not see the broker."""
    return str(request.param)


@asynccontextmanager
async def simulate(node: Node, *words: str, stderr: int = PIPE, **environ: str) -> AsyncIterator[Process]:
    command = (sys.executable, "-uX", "dev", "-W", "error", "-m", "gateway", "simulate", "--url", node.devices)
    process = await asyncio.create_subprocess_exec(
        *command, *words, stdout=PIPE, stderr=stderr, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"} | environ
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def ended(process: Process, status: int = 0) -> str:
    """What a process that ends so has printed to stdout; nothing to stderr."""
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert (process.returncode, err) == (status, b"")
    return out.decode()


async def lines(process: Process, count: int) -> list[str]:
    """The next lines of stdout, sorted."""
    assert process.stdout is not None
    found = [await asyncio.wait_for(process.stdout.readline(), WAIT_S) for _ in range(count)]
    return sorted(line.decode().rstrip("\n") for line in found)


async def test_a_mixed_fleet_for_some_seconds(node: Node) -> None:
    words = ("--devices", "20", "--serial-prefix", "P", "--profile", "mixed", "--events-per-s", "50")
    async with simulate(node, *words, "--seconds", "3", "--seed", "1", "--json") as process:
        summary = json.loads(await ended(process))
    assert (summary["devices"], summary["authenticated"], summary["auth_fail"]) == (20, 20, 0)
    assert summary["clients"] == {"EIO3 polling": 1, "EIO3 websocket": 10, "EIO4 websocket": 9}
    assert summary["emitted"]["cmd_result"] > summary["asked"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_a_summary(broker: LocalBroker, node: Node, number: signal.Signals) -> None:
    async with simulate(node, "AC1", "AC2") as process, Fleet(broker.url) as fleet:
        assert await lines(process, 2) == ["AC1  online", "AC2  online"]
        assert (await fleet.call("AC1", "device_status")).status == "acked"
        async with fleet.presence() as devices:
            process.send_signal(number)
            printed = await ended(process)
            async with asyncio.timeout(WAIT_S):
                while devices.online():
                    await anext(aiter(devices.changes()))
            assert devices["AC1"].reason == "client"
    first, *away = printed.splitlines()[:3]
    assert (first, sorted(away)) == ("AC1  device_status", ["AC1  away", "AC2  away"])
    assert printed.splitlines()[3:5] == ["", "2 devices: 2 authenticated, 2 online at the end"]
    assert "\nevents acked: device_status 1\n" in printed


async def test_nobody_is_there(node: Node) -> None:
    nowhere = ("--url", "http://127.0.0.1:1")
    async with simulate(node, "AC1", *nowhere, "--seconds", "0.5") as process:
        printed = await ended(process, 1)
    assert printed.startswith("AC1  away: unreachable\n\n1 device: 0 authenticated, 0 online at the end\n")


async def test_a_terminal_shows_how_it_stands(node: Node) -> None:
    ours, theirs = pty.openpty()
    async with simulate(node, "--devices", "20", "--seconds", "2.5", stderr=theirs) as process:
        os.close(theirs)
        screen = await asyncio.to_thread(read_all, ours)
        out, _ = await process.communicate()
    assert "\r\x1b[K20 of 20 online, 0 acked, 0 emitted, 0 reconnects" in screen
    assert out.decode().startswith("\n20 devices: 20 authenticated")


async def test_keys_of_each_device(broker: LocalBroker, tmp_path: Path) -> None:
    """From the same file that `devices import` takes, or derived from the serial; a wrong key is told."""
    environ = {"GATEWAY_PEPPER": "p"}
    keys, plates = tmp_path / "keys", tmp_path / "plates.csv"
    plates.write_text("AC1,one\nAC2,two\nAC3,key-of-AC3\n")
    command = (sys.executable, "-m", "gateway", "devices", "import", "--file", str(keys), str(plates))
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | environ, stdout=PIPE)
    await process.communicate()
    async with gateway(broker.url, "--auth", f"file:{keys}", environ=environ) as node:
        for words, serials in (
            (("--keys", str(plates)), ["AC1", "AC2", "AC3"]),
            (("--keys", str(plates), "--devices", "2"), ["AC1", "AC2"]),
            (("--keys", str(plates), "AC2"), ["AC2"]),
            (("AC3", "--key", "key-of-{serial}"), ["AC3"]),
        ):
            async with simulate(node, *words) as process:
                assert await lines(process, len(serials)) == [f"{serial}  online" for serial in serials]
                process.terminate()
                await ended(process)
        async with simulate(node, "AC1", GATEWAY_SIMULATE_KEY="wrong") as process:
            assert (await lines(process, 1))[0].startswith("AC1  refused: ")
            process.terminate()
            await ended(process, 1)
        async with simulate(node, "--keys", str(plates), "--devices", "4") as process:
            _, err = await process.communicate()
        assert (process.returncode, err) == (2, b"--keys: has 3 devices, expected 4\n")


async def test_a_storm(node: Node) -> None:
    words = ("--devices", "5", "--profile", "modern", "--drop-every", "1")
    async with simulate(node, *words) as process:
        said: set[str] = set()
        while sum(line.endswith("online") for line in said) < 5 or not any("dropped" in line for line in said):
            said.update(await lines(process, 1))
        process.terminate()
        summary = await ended(process)
    assert re.search(r"^connections ended: dropped \d+$", summary, re.MULTILINE)
