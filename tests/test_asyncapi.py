"""The AsyncAPI document: complete, current, valid for the official parser; and the schemas that go with it."""

import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from gateway.asyncapi import as_yaml, document, schemas
from gateway.catalog import ANYTHING, EVENTS, Catalog, Event
from gateway.cli.asyncapi import asyncapi
from gateway.config import Config
from gateway.own_events import read_events
from gateway.schemas import Schema
from tests.clients.install import HERE, installed, program

COMMITTED = Path(__file__).parent.parent / "docs" / "asyncapi.yaml"
DOCUMENT = document(Config(), Catalog())
OWN = """
[[event]]
name = "lamp/blink 灯"
summary = "Blink."
lifetime_s = 60
payload = { type = "object", properties = { n = { "$ref" = "#/$defs/n" } }, "$defs" = { n = { type = "integer" } } }
ack = { type = "object", required = ["ack"] }

[[event]]
name = "door"
direction = "from_device"
payload = false
"""
TOPICS = {
    "devices/{serial}/commands/{event}",
    "devices/{serial}/commands/{event}/{id}",
    "devices/{serial}/acks/{event}",
    "devices/{serial}/acks/{event}/{id}",
    "devices/{serial}/events/{event}",
    "devices/{serial}/events/{event}/{id}",
    "devices/{serial}/replies/{event}/{id}",
    "devices/{serial}/presence",
    "rooms/{room}/events/{event}",
    "nodes/{node}/status",
}


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "own.toml"
    file.write_text(OWN, "utf-8")
    return document(Config(), Catalog(read_events(file), rejects_unknown=True))


def problems(text: str, tmp_path: Path) -> str:
    """What the official parser has against a document; empty if nothing."""
    installed("@asyncapi/parser")
    file = tmp_path / "asyncapi.yaml"
    file.write_text(text, "utf-8")
    done = subprocess.run([program("node"), "asyncapi.js", str(file)], cwd=HERE, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode else ""


def test_the_committed_document_is_current() -> None:
    """Otherwise: gateway asyncapi > docs/asyncapi.yaml"""
    assert COMMITTED.read_text("utf-8") == as_yaml(DOCUMENT)


def test_has_every_topic() -> None:
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values()}
    assert {f"gw/v1/{topic}" for topic in TOPICS} <= addresses


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: event.name)
def test_has_every_event_with_its_examples(event: Event) -> None:
    kind = "event" if event.from_device else "room" if event.room else "command"
    message = DOCUMENT["components"]["messages"][f"{kind}.{event.name.replace(':', '.3a.')}"]
    assert message["title"] == event.title
    assert message["examples"] == [{"payload": "" if event.payload is None else dict(event.example or {})}]
    if kind == "command":
        outcome = DOCUMENT["components"]["messages"][message["name"].replace("command", "outcome", 1)]
        assert outcome["examples"][0]["payload"]["data"] == dict(event.ack_example or {})


def test_the_official_parser_has_nothing_against_it(tmp_path: Path) -> None:
    assert problems(COMMITTED.read_text("utf-8"), tmp_path) == ""


def test_nor_against_one_with_events_of_a_deployment(own: dict[str, Any], tmp_path: Path) -> None:
    assert problems(as_yaml(own), tmp_path) == ""


def test_the_parser_would_find_a_slip(tmp_path: Path) -> None:
    wrong = yaml.safe_load(as_yaml(DOCUMENT))
    wrong["operations"]["sendEvent"]["action"] = "publish"
    assert "operations.sendEvent.action" in problems(as_yaml(wrong), tmp_path)


@pytest.mark.parametrize(
    "name", [name for name, told in DOCUMENT["components"]["messages"].items() if "examples" in told]
)
def test_an_example_is_what_its_schema_allows(name: str) -> None:
    """The parser does not look at the examples of messages that are components."""
    message = DOCUMENT["components"]["messages"][name]
    schema = {"allOf": [message["payload"]], "components": DOCUMENT["components"]}
    for example in message["examples"]:
        jsonschema_rs.validate(schema, example["payload"])
    if name.startswith("outcome."):
        outcome = message["examples"][0]["payload"]
        assert not jsonschema_rs.is_valid(schema, outcome | {"data": {"ack": False}})


def test_events_of_a_deployment(own: dict[str, Any]) -> None:
    channel = own["channels"]["command.lamp.2f.blink.20..706f."]
    assert channel["address"] == "gw/v1/devices/{serial}/commands/lamp%2Fblink 灯"
    operation = own["operations"]["receive.command.lamp.2f.blink.20..706f."]
    assert operation["bindings"]["mqtt"]["messageExpiryInterval"] == 60
    assert "event.door" in own["channels"]["events"]["messages"]
    assert "command" not in own["channels"]


def test_the_schemas_allow_the_examples() -> None:
    written = schemas(Catalog())
    for event in EVENTS.values():
        for kind, shape, example in (("payload", event.payload, event.example), ("ack", event.ack, event.ack_example)):
            assert (f"{event.name}.{kind}.json" in written) is (shape not in (None, ANYTHING))
            if shape not in (None, ANYTHING):
                assert jsonschema_rs.is_valid(written[f"{event.name}.{kind}.json"], dict(example or {}))
    assert not jsonschema_rs.is_valid(written["media_stop.ack.json"], {"ack": False})
    assert {"Outcome.json", "Presence.json", "NodeStatus.json"} <= set(written)


def test_the_schema_of_an_own_event_is_written_as_it_is() -> None:
    own = Event("blink", "", "", Schema({"type": "object"}), ack=None)
    assert schemas(Catalog([own]))["blink.payload.json"]["type"] == "object"


@pytest.mark.parametrize(("definition", "written"), [(True, {}), (False, {"not": {}}), ({}, {})])
def test_a_schema_may_be_true_or_false(definition: object, written: object) -> None:
    shown = schemas(Catalog([Event("blink", "", "", Schema(definition))]))["blink.payload.json"]
    assert {key: value for key, value in shown.items() if key != "$schema"} == written


def test_the_command_prints_the_document_and_writes_the_schemas(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[mqtt]\nprefix = "my/prefix"\n')
    printed = CliRunner().invoke(asyncapi, ["--config", str(config)])
    assert printed.exit_code == 0
    assert yaml.safe_load(printed.stdout)["channels"]["presence"]["address"].startswith("my/prefix/devices/")
    written = CliRunner().invoke(asyncapi, ["--config", str(config), "--schemas", str(tmp_path / "new" / "s")])
    assert (written.exit_code, written.stdout) == (0, "")
    assert {file.name for file in (tmp_path / "new" / "s").iterdir()} == set(schemas(Catalog()))


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    failed = CliRunner().invoke(asyncapi, ["--config", str(tmp_path / "none.toml")])
    assert failed.exit_code == 2
    assert failed.stderr == f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory\n"
