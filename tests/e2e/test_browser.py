"""A real Chromium: pages of another origin, with the clients of three generations, as device and as viewer."""

import asyncio
import base64
import json
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.brokers import LocalBroker
from tests.clients.install import installed, program
from tests.e2e.world import WAIT_S, Service, gateway

PAGE = """<!doctype html><meta charset="utf-8"><script src="/client.js"></script><script>
const report = (what) => fetch("/report", {method: "POST", body: JSON.stringify(what)});
const q = new URLSearchParams(location.search);
const socket = io(q.get("gateway"), {
  path: "/socket/socket.io", transports: [q.get("transport")], withCredentials: true,
});
socket.on("connect", () => socket.emit("authentication", {signature: q.get("signature")}));
socket.on("connect_error", (error) => report(["error", String(error)]));
socket.on("auth:ok", () => { report(["ok"]); socket.emit("picture", new Uint8Array([0, 1, 255]).buffer); });
socket.on("class:update", (data, callback) => { report(["update", data]); callback({"ack": true}); });
</script>"""


@pytest.fixture
def kind() -> str:
    """The broker makes no difference here."""
    return "mosquitto"


class Browser:
    """A page, served on a port of its own, and what it reports."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[Any] = asyncio.Queue()
        self.origin = ""

    async def report(self, request: web.Request) -> web.Response:
        self.reports.put_nowait(json.loads(await request.text()))
        return web.Response()

    async def next(self) -> Any:
        return await asyncio.wait_for(self.reports.get(), WAIT_S)


@asynccontextmanager
async def pages(client: str) -> AsyncIterator[Browser]:
    browser = Browser()
    script = next(installed(client).glob("dist/socket.io.js"), installed(client) / "socket.io.js")

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def client_js(_: web.Request) -> web.FileResponse:
        return web.FileResponse(script)

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/client.js", client_js), web.post("/report", browser.report)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        browser.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield browser
    finally:
        await runner.cleanup()


@asynccontextmanager
async def chromium(url: str, profile: Path) -> AsyncIterator[None]:
    """Show a page; nothing else is asked of the network."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}")
    process = await asyncio.create_subprocess_exec(
        program("chromium"), *flags, *quiet, "--remote-debugging-port=0", url, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("transport", ["polling", "websocket"])
@pytest.mark.parametrize("client", ["sio17", "sio25", "sio48"])
async def test_a_page_of_another_origin(
    broker: LocalBroker, api: Service, tmp_path: Path, client: str, transport: str
) -> None:
    async with pages(client) as page:
        environ = {"GATEWAY_DEVICES_ORIGINS": page.origin}
        signature = base64.b64encode(b"AC1:key").decode()
        async with gateway(broker.url, environ=environ) as node:
            url = f"{page.origin}/?gateway={node.devices}&transport={transport}&signature={signature}"
            async with chromium(url, tmp_path / "profile"):
                assert await page.next() == ["ok"]
                presence = await api.presence("AC1", online=True)
                assert presence["client"]["engine"] == (4 if client == "sio48" else 3)
                assert presence["client"]["transport"] == transport
                assert bytes((await api.message("devices/AC1/events/picture")).payload) == b"\x00\x01\xff"
                await api.send("devices/AC1/commands/class:update", {"name": "三年二班 😀"})
                assert await page.next() == ["update", {"name": "三年二班 😀"}]
                assert (await api.json("devices/AC1/acks/class:update"))["status"] == "acked"


async def test_a_page_of_an_origin_that_is_not_allowed(broker: LocalBroker, tmp_path: Path) -> None:
    async with pages("sio48") as page, gateway(broker.url) as node:
        url = f"{page.origin}/?gateway={node.devices}&transport=polling&signature=x"
        async with chromium(url, tmp_path / "profile"):
            what, _ = await page.next()
            assert what == "error"
