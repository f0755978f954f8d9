"""`gateway demo` as a newcomer runs it: in a process of its own, to the end."""

import asyncio
import os
import pty
import re
import shlex
import signal
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from gateway.brokers import BrokerUnavailable, Kind, find_broker
from gateway.demo import CAST, NEWCOMER
from tests.clients.install import missing
from tests.e2e.world import read_all

FINAL = {"acked", "nacked", "timeout", "lost", "offline", "expired", "rejected"}
LINE = re.compile(r"(?P<serial>\w+)  (?P<event>\S+) +QoS (?P<qos>[01])  (?P<status>\w+) +[\d.]+ ms")


@pytest.fixture(autouse=True)
async def installed(kind: Kind, tmp_path: Path) -> None:
    try:
        await find_broker(kind, tmp_path, {})
    except BrokerUnavailable as problem:
        missing(str(problem))


@asynccontextmanager
async def demo(kind: Kind, *arguments: str, stdout: int = PIPE) -> AsyncIterator[Process]:
    """The demo, with every warning an error; killed if the test does not see it end."""
    command = (sys.executable, "-W", "error", "-X", "dev", "-m", "gateway", "demo", "--broker", kind)
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stdout=stdout, stderr=PIPE, env=os.environ | {"TERM": "xterm"}
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def until(process: Process, text: str) -> str:
    """Read the output up to the first line with `text`, and return that line."""
    assert process.stdout is not None
    async for line in process.stdout:
        if text in line.decode():
            return line.decode()
    raise AssertionError(f"the demo ended without {text!r}")


async def refused(url: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    except ConnectionRefusedError:
        return True
    writer.close()
    await writer.wait_closed()
    return False


@pytest.mark.parametrize("flags", [(), ("--tls",)], ids=["plain", "tls"])
async def test_every_command_gets_its_final_outcome(kind: Kind, flags: tuple[str, ...]) -> None:
    async with demo(kind, "--seconds", "5", *flags) as process:
        output, errors = (text.decode() for text in await process.communicate())
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Warning" not in errors
    told = [match.groupdict() for match in map(LINE.fullmatch, output.splitlines()) if match]
    assert {line["serial"] for line in told} == {part.serial for part in CAST}
    assert {line["status"] for line in told} <= FINAL
    assert {line["qos"] for line in told if line["status"] == "acked"} == {"0", "1"}
    counted = dict(re.findall(r"^  (\w+) +(\d+)   p50 .* p99 ", output, re.MULTILINE))
    assert sum(map(int, counted.values())) == len(told)
    assert f"{len(told)} commands, each got its final outcome" in output
    assert await refused(re.findall(r"mqtt://\S+", output)[0])


async def test_over_tls(kind: Kind) -> None:
    """Only those get in who trust its authority, as its own devices do; what is to be pasted does it."""
    async with demo(kind, "--tls") as process:
        url = (await until(process, "devices  ")).split()[1].removesuffix("/socket/socket.io")
        assert url.startswith("https://")
        await until(process, "play one more device")
        pasted = await until(process, "")
        while pasted.endswith("\\\n"):
            pasted = pasted.removesuffix("\\\n") + await until(process, "")
        command = shlex.split(pasted)
        trusting = ssl.create_default_context(cafile=command[-1])
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/", ssl=trusting) as response:
                assert response.status == 404
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await http.get(f"{url}/")
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"{url}/".replace("https", "http"))
        assert await simulated(*command, "--seconds", "2") == (0, f"{NEWCOMER}  online")
        assert await simulated(*command[:-2], "--seconds", "2") == (1, f"{NEWCOMER}  away: unreachable")


async def simulated(*command: str) -> tuple[int | None, str]:
    """The exit status, and the first line."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    output, _ = await process.communicate()
    return process.returncode, output.decode().partition("\n")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_in_good_order(kind: Kind, number: signal.Signals) -> None:
    async with demo(kind) as process:
        address = await until(process, "mqtt://")
        await until(process, "acked")
        process.send_signal(number)
        await until(process, "each got its final outcome")
        assert await process.wait() == 0
    assert await refused(address.strip())


async def test_a_terminal_shows_a_table(kind: Kind) -> None:
    ours, theirs = pty.openpty()
    async with demo(kind, "--seconds", "1", stdout=theirs) as process:
        os.close(theirs)
        screen = await asyncio.to_thread(read_all, ours)
        assert await process.wait() == 0
    assert "last event" in screen
    assert all(part.serial in screen for part in CAST)
    assert not LINE.search(screen)
