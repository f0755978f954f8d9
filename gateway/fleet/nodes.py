"""What the nodes say of themselves: the statuses that the broker retains."""

import asyncio
import secrets
from contextlib import suppress
from ssl import SSLContext

import aiomqtt
import msgspec

from gateway.addresses import BrokerUrl
from gateway.bodies import NodeStatus
from gateway.fleet.connection import Connection
from gateway.fleet.watch import SETTLE_S
from gateway.topics import Topics

_STATUS = msgspec.json.Decoder(NodeStatus)


async def node_statuses(url: str, *, prefix: str = "gw/v1", tls: SSLContext | None = None) -> dict[str, NodeStatus]:
    """Every node that the broker knows of, by name; it takes SETTLE_S and longer.

    Raises:
        Disconnected: there is no broker.
    """
    found: dict[str, NodeStatus] = {}
    more = asyncio.Event()

    def receive(message: aiomqtt.Message) -> None:
        more.set()
        with suppress(msgspec.DecodeError, UnicodeDecodeError, TypeError):
            status = _STATUS.decode(message.payload)
            found[status.node] = status

    client_id = f"status-{secrets.token_hex(8)}"
    async with Connection(BrokerUrl.parse(url), client_id, [Topics(prefix).node_status("+")], receive, tls=tls):
        with suppress(TimeoutError):
            while True:  # MQTT does not mark the end of what is retained
                more.clear()
                async with asyncio.timeout(SETTLE_S):
                    await more.wait()
    return found
