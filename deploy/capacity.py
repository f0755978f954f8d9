"""How many nodes, links, messages and bytes a fleet needs, from what was measured: `python deploy/capacity.py --help`.

It knows no figure of its own: CPU per command, event, connect and heartbeat are those of `python -m tests.bench`,
memory those of `python -m tests.bench.storms`. CAPACITY.md says what is behind each line.
"""

import argparse
import json
from math import ceil
from pathlib import Path
from statistics import median
from typing import NamedTuple

HEARTBEAT_S = 25  # devices.ping_interval_s
FILES_PER_DEVICE = 2  # its socket and its link
PORTS = 60_999 - 32_768 + 1  # net.ipv4.ip_local_port_range of Linux: links of one node to one address of the broker
SIZES = (1_000, 10_000, 50_000, 100_000, 1_000_000)


class Measured(NamedTuple):
    """What one of each costs: microseconds of one core, and KB."""

    command_us: float
    command_broker_us: float
    event_us: float
    connect_us: float
    connect_broker_us: float
    heartbeat_us: float
    device_kb: float
    broker_kb: float


class Load(NamedTuple):
    """What a fleet does, and how full a core and a node may be."""

    devices: int
    commands_per_s: float
    events_per_s: float
    busy: float
    per_node: int


class Need(NamedTuple):
    """What it takes. A node that fails is taken over by the others: one more than the load needs."""

    nodes: int
    node_cores: float
    """Of all nodes together."""
    node_gb: float
    """Of each node, with its share when one of them is away."""
    node_files: int
    node_links: int
    broker_links: int
    broker_cores: float
    broker_gb: float
    messages_per_s: float
    storm_s: float
    """Until every device that one node loses is back on the others."""
    broker_storm_s: float
    """What the CONNECTs of all links cost one core of the broker, after its restart."""


def need(load: Load, cost: Measured) -> Need:
    """The model: everything is proportional, which the bench shows up to 10,000 devices (`--parts scale`)."""
    beats_per_s = load.devices / HEARTBEAT_S
    node_us = (
        load.commands_per_s * cost.command_us + load.events_per_s * cost.event_us + beats_per_s * cost.heartbeat_us
    )
    needed = max(ceil(load.devices / load.per_node), ceil(node_us / 1e6 / load.busy))
    nodes = needed + 1
    each = load.devices / needed
    # A command is four PUBLISH (service, link, outcome, service), an event two, each with its PUBACK at QoS 1.
    messages_per_s = 4 * load.commands_per_s + 2 * load.events_per_s
    # Of an event the broker has half of what it has of a command.
    broker_us = (load.commands_per_s + load.events_per_s / 2) * cost.command_broker_us
    return Need(
        nodes=nodes,
        node_cores=node_us / 1e6,
        node_gb=each * cost.device_kb / 1e6,
        node_files=ceil(each * FILES_PER_DEVICE),
        node_links=ceil(each),
        broker_links=load.devices + nodes,
        broker_cores=broker_us / 1e6,
        broker_gb=load.devices * cost.broker_kb / 1e6,
        messages_per_s=messages_per_s,
        storm_s=load.devices / nodes / needed * cost.connect_us / 1e6,
        broker_storm_s=load.devices * cost.connect_broker_us / 1e6,
    )


def measured(bench: Path, storms: Path) -> Measured:
    """Medians of both commands' files. Raises ValueError that says which figure is missing, and how to get it."""
    rounds = json.loads(bench.read_text("utf-8"))["rounds"]
    found: dict[str, list[float]] = {}
    for figures in (each["figures"] for each in rounds if each["contender"] == "gateway"):
        for key, value in figures.items():
            found.setdefault(key, []).append(value)
    fleet = json.loads(storms.read_text("utf-8"))
    names = {name for name in Measured._fields if name.endswith("_us")}
    if missing := sorted(names - found.keys()):
        raise ValueError(f"{bench}: no {', '.join(missing)}; expected what `python -m tests.bench` saves, all parts")
    if not {"gateway_kb_per_device", "broker_kb_per_link"} <= fleet.keys():
        raise ValueError(f"{storms}: expected what `python -m tests.bench.storms` prints")
    medians = {name: median(found[name]) for name in names}
    return Measured(**medians, device_kb=fleet["gateway_kb_per_device"], broker_kb=fleet["broker_kb_per_link"])


ROWS = {
    "nodes (a core each)": "{0.nodes:,}",
    "– cores in use, all together": "{0.node_cores:.2f}",
    "– devices and links of each": "{0.node_links:,}",
    "– memory of each, beside the process": "{0.node_gb:.2f} GB",
    "– open files of each": "{0.node_files:,}",
    "– a node dies: CPU time until its devices are back": "{0.storm_s:.1f} s",
    "links at the broker": "{0.broker_links:,}",
    "messages through the broker": "{0.messages_per_s:,.0f}/s",
    "– cores in use": "{0.broker_cores:.2f}",
    "– memory": "{0.broker_gb:.2f} GB",
    "– it restarts: CPU time of all CONNECTs": "{0.broker_storm_s:.1f} s",
}


def table(loads: list[Load], cost: Measured) -> str:
    """Markdown: a column for each fleet."""
    needs = [need(load, cost) for load in loads]
    lines = [
        _row("", *(f"{load.devices:,} devices" for load in loads)),
        _row("---", *("---:" for _ in loads)),
        _row(
            "commands + events a second", *(f"{load.commands_per_s:,.0f} + {load.events_per_s:,.0f}" for load in loads)
        ),
        *(_row(title, *(shown.format(each) for each in needs)) for title, shown in ROWS.items()),
    ]
    if any(each.node_links > PORTS for each in needs):
        lines += ["", f"Over {PORTS:,} links of one node need more local ports, or several addresses of the broker."]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table. Exit status 2 when a figure is missing."""
    parser = argparse.ArgumentParser(description="How many nodes, links, messages and bytes a fleet needs.")
    parser.add_argument("--bench", type=Path, required=True, help="results.json of `python -m tests.bench`")
    parser.add_argument("--storms", type=Path, required=True, help="what `python -m tests.bench.storms` printed")
    parser.add_argument("--devices", type=int, nargs="+", default=SIZES, help="sizes of the fleet")
    parser.add_argument("--commands-per-hour", type=float, default=12, help="to each device (%(default)s)")
    parser.add_argument("--events-per-hour", type=float, default=60, help="of each device (%(default)s)")
    parser.add_argument("--busy", type=float, default=0.5, help="how much of a core a node may use (%(default)s)")
    parser.add_argument("--per-node", type=int, default=25_000, help="devices.max_devices of a node (%(default)s)")
    asked = parser.parse_args()
    try:
        cost = measured(asked.bench, asked.storms)
    except (OSError, ValueError, KeyError) as problem:
        parser.error(str(problem))
    per_s = (asked.commands_per_hour / 3600, asked.events_per_hour / 3600)
    loads = [Load(n, n * per_s[0], n * per_s[1], asked.busy, asked.per_node) for n in asked.devices]
    print(table(loads, cost))  # noqa: T201


if __name__ == "__main__":
    main()
