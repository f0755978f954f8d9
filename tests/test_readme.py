"""What the README lists is complete: a table that somebody forgot to extend is worse than none."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from gateway import config
from gateway.catalog import EVENTS, Event
from gateway.config import Config, RoomRule
from gateway.engine.effects import CloseReason
from gateway.payloads import Ack

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `([^`]+)`.*$", README, re.MULTILINE)}


def fields(annotation: Any) -> set[str]:
    """The names of a payload's fields, those of the structs in its lists included."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        own = msgspec.structs.fields(annotation)
        return {field.name for field in own}.union(*(fields(field.type) for field in own))
    return set().union(*map(fields, get_args(annotation)))


def words(cell: str) -> set[str]:
    return set(re.findall(r"\w+", cell))


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: event.name)
def test_each_event_is_in_the_table(event: Event) -> None:
    name, payload, ack, _ = re.split(r"(?<!\\)\|", ROWS[event.name].strip("|"))
    assert ("†" in name) is event.at_most_once
    assert fields(event.payload) <= words(payload)
    assert ("none" in payload) is (event.payload is None)
    assert ("room" in ack) is event.room
    assert fields(event.ack) - fields(Ack) <= words(ack)


@pytest.mark.parametrize("reason", CloseReason)
def test_each_reason_for_a_close_is_in_the_table(reason: CloseReason) -> None:
    assert reason in ROWS


def test_the_rules_of_rooms_can_be_pasted() -> None:
    default, open_rooms = (
        config.resolve(tomllib.loads(text), {}, {}).rooms.rules
        for text in re.findall(r"```toml\n(\[rooms\]\n.*?)```", README, re.DOTALL)
    )
    assert default == Config().rooms.rules
    assert [rule.allow for rule in open_rooms] == ["self", "anyone", "token"]


@pytest.mark.parametrize("whom", get_args(msgspec.structs.fields(RoomRule)[1].type))
def test_whom_a_rule_may_allow_is_in_the_table(whom: str) -> None:
    assert whom in ROWS


def test_one_serial_and_one_file_name() -> None:
    """Examples that name different things cannot be followed one after the other."""
    assert set(re.findall(r"AC\d+", README)) == {"AC4178234411"}
    assert set(re.findall(r"[\w.]+\.toml", README)) == {"gateway.toml"}


def test_what_security_md_claims_is_shown_by_tests_that_exist() -> None:
    security = (Path(__file__).parent.parent / "SECURITY.md").read_text("utf-8")
    claims = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`", security)
    assert len(claims) > 30
    for file, name in claims:
        text = (Path(__file__).parent / file).read_text("utf-8")
        assert f"def {name}(" in text if name else text, f"{file}::{name}"
