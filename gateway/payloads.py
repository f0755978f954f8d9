"""What the events of the device protocol carry, and what devices ack them with. Pure data.

Fields that are not listed pass. Times stay text: the example of `memos_unread` has a time without a zone.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

_ALWAYS: Final = msgspec.Meta(extra_json_schema={"const": True})  # for readers: `__post_init__` is what checks it


class Ack(msgspec.Struct, frozen=True):
    """推送响应: what a device owes for every event pushed to it."""

    ack: Annotated[bool, _ALWAYS]

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
