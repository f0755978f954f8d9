"""What the Socket.IO suites and the real clients talk to: the gateway's server, with handlers that echo."""

from typing import Any

from gateway.engine.options import EngineOptions
from gateway.socketio_server import Server


def echo_server(options: EngineOptions) -> Server:
    """What the official Socket.IO suites want to talk to: `/` and `/custom`, echoing."""
    sockets = Server(options, namespaces=["/", "/custom"])
    for namespace in ("/", "/custom"):
        _echo(sockets, namespace)
    return sockets


def _echo(sockets: Server, namespace: str) -> None:
    async def connect(sid: str, _: dict[str, Any], auth: Any) -> None:
        await sockets.emit("auth", auth or {}, to=sid, namespace=namespace)

    async def message(sid: str, *args: Any) -> None:
        await sockets.emit("message-back", args, to=sid, namespace=namespace)

    async def message_with_ack(_: str, *args: Any) -> tuple[Any, ...]:
        return args

    sockets.on("connect", connect, namespace=namespace)
    sockets.on("message", message, namespace=namespace)
    sockets.on("message-with-ack", message_with_ack, namespace=namespace)
