"""What `gateway demo` shows, at the width of a terminal that nobody has made larger."""

import io
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("rich")
pytest.importorskip("iotcore")

from rich.console import Console

from gateway import demo
from gateway.app import Gateway
from gateway.brokers import Launch, LocalBroker
from gateway.catalog import EVENTS
from gateway.simulate.device import SimulatedDevice

WIDTH = 80


def row(part: demo.Part, **fields: Any) -> demo.Row:
    it = demo.Row(SimulatedDevice(part.serial), part.about)
    for name, value in fields.items():
        setattr(it, name, value)
    return it


def drawn(rows: list[demo.Row]) -> list[str]:
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(demo._table(rows, demo.Tally()))
    return cast("io.StringIO", console.file).getvalue().splitlines()


def test_the_table_fits_whatever_is_in_it() -> None:
    longest = demo.Command(max((command.event for command in demo.COMMANDS), key=len))
    full = {"command": longest, "status": "no outcome", "commands": 99999, "acked": 99999, "latency_ms": 30000.4}
    heading, *lines = drawn([row(part, **full) for part in demo.CAST])
    assert len(heading) < WIDTH
    for line, part in zip(lines, demo.CAST, strict=False):
        assert line.split() == [
            part.serial,
            *([part.about] if part.about else []),
            "connecting",
            longest.event,
            "no",
            "outcome",
            "30000",
            "99999/99999",
        ]
        assert len(line) < WIDTH
    assert "…" not in "".join(lines)


def test_the_table_keeps_its_columns() -> None:
    empty, full = drawn([row(demo.CAST[0])]), drawn([row(demo.CAST[0], status="acked", latency_ms=12.34)])
    assert empty[0] == full[0]
    assert " 12.3 " in full[1]


def test_every_command_of_the_demo_is_in_the_catalogue() -> None:
    assert {command.event for command in demo.COMMANDS} <= set(EVENTS)


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_what_to_paste_is_there_and_fits(
    installed: bool, tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if installed else None)
    monkeypatch.setattr("sys.argv", [f"/home/somebody/{'x' * 40}/.venv/bin/gateway", "demo"])
    broker = LocalBroker(Launch("mosquitto", "2.0.11", (), 65535, 65535), tmp_path)
    url = f"http{'s' * tls}://127.0.0.1:65535"
    gateway = SimpleNamespace(device_url=url, admin_url="http://127.0.0.1:65534")
    certified = demo.Certified(Path("/tmp/gateway-demo-12345678/ca.pem"), Path()) if tls else None
    text = "\n".join(demo._addresses("auto", broker, cast("Gateway", gateway), certified))
    assert "Ctrl-C" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    commands = [shlex.split(line) for line in text.replace("\\\n", "").splitlines() if line.startswith("  ")]
    simulate = commands.pop()
    assert simulate[1:5] == ["simulate", demo.NEWCOMER, "--url", url]
    assert simulate[5:] == (["--ca", "/tmp/gateway-demo-12345678/ca.pem"] if tls else [])
    assert commands[0][1:] == ["call", demo.CAST[0].serial, "device_status", "--mqtt", "mqtt://127.0.0.1:65535"]
    assert [command[0] for command in commands[1:]] == (["mosquitto_sub", "mosquitto_pub"] if installed else [])
