"""What the Socket.IO suites and the real clients talk to: the gateway's own sockets, whose owner echoes."""

import asyncio
from itertools import count

from gateway.admission import Admission, Refusal
from gateway.catalog import Args
from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.proxies import Proxies
from gateway.sockets import Socket, SocketServer

BURST = 40  # events, which come back when all are there


class Echo:
    """The owner of its sockets; it notes why they closed."""

    def __init__(self, options: EngineOptions) -> None:
        self.sockets = SocketServer(self, options, "socket.io", Admission(), Proxies())
        self.engine = self.sockets._server.engine
        self.closes: asyncio.Queue[CloseReason] = asyncio.Queue()
        self._said: dict[int, object] = {}  # of whom has joined
        self._bursts: dict[int, list[Args]] = {}
        self._emit_ids = count(1)

    def introduced(self, socket: Socket, auth: object) -> str | None:
        """Anybody but who asks for a refusal, and says which."""
        if isinstance(auth, dict) and "refuse" in auth:
            return str(auth["refuse"])
        self._said[socket.number] = auth or {}
        return None

    def connected(self, socket: Socket) -> None:
        """As the server of the official suites does, it says what the peer said of itself."""
        self.sockets.admit(socket.number)
        self.sockets.emit(socket.number, "auth", (self._said.pop(socket.number),))

    def emitted(self, socket: Socket, event: str, args: Args, ack_id: int | None) -> None:
        """`message` and `message-with-ack` are those of the official suites, the others those of `driver.js`."""
        number = socket.number
        match event:
            case "message":
                self.sockets.emit(number, "message-back", args)
            case "message-with-ack" | "echo" if ack_id is not None:
                self.sockets.reply(number, ack_id, args)
            case "ask me":
                self.sockets.emit(number, "question", args, next(self._emit_ids))
            case "burst":
                self._burst(number, args)
            case "drop me":
                self.sockets.close(number, CloseReason.SERVER)

    def acked(self, socket: Socket, _emit_id: int, args: Args) -> None:
        """It repeats the answer to its question."""
        self.sockets.emit(socket.number, "answered", args)

    def upgraded(self, socket: Socket) -> None:
        """It is the same to it."""

    def closed(self, socket: Socket, reason: CloseReason) -> None:
        """Note it."""
        self.closes.put_nowait(reason)

    def refused(self, reason: Refusal) -> None:
        """It is the same to it."""

    def _burst(self, number: int, args: Args) -> None:
        seen = self._bursts.setdefault(number, [])
        seen.append(args)
        if len(seen) == BURST:
            for one in seen:
                self.sockets.emit(number, "burst", one)
