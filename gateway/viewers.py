"""The tokens of sockets: where a peer gives one, and for how long it counts."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from gateway.rooms import Grant
from gateway.sockets import Socket
from gateway.tokens import BadToken, TokenReader

log = logging.getLogger(__name__)


class Viewers:
    """Reads the token of each socket that has one, and tells when it expires.

    Args:
        reader: None where there are no tokens: then nobody has one.
        expired: called with an open socket whose token has just expired; it has no grant any more.
    """

    def __init__(self, reader: TokenReader | None, expired: Callable[[Socket], None]) -> None:
        self._reader = reader
        self._expired = expired
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def introduce(self, socket: Socket, auth: object) -> str | None:
        """Read the token that a socket shows; what is wrong with it, None if nothing is, or if there is none."""
        if self._reader is None:
            return None
        token = token_of(auth, socket.connection.environ)
        if not token:
            return None
        try:
            socket.grant = self._reader.read(token)
        except BadToken as problem:
            log.info("token refused", extra={"address": socket.address, "problem": str(problem)})
            return str(problem)
        self._watch(socket, socket.grant)
        return None

    def forget(self, socket: Socket) -> None:
        """The socket is gone."""
        timer = self._timers.pop(socket.number, None)
        if timer is not None:
            timer.cancel()

    def _watch(self, socket: Socket, grant: Grant) -> None:
        self.forget(socket)
        left_s = max(0.0, grant.expires_at - time.time())
        self._timers[socket.number] = asyncio.get_running_loop().call_later(left_s, self._look, socket, grant)

    def _look(self, socket: Socket, grant: Grant) -> None:
        """End the grant, or wait again where the clock was set back meanwhile."""
        if grant.expires_at > time.time():
            self._watch(socket, grant)
            return
        self.forget(socket)
        socket.grant = None
        log.info("token expired", extra={"address": socket.address, "subject": grant.subject})
        self._expired(socket)


def token_of(auth: object, environ: Mapping[str, Any]) -> object:
    """The token that a peer shows, empty if none: in Socket.IO's `auth`, else in the URL, else in a header.

    `auth` is also the query of a CONNECT packet, where clients of Engine.IO 3 have it.
    """
    if isinstance(auth, dict) and auth.get("token"):
        return auth["token"]
    query = str(environ.get("QUERY_STRING", ""))
    if "token=" in query and (given := parse_qs(query).get("token")):
        return given[0]
    scheme, _, token = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
