"""The catalogue against the device protocol's own examples, and against peers that do not keep to it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import EVENTS, Catalog, Event, ended_at


def plain(example: Any) -> Any:
    """An example as a peer would send it; every event must have those that it needs."""
    assert example is not None
    return json.loads(json.dumps(dict(example)))


# The headings of the document, in its order; `system_log_upload` is the name of two.
DOCUMENT = [
    "class:update",
    "media_notifications",
    "text_notifications",
    "media_stop",
    "text_stop",
    "unbind_class",
    "bind_class",
    "unbind_school",
    "bind_school",
    "update_power_schedule",
    "restart_device",
    "device_status",
    "upgrade_watcher",
    "memos_unread",
    "memos_update",
    "memos_read",
    "purge_face_data",
    "face_data_count",
    "app_log_upload",
    "system_log_upload",
    "enable_remote_cmd",
    "disable_remote_cmd",
    "remote_cmd",
    "cmd_result",
]
# The document's own examples, which the catalogue has: a new event cannot be forgotten.
WITH_PAYLOAD = [(event.name, plain(event.example)) for event in EVENTS.values() if event.payload is not None]
WITH_ACK = [(event.name, plain(event.ack_example)) for event in EVENTS.values() if event.ack is not None]
WITHOUT_ARGUMENT = ["device_status", "purge_face_data", "face_data_count"]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_lists_the_events_of_the_document_and_no_others() -> None:
    assert set(EVENTS) == set(DOCUMENT)
    assert all(event.name == name and event.title and event.summary for name, event in EVENTS.items())


def test_knows_which_events_go_to_rooms_and_which_do_harm_when_repeated() -> None:
    def those(attribute: str) -> set[str]:
        return {event.name for event in Catalog() if getattr(event, attribute)}

    assert those("at_most_once") == {"restart_device", "upgrade_watcher", "remote_cmd", "purge_face_data"}
    assert those("room") == {"memos_update", "memos_read", "remote_cmd", "cmd_result"}
    assert those("from_device") == {"cmd_result"}


@pytest.mark.parametrize(("name", "payload"), WITH_PAYLOAD)
def test_takes_the_payload_of_the_document(name: str, payload: Any) -> None:
    decoded, problem = EVENTS[name].read_payload(as_json(payload))
    assert problem is None
    if name != "class:update":
        assert msgspec.to_builtins(decoded) == payload


@pytest.mark.parametrize(("name", "ack"), WITH_ACK)
@pytest.mark.parametrize("as_string", [False, True])
def test_takes_the_ack_of_the_document(name: str, ack: Any, as_string: bool) -> None:
    """The document says `JSON字符串` and shows an object."""
    assert EVENTS[name].read_ack((json.dumps(ack) if as_string else ack,)) == (ack, None)


@pytest.mark.parametrize(("name", "ack"), WITH_ACK)
def test_an_ack_that_is_not_true_is_none(name: str, ack: Any) -> None:
    for wrong in ({**ack, "ack": False}, {**ack, "ack": 1}, {**ack, "ack": "true"}, {**ack, "ack": None}, {}):
        data, problem = EVENTS[name].read_ack((wrong,))
        assert data == wrong
        assert problem


@pytest.mark.parametrize(
    ("name", "args", "data", "problem"),
    [
        ("media_stop", ({"ack": False},), {"ack": False}, "ack is not true"),
        ("media_stop", ({"ack": 1},), {"ack": 1}, "Expected `bool`, got `int` - at `$.ack`"),
        ("media_stop", (1,), 1, "Expected `object`, got `int`"),
        ("media_stop", (), None, "Expected `object`, got `null`"),
        ("media_stop", ({"ack": True}, 2), [{"ack": True}, 2], "Expected `object`, got `array`"),
        ("media_stop", ("ok",), "ok", "Expected `object`, got `str`"),
        ("media_stop", ('"{}"',), "{}", "Expected `object`, got `str`"),
        ("media_stop", (b"ok",), b"ok", "Expected `object`, got `bytes`"),
        ("device_status", ({"ack": True},), {"ack": True}, "Object missing required field `status`"),
        (
            "device_status",
            ({"ack": True, "status": "off"},),
            {"ack": True, "status": "off"},
            "Invalid enum value 'off' - at `$.status`",
        ),
        (
            "face_data_count",
            ({"ack": True, "count": "56"},),
            {"ack": True, "count": "56"},
            "Expected `int`, got `str` - at `$.count`",
        ),
    ],
)
def test_says_what_is_wrong_with_an_ack(name: str, args: tuple[Any, ...], data: Any, problem: str) -> None:
    assert EVENTS[name].read_ack(args) == (data, problem)


def test_keeps_what_an_ack_says_besides() -> None:
    ack = {"ack": True, "status": "sleep", "battery": 7}
    assert EVENTS["device_status"].read_ack((ack,)) == (ack, None)


@pytest.mark.parametrize("name", ["memos_update", "remote_cmd", "never_heard_of"])
@pytest.mark.parametrize(("args", "data"), [((), None), ((1,), 1), ((1, 2), [1, 2]), (("x",), "x"), (([],), [])])
def test_takes_any_ack_where_none_is_owed(name: str, args: tuple[Any, ...], data: Any) -> None:
    assert Catalog()[name].read_ack(args) == (data, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(EVENTS)), st.lists(JSON, max_size=3).map(tuple))
def test_reading_an_ack_never_raises(name: str, args: tuple[Any, ...]) -> None:
    EVENTS[name].read_ack(args)


@pytest.mark.parametrize("name", sorted(EVENTS))
@pytest.mark.parametrize("text", ["[" * 100_000, "\ud800", '"\ud800"', "", "[" * 500 + "]" * 500])
def test_absurd_acks_are_not_acks(name: str, text: str) -> None:
    owes = EVENTS[name].ack is not None
    assert (EVENTS[name].read_ack((text,))[1] is not None) == owes
    assert (EVENTS[name].read_ack(({"ack": True, text: text, "status": text, "count": text},))[1] is not None) <= owes


@pytest.mark.parametrize(("name", "payload"), WITH_PAYLOAD)
def test_unknown_fields_pass(name: str, payload: Any) -> None:
    assert EVENTS[name].read_payload(as_json({**payload, "new_in_2030": [1]}))[1] is None


@pytest.mark.parametrize(
    ("name", "payload", "problem"),
    [
        ("media_stop", {"stop": "yes"}, "Expected `bool`, got `str` - at `$.stop`"),
        ("media_stop", {}, "Object missing required field `stop`"),
        ("media_stop", [], "Expected `object`, got `array`"),
        ("bind_class", {"id": "1"}, "Expected `int`, got `str` - at `$.id`"),
        ("memos_read", {"memo_ids": [1, "2"]}, "Expected `int`, got `str` - at `$.memo_ids[1]`"),
        (
            "media_notifications",
            {"ended_at": "", "notifications": [{"type": "video", "url": "", "duration": 1}]},
            "Invalid enum value 'video' - at `$.notifications[0].type`",
        ),
        (
            "update_power_schedule",
            {"power_schedule": [{"shutdown_wday": 5, "startup_wday": 6, "shutdown_at": ""}]},
            "Object missing required field `startup_at` - at `$.power_schedule[0]`",
        ),
        ("media_notifications", {"notifications": []}, "Object missing required field `ended_at`"),
        (
            "media_notifications",
            {"ended_at": 1477390517, "notifications": []},
            "Expected `str`, got `int` - at `$.ended_at`",
        ),
    ],
)
def test_says_where_a_payload_is_wrong(name: str, payload: Any, problem: str) -> None:
    assert EVENTS[name].read_payload(as_json(payload)) == (None, problem)


@pytest.mark.parametrize("name", [*sorted({name for name, _ in WITH_PAYLOAD}), "never_heard_of"])
@pytest.mark.parametrize(
    "payload",
    [
        b" ",
        b"{",
        b"{}x",
        b"nan",
        b"'x'",
        b'"\xff"',
        b'{"x":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_payload_that_is_not_json_is_a_problem(name: str, payload: bytes) -> None:
    assert Catalog()[name].read_payload(payload)[1]


@pytest.mark.parametrize("name", WITHOUT_ARGUMENT)
@pytest.mark.parametrize("payload", [b"{}", b"null", b" "])
def test_an_event_without_argument_takes_none(name: str, payload: bytes) -> None:
    assert EVENTS[name].read_payload(b"") == (None, None)
    assert EVENTS[name].read_payload(payload) == (None, f"{name} takes no argument")


def test_an_event_with_an_argument_needs_it() -> None:
    needy = {name for name, _ in WITH_PAYLOAD} - {"class:update"}
    assert {name for name in EVENTS if EVENTS[name].read_payload(b"")[1] == f"{name} needs an argument"} == needy


@given(
    st.sampled_from([*sorted(EVENTS), "never_heard_of"]),
    st.binary() | JSON.map(lambda value: json.dumps(value, default=repr).encode()),
)
def test_reading_a_payload_never_raises(name: str, payload: bytes) -> None:
    Catalog()[name].read_payload(payload)


def test_an_unlisted_event_takes_anything_once_unless_it_is_said_to_be_repeatable() -> None:
    catalog = Catalog(repeatable=frozenset({"blink"}))
    assert "blink" not in catalog
    assert "media_stop" in catalog
    assert catalog["media_stop"] is EVENTS["media_stop"]
    assert (catalog["blink"].at_most_once, catalog["explode"].at_most_once) == (False, True)
    for payload in (b"", b"1", b'{"a": [null]}'):
        assert catalog["blink"].read_payload(payload)[1] is None
    assert set(catalog) == set(EVENTS.values())


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: event.name)
def test_has_an_example_exactly_where_there_is_something_to_show(event: Event) -> None:
    assert (event.example is None) == (event.payload is None)
    assert (event.ack_example is None) == (event.ack is None)


def test_refuses_unlisted_events_only_where_it_is_told_to() -> None:
    strict = Catalog([Event("blink", "", "")], rejects_unknown=True)
    assert [strict.refusal(name) for name in ("blink", "media_stop", "cmd_result")] == [None, None, None]
    assert strict.refusal("explode") == "event: not in the catalogue, and catalog.unknown is reject"
    assert Catalog().refusal("explode") is None


@pytest.mark.parametrize("catalog", [Catalog(), Catalog(rejects_unknown=True)])
def test_reserved_names_are_refused_in_both_directions(catalog: Catalog) -> None:
    assert catalog.refusal("disconnect") == "event: disconnect is a reserved name"
    assert catalog.refusal("auth:fail") == "event: auth:fail is a reserved name"


class Ends:
    def __init__(self, ended_at: Any) -> None:
        self.ended_at = ended_at


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2016-10-25T18:15:17+08:00", datetime(2016, 10, 25, 10, 15, 17, tzinfo=UTC)),
        ("2016-10-25T18:15:17-03:30", datetime(2016, 10, 25, 21, 45, 17, tzinfo=UTC)),
        ("2016-10-25T18:15:17Z", datetime(2016, 10, 25, 18, 15, 17, tzinfo=UTC)),
        ("2016-10-25T18:15:17.250Z", datetime(2016, 10, 25, 18, 15, 17, 250_000, tzinfo=UTC)),
        ("2016-10-25 18:15:17+00:00", datetime(2016, 10, 25, 18, 15, 17, tzinfo=UTC)),
    ],
)
def test_reads_when_a_payload_ends(text: str, when: datetime) -> None:
    assert ended_at(Ends(text)) == when


@pytest.mark.parametrize(
    "ends",
    [
        "2018-01-01T09:00",
        "2018-01-01",
        "",
        "soon",
        "2016-13-01T00:00:00Z",
        "2016-10-25T18:15:17+99:00",
        "\ud800",
        "\x00",
        None,
        1477390517,
        ["2016-10-25T18:15:17Z"],
    ],
)
def test_a_time_without_zone_or_sense_is_no_end(ends: Any) -> None:
    assert ended_at(Ends(ends)) is None


def test_only_the_notifications_of_the_document_end() -> None:
    ending = {name for name, payload in WITH_PAYLOAD if ended_at(EVENTS[name].read_payload(as_json(payload))[0])}
    assert ending == {"media_notifications", "text_notifications"}


@given(st.text(st.characters()) | st.datetimes(timezones=st.timezones()).map(datetime.isoformat))
def test_any_end_can_be_compared_with_the_clock(text: str) -> None:
    when = ended_at(Ends(text))
    if when is not None:
        assert isinstance(when - datetime(2026, 1, 1, tzinfo=UTC), timedelta)
