"""The model of `deploy/capacity.py`: its sums by hand, and that it claims nothing that was not measured."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from deploy.capacity import PORTS, Load, Measured, measured, need, table
from gateway.config import Config
from tests.bench.results import FIGURES
from tests.e2e.proxies import DEPLOY

COST = Measured(
    command_us=100,
    command_broker_us=40,
    event_us=50,
    connect_us=500,
    connect_broker_us=100,
    heartbeat_us=10,
    device_kb=20,
    broker_kb=5,
)
LOAD = Load(devices=100_000, commands_per_s=2_000, events_per_s=4_000, busy=0.5, per_node=25_000)


def test_the_sums() -> None:
    found = need(LOAD, COST)
    # 2,000 × 100 µs + 4,000 × 50 µs + 100,000 / 25 × 10 µs = 0.44 s of CPU a second; 4 nodes hold the devices
    assert found.node_cores == pytest.approx(0.44)
    assert (found.nodes, found.node_links, found.node_files) == (5, 25_000, 50_000)
    assert found.node_gb == pytest.approx(25_000 * 20 / 1e6)
    assert (found.broker_links, found.messages_per_s) == (100_005, 16_000)
    assert found.broker_cores == pytest.approx(4_000 * 40e-6)
    assert found.broker_gb == pytest.approx(0.5)
    assert found.storm_s == pytest.approx(100_000 / 5 / 4 * 500e-6)
    assert found.broker_storm_s == pytest.approx(10)


def test_busy_devices_need_more_nodes_than_their_number() -> None:
    assert need(LOAD._replace(commands_per_s=20_000), COST).nodes == 6  # 2.24 cores, half of each


def files(directory: Path, bench: dict[str, float]) -> tuple[Path, Path]:
    rounds = [{"contender": "node", "figures": dict.fromkeys(bench, 1e9)}]
    rounds += [{"contender": "gateway", "figures": {key: value * n for key, value in bench.items()}} for n in (1, 2, 9)]
    results, storms = directory / "results.json", directory / "storms.json"
    results.write_text(json.dumps({"rounds": rounds}))
    storms.write_text(json.dumps({"gateway_kb_per_device": 20, "broker_kb_per_link": 5}))
    return results, storms


def test_figures_are_medians_of_ours(tmp_path: Path) -> None:
    half = {name: value / 2 for name, value in COST._asdict().items() if name.endswith("_us")}
    assert measured(*files(tmp_path, half)) == COST


def test_without_a_figure_there_is_no_table(tmp_path: Path) -> None:
    results, storms = files(tmp_path, {"command_us": 1})
    command = (sys.executable, str(DEPLOY / "capacity.py"), "--bench", str(results), "--storms", str(storms))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command_broker_us, connect_broker_us, connect_us, event_us, heartbeat_us" in done.stderr


def test_the_bench_measures_what_the_model_needs() -> None:
    assert {name for name in Measured._fields if name.endswith("_us")} <= {figure.key for figure in FIGURES}


def test_too_many_links_for_the_ports_are_told() -> None:
    assert "local ports" not in table([LOAD], COST)
    assert "local ports" in table([LOAD._replace(per_node=PORTS + 1, devices=PORTS + 1)], COST)
    assert Config().devices.max_devices > PORTS, "the page says what to do then"


def test_what_the_page_says_to_run_is_there() -> None:
    """Its commands, and the keys of the figures that it names."""
    page = (DEPLOY / "CAPACITY.md").read_text("utf-8")
    known = {figure.key for figure in FIGURES}
    assert set(re.findall(r"`(\w+_us)`", page)) <= known
    for module in set(re.findall(r"python -m ([\w.]+)", page)):
        assert find_spec(module), module
    for flag in re.findall(r"(?<=capacity.py).*?```", page, re.DOTALL):
        done = subprocess.run((sys.executable, str(DEPLOY / "capacity.py"), "--help"), capture_output=True, text=True)
        assert set(re.findall(r"--[a-z-]+", flag)) <= set(re.findall(r"--[a-z-]+", done.stdout))
