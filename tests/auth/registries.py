"""Where devices are registered, one for each authenticator: what the contract of the port is run on."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec
from aiohttp import web

from gateway import keyfile
from gateway.auth.base import Authenticator, DeviceKey, OpenAuthenticator, Verdict
from gateway.auth.broker import BrokerAuthenticator
from gateway.auth.cache import Verdicts
from gateway.auth.file import FileAuthenticator, hash_key
from gateway.auth.http import HttpAuthenticator, Service
from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.mqtt.link import Link
from gateway.watched import Watched
from tests.clients.install import missing, program
from tests.mqtt.peers import Owner, make_link

PEPPER = b"pepper"


class Registry(Protocol):
    """An authenticator, and what it knows."""

    authenticator: Authenticator

    async def put(self, serial: str, key: str) -> None:
        """Register a device, or give it another key."""

    async def remove(self, serial: str) -> None:
        """Forget a device."""

    async def fail(self) -> None:
        """Stop answering."""

    async def recover(self) -> None:
        """Answer again."""


class Nobody:
    """Of those that cannot fail."""

    async def fail(self) -> None:
        raise NotImplementedError

    async def recover(self) -> None:
        raise NotImplementedError


class OpenRegistry(Nobody):
    def __init__(self) -> None:
        self.authenticator: Authenticator = OpenAuthenticator()

    async def put(self, serial: str, key: str) -> None:
        pass

    async def remove(self, serial: str) -> None:
        pass


class KeyFile(Nobody):
    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self.authenticator: Authenticator = FileAuthenticator(Watched.load(path, keyfile.read), PEPPER)

    async def put(self, serial: str, key: str) -> None:
        keyfile.put(self.path, {serial: hash_key(serial, key, PEPPER)})

    async def remove(self, serial: str) -> None:
        assert keyfile.remove(self.path, serial)


class KeyService:
    """A real HTTP server that knows keys; `requests` holds each body with its headers.

    Attributes:
        status: what it answers whatever is asked, instead of a verdict.
        hold: it answers once this is set.
        peak: how many requests were under way at once.
    """

    PATH: ClassVar = "/check"

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, str] = {}
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.status: int | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.under_way = self.peak = 0
        self.authenticator: Authenticator = http_authenticator(url, cache_s=0, negative_cache_s=0)

    async def answer(self, request: web.Request) -> web.Response:
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            body = json.loads(await request.text())
            self.requests.append((body, dict(request.headers)))
            await self.hold.wait()
        finally:
            self.under_way -= 1
        if self.status is not None:
            return web.Response(status=self.status, headers={"Location": "/elsewhere"})
        return web.Response(status=204 if self.keys.get(body["serial"]) == body["key"] else 403)

    async def put(self, serial: str, key: str) -> None:
        self.keys[serial] = key

    async def remove(self, serial: str) -> None:
        del self.keys[serial]

    async def fail(self) -> None:
        self.status = 503

    async def recover(self) -> None:
        self.status = None


def http_authenticator(url: str, token: str = "", **options: float) -> HttpAuthenticator:
    settings = {"timeout_s": 10.0, "max_requests": 8, "cache_s": 60.0, "negative_cache_s": 60.0, "most": 100} | options
    service = Service(url, settings["timeout_s"], int(settings["max_requests"]), token)
    return HttpAuthenticator(
        service, Verdicts(settings["cache_s"], settings["negative_cache_s"], int(settings["most"]))
    )


@asynccontextmanager
async def key_service() -> AsyncIterator[KeyService]:
    app = web.Application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    held: list[KeyService] = []

    async def answer(request: web.Request) -> web.Response:
        return await held[0].answer(request)

    app.router.add_post(KeyService.PATH, answer)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        held.append(KeyService(f"http://127.0.0.1:{runner.addresses[0][1]}{KeyService.PATH}"))
        yield held[0]
        held[0].hold.set()
        await held[0].authenticator.close()
    finally:
        await runner.cleanup()


class Plate(msgspec.Struct):
    """A device that no other node has."""

    link: Link | None

    async def give_way(self) -> bool:
        return self.link is None


class Mosquitto:
    """A mosquitto with a password file; each device proves its key on a link of its own."""

    def __init__(self, broker: LocalBroker, passwords: Path) -> None:
        self._broker = broker
        self._passwords = passwords
        self._links: dict[str, Link] = {}
        self.authenticator: Authenticator = self

    async def check(self, claim: DeviceKey) -> Verdict:
        if claim.serial not in self._links:
            self._links[claim.serial] = make_link(self._broker.url, Owner(), client_id=f"gw:{claim.serial}")
        return await BrokerAuthenticator(Plate(self._links[claim.serial])).check(claim)

    def knows(self, serial: str) -> bool:
        return BrokerAuthenticator(Plate(None)).knows(serial)

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()

    async def put(self, serial: str, key: str) -> None:
        self._change("-b", str(self._passwords), serial, key)
        await self._restart()

    async def remove(self, serial: str) -> None:
        self._change("-D", str(self._passwords), serial)
        await self._restart()

    async def fail(self) -> None:
        await self._broker.stop()

    async def recover(self) -> None:
        await self._broker.start()

    def _change(self, *arguments: str) -> None:
        subprocess.run([program("mosquitto_passwd"), *arguments], check=True, capture_output=True, timeout=10)

    async def _restart(self) -> None:
        await self.fail()
        await self.recover()


@asynccontextmanager
async def mosquitto(directory: Path) -> AsyncIterator[Mosquitto]:
    passwords = directory / "passwd"
    passwords.touch(mode=0o600)
    overrides = {"allow_anonymous": "false", "password_file": str(passwords), "acl_file": None}
    try:
        async with local_broker("mosquitto", directory, overrides) as broker:
            registry = Mosquitto(broker, passwords)
            yield registry
            await registry.close()
    except BrokerUnavailable as problem:
        missing(str(problem))
