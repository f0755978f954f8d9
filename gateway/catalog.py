"""The events of the device protocol as data: payload, ack, delivery policy, and the document's own examples. Pure.

Follows device-protocol.zh.md. Unknown fields pass; an event that is not listed passes too, but counts as one
whose repetition does harm. The document's slips that matter here: two different logs share the name
`system_log_upload`, the example of `memos_unread` has a time without a zone, so times stay strings, and two examples
lack a comma, which is put in.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec

from gateway import payloads as p
from gateway.schemas import Schema
from gateway.topics import RESERVED

Args = tuple[Any, ...]  # the arguments of a Socket.IO event; `msgspec.Raw` is JSON passed through untouched
ANYTHING: Final = msgspec.Raw  # the payload of an event that takes any JSON, or no argument

_TRUE: Final[Mapping[str, Any]] = MappingProxyType({"ack": True})
_BATCH: Final = MappingProxyType({"batch": "29be12dcdac6739aec8c86f7fad8fbf6"})
_ROOM: Final = MappingProxyType({"room": "AC4178234415"})


class Event:
    """One event of the protocol; `payload` None means that it is emitted with no argument at all.

    Attributes:
        name, title, summary: the event, the document's heading and one line of English.
        payload, ack: a type or a JSON Schema; no `ack` means that any is taken.
        at_most_once: repetition does harm, so it is never emitted twice.
        lifetime_s: of a QoS 1 command that names none, instead of the configured default.
        ack_timeout_s: of a command that names none, instead of the configured default.
        room: it goes to a room and no ack is owed.
        from_device: devices emit it; with `room` it is relayed to the other sockets in the room of the serial.
        may_end: a payload may say when it ends.
        example, ack_example: the document's own; None where it has none.
    """

    __slots__ = (
        "_ack_check", "_decode", "_is_plain_ack", "ack", "ack_example", "ack_timeout_s", "at_most_once", "example",
        "from_device", "lifetime_s", "may_end", "name", "payload", "room", "summary", "title",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        title: str,
        summary: str,
        payload: Any = None,
        example: Any = None,
        *,
        ack: type[Any] | Schema | None = p.Ack,
        ack_example: Any = _TRUE,
        at_most_once: bool = False,
        lifetime_s: float | None = None,
        ack_timeout_s: float | None = None,
        room: bool = False,
        from_device: bool = False,
    ) -> None:
        self.name = name
        self.title = title
        self.summary = summary
        self.payload = payload
        self.example = example
        self.ack = None if room else ack
        self.ack_example = None if self.ack is None else ack_example
        self.at_most_once = at_most_once
        self.lifetime_s = lifetime_s
        self.ack_timeout_s = ack_timeout_s
        self.room = room
        self.from_device = from_device
        fields = payload.__struct_fields__ if isinstance(payload, type(msgspec.Struct)) else ("ended_at",)
        self.may_end = "ended_at" in fields
        self._decode = _decoder(payload)
        self._ack_check = _check(self.ack)
        self._is_plain_ack = self.ack is p.Ack

    def read_payload(self, payload: bytes) -> tuple[Any, str | None]:
        """Decode a command's payload, JSON or empty; return it with the reason it is not acceptable, if any."""
        if self._decode is None:
            return None, f"{self.name} takes no argument" if payload else None
        if not payload:
            return None, None if self.payload is ANYTHING else f"{self.name} needs an argument"
        try:
            payload.decode()  # msgspec passes strings that it does not keep unchecked, a text frame must not
            return self._decode(payload), None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            return None, str(problem)

    def read_ack(self, args: Args) -> tuple[Any, str | None]:
        """Check what a device acked with; return the data for the outcome and what is wrong with it, if anything.

        The document asks for a JSON *string* and shows an object: both are accepted, the object is returned.
        """
        data = args[0] if len(args) == 1 else list(args) or None
        if self._ack_check is None:
            return data, None
        if self._is_plain_ack and isinstance(data, dict) and len(data) == 1 and data.get("ack") is True:  # as a rule
            return data, None
        if isinstance(data, str):
            data = _parsed(data)
        try:
            self._ack_check(data)
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as problem:
            return data, str(problem)
        return data, None


def ended_at(payload: Any) -> datetime | None:
    """Return when a decoded payload says that it ends (`ended_at`, RFC 3339); None if it says no usable time."""
    text = payload.get("ended_at") if isinstance(payload, dict) else getattr(payload, "ended_at", None)
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(text.upper())
    except ValueError:
        return None
    return when if when.tzinfo else None


class Catalog:
    """The events by name; an unlisted one is made up on demand: any JSON, any ack, at most once.

    Args:
        own: the deployment's events, beside those of the protocol.
        repeatable: unlisted events that may be emitted again.
        rejects_unknown: unlisted events are refused, whoever sends them.
    """

    __slots__ = ("_events", "_repeatable", "rejects_unknown")

    def __init__(
        self,
        own: Iterable[Event] = (),
        repeatable: frozenset[str] = frozenset(),
        *,
        rejects_unknown: bool = False,
    ) -> None:
        self._events = {**EVENTS, **{event.name: event for event in own}}
        self._repeatable = repeatable
        self.rejects_unknown = rejects_unknown

    def __getitem__(self, name: str) -> Event:
        known = self._events.get(name)
        if known is not None:
            return known
        harmful = name not in self._repeatable
        return Event(name, "", "not in the catalogue", ANYTHING, ack=None, at_most_once=harmful)

    def is_relayed(self, name: str) -> bool:
        """Whether an event that a device emits goes to the other sockets in the room of its serial, too."""
        known = self._events.get(name)
        return known is not None and known.from_device and known.room

    def refusal(self, name: str) -> str | None:
        """Why an event of this name is not taken, from a service or a device; None if it is."""
        if name in RESERVED:
            return f"event: {name} is a reserved name"
        if self.rejects_unknown and name not in self._events:
            return "event: not in the catalogue, and catalog.unknown is reject"
        return None

    def __contains__(self, name: object) -> bool:
        return name in self._events

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events.values())


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _decoder(payload: Any) -> Callable[[bytes], Any] | None:
    if payload is None:
        return None
    if isinstance(payload, Schema):
        return payload.decode
    return msgspec.json.Decoder(payload).decode


def _check(ack: Any) -> Callable[[Any], Any] | None:
    if ack is None:
        return None
    if isinstance(ack, Schema):
        return ack.check
    return partial(msgspec.convert, type=ack)


def _slot(shutdown_wday: int, startup_wday: int, shutdown: str, startup: str) -> dict[str, Any]:
    """One pair of the document's switching times, 23:52 and 23:57 in China."""
    return {
        "shutdown_wday": shutdown_wday,
        "startup_wday": startup_wday,
        "shutdown_at": f"{shutdown}T23:52:00+08:00",
        "startup_at": f"{startup}T23:57:00+08:00",
    }


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        event.name: event
        for event in (
            Event(
                "media_notifications",
                "全屏信息发布",
                "Show pictures or pages full screen.",
                p.MediaNotifications,
                {
                    "show_type": "high_priority",
                    "ended_at": "2016-10-25T18:15:17+08:00",
                    "notifications": [
                        {"type": "image", "url": "https://cdn.adachina.net/b.jpg", "duration": 3600},
                        {"type": "webview", "url": "https://bp.adachina.net/webviews/1", "duration": 3600},
                    ],
                },
            ),
            Event(
                "text_notifications",
                "滚动通知",
                "Show scrolling text.",
                p.TextNotifications,
                {
                    "notifications": [{"content": "滚动通知1"}, {"content": "滚动通知2"}, {"content": "滚动通知3"}],
                    "ended_at": "2016-10-25T18:15:17+08:00",
                },
            ),
            Event("media_stop", "全屏信息停止播放", "Stop what is shown full screen.", p.Stop, {"stop": True}),
            Event("text_stop", "滚动通知停止播放", "Stop the scrolling text.", p.Stop, {"stop": True}),
            Event(
                "unbind_class",
                "设备解除绑定班级",
                "The device no longer belongs to its class.",
                p.Unbind,
                {"unbind": True},
            ),
            Event("bind_class", "设备绑定班级", "The device belongs to a class.", p.Bind, {"id": 1, "name": "初三1班"}),
            Event(
                "unbind_school",
                "设备解除绑定学校",
                "The device no longer belongs to its school.",
                p.Unbind,
                {"unbind": True},
            ),
            Event(
                "bind_school", "设备绑定学校", "The device belongs to a school.", p.Bind, {"id": 1, "name": "xx中学"}
            ),
            Event(
                "update_power_schedule",
                "更新开关机时间",
                "Set when it switches on and off.",
                p.PowerSchedule,
                {
                    "power_schedule": [
                        _slot(5, 6, "2017-02-24", "2017-02-25"),
                        _slot(6, 0, "2017-02-25", "2017-02-26"),
                        _slot(0, 1, "2017-02-26", "2017-02-27"),
                        _slot(1, 2, "2017-02-28", "2017-03-01"),
                    ]
                },
            ),
            Event("restart_device", "重启设备", "Restart the device.", p.Restart, {"restart": True}, at_most_once=True),
            Event(
                "device_status",
                "查询设备状态",
                "Ask whether its screen is on.",
                ack=p.StatusAck,
                ack_example={"ack": True, "status": "on"},
            ),
            Event(
                "upgrade_watcher",
                "守护进程升级",
                "Upgrade the watchdog.",
                p.Upgrade,
                {"upgrade_url": "http://....", "version": "1.0.0.1"},
                at_most_once=True,
            ),
            Event(
                "memos_unread",
                "班级留言红点更新",
                "The class has unread memos.",
                p.MemosUnread,
                {"updated_at": "2018-01-01T09:00"},
            ),
            Event(
                "memos_update", "留言内容更新", "A student has a new memo.", p.MemosUpdate, {"memo_id": 20}, room=True
            ),
            Event(
                "memos_read",
                "留言已读状态更新",
                "Memos of a student were read.",
                p.MemosRead,
                {"memo_ids": [20, 22, 24]},
                room=True,
            ),
            Event("purge_face_data", "清空人脸库", "Forget all faces.", at_most_once=True),
            Event(
                "face_data_count",
                "报告人脸库人脸数量",
                "Ask how many faces it knows.",
                ack=p.CountAck,
                ack_example={"ack": True, "count": 56},
            ),
            Event("app_log_upload", "上传APP应用日志", "Upload the app's log.", p.Batch, _BATCH),
            Event("system_log_upload", "上传系统应用日志", "Upload the system's or the power log.", p.Batch, _BATCH),
            Event("class:update", "客户端JS实例代码", "The class changed; of any form.", ANYTHING, {"any": "thing"}),
            Event("enable_remote_cmd", "设备远程调试", "Enter the debugging room.", p.Room, _ROOM),
            Event("disable_remote_cmd", "设备远程调试", "Leave the debugging room.", p.Room, _ROOM),
            Event(
                "remote_cmd",
                "设备远程调试",
                "Run a command.",
                p.RemoteCommand,
                {"encrypted_cmd": "a.b.c"},
                room=True,
                at_most_once=True,
            ),
            Event(
                "cmd_result",
                "设备远程调试",
                "What it answered.",
                p.CommandResult,
                {"result": "ok"},
                room=True,
                from_device=True,
            ),
        )
    }
)
