"""A deployment's own events: read, refused with path and reason, and robust against any schema and value."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import ANYTHING, Event
from gateway.config import CatalogSettings, catalog_of, load
from gateway.own_events import BadEvents, read_events
from gateway.schemas import Schema
from gateway.settings import ConfigError

BLINK = '[[event]]\nname = "blink"\n'


def read(folder: Path, text: str) -> tuple[Event, ...]:
    (folder / "own.toml").write_text(text, "utf-8")
    return read_events(folder / "own.toml")


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(BadEvents) as caught:
        read(folder, text)
    return [problem.removeprefix(f"{folder / 'own.toml'}: ") for problem in caught.value.problems]


def test_an_event_with_everything(tmp_path: Path) -> None:
    (tmp_path / "ack.json").write_text('{"required": ["ack"]}')
    policy = 'title = "灯"\nsummary = "Blink."\nat_most_once = false\nlifetime_s = 60\nack_timeout_s = 2.5\n'
    (event,) = read(tmp_path, BLINK + policy + 'payload = { type = "integer" }\nack = "ack.json"\n')
    assert (event.name, event.title, event.summary) == ("blink", "灯", "Blink.")
    assert (event.at_most_once, event.lifetime_s, event.ack_timeout_s) == (False, 60.0, 2.5)
    assert (event.room, event.from_device) == (False, False)
    assert event.read_payload(b"1") == (1, None)
    assert event.read_payload(b'"1"') == (None, '"1" is not of type "integer"')
    assert event.read_ack(({"ack": 1},)) == ({"ack": 1}, None)
    assert event.read_ack(({},)) == ({}, '"ack" is a required property')


def test_an_event_with_a_name_only_takes_anything_once(tmp_path: Path) -> None:
    (event,) = read(tmp_path, BLINK)
    assert (event.payload, event.ack, event.at_most_once) == (ANYTHING, None, True)
    assert [event.read_payload(payload)[1] for payload in (b"", b"[1]")] == [None, None]


def test_an_event_without_argument_and_one_of_devices(tmp_path: Path) -> None:
    text = BLINK + 'payload = false\n[[event]]\nname = "door"\ndirection = "from_device"\nroom = true\n'
    blink, door = read(tmp_path, text)
    assert (blink.payload, blink.read_payload(b"1")[1]) == (None, "blink takes no argument")
    assert (door.from_device, door.room) == (True, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[event]]\n", ["event[0]: Object missing required field `name`"]),
        (BLINK + "colour = 1\n", ["event[0]: Object contains unknown field `colour`"]),
        (BLINK + "lifetime_s = 0\n", ["event[0]: Expected `float` > 0.0 - at `$.lifetime_s`"]),
        (BLINK + BLINK, ['event[1].name: "blink" is there twice']),
        ('[[event]]\nname = ""\n', ["event[0].name: must be 1 to 128 bytes, is 0"]),
        ('[[event]]\nname = "media_stop"\n', ['event[0].name: "media_stop" is an event of the device protocol']),
        ('[[event]]\nname = "disconnect"\n', ['event[0].name: "disconnect" is reserved']),
        (BLINK + "room = true\nlifetime_s = 1\n", ["event[0].lifetime_s: only an event to a device has one"]),
        (BLINK + 'payload = { type = "objekt" }\n', ["event[0].payload: "]),
        (BLINK + 'payload = { "$ref" = "https://a.example/x" }\n', ["event[0].payload: "]),
        (BLINK + 'ack = { pattern = "(?=a)" }\n', ["event[0].ack: "]),
        (BLINK + 'payload = "none.json"\n', ["event[0].payload: "]),
        (BLINK + "lifetime_s = -1\n[[event]]\n", ["event[0]: ", "event[1]: "]),
        ("[event]\n", ["event: expected a list of tables, [[event]]"]),
        ("other = 1\n", ["other: unknown, expected [[event]]"]),
        ("[[", [""]),
    ],
)
def test_every_problem_has_its_path_and_is_one_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)
        assert "\n" not in problem
        assert len(problem) > len(start) or start[-1:] not in (" ", "")


def test_the_settings_find_a_bad_file_when_they_are_loaded(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[[event]]\n")
    with pytest.raises(ConfigError) as caught:
        load(None, {"GATEWAY_CATALOG_FILE": str(own)}, {})
    assert caught.value.problems == [f"{own}: event[0]: Object missing required field `name`"]


def test_the_catalogue_of_the_settings(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(BLINK)
    catalog = catalog_of(CatalogSettings(unknown="reject", file=str(own)))
    assert "blink" in catalog
    assert catalog.rejects_unknown
    assert not catalog_of(CatalogSettings()).rejects_unknown


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=5,
)
KEYWORDS = st.sampled_from(
    ["type", "properties", "items", "$ref", "pattern", "not", "allOf", "const", "$schema", "$id"]
)
SCHEMAS = st.booleans() | st.dictionaries(KEYWORDS, st.sampled_from(["#", "object", "(", "^a", "x:/"]) | JSON)


@given(SCHEMAS, JSON, st.binary())
def test_no_schema_and_no_value_raises_anything_else(definition: Any, value: Any, payload: bytes) -> None:
    try:
        schema = Schema(definition)
    except ValueError:
        return
    event = Event("blink", "", "", schema, ack=schema)
    event.read_ack((value,))
    event.read_payload(payload)
    event.read_payload(json.dumps(value, default=repr).encode())


@pytest.mark.parametrize(
    "definition", [{"type": "array", "items": {"$ref": "#"}}, {"$ref": "#"}, {"pattern": "^(a+)+$"}]
)
@pytest.mark.parametrize(
    "payload",
    [b"[" * 100_000, b"[" * 900 + b"]" * 900, b'"' + b"a" * 100_000 + b'!"', b'"\xff"', b"1e999", b"1" * 5000],
)
def test_hostile_values_are_a_verdict(definition: Any, payload: bytes) -> None:
    Event("blink", "", "", Schema(definition)).read_payload(payload)


def test_says_where_a_value_is_wrong() -> None:
    schema = Schema({"properties": {"a": {"items": {"type": "integer"}}}})
    with pytest.raises(msgspec.ValidationError, match=r'"x" is not of type "integer" - at `\$\.a\[1\]`'):
        schema.check({"a": [1, "x"]})
