"""The contract with services as an AsyncAPI 3.0 document, generated from the catalogue and the topics. Pure.

Operations are seen from the gateway, as the specification wants: it receives commands and sends outcomes.
"""

from typing import Any, Final

import msgspec
import yaml

from gateway import __version__
from gateway.bodies import STATUSES, Client, NodeStatus, Outcome, Presence
from gateway.catalog import ANYTHING, Catalog, Event
from gateway.config import Config
from gateway.schemas import Schema
from gateway.topics import JSON_TYPE, encode_level

MQTT_BINDING: Final = "0.2.0"
SERIAL: Final = "AC4178234415"  # the document's own
_REF: Final = "#/components/schemas/{name}"
_ANY_JSON: Final = {"description": "Any JSON, or nothing at all."}
_EMPTY: Final = {"type": "string", "maxLength": 0, "description": "Empty: the event has no argument."}
_PARAMETERS: Final = {
    "serial": {"description": "Names a device: 1 to 64 of A-Z a-z 0-9 . _ -", "examples": [SERIAL]},
    "event": {"description": "The event's name, percent-encoded as one topic level."},
    "id": {"description": "Correlates: your own for a command, the gateway's for a question of a device."},
    "room": {"description": "The room's name, percent-encoded as one topic level.", "examples": ["bp_student_20"]},
    "node": {"description": "Names a gateway process.", "examples": ["gw-1"]},
}
_HEADERS: Final = {
    "type": "object",
    "description": "MQTT 5 properties; those in lower case are User Properties.",
    "properties": {
        "responseTopic": {"type": "string", "description": "Response Topic: where the outcomes go."},
        "correlationData": {"type": "string", "description": "Correlation Data, echoed untouched."},
        "messageExpiryInterval": {"type": "integer", "description": "Lifetime of a QoS 1 command, in seconds."},
        "id": {"type": "string", "maxLength": 128, "description": "The command's id; made up if missing."},
        "ack-timeout-ms": {"type": "string", "pattern": "^[0-9]{1,7}$", "description": "1 to 3600000."},
        "traceparent": {"type": "string", "description": "W3C Trace Context, passed on to the outcome."},
    },
}


def document(config: Config, catalog: Catalog) -> dict[str, Any]:
    """The document for one configuration, of which only prefix, policy and Response Topics are told."""
    return _Document(config, catalog).whole()


def as_yaml(document: dict[str, Any]) -> str:
    """The document as YAML text, in its own order and without aliases."""
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def schemas(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """Self-contained JSON Schemas by file name: payload and ack of each event, and what the gateway publishes."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    found: dict[str, dict[str, Any]] = {}
    for event in catalog:
        for kind, shape in (("payload", event.payload), ("ack", event.ack)):
            if isinstance(shape, Schema):
                found[f"{encode_level(event.name)}.{kind}.json"] = draft | shape.definition
            elif shape not in (None, ANYTHING):
                found[f"{encode_level(event.name)}.{kind}.json"] = draft | msgspec.json.schema(shape)
    for struct in (Outcome, Presence, NodeStatus):
        found[f"{struct.__name__}.json"] = draft | msgspec.json.schema(struct)
    return found


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, _: Any) -> bool:
        return True


class _Document:
    """One document in the making: what is added goes into its three maps."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}
        self._schemas = _components(catalog)

    def whole(self) -> dict[str, Any]:
        self._commands()
        self._device_events()
        self._rooms()
        self._states()
        return {
            "asyncapi": "3.0.0",
            "info": {
                "title": "socketio-mqtt-gateway",
                "version": __version__,
                "description": "Commands to Socket.IO devices over MQTT, and their outcomes.",
                "license": {"name": "Apache-2.0"},
            },
            "defaultContentType": JSON_TYPE,
            "servers": {
                "broker": {
                    "host": "{host}:{port}",
                    "protocol": "mqtt",
                    "protocolVersion": "5.0",
                    "description": "The MQTT broker. MQTT 3.1.1 will do: put the id into the topic.",
                    "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "1883"}},
                }
            },
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": self._schemas},
        }

    def _commands(self) -> None:
        self._message("outcome", Outcome, "The outcome of a command that the catalogue does not list.")
        outcomes, commands = ["outcome"], []
        for event in self._catalog:
            if not event.room and not event.from_device:
                name, outcome = f"command.{_key(event)}", f"outcome.{_key(event)}"
                self._event_message(name, event, headers=True)
                self._outcome_message(outcome, event)
                self._command(name, encode_level(event.name), outcome, event.lifetime_s)
                commands.append(name)
                outcomes.append(outcome)
        if not self._catalog.rejects_unknown:
            commands.append("command")
            self._message("command", _ANY_JSON, "A command that the catalogue does not list.", headers=True)
            self._command("command", "{event}", "outcome", None)
        self._channel("inbox", None, outcomes, f"A Response Topic: {', '.join(self._config.mqtt.response_topics)}.")
        self._channel("acks", "devices/{serial}/acks/{event}", outcomes)
        self._channel("acksById", "devices/{serial}/acks/{event}/{id}", outcomes)
        self._channel("commandsById", "devices/{serial}/commands/{event}/{id}", commands)
        by_id = {"summary": "A command with its id in the topic.", "reply": _reply("acksById", outcomes)}
        self._operation("receiveCommandById", "receive", "commandsById", by_id)
        self._operation("sendOutcome", "send", "acks", {"summary": "The outcome of a command without Response Topic."})

    def _command(self, name: str, level: str, outcome: str, lifetime_s: float | None) -> None:
        """The channel of one command, and its request and reply."""
        self._channel(name, f"devices/{{serial}}/commands/{level}", [name])
        where = {"location": "$message.header#/responseTopic", "description": "Without one: the channel acks."}
        asks = {"summary": self._messages[name]["summary"], "reply": {"address": where} | _reply("inbox", [outcome])}
        expiry_s = self._config.commands.lifetime_s if lifetime_s is None else lifetime_s
        self._operation(f"receive.{name}", "receive", name, asks, messageExpiryInterval=max(1, int(expiry_s)))

    def _device_events(self) -> None:
        names = []
        for event in self._catalog:
            if event.from_device:
                names.append(f"event.{_key(event)}")
                self._event_message(names[-1], event)
        if not self._catalog.rejects_unknown:
            names.append("event")
            self._message("event", _ANY_JSON, "An event of a device that the catalogue does not list.")
        self._message("question", _ANY_JSON, "An event of a device that waits for a reply.", headers=True)
        self._message("reply", _ANY_JSON, "A reply, which becomes the device's ack.", headers=True)
        self._channel("events", "devices/{serial}/events/{event}", names)
        self._channel("questions", "devices/{serial}/events/{event}/{id}", ["question"])
        self._channel("replies", "devices/{serial}/replies/{event}/{id}", ["reply"])
        self._operation("sendEvent", "send", "events", {"summary": "What a device emits."})
        asks = {"summary": "A device asks.", "reply": _reply("replies", ["reply"])}
        self._operation("sendQuestion", "send", "questions", asks)

    def _rooms(self) -> None:
        names = ["room"]
        self._message("room", _ANY_JSON, "An event for every socket of a room that the catalogue does not list.")
        for event in self._catalog:
            if event.room:
                names.append(f"room.{_key(event)}")
                self._event_message(names[-1], event)
        self._channel("rooms", "rooms/{room}/events/{event}", names)
        self._operation("receiveRoomEvent", "receive", "rooms", {"summary": "Emitted to every socket of the room."})

    def _states(self) -> None:
        self._message("presence", Presence, "Whether a device is connected; also its link's Will.")
        self._message("nodeStatus", NodeStatus, "What a node says of itself; its Will says offline.")
        self._channel("presence", "devices/{serial}/presence", ["presence"])
        self._channel("nodeStatus", "nodes/{node}/status", ["nodeStatus"])
        self._operation("sendPresence", "send", "presence", {"summary": "Retained."}, retain=True)
        self._operation("sendNodeStatus", "send", "nodeStatus", {"summary": "Retained."}, retain=True)

    def _channel(self, name: str, topic: str | None, messages: list[str], description: str = "") -> None:
        used = {key: told for key, told in _PARAMETERS.items() if topic and f"{{{key}}}" in topic}
        self._channels[name] = {
            "address": None if topic is None else f"{self._config.mqtt.prefix}/{topic}",
            **({"description": description} if description else {}),
            "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
            **({"parameters": used} if used else {}),
        }

    def _operation(self, name: str, action: str, channel: str, more: dict[str, Any], **binding: Any) -> None:
        self._operations[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            **more,
            "bindings": {"mqtt": {"qos": 1, "retain": False} | binding | {"bindingVersion": MQTT_BINDING}},
        }

    def _event_message(self, name: str, event: Event, *, headers: bool = False) -> None:
        policy = " Emitted at most once." if event.at_most_once else ""
        example = [] if event.example is None and event.payload is not None else [_plain(event.example, "")]
        shape = _EMPTY if event.payload is None else _ANY_JSON if event.payload is ANYTHING else _ref(event, "payload")
        self._message(name, shape, f"{event.summary}{policy}", example, title=event.title, headers=headers)

    def _outcome_message(self, name: str, event: Event) -> None:
        shape: dict[str, Any] = {"allOf": [_struct_ref(Outcome), {"properties": {"event": {"const": event.name}}}]}
        example = []
        if event.ack is not None:
            acked = {"properties": {"status": {"const": "acked"}}}
            shape["allOf"].append({"if": acked, "then": {"properties": {"data": _ref(event, "ack")}}})
        if event.ack_example is not None:
            data = _plain(event.ack_example, None)
            outcome = Outcome("my-id", SERIAL, event.name, "acked", True, data, attempts=1, maybe_delivered=True)
            example = [msgspec.to_builtins(outcome)]
        self._message(name, shape, f"The outcome of {event.name}.", example, headers=True)

    def _message(
        self,
        name: str,
        shape: Any,
        summary: str,
        examples: list[Any] | None = None,
        *,
        title: str = "",
        headers: bool = False,
    ) -> None:
        payload = shape if isinstance(shape, dict) else _struct_ref(shape)
        message: dict[str, Any] = {"name": name, **({"title": title} if title else {}), "summary": summary}
        message["contentType"] = JSON_TYPE
        if headers:
            message["headers"] = {"$ref": "#/components/schemas/Properties"}
            message["correlationId"] = {"location": "$message.header#/correlationData"}
        message["payload"] = payload
        mqtt: dict[str, Any] = {"contentType": JSON_TYPE, "bindingVersion": MQTT_BINDING}
        if headers and not name.startswith(("outcome", "reply")):
            mqtt["responseTopic"] = {"type": "string"}
        if headers:
            mqtt["correlationData"] = {"type": "string"}
        message["bindings"] = {"mqtt": mqtt}
        if examples:
            message["examples"] = [{"payload": example} for example in examples]
        self._messages[name] = message


def _components(catalog: Catalog) -> dict[str, Any]:
    """Every schema by name: those of our Structs, and the deployment's own as `{event}.payload` and `{event}.ack`."""
    shapes = [shape for event in catalog for shape in (event.payload, event.ack)]
    structs = {shape: None for shape in shapes if isinstance(shape, type) and shape is not ANYTHING}
    _, found = msgspec.json.schema_components([*structs, Outcome, Client, Presence, NodeStatus], ref_template=_REF)
    found["Outcome"]["properties"]["status"]["enum"] = list(STATUSES)
    found["Properties"] = _HEADERS
    for event in catalog:
        for kind, shape in (("payload", event.payload), ("ack", event.ack)):
            if isinstance(shape, Schema):
                found[f"{_key(event)}.{kind}"] = _moved(shape.definition, f"#/components/schemas/{_key(event)}.{kind}")
    return dict(sorted(found.items()))


def _moved(schema: Any, to: str) -> Any:
    """The schema with its references to itself leading to where it now is."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: to + value[1:] if key == "$ref" and isinstance(value, str) and value[:1] == "#" else _moved(value, to)
        for key, value in schema.items()
    }


def _ref(event: Event, kind: str) -> dict[str, str]:
    shape = getattr(event, kind)
    return {"$ref": _REF.format(name=f"{_key(event)}.{kind}")} if isinstance(shape, Schema) else _struct_ref(shape)


def _struct_ref(struct: type[Any]) -> dict[str, str]:
    return {"$ref": _REF.format(name=struct.__name__)}


def _reply(channel: str, messages: list[str]) -> dict[str, Any]:
    return {
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"} for message in messages],
    }


def _key(event: Event) -> str:
    """The event's name as a key of the document, which may hold A-Z a-z 0-9 . _ - only; others become their code."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else f".{ord(c):x}." for c in event.name)


def _plain(example: Any, missing: Any) -> Any:
    return missing if example is None else msgspec.json.decode(msgspec.json.encode(dict(example)))
