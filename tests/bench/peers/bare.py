"""The least that a link for each device takes in Python: the packets of the gateway, on its libraries, unchecked.

A device that reads nothing, a command that is malformed, a broker that is away: all of that breaks it. It says what is
spent on system calls, event loop, codecs and JSON, so that the rest of the gateway's cost is what its promises cost.

python bare.py PORT MQTT_HOST MQTT_PORT PING_INTERVAL_S
"""

import asyncio
import base64
import hashlib
import re
import sys
from time import monotonic
from typing import Any, Final

import mqtt5
import msgspec
import uvloop
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader

PREFIX: Final = "gw/v1"
ROOM: Final = re.compile(rf"{PREFIX}/rooms/([^/]+)/events/([^/]+)")
QOS_1: Final = mqtt5.QoS.AT_LEAST_ONCE
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
UPGRADED: Final = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)
ACK: Final = re.compile(r"43([0-9]+)\[(.*)\]", re.DOTALL)


class Outcome(msgspec.Struct):
    """What is said of a command."""

    id: str
    serial: str
    event: str
    status: str
    final: bool
    data: Any
    error: str | None
    attempts: int
    maybe_delivered: bool
    latency_ms: float
    node: str


def framed(text: bytes) -> bytes:
    """A message of a WebSocket (RFC 6455 5.2)."""
    size = len(text)
    return (bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2)) + text


class Mqtt(asyncio.Protocol):
    """A connection to the broker."""

    def __init__(self, client_id: str, filters: tuple[str, ...], owner: Any) -> None:
        self.owner = owner
        self.rest = b""
        self.hello = (
            mqtt5.ConnectPacket(client_id, clean_start=False, keep_alive=60, session_expiry_interval=86_400).write()
            + mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(topic, max_qos=QOS_1) for topic in filters]).write()
        )

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.write(self.hello)

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        view, start = memoryview(data), 0
        while start < len(data):
            try:
                packet, size = mqtt5.read(view[start:])
            except IndexError:
                break
            start += size
            if isinstance(packet, mqtt5.PublishPacket):
                self.owner.published(packet)
            elif isinstance(packet, mqtt5.PubAckPacket):
                self.owner.pubacked(packet.packet_id)
            elif isinstance(packet, mqtt5.SubAckPacket):
                self.owner.linked()
        self.rest = data[start:]


class Messages(WebSocketDataQueue):
    """Hands over what a device says."""

    def __init__(self, device: Any) -> None:
        super().__init__(device, 65_536, loop=asyncio.get_running_loop())
        self.message = device.message

    def feed_data(self, data: Any, size: int) -> None:
        self.message(data.data)


class Device(asyncio.Protocol):
    """A device and its link."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.parser: WebSocketReader | None = None
        self.last_id = 0
        self.emitted: dict[int, tuple[mqtt5.PublishPacket, str, float]] = {}  # emit id → command, event, since
        self.unanswered: dict[int, int] = {}  # packet id of an outcome → that of the command

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.parser is not None:
            self.parser.feed_data(data)
            return
        key = data.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        self.parser = WebSocketReader(Messages(self), 1_000_000, False, True)
        opening = b'0{"sid":"%d","upgrades":[],"pingInterval":%d,"pingTimeout":20000,"maxPayload":1000000}'
        opening %= (id(self), self.node.ping_interval_s * 1000)
        self.transport.write(f"{UPGRADED}{accept}\r\n\r\n".encode() + framed(opening))
        asyncio.get_running_loop().call_later(self.node.ping_interval_s, self.beat)

    def beat(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"\x81\x012")
            asyncio.get_running_loop().call_later(self.node.ping_interval_s, self.beat)

    def message(self, text: str) -> None:
        if ack := ACK.match(text):
            self.acked(int(ack[1]), ack[2])
        elif text == "40":
            self.transport.write(framed(b'40{"sid":"%d"}' % id(self)))
        elif text.startswith("42"):
            event, *args = msgspec.json.decode(text[2:])
            if event == "authentication":
                self.serial = base64.b64decode(args[0]["signature"]).decode().partition(":")[0]
                filters = tuple(f"{PREFIX}/devices/{self.serial}/{kind}/#" for kind in ("commands", "replies"))
                self.link = Mqtt(self.serial, filters, self)
                loop = asyncio.get_running_loop()
                self.task = loop.create_task(loop.create_connection(lambda: self.link, *self.node.mqtt))
            elif event == "join_room":
                self.node.rooms.setdefault(args[0]["room"], []).append(self)
                self.transport.write(framed(b'42["join_room:ok"]'))
            else:
                self.publish(f"{PREFIX}/devices/{self.serial}/events/{event}", msgspec.json.encode(args[0]))

    def publish(self, topic: str, payload: bytes, **properties: Any) -> None:
        self.last_id = self.last_id % 65_535 + 1
        packet = mqtt5.PublishPacket(topic, payload, qos=QOS_1, packet_id=self.last_id, **properties)
        self.link.transport.write(packet.write())

    def linked(self) -> None:
        self.transport.write(framed(b'42["auth:ok"]'))

    def published(self, packet: mqtt5.PublishPacket) -> None:
        self.node.emit_id += 1
        event = packet.topic.rpartition("/")[2]
        self.emitted[self.node.emit_id] = packet, event, monotonic()
        self.transport.write(framed(b'42%d["%s",%s]' % (self.node.emit_id, event.encode(), packet.payload)))

    def acked(self, emit_id: int, data: str) -> None:
        command, event, since = self.emitted.pop(emit_id)
        ack, took_ms = msgspec.json.decode(data), round((monotonic() - since) * 1000, 3)
        outcome = Outcome("", self.serial, event, "acked", True, ack, None, 1, True, took_ms, "bare")
        self.unanswered[self.last_id % 65_535 + 1] = command.packet_id or 0
        self.publish(
            command.response_topic or "",
            msgspec.json.encode(outcome),
            correlation_data=command.correlation_data,
            content_type="application/json",
            user_properties=[("status", "acked"), ("id", "")],
        )

    def pubacked(self, packet_id: int) -> None:
        if command := self.unanswered.pop(packet_id, None):
            self.link.transport.write(b"\x40\x02" + command.to_bytes(2))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.parser is not None and hasattr(self, "link"):
            self.link.transport.abort()


class Node:
    """What the devices share."""

    def __init__(self, mqtt_host: str, mqtt_port: int, ping_interval_s: float) -> None:
        self.mqtt = mqtt_host, mqtt_port
        self.ping_interval_s = ping_interval_s
        self.emit_id = 0
        self.rooms: dict[str, list[Device]] = {}
        self.ready = asyncio.Event()

    def linked(self) -> None:
        self.ready.set()

    def published(self, packet: mqtt5.PublishPacket) -> None:
        self.link.transport.write(b"\x40\x02" + (packet.packet_id or 0).to_bytes(2))
        if room := ROOM.fullmatch(packet.topic):
            frame = framed(b'42["%s",%s]' % (room[2].encode(), packet.payload))
            for device in self.rooms.get(room[1], ()):
                device.transport.write(frame)

    def pubacked(self, packet_id: int) -> None:
        """Nothing is published for all."""

    async def serve(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self.link = Mqtt("bare", (f"{PREFIX}/rooms/+/events/+",), self)
        await loop.create_connection(lambda: self.link, *self.mqtt)
        await self.ready.wait()
        server = await loop.create_server(lambda: Device(self), "127.0.0.1", port, backlog=1024)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(Node(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])).serve(int(sys.argv[1])))
