"""What a worker knows of the others: several processes share one port, and each is a node. Pure."""

from pathlib import Path

from msgspec import Struct


def node_of(node: str, number: int) -> str:
    """The name of a worker's node; the first has the number 1."""
    return f"{node}.{number}"


class Worker(Struct, frozen=True):
    """One worker of several.

    Attributes:
        node: the name of its node.
        nodes: those of all workers, this one among them.
        directory: where each has its sockets; nobody but the gateway's own user gets in.
        secret: what they sign relayed requests with, unless all nodes share another.
    """

    node: str
    nodes: tuple[str, ...]
    directory: str
    secret: bytes

    def relay_socket(self, node: str) -> Path:
        """Where a worker takes the requests that come to others, and are of its sessions."""
        return self._socket(node, "relay")

    @property
    def admin_socket(self) -> Path:
        """Where its health and metrics are."""
        return self._socket(self.node, "admin")

    def _socket(self, node: str, use: str) -> Path:
        return Path(self.directory) / f"{use}-{self.nodes.index(node) + 1}"  # short: 107 bytes are all that may be
