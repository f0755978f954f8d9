"""The events of the device protocol as data: payload, ack and delivery policy. Pure.

Follows device-protocol.zh.md. Unknown fields pass; an event that is not listed passes too, but counts as one
whose repetition does harm. The document's slips that matter here: two different logs share the name
`system_log_upload`, and the example of `memos_unread` has a time without a zone, so times stay strings.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

Args = tuple[Any, ...]  # the arguments of a Socket.IO event; `msgspec.Raw` is JSON passed through untouched


class Ack(msgspec.Struct, frozen=True):
    """推送响应: what a device owes for every event pushed to it."""

    ack: bool

    def __post_init__(self) -> None:
        if not self.ack:
            raise ValueError("ack is not true")


class StatusAck(Ack, frozen=True):
    """查询设备状态: the screen is on, or the device sleeps."""

    status: Literal["on", "sleep"]


class CountAck(Ack, frozen=True):
    """报告人脸库人脸数量: how many faces the device knows."""

    count: int


class Media(msgspec.Struct, frozen=True):
    """One picture or page of `media_notifications`; `duration` in seconds."""

    type: Literal["image", "webview"]
    url: str
    duration: int


class MediaNotifications(msgspec.Struct, frozen=True):
    """全屏信息发布."""

    ended_at: str
    notifications: list[Media]
    show_type: Literal["normal", "high_priority"] = "normal"


class Text(msgspec.Struct, frozen=True):
    """One line of `text_notifications`."""

    content: str


class TextNotifications(msgspec.Struct, frozen=True):
    """滚动通知."""

    notifications: list[Text]
    ended_at: str


class Stop(msgspec.Struct, frozen=True):
    """全屏信息停止播放, 滚动通知停止播放: `stop` is always true."""

    stop: bool


class Unbind(msgspec.Struct, frozen=True):
    """设备解除绑定班级, 设备解除绑定学校."""

    unbind: bool


class Bind(msgspec.Struct, frozen=True):
    """设备绑定班级, 设备绑定学校: the class or school; its name is in the examples only."""

    id: int
    name: str | None = None


class PowerSlot(msgspec.Struct, frozen=True):
    """One pair of switching times; weekdays 0 (Sunday) to 6."""

    shutdown_wday: int
    startup_wday: int
    shutdown_at: str
    startup_at: str


class PowerSchedule(msgspec.Struct, frozen=True):
    """更新开关机时间."""

    power_schedule: list[PowerSlot]


class Restart(msgspec.Struct, frozen=True):
    """重启设备: `restart` is always true."""

    restart: bool


class Upgrade(msgspec.Struct, frozen=True):
    """守护进程升级."""

    upgrade_url: str
    version: str


class MemosUnread(msgspec.Struct, frozen=True):
    """班级留言红点更新."""

    updated_at: str


class MemosUpdate(msgspec.Struct, frozen=True):
    """留言内容更新: the newest memo."""

    memo_id: int


class MemosRead(msgspec.Struct, frozen=True):
    """留言已读状态更新."""

    memo_ids: list[int]


class Batch(msgspec.Struct, frozen=True):
    """上传APP应用日志, 上传系统应用日志, 上传定时开关机应用日志."""

    batch: str


class Room(msgspec.Struct, frozen=True):
    """设备远程调试: the room to enter or leave, which is the device's serial."""

    room: str


class RemoteCommand(msgspec.Struct, frozen=True):
    """设备远程调试: an encrypted command."""

    encrypted_cmd: str


class CommandResult(msgspec.Struct, frozen=True):
    """设备远程调试: what the device answers to a remote command."""

    result: Any


class Event:
    """One event of the protocol; `payload` None means that it is emitted with no argument at all.

    Attributes:
        name, title, summary: the event, the document's heading and one line of English.
        at_most_once: repetition does harm, so it is never emitted twice.
        room: it goes to a room and no ack is owed.
        from_device: devices emit it; it is relayed to the other sockets in the room of the serial.
    """

    __slots__ = (
        "_decoder",
        "ack",
        "at_most_once",
        "from_device",
        "name",
        "payload",
        "room",
        "summary",
        "title",
    )

    def __init__(
        self,
        name: str,
        title: str,
        summary: str,
        payload: Any = None,
        *,
        ack: type[Any] | None = Ack,
        at_most_once: bool = False,
        room: bool = False,
        from_device: bool = False,
    ) -> None:
        self.name = name
        self.title = title
        self.summary = summary
        self.payload = payload
        self.ack = None if room else ack
        self.at_most_once = at_most_once
        self.room = room
        self.from_device = from_device
        self._decoder = None if payload is None else msgspec.json.Decoder(payload)

    def read_payload(self, payload: bytes) -> tuple[Any, str | None]:
        """Decode a command's payload, JSON or empty; return it with the reason it is not acceptable, if any."""
        if self._decoder is None:
            return None, f"{self.name} takes no argument" if payload else None
        if not payload:
            return None, None if self.payload is _ANYTHING else f"{self.name} needs an argument"
        try:
            payload.decode()  # msgspec passes strings that it does not keep unchecked, a text frame must not
            return self._decoder.decode(payload), None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            return None, str(problem)

    def read_ack(self, args: Args) -> tuple[Any, str | None]:
        """Check what a device acked with; return the data for the outcome and what is wrong with it, if anything.

        The document asks for a JSON *string* and shows an object: both are accepted, the object is returned.
        """
        data = args[0] if len(args) == 1 else list(args) or None
        if self.ack is None:
            return data, None
        if isinstance(data, str):
            data = _parsed(data)
        try:
            msgspec.convert(data, self.ack)
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as problem:
            return data, str(problem)
        return data, None


def ended_at(payload: Any) -> datetime | None:
    """Return when a decoded payload says that it ends (`ended_at`, RFC 3339); None if it says no usable time."""
    text = getattr(payload, "ended_at", None)
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
        repeatable: unlisted events that may be emitted again.
    """

    __slots__ = ("_events", "_repeatable")

    def __init__(self, events: Mapping[str, Event] | None = None, repeatable: frozenset[str] = frozenset()) -> None:
        self._events = EVENTS if events is None else events
        self._repeatable = repeatable

    def __getitem__(self, name: str) -> Event:
        known = self._events.get(name)
        if known is not None:
            return known
        harmful = name not in self._repeatable
        return Event(name, "", "not in the catalogue", _ANYTHING, ack=None, at_most_once=harmful)

    def __contains__(self, name: object) -> bool:
        return name in self._events

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events.values())


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


_ANYTHING: Final = msgspec.Raw

EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        event.name: event
        for event in (
            Event(
                "media_notifications",
                "全屏信息发布",
                "Show pictures or pages full screen.",
                MediaNotifications,
            ),
            Event("text_notifications", "滚动通知", "Show scrolling text.", TextNotifications),
            Event("media_stop", "全屏信息停止播放", "Stop what is shown full screen.", Stop),
            Event("text_stop", "滚动通知停止播放", "Stop the scrolling text.", Stop),
            Event("unbind_class", "设备解除绑定班级", "The device no longer belongs to its class.", Unbind),
            Event("bind_class", "设备绑定班级", "The device belongs to a class.", Bind),
            Event("unbind_school", "设备解除绑定学校", "The device no longer belongs to its school.", Unbind),
            Event("bind_school", "设备绑定学校", "The device belongs to a school.", Bind),
            Event("update_power_schedule", "更新开关机时间", "Set when it switches on and off.", PowerSchedule),
            Event("restart_device", "重启设备", "Restart the device.", Restart, at_most_once=True),
            Event("device_status", "查询设备状态", "Ask whether its screen is on.", ack=StatusAck),
            Event("upgrade_watcher", "守护进程升级", "Upgrade the watchdog.", Upgrade, at_most_once=True),
            Event("memos_unread", "班级留言红点更新", "The class has unread memos.", MemosUnread),
            Event("memos_update", "留言内容更新", "A student has a new memo.", MemosUpdate, room=True),
            Event("memos_read", "留言已读状态更新", "Memos of a student were read.", MemosRead, room=True),
            Event("purge_face_data", "清空人脸库", "Forget all faces.", at_most_once=True),
            Event("face_data_count", "报告人脸库人脸数量", "Ask how many faces it knows.", ack=CountAck),
            Event("app_log_upload", "上传APP应用日志", "Upload the app's log.", Batch),
            Event("system_log_upload", "上传系统应用日志", "Upload the system's or the power log.", Batch),
            Event("class:update", "客户端JS实例代码", "The class changed; of any form.", _ANYTHING),
            Event("enable_remote_cmd", "设备远程调试", "Enter the debugging room.", Room),
            Event("disable_remote_cmd", "设备远程调试", "Leave the debugging room.", Room),
            Event("remote_cmd", "设备远程调试", "Run a command.", RemoteCommand, room=True, at_most_once=True),
            Event("cmd_result", "设备远程调试", "What it answered.", CommandResult, room=True, from_device=True),
        )
    }
)
