"""The gateway: wires everything, starts it, and stops it so that devices and sessions survive."""

import asyncio
import gc
import logging
import os
import secrets
import signal
import ssl
import sys
from collections.abc import Mapping
from functools import cache, partial
from typing import Final

import uvloop
from aiohttp import web

from gateway import __version__, admin, asyncapi, logs, tls
from gateway.addresses import BrokerUrl
from gateway.admission import Admission, AdmissionLimits
from gateway.auth.choice import authenticator
from gateway.bearer import admin_token, guard
from gateway.bodies import Life
from gateway.commands import CommandReader, Policy
from gateway.config import Config, catalog_of
from gateway.devices import Devices
from gateway.engine.options import EngineOptions
from gateway.engine.peers import PeerLimits
from gateway.exposures import exposures
from gateway.frontdoor import FrontDoor
from gateway.limits import Budget, Limits, Pace, Shared
from gateway.listener import Listener
from gateway.logs import LogHandler
from gateway.metrics import Metrics
from gateway.mqtt.link import link_alarms
from gateway.mqtt.values import Backoff, Credentials
from gateway.node import Node
from gateway.observers import observers_of, tracer_of
from gateway.proxies import Proxies
from gateway.pulse import Pulse
from gateway.relay import MIN_SECRET_BYTES, Relay, tag_of
from gateway.rooms import RoomPolicy, Rooms
from gateway.settings import ConfigError
from gateway.sockets import Socket, SocketServer
from gateway.supervised import Supervised
from gateway.surroundings import LinkSettings, Surroundings, now_rfc3339
from gateway.systemd import ServiceManager
from gateway.tokens import token_reader
from gateway.topics import Topics
from gateway.watched import Files
from gateway.worker import Worker

log = logging.getLogger(__name__)

STOP_MARGIN_S: Final = 20.0  # beyond `drain_s`: for the last publishes, and for sessions that are given up
COMPRESS_OVER_BYTES: Final = 1024  # below, it costs more than it saves
KEY_DELAY_SHARE: Final = 1 / 3  # of the time to authenticate: how long one who guesses keys waits at most


class Gateway:
    """One node. `start()` raises OSError when it cannot listen, ConfigError when a file is not usable.

    Args:
        log_handler: what `logs.configure` returned, to be counted and kept going.
        worker: which one this is, where several share the port; health and metrics are then at its own socket.
    """

    def __init__(self, config: Config, log_handler: LogHandler | None = None, *, worker: Worker | None = None) -> None:
        self._config = config
        self._log_handler = log_handler
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._files = Files()
        self._tracer = tracer_of(config.tracing, config.node)
        topics = Topics(config.mqtt.prefix, config.mqtt.response_topics)
        catalog, commands = catalog_of(config.catalog), config.commands
        policy = Policy(commands.ack_timeout_s, commands.lifetime_s, commands.max_payload_bytes)
        metrics = Metrics(catalog, config.node)
        context, shown = tls.to_broker(config.mqtt, self._files)
        links = _link_settings(config, context)
        rooms: Rooms[Socket] = Rooms()
        admission, proxies = Admission(_admission_limits(config)), Proxies(config.admission.trusted_proxies)
        tokens = token_reader(config.tokens, os.environ, self._files)
        self._door = FrontDoor(rooms, RoomPolicy(config.rooms.rules), tokens, admission, metrics)
        own = _credentials(config.mqtt.url)
        life = Life(config.node, now_rfc3339())
        relay = config.relay.advertise
        self._node = Node(life, topics, links, own, rooms, lambda: len(self._devices), metrics, catalog, relay)
        self._relay = _relay(config, os.environ, self._node.relays, metrics, worker)
        self._sockets = SocketServer(
            self._door, _engine_options(config), config.devices.path, admission, proxies, self._relay
        )
        around = Surroundings(
            life=life,
            topics=topics,
            catalog=catalog,
            reader=CommandReader(topics, catalog, policy, secrets.token_hex(8)),
            limits=_limits(config),
            shared=Shared(commands.max_per_node, commands.max_bytes_per_node),
            waiting_bytes=Budget(config.mqtt.max_waiting_bytes),
            replays=Pace(config.commands.replays_per_s),
            links=links,
            sockets=self._sockets,
            node_link=self._node,
            metrics=metrics,
            observers=observers_of(self._tracer),
        )
        self._authenticator = authenticator(
            config.auth, os.environ, self._files, lambda serials: self._devices.revoke(serials)
        )
        self._devices = Devices(around, self._authenticator, own, config.devices.max_devices)
        self._read_metrics(metrics, around, rooms)
        self._door.serve(self._sockets, self._devices)
        contract = cache(lambda: asyncapi.as_yaml(asyncapi.document(config, catalog)))
        devices = web.Application()
        self._sockets.attach(devices)
        self._pulse = Pulse(metrics.node.loop_lag.observe, self._beat)
        registry = admin.registry(metrics.instruments)
        pages = admin.application(admin.ThisProcess(lambda: self._pulse.late_s, self._reasons, registry), contract)
        certificates = {
            "devices": tls.of_server("devices", config.devices.tls_cert, config.devices.tls_key, self._files),
            "mqtt": shown,
        }
        if worker is None:  # nobody but the supervisor gets to the socket of a worker
            pages.middlewares.append(guard(admin_token(config.admin.token_env, os.environ), self._door.refused))
            certificates["admin"] = tls.of_server("admin", config.admin.tls_cert, config.admin.tls_key, self._files)
        for use, certificate in certificates.items():
            if certificate is not None:  # what is shown, which is not what is on disk while that is unusable
                metrics.node.read_expiry(use, partial(getattr, certificate, "expires_at"))
        self._ports = {
            "devices": Listener(
                "devices.listen",
                config.devices.listen,
                devices,
                self._door.refused,
                take=self._sockets.take,
                limits=_peer_limits(config),
                proxies=proxies,
                certificate=certificates["devices"],
                shared=worker is not None,
                also=worker.relay_socket(worker.node) if worker is not None else None,
            ),
            "admin": Listener(
                "admin.listen",
                config.admin.listen if worker is None else worker.admin_socket,
                pages,
                self._door.refused,
                certificate=certificates.get("admin"),
            ),
        }

    @property
    def device_url(self) -> str:
        """Where devices connect, once started; the path is the configured one."""
        return self._ports["devices"].url

    @property
    def admin_url(self) -> str:
        """Where health and metrics are, once started."""
        return self._ports["admin"].url

    async def start(self) -> None:
        """Listen for devices and operators, and connect to the broker in the background."""
        try:
            for port in self._ports.values():
                await port.start()
        except OSError:
            await self._stop_listening()
            raise
        self._pulse.start()
        for exposure in exposures(self._config):
            log.warning("accepted exposure", extra={"exposure": exposure.name, "what": exposure.what})
        self._node.open(self._sockets)
        self._tasks.append(asyncio.create_task(self._adopt(), name="adopt"))
        self._tasks.append(asyncio.create_task(self._files.run(), name="files"))
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
        """Read the files of keys and certificates again, without waiting for a change to be noticed."""
        self._files.reload()

    async def stop(self) -> None:
        """Accept nothing more, let the devices go within `drain_s`, and leave the sessions in the broker's keeping."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._ports["devices"].stop_accepting()
        await self._door.close()
        if self._authenticator is not None:
            await self._authenticator.close()
        await self._devices.drain(self._config.devices.drain_s)
        await self._sockets.shutdown()
        if self._relay is not None:
            await self._relay.close()
        await self._node.close()
        await self._stop_listening()
        self._pulse.stop()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        log.info("gateway stopped")

    def _beat(self) -> None:
        if self._log_handler is not None:
            self._log_handler.tell_suppressed()

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

    def _read_metrics(self, metrics: Metrics, around: Surroundings, rooms: Rooms[Socket]) -> None:
        """Let each gauge be asked for when the metrics are."""
        metrics.sockets.count_devices(lambda: len(self._devices))
        metrics.links.count_links(lambda: len(self._devices))
        metrics.links.up.read(lambda: not self._node.trouble)
        metrics.links.waiting_bytes.read(lambda: around.waiting_bytes.used)
        metrics.sessions.count_open(lambda: around.shared.commands.used, lambda: around.shared.bytes.used)
        metrics.rooms.rooms.read(lambda: len(rooms))
        metrics.rooms.sockets.read(lambda: rooms.memberships)
        open_rooms = sum(rule.allow == "anyone" for rule in self._config.rooms.rules)
        metrics.rooms.anonymous_rules.read(lambda: open_rooms)
        metrics.node.ready.read(lambda: not self._reasons())
        metrics.node.count_reloads(lambda: self._files.reads, lambda: self._files.failures)
        if (tracer := self._tracer) is not None:
            metrics.node.spans.read(lambda: tracer.exported, "exported")
            metrics.node.spans.read(lambda: tracer.dropped, "dropped")
        if (handler := self._log_handler) is not None:
            metrics.node.read_log(handler.records, lambda: handler.suppressed)

    async def _stop_listening(self) -> None:
        for port in self._ports.values():
            await port.close()


def run(config: Config, worker: Worker | None = None) -> None:
    """Run a node until SIGTERM or SIGINT. Raises OSError, ConfigError.

    A worker says a line on stdout when it listens, and stops when its stdin ends: then the supervisor is gone.
    """
    log_handler = logs.configure(config.log, node=None if worker is None else worker.node)
    gc.set_threshold(700, 10, 100)  # all objects of 1,000 devices take 30 ms and more to look at: a tenth as often
    try:
        uvloop.run(_serve(config, log_handler, worker))
    except asyncio.CancelledError:
        log.warning("stopped at once: the broker will say offline for the devices")
        sys.exit(1)


async def _serve(config: Config, log_handler: LogHandler, worker: Worker | None) -> None:
    """Run until the first signal, then stop in good order; the second ends it at once."""
    stop = asyncio.Event()
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None

    def signalled() -> None:
        serving.cancel() if stop.is_set() else stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    gateway = Gateway(config, log_handler, worker=worker)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    with ServiceManager(os.environ) if worker is None else Supervised(signalled) as manager:
        await gateway.start()
        manager.ready()
        await stop.wait()
        manager.stopping(config.devices.drain_s + STOP_MARGIN_S)
        await gateway.stop()


def _link_settings(config: Config, context: ssl.SSLContext | None) -> LinkSettings:
    mqtt = config.mqtt
    return LinkSettings(
        address=mqtt.url,
        alarms=link_alarms(),
        tls=context,
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
        request_timeout_s=config.admission.request_timeout_s,
        messages_per_s=config.admission.messages_per_s,
        bytes_per_s=config.admission.bytes_per_s,
        max_payload_bytes=devices.max_payload_bytes,
        max_buffer_bytes=devices.max_buffer_bytes,
        origins=devices.origins,
        missing_eio_is_3=devices.missing_eio_is_3,
        cookie=devices.cookie or None,
        compress_polls_over_bytes=COMPRESS_OVER_BYTES if devices.compress_polls else None,
        deflate_websockets_over_bytes=COMPRESS_OVER_BYTES if devices.deflate_websockets else None,
    )


def _relay(
    config: Config, environ: Mapping[str, str], peers: Mapping[str, str], metrics: Metrics, worker: Worker | None
) -> Relay | None:
    """What relays to other nodes, None where this one has no address for them. Raises ConfigError."""
    settings, devices = config.relay, config.devices
    if settings.advertise:
        secret = environ.get(settings.secret_env, "").encode()
        if len(secret) < MIN_SECRET_BYTES:
            expected = f"expected at least {MIN_SECRET_BYTES} bytes, which all nodes share"
            problem = f"environment {settings.secret_env}: {expected}"
            raise ConfigError([problem])
    elif worker is not None:
        secret = worker.secret
    else:
        return None
    return Relay(
        config.node,
        secret,
        peers,
        max_requests=settings.max_requests,
        max_bytes=devices.max_payload_bytes,
        poll_s=devices.ping_interval_s + devices.ping_timeout_s,
        relayed=metrics.sockets.relayed,
        siblings={tag_of(node): worker.relay_socket(node) for node in worker.nodes} if worker is not None else {},
    )


def _admission_limits(config: Config) -> AdmissionLimits:
    admission = config.admission
    return AdmissionLimits(
        handshakes_per_s=admission.handshakes_per_s,
        handshakes_per_address_per_s=admission.handshakes_per_address_per_s,
        max_strangers=admission.max_unauthenticated,
        max_strangers_per_address=admission.max_unauthenticated_per_address,
        max_viewers=admission.max_viewers,
        max_viewers_per_address=admission.max_viewers_per_address,
        max_key_delay_s=config.devices.auth_timeout_s * KEY_DELAY_SHARE,
    )


def _peer_limits(config: Config) -> PeerLimits:
    admission = config.admission
    return PeerLimits(
        head_s=admission.request_timeout_s,
        max_waiting=admission.max_unauthenticated,
        max_waiting_per_address=admission.max_unauthenticated_per_address,
        max_request_bytes=2 * config.devices.max_payload_bytes,  # chunks have an overhead
    )


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
