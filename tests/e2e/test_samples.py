"""The samples of device-protocol.zh.md, run by the real JavaScript client against the gateway.

They stand in tests/clients/ as the document has them; only the URL is replaced, and the placeholder of the signature.
The memo sample's last statement, which leaves the room, is run when the test says so: the document has it run at once.
"""

import asyncio
import base64
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.brokers import LocalBroker
from tests.clients.install import HERE, installed, program
from tests.e2e.world import WAIT_S, Node, Service, gateway


@pytest.fixture(scope="module")
def node_js() -> str:
    """Node.js, with the clients installed."""
    installed("sio48")
    return program("node")


class Page:
    """A sample that runs in Node.js."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)).decode().rstrip()

    def run(self, code: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(code.encode() + b"\n")


@asynccontextmanager
async def page(node_js: str, sample: str, url: str, client: str = "sio48") -> AsyncIterator[Page]:
    signature = base64.b64encode(b"AC4178234415:key").decode()
    process = await asyncio.create_subprocess_exec(
        node_js, "page.js", f"{sample}.js", url, signature, client, cwd=HERE, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Page(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), WAIT_S) == 0


async def test_the_device_sample(broker: LocalBroker, node: Node, api: Service, node_js: str) -> None:
    async with page(node_js, "device", node.devices) as device:
        assert await device.line() == "event auth:ok []", "it never carries data"
        assert await device.line() == "authentication ok"
        command = "gw/v1/devices/AC4178234415/commands/class:update"
        port = broker.url.rpartition(":")[2]
        publish = [program("mosquitto_pub"), "-V", "5", "-p", port, "-q", "1", "-t", command, "-m", '"三年二班"']
        assert (await asyncio.to_thread(subprocess.run, publish, timeout=WAIT_S)).returncode == 0
        assert await device.line() == 'event class:update ["三年二班"]'
        assert await device.line() == "三年二班"
        assert await device.line() == 'shown "三年二班"'
        outcome = await api.json("devices/AC4178234415/acks/class:update")
        assert (outcome["status"], outcome["data"]) == ("acked", {"ack": True})


async def test_the_memo_room_sample(broker: LocalBroker, api: Service, node_js: str, tmp_path: Path) -> None:
    config = tmp_path / "rooms.toml"
    config.write_text('[[rooms.rules]]\nmatch = "bp_student_*"\nallow = "anyone"\n')
    async with gateway(broker.url, config=str(config)) as node, page(node_js, "memos", node.devices) as memos:
        assert await memos.line() == "event join_room:ok []"
        await api.send("rooms/bp_student_101/events/memos_update", {"memo_id": 20})
        assert await memos.line() == 'event memos_update [{"memo_id":20}]'
        await api.send("rooms/bp_student_101/events/memos_read", {"memo_ids": [20, 22, 24]})
        assert await memos.line() == 'event memos_read [{"memo_ids":[20,22,24]}]'
        memos.run('sockets[0].emit(\'leave_room\', { "room": "bp_student_101" });')
        assert await memos.line() == "event leave_room:ok []"


async def test_a_viewer_may_not_join_unless_a_rule_says_so(node: Node, node_js: str) -> None:
    async with page(node_js, "memos", node.devices) as memos:
        assert await memos.line() == 'event join_room:fail [{"error_msg":"join room fail"}]'


async def test_a_room_of_every_generation(broker: LocalBroker, api: Service, node_js: str, tmp_path: Path) -> None:
    """One event, encoded once, reaches clients of 1.7, 2.5, 3.1 and 4.8 in one room: text, emoji and binary."""
    config = tmp_path / "rooms.toml"
    config.write_text('[rooms]\nrules = [{ match = "bp_student_*", allow = "anyone" }]\n')
    async with gateway(broker.url, config=str(config)) as node, AsyncExitStack() as stack:
        generations = ("sio17", "sio25", "sio31", "sio48")
        members = [await stack.enter_async_context(page(node_js, "memos", node.devices, name)) for name in generations]
        for member in members:
            assert await member.line() == "event join_room:ok []"
        await api.send("rooms/bp_student_101/events/memos_update", {"memo_id": 20, "text": "留言 😀"})
        await api.send("rooms/bp_student_101/events/picture", b"\x00\xff", ContentType="application/octet-stream")
        for member in members:
            assert await member.line() == 'event memos_update [{"memo_id":20,"text":"留言 😀"}]'
            assert await member.line() == 'event picture [{"type":"Buffer","data":[0,255]}]'
