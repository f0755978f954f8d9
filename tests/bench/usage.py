"""What processes cost: CPU seconds and memory, read from /proc. Linux only."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Cpu(NamedTuple):
    """CPU seconds, and how many of them the kernel had."""

    total_s: float
    kernel_s: float

    def since(self, before: "Cpu") -> "Cpu":
        """What was used between two readings."""
        return Cpu(self.total_s - before.total_s, self.kernel_s - before.kernel_s)


def tree(pid: int) -> list[int]:
    """A process and its children, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parents.setdefault(int(_fields(entry / "stat")[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += parents.get(parent, ())
    return found


def cpu(pids: Iterable[int]) -> Cpu:
    """CPU that live processes have used, all threads: to the nanosecond in all, to the clock tick in the kernel."""
    total_s = kernel_s = 0.0
    for pid in pids:
        fields = _fields(PROC / str(pid) / "stat")
        user_s, system_s = int(fields[11]) * TICK_S, int(fields[12]) * TICK_S
        tasks = (PROC / str(pid) / "task").iterdir()
        ran_s = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        total_s += ran_s
        kernel_s += ran_s * system_s / ((user_s + system_s) or 1)
    return Cpu(total_s, kernel_s)


def memory_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes."""
    return sum(int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES for pid in pids)


def machine_busy_s() -> float:
    """CPU seconds that all processes have used, and those that other guests of the host have taken from us."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * TICK_S


def _fields(path: Path) -> list[str]:
    """The fields of a `stat` from the third on (proc_pid_stat(5)): a name in parentheses may hold anything."""
    return path.read_text().rpartition(")")[2].split()


class Reading(NamedTuple):
    """What a stretch of time cost whom; `others_s` is the CPU that does not belong to the bench."""

    wall_s: float
    gateway: Cpu
    broker: Cpu
    load: Cpu
    others_s: float

    def per(self, count: int) -> dict[str, float]:
        """Microseconds of CPU for one of `count`, and the shares that say whether the figure can be trusted."""
        each = 1e6 / (count or 1)
        return {
            "us": self.gateway.total_s * each,
            "kernel_us": self.gateway.kernel_s * each,
            "broker_us": self.broker.total_s * each,
            "load_us": self.load.total_s * each,
            "rate": count / self.wall_s,
            "load_share": self.load.total_s / self.wall_s,
            "others_share": self.others_s / self.wall_s / (os.cpu_count() or 1),
        }


class Meter:
    """Measures gateway, broker and ourselves, and the rest of the machine, from `start` to `stop`."""

    reading: Reading

    def __init__(self, gateway: list[int], broker: list[int]) -> None:
        self._who = {"gateway": gateway, "broker": broker, "load": [os.getpid()]}
        self.start()

    def _now(self) -> tuple[float, float, dict[str, Cpu]]:
        return time.perf_counter(), machine_busy_s(), {who: cpu(pids) for who, pids in self._who.items()}

    def start(self) -> None:
        """Measure from now on."""
        self._before = self._now()

    def stop(self) -> None:
        """Measure until now."""
        (at, busy_s, then), (now, now_busy_s, used) = self._before, self._now()
        cpus = {who: used[who].since(then[who]) for who in used}
        others_s = max(0.0, now_busy_s - busy_s - sum(c.total_s for c in cpus.values()))
        self.reading = Reading(now - at, cpus["gateway"], cpus["broker"], cpus["load"], others_s)
