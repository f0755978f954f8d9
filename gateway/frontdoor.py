"""The device protocol on a socket: authentication, rooms, and everything else to the device it belongs to.

Follows device-protocol.zh.md. Bad input is answered to the one who sent it, in the protocol's own words.
"""

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import Final

from gateway import facts as f
from gateway.admission import Admission, Refusal
from gateway.auth.base import NOT_VALID, DeviceKey, Malformed, Verdict, parse_signature
from gateway.catalog import Args
from gateway.device import Device
from gateway.devices import Devices
from gateway.engine.connection import Pending
from gateway.engine.effects import CloseReason
from gateway.metrics import Metrics
from gateway.rooms import Refused, RoomPolicy, Rooms
from gateway.session import refusal
from gateway.sockets import Socket, SocketServer
from gateway.tokens import TokenReader
from gateway.viewers import Viewers

log = logging.getLogger(__name__)

DELAYED_CHECKS: Final = 8  # keys that had to wait are checked so many at a time; who did not wait never queues
VIEWERS_FULL: Final = "too many viewers, try again later"


class FrontDoor:
    """Owner of the sockets: what their peers emit becomes facts of devices, or is answered here."""

    def __init__(
        self,
        rooms: Rooms[Socket],
        policy: RoomPolicy,
        tokens: TokenReader | None,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self._rooms = rooms
        self._policy = policy
        self._viewers = Viewers(tokens, self._token_expired)
        self._admission = admission
        self._metrics = metrics
        self._delayed = asyncio.Semaphore(DELAYED_CHECKS)
        self._held_up: set[int] = set()  # sockets whose keys wait to be checked
        self._sockets: SocketServer
        self._devices: Devices
        self._closed = False
        self._authentications: dict[int, asyncio.Task[Verdict]] = {}  # one a socket at most

    def serve(self, sockets: SocketServer, devices: Devices) -> None:
        """Begin: the sockets to answer on, the devices to admit to."""
        self._sockets = sockets
        self._devices = devices

    def introduced(self, socket: Socket, auth: object) -> str | None:
        """A token may come with it; one that is not taken refuses it, rather than letting it in as nobody."""
        problem = self._viewers.introduce(socket, auth)
        if problem is not None:
            self.refused(Refusal.TOKEN)
        return problem

    def connected(self, socket: Socket) -> None:
        """A socket is a viewer until it authenticates."""
        client = socket.client
        socket.counted = self._metrics.sockets.connected(client.engine, client.transport)

    def upgraded(self, socket: Socket) -> None:
        """Its transport is another now."""
        self._count(socket)

    def emitted(self, socket: Socket, event: str, args: Args, ack_id: int | None) -> Pending:
        """Dispatch an event; what the protocol does not name is the device's own.

        A device that floods is not read until the broker has caught up.
        """
        match event:
            case "authentication":
                self._authenticate(socket, args[0] if args else None)
            case "join_room" | "leave_room":
                self._change_room(socket, event, args[0] if args else None)
            case _:
                self._to_device(socket, event, args, ack_id)
        device = socket.device
        if not (isinstance(device, Device) and device.floods):
            return None
        self._metrics.sockets.pauses.n += 1
        return device.catch_up()

    def acked(self, socket: Socket, emit_id: int, args: Args) -> None:
        """Hand an ack to the device."""
        if isinstance(socket.device, Device):
            socket.device.handle(f.Acked(socket.number, emit_id, args), socket.read_at)

    def refused(self, reason: Refusal) -> None:
        """Count what a peer was refused."""
        self._metrics.sockets.refusals[str(reason)].n += 1

    def closed(self, socket: Socket, reason: CloseReason) -> None:
        """Take the socket out of everything it was in."""
        authentication = self._authentications.get(socket.number)
        if authentication is not None:
            authentication.cancel()
            if reason is CloseReason.UNAUTHENTICATED and socket.number not in self._held_up:
                reason = CloseReason.AUTH_UNAVAILABLE  # it did what it had to; nobody answered
        if socket.counted is not None:
            self._metrics.sockets.closed(socket.counted, _role(socket), reason)
        self._rooms.leave_all(socket)
        self._viewers.forget(socket)
        self._unview(socket)
        device, socket.device = socket.device, None
        if isinstance(device, Device):
            log.info("device gone", extra={"serial": device.serial, "reason": reason})
            device.lost(socket, reason)

    async def close(self) -> None:
        """End the authentications under way, and admit nobody any more."""
        self._closed = True
        tasks = tuple(self._authentications.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _to_device(self, socket: Socket, event: str, args: Args, ack_id: int | None) -> None:
        if isinstance(socket.device, Device):
            socket.device.handle(f.Emitted(socket.number, event, args, ack_id), socket.read_at)
        elif ack_id is not None:
            self._sockets.reply(socket.number, ack_id, refusal("not authenticated"))

    # authentication

    def _authenticate(self, socket: Socket, data: object) -> None:
        """身份验证: answer `auth:ok` or `auth:fail`; a second verdict never unseats the first."""
        try:
            claim = parse_signature(data, socket.address)
        except Malformed as problem:
            self._metrics.sockets.authenticated("malformed")
            log.info("signature malformed", extra={"address": socket.address, "problem": str(problem)})
            self._wrong(socket, None, Refusal.MALFORMED_SIGNATURE)
            return
        if isinstance(socket.device, Device):
            same = socket.device.serial == claim.serial
            self._sockets.emit(socket.number, "auth:ok") if same else self._fail(socket)
        elif self._closed:
            self._sockets.close(socket.number, CloseReason.SHUTDOWN)
        elif socket.number not in self._authentications:
            task = asyncio.create_task(self._admit(socket, claim), name=f"authenticate-{socket.number}")
            self._authentications[socket.number] = task
            task.add_done_callback(partial(self._authenticated, socket, claim, monotonic()))

    async def _admit(self, socket: Socket, claim: DeviceKey) -> Verdict:
        """Check a claim; where keys were guessed it waits for its turn."""
        delay_s = self._admission.guesses.delay_s(socket.address, claim.serial, self._now())
        if not delay_s:
            return await self._check(socket, claim)
        self.refused(Refusal.DELAYED_KEY)
        self._held_up.add(socket.number)
        try:
            await asyncio.sleep(delay_s)
            async with self._delayed:
                self._held_up.discard(socket.number)
                return await self._check(socket, claim)
        finally:
            self._held_up.discard(socket.number)

    async def _check(self, socket: Socket, claim: DeviceKey) -> Verdict:
        return await self._devices.admit(
            claim, lambda: self._accepted(socket, claim), lambda device: self._welcome(socket, device)
        )

    def _answer(self, socket: Socket, claim: DeviceKey, verdict: Verdict) -> None:
        """Tell what came of a claim; one that is accepted has been welcomed already."""
        if verdict is Verdict.DENIED:
            log.info("signature wrong", extra={"serial": claim.serial, "address": socket.address})
            self._wrong(socket, claim.serial, Refusal.WRONG_KEY)
        elif verdict is Verdict.FULL:
            self.refused(Refusal.DEVICES)
            log.warning("no place for a device", extra={"serial": claim.serial, "address": socket.address})
            self._sockets.close(socket.number, CloseReason.OVERLOADED)
        elif verdict is Verdict.MOVED:
            self._sockets.close(socket.number, CloseReason.REPLACED)  # by another node, meanwhile

    def _accepted(self, socket: Socket, claim: DeviceKey) -> None:
        """The key is right: the socket may wait for the broker."""
        self._admission.guesses.right(socket.address, claim.serial)
        self._sockets.admit(socket.number)

    def _wrong(self, socket: Socket, serial: str | None, reason: Refusal) -> None:
        self.refused(reason)
        self._admission.guesses.wrong(socket.address, serial, self._now())
        self._fail(socket)

    def _welcome(self, socket: Socket, device: Device) -> None:
        """The socket is the device, if it is still there."""
        if not socket.is_open:
            return
        self._unview(socket)
        log.info("device here", extra={"serial": device.serial, "address": socket.address})
        socket.device = device
        self._count(socket)
        self._sockets.emit(socket.number, "auth:ok")
        device.attach(socket)

    def _authenticated(self, socket: Socket, claim: DeviceKey, since: float, task: asyncio.Task[Verdict]) -> None:
        """Forget the check, then answer: whoever is told no may try again at once."""
        del self._authentications[socket.number]
        problem = None if task.cancelled() else task.exception()
        outcome = "abandoned" if task.cancelled() or problem is not None else task.result().name.lower()
        self._metrics.sockets.authenticated(outcome, monotonic() - since)
        if problem is not None:
            log.error("authentication failed", exc_info=problem)
            self._sockets.close(socket.number, CloseReason.INTERNAL_ERROR)
        elif not task.cancelled():
            self._answer(socket, claim, task.result())

    def _fail(self, socket: Socket) -> None:
        self._sockets.emit(socket.number, "auth:fail", ({"error_msg": NOT_VALID},))

    # rooms

    def _change_room(self, socket: Socket, event: str, data: object) -> None:
        """聊天室: answer `join_room:ok`, `leave_room:ok` or `:fail` with the reason."""
        room = data.get("room") if isinstance(data, dict) else None
        try:
            if event == "join_room":
                allowed = self._allowed(socket, room)
                self._view(socket)
                self._rooms.join(socket, allowed)
                self._sockets.admit(socket.number)
                self._metrics.rooms.joins["joined"].n += 1
                self._log_joined(socket, room)
            else:
                self._rooms.leave(socket, room if isinstance(room, str) else "")
        except Refused as problem:
            if event == "join_room":
                self._metrics.rooms.joins["refused"].n += 1
            self._sockets.emit(socket.number, f"{event}:fail", ({"error_msg": str(problem)},))
        else:
            self._count(socket)
            self._sockets.emit(socket.number, f"{event}:ok")

    def _allowed(self, socket: Socket, room: object) -> str:
        """Return the room if the socket may be in it. Raises Refused."""
        serial = socket.device.serial if isinstance(socket.device, Device) else None
        return self._policy.check(room, serial, socket.grant.rooms if socket.grant is not None else ())

    def _log_joined(self, socket: Socket, room: object) -> None:
        """Who looks at what devices say is worth a line; devices in their rooms are not."""
        if not isinstance(socket.device, Device):
            subject = socket.grant.subject if socket.grant is not None else ""
            log.info("viewer joined", extra={"room": room, "subject": subject, "address": socket.address})

    def _token_expired(self, socket: Socket) -> None:
        """A viewer has to come again, with another token; a device only leaves what its token had opened."""
        if not isinstance(socket.device, Device):
            self._sockets.close(socket.number, CloseReason.TOKEN_EXPIRED)
            return
        for room in tuple(socket.rooms or ()):
            try:
                self._allowed(socket, room)
            except Refused:
                self._rooms.leave(socket, room)

    def _view(self, socket: Socket) -> None:
        """Count one who is no device among the viewers, from its first room on. Raises Refused."""
        if socket.views or isinstance(socket.device, Device):
            return
        full = self._admission.view(socket.address)
        if full is not None:
            self.refused(full)
            raise Refused(VIEWERS_FULL)
        socket.views = True

    def _unview(self, socket: Socket) -> None:
        if socket.views:
            socket.views = False
            self._admission.unview(socket.address)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # metrics

    def _count(self, socket: Socket) -> None:
        """Count a socket as what it is now."""
        client, counted = socket.client, socket.counted
        if counted is not None:
            sockets = self._metrics.sockets
            socket.counted = sockets.moved(counted, _role(socket), client.engine, client.transport)


def _role(socket: Socket) -> str:
    return "device" if socket.device is not None else "viewer" if socket.rooms else "stranger"
