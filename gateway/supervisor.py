"""Several workers behind one port, each a node in a process of its own; this one starts, watches and stops them.

A worker that ends is started again, after a pause that grows; one that hangs is ended first. Health and metrics of all
are at the admin port, which is the supervisor's.
"""

import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from time import monotonic
from typing import Final

import msgspec
import uvloop

from gateway import admin, asyncapi, logs, tls
from gateway.addresses import Listen
from gateway.app import STOP_MARGIN_S
from gateway.bearer import admin_token, guard
from gateway.config import Config, catalog_of
from gateway.edge_metrics import SupervisorMetrics
from gateway.instruments import Instruments
from gateway.listener import Listener
from gateway.logs import LogHandler
from gateway.mqtt.values import Backoff
from gateway.pulse import Pulse
from gateway.settings import ConfigError
from gateway.systemd import ServiceManager
from gateway.watched import Files
from gateway.worker import Worker, node_of
from gateway.workers import WorkerProcess, Workers

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
HUNG_S: Final = 30.0  # as WatchdogSec in deploy/systemd/gateway.service
SETTLED_S: Final = 60.0  # who has run for so long did not fail to start
PAUSES: Final = Backoff(1.0, 30.0)
KILL_MARGIN_S: Final = 5.0  # beyond what a worker may take to stop


class Unstarted(Exception):
    """A worker does not start; it has said why."""


class Supervisor:
    """Keeps `config.workers` workers running.

    Args:
        config: whose `devices.listen` has a port, and is kept for the workers.
        directory: for their sockets; nobody else gets in.
        hung_s: a worker that does not answer for so long is killed.
    """

    def __init__(self, config: Config, directory: str, log_handler: LogHandler, hung_s: float = HUNG_S) -> None:
        nodes = tuple(node_of(config.node, number + 1) for number in range(config.workers))
        secret = secrets.token_bytes(32)
        self._config = config
        self._hung_s = hung_s
        self._processes = [
            WorkerProcess(msgspec.structs.replace(config, node=node), Worker(node, nodes, directory, secret))
            for node in nodes
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._files = Files()
        instruments = Instruments()
        metrics = SupervisorMetrics(instruments, nodes)
        pages = Workers(self._processes, admin.registry(instruments), hung_s)
        for node in nodes:
            metrics.up.read(partial(pages.answered, node), node)
        metrics.read_log(log_handler.records, lambda: log_handler.suppressed)
        self._pulse = Pulse(metrics.loop_lag.observe, log_handler.tell_suppressed)
        certificate = tls.of_server("admin", config.admin.tls_cert, config.admin.tls_key, self._files)
        if certificate is not None:
            metrics.read_expiry("admin", lambda: certificate.expires_at)
        metrics.count_reloads(lambda: self._files.reads, lambda: self._files.failures)
        contract = cache(lambda: asyncapi.as_yaml(asyncapi.document(config, catalog_of(config.catalog))))
        app = admin.application(pages, contract)
        app.middlewares.append(guard(admin_token(config.admin.token_env, os.environ), metrics.refused))
        self._admin = Listener("admin.listen", config.admin.listen, app, metrics.refused, certificate=certificate)

    async def start(self) -> None:
        """Return when all listen. Raises OSError, ConfigError, Unstarted; `stop` cleans up after these, too."""
        await self._admin.start()
        self._pulse.start()
        self._tasks.append(asyncio.create_task(self._files.run(), name="files"))
        self._tasks.append(asyncio.create_task(self._watch(), name="watch"))
        first, *others = self._processes
        await self._begin(first)  # alone: what is wrong with the settings is said once
        await asyncio.gather(*map(self._begin, others))
        log.info(
            "workers started",
            extra={
                "workers": len(self._processes),
                "devices": str(self._config.devices.listen),
                "admin": self._admin.url,
            },
        )

    def reload(self) -> None:
        """Let everybody read the files of keys and certificates again."""
        self._files.reload()
        for process in self._processes:
            if process.listens:  # until then a hangup would end it, and it reads them anyway
                process.signal(signal.SIGHUP)

    def hurry(self) -> None:
        """Stop at once, without draining."""
        self._signal(signal.SIGTERM)

    async def stop(self) -> int:
        """Drain all workers, and return the exit status: 0 if each ended well."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._signal(signal.SIGTERM)
        ended = asyncio.gather(*(process.ended() for process in self._processes))
        try:
            async with asyncio.timeout(self._config.devices.drain_s + STOP_MARGIN_S + KILL_MARGIN_S):
                statuses = await asyncio.shield(ended)
        except TimeoutError:
            log.error("workers do not stop, killed")
            self._signal(signal.SIGKILL)
            statuses = await ended
        await self._admin.close()
        self._pulse.stop()
        return max(map(bool, statuses))

    async def _begin(self, process: WorkerProcess) -> None:
        if not await process.start():
            raise Unstarted
        self._tasks.append(asyncio.create_task(self._keep(process), name=f"keep {process.node}"))

    async def _keep(self, process: WorkerProcess) -> None:
        failures = 0
        while True:
            began = monotonic()
            status = await process.ended()
            failures = 0 if monotonic() - began > SETTLED_S else failures + 1
            pause_s = PAUSES.delay_s(failures, random.uniform)
            log.error("worker ended", extra={"node": process.node, "status": status, "starts_again_in_s": pause_s})
            await asyncio.sleep(pause_s)
            await process.start()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._hung_s / 3))
            await asyncio.gather(*(process.page("/healthz") for process in self._processes))
            for process in self._processes:
                if process.listens and monotonic() - process.heard_at > self._hung_s:
                    log.error("worker does not answer, killed", extra={"node": process.node})
                    process.signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.signal(number)


@contextmanager
def reserved(listen: Listen) -> Iterator[Listen]:
    """Keep a port for the workers, and tell which it is: no other program gets it while all of them are down.

    Raises OSError with the setting, also where another program shares it that would get a part of the devices.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        kept = socket.socket(family, kind, number)
    except OSError as problem:
        raise OSError(f"devices.listen: {listen}: {problem.strerror}") from None
    with kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
        yield Listen(listen.host, kept.getsockname()[1])


def run(config: Config) -> None:
    """Run the workers until SIGTERM or SIGINT, then exit. Raises OSError, ConfigError."""
    log_handler = logs.configure(config.log)
    try:
        directory = tempfile.TemporaryDirectory(prefix="gateway-")
    except OSError as problem:
        raise OSError(f"workers: no place for their sockets; TMPDIR may name one: {problem}") from None
    with reserved(config.devices.listen) as listen, directory as path:
        devices = msgspec.structs.replace(config.devices, listen=listen)
        status = uvloop.run(_serve(msgspec.structs.replace(config, devices=devices), path, log_handler))
    sys.exit(status)


async def _serve(config: Config, directory: str, log_handler: LogHandler) -> int:
    """Run until the first signal, then drain; the second ends that at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(config, directory, log_handler)

    def signalled() -> None:
        supervisor.hurry() if stop.is_set() else stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    with ServiceManager(os.environ) as manager:
        try:
            await supervisor.start()
        except Unstarted:
            await supervisor.stop()
            return 2
        except (OSError, ConfigError):
            await supervisor.stop()
            raise
        manager.ready()
        await stop.wait()
        manager.stopping(config.devices.drain_s + STOP_MARGIN_S + KILL_MARGIN_S)
        return await supervisor.stop()
