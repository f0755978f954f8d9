"""A deployment's own events: a TOML file of them, with a JSON Schema for payload and ack.

Decides which files are valid, and finds every problem in one pass. It touches no events of the protocol.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.catalog import ANYTHING, EVENTS, Event
from gateway.schemas import Schema
from gateway.topics import RESERVED, BadName, encode_level

LARGEST_S = 10 * 365 * 86_400.0  # ten years


class BadEvents(ValueError):
    """The file is not usable; `problems` says why, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class OwnEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[event]]`; without `payload` or `ack` any will do, `payload = false` is an event without argument."""

    name: str
    title: str = ""
    summary: str = ""
    direction: Literal["to_device", "from_device"] = "to_device"
    room: bool = False
    at_most_once: bool = True
    lifetime_s: Annotated[float, msgspec.Meta(gt=0, le=LARGEST_S)] | None = None
    ack_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    payload: str | bool | dict[str, Any] = True
    ack: str | bool | dict[str, Any] = True


def read_events(path: Path) -> tuple[Event, ...]:
    """Read the file; a schema that is a path is looked for beside it. Raises BadEvents with every problem."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadEvents([f"{path}: cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        raise BadEvents([f"{path}: {error}"]) from None
    events, problems = table.pop("event", []), [f"{path}: {key}: unknown, expected [[event]]" for key in table]
    if not isinstance(events, list):
        raise BadEvents([f"{path}: event: expected a list of tables, [[event]]"])
    found: dict[str, Event] = {}
    for number, given in enumerate(events):
        at = f"{path}: event[{number}]"
        try:
            event = msgspec.convert(given, OwnEvent)
        except msgspec.ValidationError as problem:
            problems.append(f"{at}: {problem}")
            continue
        wrong = [f"{at}.{text}" for text in (*_bad_name(event.name, found), *_conflicts(event))]
        try:
            found[event.name] = _event(event, path.parent)
        except BadEvents as bad:
            wrong += [f"{at}.{text}" for text in bad.problems]
        problems += wrong
    if problems:
        raise BadEvents(problems)
    return tuple(found.values())


def _bad_name(name: str, found: dict[str, Event]) -> Iterator[str]:
    try:
        encode_level(name)
    except BadName as problem:
        yield f"name: {problem}"
    if name in RESERVED:
        yield f'name: "{name}" is reserved'
    if name in EVENTS:
        yield f'name: "{name}" is an event of the device protocol'
    if name in found:
        yield f'name: "{name}" is there twice'


def _conflicts(event: OwnEvent) -> Iterator[str]:
    for key in ("lifetime_s", "ack_timeout_s"):
        if getattr(event, key) is not None and (event.room or event.direction == "from_device"):
            yield f"{key}: only an event to a device has one"


def _event(event: OwnEvent, folder: Path) -> Event:
    problems: list[str] = []

    def schema(key: str, given: str | bool | dict[str, Any]) -> Schema | None:
        """The schema; None for one that allows everything."""
        try:
            return None if given is True else Schema(_definition(given, folder))
        except OSError as error:
            problems.append(f"{key}: {folder / str(given)}: cannot be read: {error.strerror}")
        except ValueError as error:
            problems.append(f"{key}: {error}")
        return None

    payload = None if event.payload is False else schema("payload", event.payload) or ANYTHING
    ack = schema("ack", event.ack)
    if problems:
        raise BadEvents(problems)
    return Event(
        event.name,
        event.title,
        event.summary,
        payload,
        ack=ack,
        ack_example=None,
        at_most_once=event.at_most_once,
        lifetime_s=event.lifetime_s,
        ack_timeout_s=event.ack_timeout_s,
        room=event.room,
        from_device=event.direction == "from_device",
    )


def _definition(given: str | bool | dict[str, Any], folder: Path) -> object:
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode((folder / given).read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{folder / given}: {error}") from None
