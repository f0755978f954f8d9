"""The bridge that one writes with stock python-socketio and aiomqtt: one MQTT connection for all devices.

python naive.py PORT MQTT_HOST MQTT_PORT PING_INTERVAL_S
"""

import asyncio
import base64
import json
import logging
import socket
import sys
import time
from typing import Any

import aiomqtt
import socketio
from aiohttp import web
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PREFIX = "gw/v1"
ACK_TIMEOUT_S = 10

logging.getLogger("mqtt").setLevel(logging.ERROR)  # it warns of each publish above ten that wait


class Bridge:
    """Commands to sockets, acks and events to MQTT."""

    def __init__(self, mqtt: aiomqtt.Client, ping_interval_s: float) -> None:
        self.mqtt = mqtt
        self.sids: dict[str, str] = {}  # serial -> sid
        self.serials: dict[str, str] = {}  # sid -> serial
        self.sio = socketio.AsyncServer(async_mode="aiohttp", ping_interval=ping_interval_s)
        self.sio.on("authentication", self.authenticate)
        self.sio.on("join_room", self.join_room)
        self.sio.on("disconnect", self.disconnect)
        self.sio.on("*", self.event)

    async def authenticate(self, sid: str, data: dict[str, str]) -> None:
        serial, _, key = base64.b64decode(data["signature"]).decode().partition(":")
        if not serial or not key:
            await self.sio.emit("auth:fail", {"error_msg": "signature not valid."}, to=sid)
            return
        self.sids[serial] = sid
        self.serials[sid] = serial
        await self.sio.emit("auth:ok", to=sid)

    async def join_room(self, sid: str, data: dict[str, str]) -> None:
        await self.sio.enter_room(sid, data["room"])
        await self.sio.emit("join_room:ok", to=sid)

    async def disconnect(self, sid: str, *_: object) -> None:
        serial = self.serials.pop(sid, None)
        if serial is not None and self.sids.get(serial) == sid:
            del self.sids[serial]

    async def event(self, event: str, sid: str, data: Any = None) -> None:
        serial = self.serials.get(sid)
        if serial is not None:
            await self.mqtt.publish(f"{PREFIX}/devices/{serial}/events/{event}", json.dumps(data), qos=1)

    async def command(self, serial: str, event: str, message: aiomqtt.Message) -> None:
        started = time.perf_counter()
        sid, status, data = self.sids.get(serial), "offline", None
        if sid is not None:
            try:
                payload = json.loads(bytes(message.payload)) if message.payload else None
                data = await self.sio.call(event, payload, to=sid, timeout=ACK_TIMEOUT_S)
                status = "acked"
            except socketio.exceptions.TimeoutError:
                status = "timeout"
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        properties.UserProperty = [("status", status)]
        asked = message.properties
        if asked is not None and hasattr(asked, "CorrelationData"):
            properties.CorrelationData = asked.CorrelationData
        to = getattr(asked, "ResponseTopic", f"{PREFIX}/devices/{serial}/acks/{event}")
        outcome = {"serial": serial, "event": event, "status": status, "final": True, "data": data}
        outcome["latency_ms"] = (time.perf_counter() - started) * 1000
        await self.mqtt.publish(to, json.dumps(outcome), qos=1, properties=properties)

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as commands:
            async for message in self.mqtt.messages:
                levels = message.topic.value.removeprefix(f"{PREFIX}/").split("/")
                if levels[0] == "rooms":
                    await self.sio.emit(levels[3], json.loads(bytes(message.payload)), room=levels[1])
                else:
                    commands.create_task(self.command(levels[1], levels[3], message))


async def main(port: int, mqtt_host: str, mqtt_port: int, ping_interval_s: float) -> None:
    nodelay = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)  # off by default: its latencies would be far worse
    async with aiomqtt.Client(
        mqtt_host, mqtt_port, protocol=aiomqtt.ProtocolVersion.V5, socket_options=nodelay
    ) as mqtt:
        bridge = Bridge(mqtt, ping_interval_s)
        app = web.Application()
        bridge.sio.attach(app, "/socket/socket.io")
        await mqtt.subscribe(f"{PREFIX}/devices/+/commands/#", qos=1)
        await mqtt.subscribe(f"{PREFIX}/rooms/+/events/+", qos=1)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await bridge.serve()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
