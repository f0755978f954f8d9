"""Devices that a service of yours knows: each key is checked by a POST to a URL.

POST {"serial": "…", "key": "…", "address": "…"}
200 or 204: right · 401, 403 or 404: wrong · anything else, or nothing in time: no answer, it is asked again
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from typing import Final

import aiohttp
import msgspec

from gateway.auth.base import DeviceKey, Verdict
from gateway.auth.cache import Verdicts

log = logging.getLogger(__name__)

ACCEPTED: Final = frozenset({200, 204})
DENIED: Final = frozenset({401, 403, 404})


class Service(msgspec.Struct, frozen=True):
    """Where keys are checked, and how much may be asked of it.

    Attributes:
        timeout_s: of one request; its turn among `max_requests` is waited for before.
        max_requests: how many are under way at once.
        token: the bearer token of the requests, none if empty.
    """

    url: str
    timeout_s: float
    max_requests: int
    token: str = ""

    def __repr__(self) -> str:
        return f"Service(url={self.url!r})"


class _Asking:
    """A request under way, and how many checks wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: "asyncio.Task[Verdict]") -> None:
        self.task = task
        self.waiting = 0


class HttpAuthenticator:
    """Asks a service, and remembers its answers. Checks of one claim at one time share a request.

    What it remembers, it knows by an HMAC under a key of this process: no device key stays in memory.
    """

    def __init__(self, service: Service, verdicts: Verdicts) -> None:
        self._service = service
        self._verdicts = verdicts
        self._secret = secrets.token_bytes(32)
        self._turns = asyncio.Semaphore(service.max_requests)
        self._asking: dict[bytes, _Asking] = {}
        self._session: aiohttp.ClientSession | None = None
        self._answers = True  # as of the last request

    async def check(self, claim: DeviceKey) -> Verdict:
        """Ask the service, unless its answer is remembered or somebody asks just now."""
        digest = self._digest(claim)
        known = self._verdicts.get(digest, asyncio.get_running_loop().time())
        if known is not None:
            return known
        asking = self._asking.get(digest)
        if asking is None:
            task = asyncio.get_running_loop().create_task(self._ask(claim, digest), name="ask")
            asking = self._asking[digest] = _Asking(task)
        asking.waiting += 1
        try:
            return await asyncio.shield(asking.task)
        finally:
            asking.waiting -= 1
            if not asking.waiting:  # answered, or nobody wants to know any more
                asking.task.cancel()
                if self._asking.get(digest) is asking:
                    del self._asking[digest]

    def knows(self, serial: str) -> bool:
        """Take it so: the service is only asked about keys."""
        return True

    async def close(self) -> None:
        """Close the connections to the service."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _digest(self, claim: DeviceKey) -> bytes:
        text = f"{claim.address}\n{claim.serial}:{claim.key}"  # an address has no line break, a serial no colon
        return hmac.digest(self._secret, text.encode(), hashlib.sha256)

    async def _ask(self, claim: DeviceKey, digest: bytes) -> Verdict:
        async with self._turns:
            try:
                status = await self._post(claim)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
                self._note(f"{type(problem).__name__}: {problem}")
                return Verdict.UNAVAILABLE
        if status in ACCEPTED:
            verdict = Verdict.ACCEPTED
        elif status in DENIED:
            verdict = Verdict.DENIED
        else:
            self._note(f"status {status}")
            return Verdict.UNAVAILABLE
        self._note("")
        self._verdicts.put(digest, verdict, asyncio.get_running_loop().time())
        return verdict

    async def _post(self, claim: DeviceKey) -> int:
        """Return the status of one request. A redirect is not followed: it would take the key elsewhere."""
        if self._session is None:
            self._session = self._connect()
        body = {"serial": claim.serial, "key": claim.key} | ({"address": claim.address} if claim.address else {})
        async with self._session.post(
            self._service.url, data=msgspec.json.encode(body), allow_redirects=False
        ) as answer:
            return answer.status

    def _connect(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json"}
        if self._service.token:
            headers["Authorization"] = f"Bearer {self._service.token}"
        return aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._service.timeout_s),
            connector=aiohttp.TCPConnector(limit=0),  # whoever has a turn need not wait for another
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _note(self, problem: str) -> None:
        """Log when the service begins to fail, and when it answers again."""
        if problem and self._answers:
            log.warning("authentication service does not answer: devices wait", extra={"problem": problem})
        elif not problem and not self._answers:
            log.info("authentication service answers again")
        self._answers = not problem
