"""Rooms: who may join which, and who is in them. Pure.

Membership is kept from both sides, so that a socket that leaves costs its own rooms and not all of them.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from msgspec import Struct

from gateway.config import RoomRule
from gateway.topics import BadName, encode_level

MAX_ROOMS: Final = 64  # per socket; a debugging page or a class needs a handful


class Refused(Exception):
    """A room may not be joined; the text is for the one who asked."""


class Grant(Struct, frozen=True):
    """What a token allows its bearer: rooms, by pattern, until a time of day (Unix seconds)."""

    rooms: tuple[str, ...]
    expires_at: float
    subject: str = ""


class RoomPolicy:
    """Ordered rules; the first whose pattern matches the room decides, none means nobody.

    In a pattern `*` stands for any text and `{serial}` for the serial of the device that asks.
    """

    def __init__(self, rules: Iterable[RoomRule]) -> None:
        self._rules = tuple(rules)

    def check(self, room: object, serial: str | None, granted: Collection[str] = ()) -> str:
        """Return the room that a device (or a viewer: no serial) may join.

        Args:
            granted: the patterns of rooms in the token of the one who asks.

        Raises:
            Refused: the policy says no, or it is not the name of a room.
        """
        if not isinstance(room, str):
            raise Refused("room must be a text")
        try:
            encode_level(room)
        except BadName as problem:
            raise Refused(f"room: {problem}") from None
        for rule in self._rules:
            if _matches(rule.match, room, serial):
                if _allows(rule.allow, room, serial, granted):
                    return room
                break
        raise Refused("join room fail")


def _matches(pattern: str, room: str, serial: str | None) -> bool:
    if "{serial}" in pattern:
        if serial is None:
            return False
        pattern = pattern.replace("{serial}", serial)
    return _fits(pattern, room)


def _fits(pattern: str, room: str) -> bool:
    if "*" not in pattern:
        return pattern == room  # the common rule: no regular expression for each serial
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), room, re.DOTALL) is not None


def _allows(whom: str, room: str, serial: str | None, granted: Collection[str]) -> bool:
    match whom:
        case "token":
            return any(_fits(pattern, room) for pattern in granted)
        case "anyone":
            return True
        case "device":
            return serial is not None
        case "self":
            return room == serial
    return False


class Member(Protocol):
    """What can be in rooms: something with a set of them that Rooms alone writes."""

    rooms: set[str] | None


M = TypeVar("M", bound=Member)


class Rooms(Generic[M]):
    """The members of each room on this node."""

    def __init__(self) -> None:
        self._members: dict[str, set[M]] = {}
        self.memberships = 0  # members, counted in each of their rooms

    def __len__(self) -> int:
        return len(self._members)

    def members(self, room: str) -> Iterator[M]:
        """Iterate over who is in a room, safe against leaving meanwhile."""
        return iter(tuple(self._members.get(room, ())))

    def join(self, member: M, room: str) -> None:
        """Add a member. Raises Refused when it is in MAX_ROOMS already."""
        joined = member.rooms
        if joined is None:
            joined = member.rooms = set()
        if room not in joined and len(joined) >= MAX_ROOMS:
            raise Refused(f"in {MAX_ROOMS} rooms already")
        self.memberships += room not in joined
        joined.add(room)
        self._members.setdefault(room, set()).add(member)

    def leave(self, member: M, room: str) -> None:
        """Remove a member. Raises Refused when it is not in the room."""
        if member.rooms is None or room not in member.rooms:
            raise Refused("leave room fail")
        member.rooms.remove(room)
        self._remove(member, room)

    def leave_all(self, member: M) -> None:
        """Remove a member from all its rooms."""
        for room in member.rooms or ():
            self._remove(member, room)
        member.rooms = None

    def _remove(self, member: M, room: str) -> None:
        self.memberships -= 1
        members = self._members[room]
        members.discard(member)
        if not members:
            del self._members[room]
