"""The unit of `deploy/`, as systemd reads them. It need not run for that."""

import os
import subprocess
from pathlib import Path

import pytest

from gateway.config import Config
from tests.clients.install import program
from tests.e2e.proxies import DEPLOY, replaced

UNITS = DEPLOY / "systemd"
MOST_EXPOSURE = 15  # tenths of a point: systemd 252 says 12, and newer ones ask for more
FILES_BESIDE_DEVICES = 1000  # listeners, viewers, proxies' idle connections


def analyze(*arguments: str, units: Path) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze on these units and those of the system."""
    command = (program("systemd-analyze"), *arguments)
    environ = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:", "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, as they would be where the gateway is installed."""
    for unit in UNITS.glob("*.service"):
        text = replaced(unit.read_text("utf-8"), "(?m)^ExecStart=/opt/gateway/bin/gateway", "ExecStart=/bin/true", 1)
        (tmp_path / unit.name).write_text(text, "utf-8")
    return tmp_path


def test_systemd_takes_it(units: Path) -> None:
    """A slip is a warning on stderr, which systemd then ignores: none may be there."""
    done = analyze("verify", "gateway.service", units=units)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_tell_of_a_slip(units: Path) -> None:
    unit = units / "gateway.service"
    unit.write_text(unit.read_text().replace("LockPersonality", "LockPersonalty"))
    assert "LockPersonalty" in analyze("verify", "gateway.service", units=units).stderr


def test_it_is_locked_up(units: Path) -> None:
    threshold = f"--threshold={MOST_EXPOSURE}"
    done = analyze("security", "--offline=true", threshold, str(units / "gateway.service"), units=units)
    assert done.returncode == 0, done.stdout


def test_there_are_files_enough_for_the_devices() -> None:
    lines = (UNITS / "gateway.service").read_text("utf-8").splitlines()
    (limit,) = [line for line in lines if line.startswith("LimitNOFILE=")]
    assert int(limit.partition("=")[2]) >= 2 * Config().devices.max_devices + FILES_BESIDE_DEVICES
