"""A bearer token before the admin port's pages (RFC 6750); probes of health need none."""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from gateway.admission import Refusal
from gateway.settings import ConfigError

OPEN: Final = frozenset({"/healthz"})
STATUS_ONLY: Final = frozenset({"/readyz"})  # a balancer may ask; the reasons are the operator's
MIN_TOKEN_CHARS: Final = 16

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def admin_token(variable: str, environ: Mapping[str, str]) -> bytes | None:
    """The token that an environment variable holds; None without a variable. Raises ConfigError."""
    if not variable:
        return None
    token = environ.get(variable, "").strip()
    if len(token) < MIN_TOKEN_CHARS:
        got = "missing" if not token else "too short"
        raise ConfigError([f"environment {variable}: {got}, expected a token of at least {MIN_TOKEN_CHARS} characters"])
    return token.encode()


def guard(token: bytes | None, refused: Callable[[Refusal], None]) -> Any:
    """The middleware that lets a request through with this token only; any request without one.

    Args:
        refused: told of each request that was not let through.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is None or request.path in OPEN or _bears(request, token):
            return await handler(request)
        if request.path in STATUS_ONLY:
            status = (await handler(request)).status
            return web.Response(status=status, text="ready" if status < 400 else "not ready")
        refused(Refusal.ADMIN_TOKEN)
        return web.Response(status=401, text="bearer token needed\n", headers={"WWW-Authenticate": "Bearer"})

    return guarded


def _bears(request: web.Request, token: bytes) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    equal = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
    return equal and scheme.lower() == "bearer"
