"""What a run found: every figure of every round, medians with their spread, and ratios within the rounds. Pure."""

import statistics
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

OURS: Final = "gateway"
PEER: Final = "node"
NAIVE: Final = "naive"
BASELINE: Final = "baseline"


class Figure(NamedTuple):
    """One figure of the report.

    Attributes:
        target: the most that ours may be of Node's, or None.
    """

    key: str
    title: str
    unit: str
    target: float | None = None


FIGURES: Final = (
    Figure("command_us", "command round trip, saturated", "µs CPU", 0.55),
    Figure("command_kernel_us", "– of it in the kernel", "µs CPU"),
    Figure("command_broker_us", "– the broker's part", "µs CPU"),
    Figure("command_rate", "command round trips, saturated", "/s"),
    Figure("p50_ms_500", "latency at 500/s, p50", "ms"),
    Figure("p95_ms_500", "– p95", "ms"),
    Figure("p99_ms_500", "– p99", "ms"),
    Figure("p50_ms_2000", "latency at 2,000/s, p50", "ms"),
    Figure("p95_ms_2000", "– p95", "ms"),
    Figure("p99_ms_2000", "– p99", "ms", 1.0),
    Figure("paced_2000_rate", "– achieved of 2,000/s", "/s"),
    Figure("paced_500_us", "command round trip at 500/s", "µs CPU"),
    Figure("event_us", "device event → MQTT", "µs CPU", 0.6),
    Figure("event_rate", "device events, saturated", "/s"),
    Figure("room_us", "room fan-out, per recipient", "µs CPU", 0.6),
    Figure("room_ms", "room fan-out, until the last has it", "ms"),
    Figure("connect_us", "connect + authenticate + link", "µs CPU", 0.9),
    Figure("connect_broker_us", "– the broker's part", "µs CPU"),
    Figure("connect_rate", "connects", "/s"),
    Figure("memory_kb", "memory per idle device", "KB", 1.2),
    Figure("heartbeat_us", "an idle device, per heartbeat", "µs CPU", 0.25),
    Figure("idle_percent", "idle heartbeats of all devices every 25 s", "% CPU"),
)


class Round(msgspec.Struct, frozen=True):
    """One process of one contender, and what it was found to cost; with `failed` there is nothing."""

    contender: str
    group: str
    number: int
    figures: dict[str, float] = {}
    failed: str | None = None


class Who(msgspec.Struct, frozen=True):
    """A contender, and what it does for a command."""

    title: str
    keeps: str


class Run(msgspec.Struct, frozen=True):
    """A whole run: `about` says on what machine, with which versions and sizes; `notes` what to know of it."""

    about: dict[str, str]
    sizes: dict[str, float | list[int]]
    contenders: dict[str, Who]
    rounds: list[Round]
    notes: list[str]

    def values(self, contender: str, key: str) -> list[float]:
        """A figure of a contender in every round that has it."""
        return [r.figures[key] for r in self.rounds if r.contender == contender and key in r.figures]

    def ratios(self, key: str, of: str, to: str) -> list[float]:
        """A figure of one contender divided by that of another, in every round that has both."""
        found = []
        by_round = {(r.contender, r.group, r.number): r.figures for r in self.rounds}
        for (contender, group, number), figures in by_round.items():
            others = by_round.get((to, group, number), {})
            if contender == of and key in figures and others.get(key):
                found.append(figures[key] / others[key])
        return found

    def keys(self, prefix: str) -> list[str]:
        """Every figure whose name begins so, in the order in which they were found."""
        return list(dict.fromkeys(key for r in self.rounds for key in r.figures if key.startswith(prefix)))


class Spread(NamedTuple):
    """The middle of some values, and the least and the most of them."""

    median: float
    least: float
    most: float
    values: int


def spread(values: Iterable[float]) -> Spread | None:
    """Median and range; None of no values."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1], len(found)) if found else None
