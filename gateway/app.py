"""The gateway: wires everything, starts it, and stops it so that devices and sessions survive."""

import asyncio
import logging
import os
import secrets
import signal
import ssl
import sys
from functools import cache
from typing import Final

import uvloop
from aiohttp import web

from gateway import __version__, admin, asyncapi, logs
from gateway.addresses import BrokerUrl, Listen
from gateway.auth.choice import authenticator
from gateway.commands import CommandReader, Policy
from gateway.config import Config, catalog_of
from gateway.device import LinkSettings, Surroundings, now_rfc3339
from gateway.devices import Devices
from gateway.engine.options import EngineOptions
from gateway.frontdoor import FrontDoor
from gateway.limits import Budget, Limits, Pace, Shared
from gateway.metrics import Metrics
from gateway.mqtt import Credentials
from gateway.mqtt.link import Backoff
from gateway.node import Node
from gateway.rooms import RoomPolicy, Rooms
from gateway.sockets import Socket, SocketServer
from gateway.systemd import ServiceManager
from gateway.tokens import token_reader
from gateway.topics import Life, Topics
from gateway.watched import Files

log = logging.getLogger(__name__)

STOP_MARGIN_S: Final = 20.0  # beyond `drain_s`: for the last publishes, and for sessions that are given up
COMPRESS_OVER_BYTES: Final = 1024  # below, it costs more than it saves
KEEP_ALIVE_S: Final = 75.0  # of an idle HTTP connection: longer than the pause between two polls of a sleepy device


class Gateway:
    """One node. `start()` raises OSError when it cannot listen, ConfigError when a file is not usable."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._draining = False
        self._listeners: dict[str, web.AppRunner] = {}
        self._sites: dict[str, web.TCPSite] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._files = Files()
        topics = Topics(config.mqtt.prefix, config.mqtt.response_topics)
        registry = admin.registry()
        catalog = catalog_of(config.catalog)
        metrics = Metrics(registry, catalog)
        links = _link_settings(config)
        rooms: Rooms[Socket] = Rooms()
        tokens = token_reader(config.tokens, os.environ, self._files)
        self._door = FrontDoor(rooms, RoomPolicy(config.rooms.rules), tokens, metrics)
        self._sockets = SocketServer(self._door, _engine_options(config), config.devices.path)
        own = _credentials(config.mqtt.url)
        life = Life(config.node, now_rfc3339())
        self._node = Node(life, topics, links, own, rooms, lambda: len(self._devices))
        around = Surroundings(
            life=life,
            topics=topics,
            catalog=catalog,
            reader=CommandReader(topics, catalog, _policy(config), lambda: secrets.token_hex(8)),
            limits=_limits(config),
            shared=Shared(config.commands.max_per_node, config.commands.max_bytes_per_node),
            waiting_bytes=Budget(config.mqtt.max_waiting_bytes),
            replays=Pace(config.commands.replays_per_s),
            links=links,
            sockets=self._sockets,
            node_link=self._node,
            metrics=metrics,
        )
        self._authenticator = authenticator(
            config.auth, os.environ, self._files, lambda serials: self._devices.revoke(serials)
        )
        self._devices = Devices(around, self._authenticator, own, config.devices.max_devices)
        self._open_rooms = [rule.match for rule in config.rooms.rules if rule.allow == "anyone"]
        metrics.devices.set_function(lambda: len(self._devices))
        metrics.anonymous_room_rules.set(len(self._open_rooms))
        self._door.serve(self._sockets, self._devices)
        contract = cache(lambda: asyncapi.as_yaml(asyncapi.document(config, catalog)))
        self._admin = admin.application(self._reasons, registry, contract)

    @property
    def device_url(self) -> str:
        """Where devices connect, once started; the path is the configured one."""
        return self._url("devices")

    @property
    def admin_url(self) -> str:
        """Where health and metrics are, once started."""
        return self._url("admin")

    async def start(self) -> None:
        """Listen for devices and operators, and connect to the broker in the background."""
        app = web.Application()
        self._sockets.attach(app)
        try:
            await self._listen("devices", app, self._config.devices.listen)
            await self._listen("admin", self._admin, self._config.admin.listen)
        except OSError:
            await self._stop_listening()
            raise
        self._node.open(self._sockets)
        self._tasks.append(asyncio.create_task(self._adopt(), name="adopt"))
        self._tasks.append(asyncio.create_task(self._files.run(), name="files"))
        if self._open_rooms:
            log.warning("rooms are open to anybody, without a token", extra={"rooms": self._open_rooms})
        log.info(
            "gateway started",
            extra={
                "node": self._config.node,
                "version": __version__,
                "devices": self.device_url,
                "admin": self.admin_url,
                "broker": str(self._config.mqtt.url),
                "auth": self._config.auth.mode,
            },
        )

    def reload(self) -> None:
        """Read the files of keys again, without waiting for a change to be noticed."""
        self._files.reload()

    async def stop(self) -> None:
        """Accept nothing more, let the devices go within `drain_s`, and leave the sessions in the broker's keeping."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._sites["devices"].stop()
        await self._door.close()
        if self._authenticator is not None:
            await self._authenticator.close()
        await self._devices.drain(self._config.devices.drain_s)
        await self._sockets.shutdown()
        await self._node.close()
        await self._stop_listening()
        log.info("gateway stopped")

    async def _adopt(self) -> None:
        if not self._devices.adopts:
            return
        async with self._node.orphans() as orphans:
            if orphans:
                log.info("adopting devices of an earlier life", extra={"count": len(orphans)})
            await self._devices.adopt(orphans)

    def _reasons(self) -> list[str]:
        """Why this node is not ready."""
        return [
            *(["draining"] if self._draining else []),
            *([self._node.trouble] if self._node.trouble else []),
            *(["full: devices.max_devices are here"] if self._devices.full else []),
        ]

    async def _listen(self, name: str, app: web.Application, where: Listen) -> None:
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            auto_decompress=False,  # no client compresses what it posts, and 65 KB of a stranger's would become 64 MB
            shutdown_timeout=1.0,
        )
        self._listeners[name] = runner
        await runner.setup()
        self._sites[name] = site = web.TCPSite(runner, where.host, where.port)
        try:
            await site.start()
        except OSError as problem:
            why = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else problem
            raise OSError(f"{name}.listen: {where}: {why}") from None

    async def _stop_listening(self) -> None:
        for runner in self._listeners.values():
            await runner.cleanup()
        self._listeners.clear()

    def _url(self, name: str) -> str:
        host, port = self._listeners[name].addresses[0][:2]
        return f"http://{Listen(host, port)}"


def run(config: Config) -> None:
    """Run a node until SIGTERM or SIGINT. Raises OSError, ConfigError."""
    logs.configure(config.log)
    try:
        uvloop.run(_serve(config))
    except asyncio.CancelledError:
        log.warning("stopped at once: the broker will say offline for the devices")
        sys.exit(1)


async def _serve(config: Config) -> None:
    """Run until the first signal, then stop in good order; the second ends it at once."""
    stop = asyncio.Event()
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None

    def signalled() -> None:
        serving.cancel() if stop.is_set() else stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    gateway = Gateway(config)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    with ServiceManager(os.environ) as manager:
        await gateway.start()
        manager.ready()
        await stop.wait()
        manager.stopping(config.devices.drain_s + STOP_MARGIN_S)
        await gateway.stop()


def _link_settings(config: Config) -> LinkSettings:
    mqtt = config.mqtt
    return LinkSettings(
        address=mqtt.url,
        tls=ssl.create_default_context() if mqtt.url.tls else None,
        backoff=Backoff(mqtt.reconnect_min_s, mqtt.reconnect_max_s),
        connect_timeout_s=mqtt.connect_timeout_s,
        keep_alive_s=mqtt.keep_alive_s,
        session_s=mqtt.session_s,
        receive_maximum=mqtt.receive_maximum,
        will_delay_s=mqtt.will_delay_s,
    )


def _credentials(url: BrokerUrl) -> Credentials:
    return Credentials(url.username, None if url.password is None else url.password.encode())


def _engine_options(config: Config) -> EngineOptions:
    devices = config.devices
    return EngineOptions(
        ping_interval_s=devices.ping_interval_s,
        ping_timeout_s=devices.ping_timeout_s,
        upgrade_timeout_s=devices.upgrade_timeout_s,
        admission_timeout_s=devices.auth_timeout_s,
        max_handshakes=devices.max_unauthenticated,
        max_payload_bytes=devices.max_payload_bytes,
        max_buffer_bytes=devices.max_buffer_bytes,
        origins=devices.origins,
        missing_eio_is_3=devices.missing_eio_is_3,
        cookie=devices.cookie or None,
        compress_polls_over_bytes=COMPRESS_OVER_BYTES if devices.compress_polls else None,
        deflate_websockets_over_bytes=COMPRESS_OVER_BYTES if devices.deflate_websockets else None,
    )


def _policy(config: Config) -> Policy:
    commands = config.commands
    return Policy(commands.ack_timeout_s, commands.lifetime_s, commands.max_payload_bytes)


def _limits(config: Config) -> Limits:
    commands = config.commands
    return Limits(
        max_attempts=commands.max_attempts,
        max_commands=commands.max_per_device,
        max_command_bytes=commands.max_bytes_per_device,
        max_emitted_bytes=config.devices.max_buffer_bytes // 2,
        max_questions=commands.max_questions_per_device,
        reply_timeout_s=commands.reply_timeout_s,
    )
