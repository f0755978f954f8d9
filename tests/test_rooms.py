"""Who may join which room, and who is in it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from gateway.config import Config, RoomRule
from gateway.rooms import MAX_ROOMS, Refused, RoomPolicy, Rooms

DEFAULT = RoomPolicy(Config().rooms.rules)


def may_join(policy: RoomPolicy, room: object, serial: str | None, *granted: str) -> bool:
    try:
        assert policy.check(room, serial, granted) == room
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    ("room", "serial", "allowed"),
    [
        ("AC4178234415", "AC4178234415", True),
        ("AC4178234415", "AC4178234416", False),
        ("AC4178234415", None, False),
        ("bp_student_11", "AC4178234415", True),
        ("bp_student_", "AC4178234415", True),
        ("bp_student_11", None, False),
        ("wxa_student_11", "AC4178234415", False),
        ("xbp_student_11", "AC4178234415", False),
        ("BP_STUDENT_11", "AC4178234415", False),
        ("{serial}", "AC4178234415", False),
        ("*", "AC4178234415", False),
    ],
)
def test_devices_join_their_own_room_and_those_of_students(room: str, serial: str | None, allowed: bool) -> None:
    assert may_join(DEFAULT, room, serial) == allowed


@pytest.mark.parametrize(
    ("room", "granted", "allowed"),
    [
        ("AC4178234415", ["AC4178234415"], True),
        ("AC4178234416", ["AC4178234415"], False),
        ("AC4178234415", ["ac4178234415"], False),
        ("AC4178234415", ["AC4178*"], True),
        ("AC4178234415", ["AC1", "AC2", "*15"], True),
        ("AC4178234415", ["{serial}"], False),
        ("wxa_student_11", ["wxa_student_11"], True),
        ("wxa_student_12", ["wxa_student_11"], False),
        ("wxa_student_12", ["wxa_student_*"], True),
        ("bp_student_11", ["bp_student_11"], False),
        ("bp_student_11", ["*"], False),
        ("lobby", ["*"], True),
        ("lobby", [], False),
    ],
)
def test_tokens_open_the_rooms_that_they_name_but_those_of_devices(
    room: str, granted: list[str], allowed: bool
) -> None:
    assert may_join(DEFAULT, room, None, *granted) == allowed


def test_a_device_with_a_token_has_what_both_allow() -> None:
    assert may_join(DEFAULT, "AC1", "AC1", "AC2")
    assert may_join(DEFAULT, "AC2", "AC1", "AC2")
    assert may_join(DEFAULT, "bp_student_1", "AC1", "AC2")
    assert not may_join(DEFAULT, "AC3", "AC1", "AC2")


def test_the_first_rule_that_matches_decides() -> None:
    closed_first = RoomPolicy([RoomRule("staff_*", "nobody"), RoomRule("*", "anyone")])
    open_first = RoomPolicy([RoomRule("*", "anyone"), RoomRule("staff_*", "nobody")])
    assert not may_join(closed_first, "staff_1", "s1")
    assert may_join(closed_first, "lobby", None)
    assert may_join(open_first, "staff_1", None)
    assert not may_join(RoomPolicy([RoomRule("a", "self"), RoomRule("a", "anyone")]), "a", "s1")
    assert not may_join(RoomPolicy([]), "lobby", "s1")


@pytest.mark.parametrize(
    ("whom", "device", "viewer"),
    [
        ("anyone", True, True),
        ("device", True, False),
        ("self", False, False),
        ("token", False, False),
        ("nobody", False, False),
    ],
)
def test_whom_a_rule_allows(whom: Any, device: bool, viewer: bool) -> None:
    policy = RoomPolicy([RoomRule("*", whom)])
    assert may_join(policy, "lobby", None, "lobby") == (whom in ("anyone", "token"))
    assert may_join(policy, "lobby", "s1") == device
    assert may_join(policy, "lobby", None) == viewer
    assert may_join(policy, "s1", "s1") == (whom not in ("token", "nobody"))


@pytest.mark.parametrize(
    ("pattern", "room", "serial", "matches"),
    [
        ("a*c", "abc", "s", True),
        ("a*c", "ac", "s", True),
        ("a*c", "a\nc", "s", True),
        ("a*c", "abcd", "s", False),
        ("*x*", "axb", "s", True),
        ("a.c", "abc", "s", False),
        ("[ab]", "a", "s", False),
        ("a?", "ab", "s", False),
        ("debug/{serial}", "debug/s", "s", True),
        ("debug/{serial}", "debug/t", "s", False),
        ("debug/{serial}/*", "debug/s/1", "s", True),
        ("debug/{serial}/*", "debug/t/s/1", "s", False),
        ("{serial}", "axb", "a.b", False),
        ("{serial}*", "axbc", "a.b", False),
        ("{serial}{serial}", "ss", "s", True),
        ("*{serial}*", "anything", None, False),
    ],
)
def test_patterns(pattern: str, room: str, serial: str | None, matches: bool) -> None:
    assert may_join(RoomPolicy([RoomRule(pattern, "anyone")]), room, serial) == matches


@pytest.mark.parametrize("room", [None, 1, True, ["s1"], {"room": "s1"}, b"s1", "", "x" * 129, "\ud800"])
def test_a_room_needs_a_name(room: object) -> None:
    with pytest.raises(Refused, match=r"^room"):
        RoomPolicy([RoomRule("*", "anyone")]).check(room, "s1")


def test_a_refusal_is_the_documents() -> None:
    with pytest.raises(Refused, match=r"^join room fail$"):
        DEFAULT.check("lobby", "s1")


@given(st.text(st.characters()) | st.binary() | st.lists(st.none()), st.none() | st.just("s1"))
def test_hostile_rooms_are_refused(room: object, serial: str | None) -> None:
    assert not may_join(DEFAULT, room, serial) or room == serial or str(room).startswith("bp_student_")


class Someone:
    """What the rooms need of a socket."""

    def __init__(self) -> None:
        self.rooms: set[str] | None = None


class Membership(RuleBasedStateMachine):
    """Rooms against a plain set of pairs."""

    people = Bundle("people")

    def __init__(self) -> None:
        super().__init__()
        self.rooms: Rooms[Someone] = Rooms()
        self.everyone: list[Someone] = []
        self.pairs: set[tuple[Someone, str]] = set()

    @rule(target=people)
    def arrive(self) -> Someone:
        self.everyone.append(Someone())
        return self.everyone[-1]

    @rule(person=people, room=st.sampled_from("abc"))
    def join(self, person: Someone, room: str) -> None:
        self.rooms.join(person, room)
        self.pairs.add((person, room))

    @rule(person=people, room=st.sampled_from("abc"))
    def leave(self, person: Someone, room: str) -> None:
        if (person, room) in self.pairs:
            self.rooms.leave(person, room)
            self.pairs.remove((person, room))
        else:
            with pytest.raises(Refused, match=r"^leave room fail$"):
                self.rooms.leave(person, room)

    @rule(person=people)
    def leave_all(self, person: Someone) -> None:
        self.rooms.leave_all(person)
        self.pairs = {pair for pair in self.pairs if pair[0] is not person}

    @invariant()
    def both_sides_agree(self) -> None:
        for room in "abc":
            members = list(self.rooms.members(room))
            assert len(members) == len(set(members))
            assert set(members) == {person for person, name in self.pairs if name == room}
        for person in self.everyone:
            assert (person.rooms or set()) == {name for other, name in self.pairs if other is person}
        assert len(self.rooms) == len({name for _, name in self.pairs})  # an empty room costs nothing


TestMembership = Membership.TestCase


class Watched(dict[str, Any]):
    """A dictionary that notes which keys were asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[str] = []

    def __getitem__(self, key: str) -> Any:
        self.asked.append(key)
        return super().__getitem__(key)


def test_leaving_touches_only_ones_own_rooms() -> None:
    """A mass disconnect must not scan every room for every socket."""
    rooms: Rooms[Someone] = Rooms()
    others = [Someone() for _ in range(1000)]
    for number, other in enumerate(others):
        rooms.join(other, f"room-{number}")
    one = Someone()
    rooms.join(one, "room-7")
    rooms.join(one, "mine")
    watched = rooms._members = Watched(rooms._members)
    rooms.leave_all(one)
    assert sorted(watched.asked) == ["mine", "room-7"]
    assert len(rooms) == 1000
    assert list(rooms.members("room-7")) == [others[7]]
    assert one.rooms is None


def test_a_member_is_in_so_many_rooms_and_no_more() -> None:
    rooms: Rooms[Someone] = Rooms()
    one = Someone()
    for number in range(MAX_ROOMS):
        rooms.join(one, str(number))
    rooms.join(one, "0")  # again costs nothing
    with pytest.raises(Refused, match=str(MAX_ROOMS)):
        rooms.join(one, "more")
    assert list(rooms.members("more")) == []
    rooms.leave(one, "0")
    rooms.join(one, "more")
    assert list(rooms.members("more")) == [one]


def test_members_may_leave_while_one_walks_over_them() -> None:
    rooms: Rooms[Someone] = Rooms()
    for _ in range(3):
        rooms.join(Someone(), "a")
    for member in rooms.members("a"):
        rooms.leave_all(member)
    assert len(rooms) == 0
