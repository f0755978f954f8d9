"""What became of simulated devices, counted (pure)."""

from collections import Counter, deque
from collections.abc import Mapping
from math import ceil
from typing import Final

import msgspec

SAMPLES: Final = 10_000  # of times to connect; the oldest go first


class Summary(msgspec.Struct, frozen=True):
    """The counts, for machines: those online by client, events by name, ended connections by reason; milliseconds."""

    devices: int
    online: int
    authenticated: int
    connections: int
    reconnects: int
    auth_ok: int
    auth_fail: int
    clients: dict[str, int]
    ended: dict[str, int]
    received: dict[str, int]
    acked: dict[str, int]
    emitted: dict[str, int]
    asked: int
    answered: int
    connect_p50_ms: float | None
    connect_p99_ms: float | None

    def lines(self) -> list[str]:
        """The same for a person."""
        devices = "device" if self.devices == 1 else "devices"
        lines = [
            f"{self.devices:,} {devices}: {self.authenticated:,} authenticated, {self.online:,} online at the end",
            f"auth:ok {self.auth_ok:,}, auth:fail {self.auth_fail:,}, reconnects {self.reconnects:,}",
        ]
        if self.connect_p50_ms is not None:
            lines.append(f"from connecting to auth:ok: p50 {self.connect_p50_ms:,} ms, p99 {self.connect_p99_ms:,} ms")
        for title, counts in (
            ("online", self.clients),
            ("connections ended", self.ended),
            ("events received", self.received),
            ("events acked", self.acked),
            ("events emitted", self.emitted),
        ):
            if counts:
                ranked = sorted(counts.items(), key=lambda item: -item[1])
                lines.append(f"{title}: {', '.join(f'{name} {number:,}' for name, number in ranked)}")
        if self.asked:
            lines.append(f"asked {self.asked:,}, answered {self.answered:,}")
        return lines


class Tally:
    """The counts of a fleet; its devices add to it.

    Attributes:
        devices: how many there are to be.
        online: how many are authenticated now.
        authenticated: how many were at some time.
        connections, reconnects: attempts to connect, and those among them that were not a device's first.
        ended: connections and attempts that are over, by reason.
        received, acked, emitted: events, by name; those that were asked for are emitted, too.
    """

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.online = self.authenticated = 0
        self.connections = self.reconnects = 0
        self.auth_ok = self.auth_fail = 0
        self.ended: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.acked: Counter[str] = Counter()
        self.emitted: Counter[str] = Counter()
        self.asked = self.answered = 0
        self.connect_s: deque[float] = deque(maxlen=SAMPLES)

    def summary(self, clients: Mapping[str, int]) -> Summary:
        """The counts as they are."""
        counts = {name: getattr(self, name) for name in Summary.__struct_fields__ if hasattr(self, name)}
        counts["clients"] = clients
        times = {"connect_p50_ms": self._connect_ms(0.50), "connect_p99_ms": self._connect_ms(0.99)}
        return msgspec.convert(counts | times, Summary)

    def __str__(self) -> str:
        """One line: how it stands."""
        parts = [
            f"{self.online:,} of {self.devices:,} online",
            f"{self.acked.total():,} acked",
            f"{self.emitted.total():,} emitted",
            f"{self.reconnects:,} reconnects",
        ]
        return ", ".join([*parts, *([f"{self.auth_fail:,} refused"] if self.auth_fail else [])])

    def _connect_ms(self, share: float) -> float | None:
        if not self.connect_s:
            return None
        ordered = sorted(self.connect_s)
        return round(1000 * ordered[max(0, ceil(share * len(ordered)) - 1)], 1)
