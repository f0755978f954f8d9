"""The workers of one supervisor: their processes, and what they say of themselves at their unix sockets."""

import asyncio
import json
import logging
import pickle
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector
from prometheus_client.registry import Collector

from gateway.admin import exposition
from gateway.config import Config
from gateway.exposition import merged
from gateway.supervised import READY
from gateway.worker import Worker

log = logging.getLogger(__name__)

START_S: Final = 60.0  # a worker that does not listen by then is ended
ANSWER_S: Final = 5.0  # for a page


class WorkerProcess:
    """One worker, in one process after another.

    Attributes:
        heard_at: when it started, or answered last, in monotonic seconds.
        listens: whether there is a process, and devices are served by it.
    """

    def __init__(self, config: Config, worker: Worker) -> None:
        self.node = worker.node
        self.heard_at = 0.0
        self.listens = False
        self._told = pickle.dumps((config, worker))
        self._connector_path = str(worker.admin_socket)
        self._process: Process | None = None

    async def start(self) -> bool:
        """Start a process; whether it listens now. If not it has said why, and is gone."""
        # -P: a directory named `gateway` where this was started is not the package.
        command = (sys.executable, "-P", "-m", "gateway.cli.worker", self.node)
        try:  # in a session of its own: Ctrl-C in a terminal is for the supervisor
            self._process = process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, start_new_session=True
            )
        except OSError as problem:
            log.error("worker not started", extra={"node": self.node, "problem": str(problem)})
            return False
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._told)  # on no command line, and in no file: it has passwords
        said = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(START_S):
                said = await process.stdout.readline()
        self.listens = said == READY
        self.heard_at = monotonic()
        if not self.listens:
            self.signal(signal.SIGKILL)
            await process.wait()
        return self.listens

    async def ended(self) -> int:
        """Wait for the end of the process, and return its exit status."""
        status = 0 if self._process is None else await self._process.wait()
        self.listens = False
        return status

    def signal(self, number: int) -> None:
        """Send a signal, if the process is there."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def page(self, path: str, accept: str = "") -> tuple[int, str] | None:
        """Status and text of one of its pages; None if it does not answer."""
        connector, limit = UnixConnector(self._connector_path), ClientTimeout(ANSWER_S)
        try:
            async with (
                ClientSession(connector=connector, timeout=limit) as http,
                http.get(f"http://worker{path}", headers={"Accept": accept}) as answer,
            ):
                text = await answer.text()
        except (ClientError, TimeoutError, OSError) as problem:
            log.debug("%s does not answer: %s", self.node, type(problem).__name__)
            return None
        self.heard_at = monotonic()
        return answer.status, text


class Workers:
    """What is shown of all workers at the admin port: see `admin.Subject`.

    Args:
        own: the metrics of the supervisor.
        hung_s: a worker that has not answered for so long is as good as dead.
    """

    def __init__(self, processes: Iterable[WorkerProcess], own: Collector, hung_s: float) -> None:
        self._processes = tuple(processes)
        self._own = own
        self._hung_s = hung_s
        self._answered: frozenset[str] = frozenset()

    def answered(self, node: str) -> bool:
        """Whether a worker answered the last time that metrics were asked for."""
        return node in self._answered

    async def unwell(self) -> str | None:
        """No worker answers: the supervisor has not got them to."""
        oldest = monotonic() - self._hung_s
        well = any(process.listens and process.heard_at > oldest for process in self._processes)
        return None if well else "no worker answers"

    async def reasons(self) -> list[str]:
        """Nothing while one worker is ready: it takes the connections of those that do not listen."""
        reasons = await asyncio.gather(*map(_reasons, self._processes))
        return [why for of_one in reasons for why in of_one] if all(reasons) else []

    async def metrics(self, accept: str) -> tuple[str, str]:
        """Those of each worker under the name of its node, as `instance`, and the supervisor's own."""
        pages = await asyncio.gather(*(process.page("/metrics", accept) for process in self._processes))
        texts = {process.node: page[1] for process, page in zip(self._processes, pages, strict=True) if page}
        self._answered = frozenset(texts)
        own, content_type = await exposition(self._own, accept)
        return merged(texts, own), content_type


async def _reasons(process: WorkerProcess) -> list[str]:
    page = await process.page("/readyz")
    reasons = ["does not answer"] if page is None else json.loads(page[1])["reasons"]
    return [f"{process.node}: {reason}" for reason in reasons]
