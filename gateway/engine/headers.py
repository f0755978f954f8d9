"""Headers around the protocol: what is kept of a handshake, CORS, and the cookie."""

from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import Any, Final

from aiohttp import web

from gateway.engine.handshake import Head

# What applications ask of a handshake; the rest would be memory held for as long as the device is connected, and the
# cookies of other applications on the same host are none of our business.
KEPT_HEADERS: Final = ("Authorization", "User-Agent")
PREFLIGHT_AGE_S: Final = 600


def environ_of(head: Head, address: str) -> dict[str, Any]:
    """What is kept of a handshake of a client at this address, in the manner of WSGI."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": head.method,
        "PATH_INFO": head.path,
        "QUERY_STRING": head.query_string,
        "REMOTE_ADDR": address,
        "wsgi.url_scheme": head.scheme,
    }
    for name in KEPT_HEADERS:
        if name in head.headers:
            environ["HTTP_" + name.upper().replace("-", "_")] = head.headers[name]
    return environ


def cookie_of(name: str | None, sid: str) -> str | None:
    """The Set-Cookie that names a session, if there is to be one."""
    if name is None:
        return None
    cookie: SimpleCookie = SimpleCookie()
    cookie[name] = sid
    return f"{cookie[name].OutputString()}; Path=/; HttpOnly; SameSite=Lax"


def cors(origin: str) -> Mapping[str, str]:
    """Clients of Engine.IO 3 always send credentials, and for those `*` is no answer."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }


def preflight(request: web.Request) -> Mapping[str, str]:
    """What answers a browser that asks whether it may ask."""
    return {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", ""),
        "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
    }
