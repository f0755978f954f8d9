"""Viewers: who joins a room with a token, in each of the ways that clients have, and who does not."""

import asyncio
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import socketio
from socketio.exceptions import ConnectionError as Refused

from gateway.brokers import LocalBroker
from gateway.tokens import mint
from tests.clients.install import HERE, installed, program
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway

SECRET = "0123456789abcdef0123456789abcdef"
ENVIRON = {"GATEWAY_TOKENS_ALGORITHM": "HS256", "GATEWAY_TOKEN_SECRET": SECRET, "GATEWAY_TOKENS_LEEWAY_S": "0"}


@pytest.fixture
def kind() -> str:
    """The broker makes no difference here."""
    return "mosquitto"


@pytest.fixture
async def closed(broker: LocalBroker) -> AsyncIterator[Node]:
    """A node with the rooms of the default, and tokens."""
    async with gateway(broker.url, environ=ENVIRON) as node:
        yield node


def token(*rooms: str, ttl_s: int = 600, secret: str = SECRET) -> str:
    return mint({"rooms": rooms, "exp": int(time.time()) + ttl_s, "sub": "alice"}, secret.encode())


@asynccontextmanager
async def viewer(node: Node, given: str = "", **options: Any) -> AsyncIterator[Device]:
    """A page; python-socketio's client has the token in `auth`."""
    page = Device()
    try:
        await page.connect(node.devices, **({"auth": {"token": given}} if given else {}), **options)
        yield page
    finally:
        await page.disconnect()


async def join(page: Device, room: str) -> str:
    """What the page is told."""
    await page.client.emit("join_room", {"room": room})
    event, _ = await page.next()
    return event


class Script:
    """viewer.js in Node."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), WAIT_S)).decode().rstrip()


@asynccontextmanager
async def script(node: Node, client: str, transport: str, way: str, given: str, room: str) -> AsyncIterator[Script]:
    installed(client)
    arguments = ("viewer.js", client, transport, node.devices, way, given, room)
    process = await asyncio.create_subprocess_exec(program("node"), *arguments, cwd=HERE, stdin=PIPE, stdout=PIPE)
    try:
        yield Script(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), WAIT_S)


WAYS = [
    (client, "polling" if way == "header" and client == "sio17" else "websocket", way)
    for client in ("sio17", "sio25", "sio31", "sio48")
    for way in ("auth", "query", "header")
]


@pytest.mark.parametrize(("client", "transport", "way"), WAYS)
async def test_a_client_of_each_generation_shows_its_token_in_each_way(
    closed: Node, api: Service, client: str, transport: str, way: str
) -> None:
    """The page that debugs a device sees what its command answered; without a token it does not."""
    good, bad = token("AC1"), token("AC1", secret=SECRET[::-1])
    async with (
        device(closed, "AC1") as plate,
        script(closed, client, transport, way, good, "AC1") as page,
        script(closed, client, transport, way, bad, "AC1") as forger,
        script(closed, client, transport, "none", "", "AC1") as nobody,
    ):
        lines = [await page.line()]
        while lines[-1] == "connect":
            lines.append(await page.line())
        assert lines[-1] == "joined"
        told = [await forger.line()]
        if way == "auth" and client in ("sio17", "sio25"):  # they are connected before they can say anything
            assert told == ["connect"]
            told = [await forger.line()]
        assert told == ["error token not valid"]
        assert [await nobody.line(), await nobody.line()] == ["connect", "refused join room fail"]
        await plate.client.emit("cmd_result", {"result": "ok"})
        assert await page.line() == 'cmd_result {"result":"ok"}'
        assert await api.json("devices/AC1/events/cmd_result") == {"result": "ok"}
        await api.send("rooms/AC1/events/cmd_result", {"result": "last"})
        assert await page.line() == 'cmd_result {"result":"last"}'


async def test_a_page_on_another_node_sees_what_its_token_names_and_no_more(broker: LocalBroker) -> None:
    async with (
        gateway(broker.url, "--node", "gw-1", environ=ENVIRON) as one,
        gateway(broker.url, "--node", "gw-2", environ=ENVIRON) as two,
        device(one, "AC1") as plate,
        device(one, "AC2") as other,
        viewer(two, token("AC1")) as page,
        viewer(two) as nobody,
    ):
        assert await join(nobody, "AC1") == "join_room:fail"
        assert await join(page, "AC2") == "join_room:fail"
        assert await join(page, "bp_student_1") == "join_room:fail"
        assert await join(page, "AC1") == "join_room:ok"
        joined = await two.logged("viewer joined", room="AC1", subject="alice")
        assert joined["address"] == "127.0.0.1"
        await other.client.emit("cmd_result", {"result": "of another"})
        await plate.client.emit("cmd_result", {"result": "ok"})
        assert await page.expect("cmd_result") == ({"result": "ok"},)
        assert nobody.received.empty()


async def test_the_old_way_of_each_room(closed: Node) -> None:
    """The default: a device has its serial's room and the students' on class plates; tokens have what they name."""
    async with device(closed, "AC1") as plate, viewer(closed, token("wxa_student_*", "AC7")) as page:
        rooms = {"AC1": "ok", "AC7": "fail", "bp_student_1": "ok", "wxa_student_1": "fail", "lobby": "fail"}
        assert {room: (await join(plate, room)).partition(":")[2] for room in rooms} == rooms
        rooms = {"AC1": "fail", "AC7": "ok", "bp_student_1": "fail", "wxa_student_1": "ok", "lobby": "fail"}
        assert {room: (await join(page, room)).partition(":")[2] for room in rooms} == rooms


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (lambda: token("AC1", secret=SECRET[::-1]), "token not valid"),
        (lambda: token("AC1", ttl_s=-1), "token expired"),
        (lambda: token("AC1").rpartition(".")[0] + ".", "token not valid"),
        (lambda: "junk", "token not valid"),
        (lambda: {"a": 1}, "token not valid"),
    ],
)
async def test_a_bad_token_refuses_the_connection(closed: Node, given: Any, problem: str) -> None:
    client = socketio.AsyncClient(reconnection=False)
    told: asyncio.Queue[Any] = asyncio.Queue()
    client.on("connect_error", told.put_nowait)
    with pytest.raises(Refused):
        await client.connect(closed.devices, socketio_path="/socket/socket.io", auth={"token": given()})
    assert (await asyncio.wait_for(told.get(), WAIT_S))["message"] == problem
    await closed.logged("token refused", problem=problem)
    await client.eio.disconnect()


async def test_a_token_that_expires_ends_what_it_opened(closed: Node) -> None:
    async with viewer(closed, token("AC1", ttl_s=3)) as page, viewer(closed, token("AC1")) as stays:
        assert await join(page, "AC1") == "join_room:ok"
        assert await join(stays, "AC1") == "join_room:ok"
        await asyncio.wait_for(page.gone.wait(), WAIT_S)
        await closed.logged("token expired", subject="alice")
        assert not stays.gone.is_set()
    assert await closed.metric("gateway_closes_total", role="viewer", reason="token-expired") == 1


async def test_a_device_outlives_its_token_but_not_in_the_rooms_of_it(closed: Node, api: Service) -> None:
    """Its key is as good as before: only what the token opened is closed."""
    plate = Device("AC1")
    await plate.connect(closed.devices, auth={"token": token("AC2", ttl_s=3)})
    assert await plate.authenticate() == "auth:ok"
    for room in ("AC1", "AC2"):
        assert await join(plate, room) == "join_room:ok"
    await closed.logged("token expired")
    await api.send("rooms/AC2/events/remote_cmd", {"encrypted_cmd": "not for it"})
    await api.send("rooms/AC1/events/remote_cmd", {"encrypted_cmd": "a"})
    assert await plate.expect("remote_cmd") == ({"encrypted_cmd": "a"},)
    assert await join(plate, "AC2") == "join_room:fail"
    await plate.disconnect()


async def test_without_tokens_in_the_settings_nobody_has_one(broker: LocalBroker) -> None:
    """Devices of old may have anything in their URL: nothing is opened by it, and nothing is broken."""
    async with gateway(broker.url) as node, viewer(node, token("AC1")) as page:
        assert await join(page, "AC1") == "join_room:fail"
        assert await node.metric("gateway_anonymous_room_rules") == 0


async def test_rooms_that_are_open_to_anybody_are_loud(broker: LocalBroker, tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        '[rooms]\nrules = [{ match = "bp_student_*", allow = "anyone" }, { match = "*", allow = "token" }]\n'
    )
    async with gateway(broker.url, config=str(config), environ=ENVIRON) as node:
        assert "bp_student_*" in (await node.logged("accepted exposure", exposure="anonymous-rooms"))["what"]
        assert await node.metric("gateway_anonymous_room_rules") == 1
        async with viewer(node) as page:
            assert await join(page, "bp_student_1") == "join_room:ok"
            assert await join(page, "AC1") == "join_room:fail"


async def test_viewers_without_a_room_are_nobody(broker: LocalBroker) -> None:
    """A token alone holds no socket open: only a room that it, or anybody, may join."""
    async with (
        gateway(broker.url, environ=ENVIRON | {"GATEWAY_DEVICES_AUTH_TIMEOUT_S": "1"}) as node,
        viewer(node, token("AC1")) as joined,
        viewer(node, token("AC1")) as idle,
    ):
        assert await join(joined, "AC1") == "join_room:ok"
        await asyncio.wait_for(idle.gone.wait(), WAIT_S)
        assert not joined.gone.is_set()
