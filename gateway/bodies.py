"""The JSON bodies that the gateway publishes: outcomes, presences and node statuses. Pure."""

from typing import Any, Final

import msgspec

FINAL_STATUSES: Final = ("acked", "nacked", "timeout", "lost", "offline", "expired", "rejected")  # of an Outcome
STATUSES: Final = ("queued", *FINAL_STATUSES)


class Outcome(msgspec.Struct, frozen=True):
    """The result of a command, as published on the acks topic or the Response Topic (JSON)."""

    id: str
    serial: str
    event: str
    status: str
    final: bool
    data: Any = None
    error: str | None = None
    attempts: int = 0
    maybe_delivered: bool = False
    latency_ms: float = 0.0
    node: str = ""
    late: bool = False


class Client(msgspec.Struct, frozen=True):
    """How a device is connected: Engine.IO generation, transport and the address it came from."""

    engine: int
    transport: str
    address: str


class Life(msgspec.Struct, frozen=True):
    """One life of a node: its name, and when it started (RFC 3339)."""

    node: str
    started: str


class Presence(msgspec.Struct, frozen=True):
    """Whether a device is connected; retained on its presence topic and carried by its link's Will."""

    online: bool
    node: str
    since: str | None = None  # RFC 3339, when it came or went; a Will cannot know
    reason: str | None = None
    client: Client | None = None
    started: str = ""  # of the node, RFC 3339

    def is_newer_than(self, ours: "Presence", life: Life) -> bool:
        """Whether who said this has the device now, and not we, who last said `ours` in this life.

        Of two lives of one node the later has it; of two nodes who spoke last: a broker that comes back with an older
        save may name an owner of the past.
        """
        if self.node == life.node:
            return self.started > life.started
        return not (ours.since and self.since and self.since < ours.since)


class NodeStatus(msgspec.Struct, frozen=True):
    """What one node says of itself; retained on its status topic, `online: false` by its Will."""

    online: bool
    node: str
    version: str = ""
    started: str = ""
    devices: int = 0
    sockets: int = 0
    relay: str = ""  # URL at which other nodes reach its device port; empty: they do not
