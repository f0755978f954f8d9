"""What is measured, how often and how long; and how many devices the limits of this machine allow."""

import resource
from typing import Final, NamedTuple

PARTS: Final = {
    "connects": "connect, authenticate and link: a storm of devices",
    "commands": "commands to devices and their outcomes, as fast as they come",
    "latency": "the same at a fixed rate",
    "events": "events of devices to MQTT, as fast as they come",
    "rooms": "events for a room with every device in it",
    "idle": "memory, and what heartbeats cost",
    "scale": "the cost of a command, a connect and the memory of a device, by the number of devices",
}
WORK: Final = ("connects", "commands", "latency", "events", "rooms")  # one process of a contender does these in turn
SPARE_FILES: Final = 256


class Plan(NamedTuple):
    """Sizes and durations; seconds are of each single measurement."""

    parts: tuple[str, ...] = tuple(PARTS)
    contenders: tuple[str, ...] = ("gateway", "node", "naive", "mqtt")
    rounds: int = 5
    idle_rounds: int = 3
    scale_rounds: int = 2
    devices: int = 2_000
    idle_devices: int = 5_000
    scale: tuple[int, ...] = (100, 1_000, 5_000, 10_000)
    seconds: float = 2.5
    idle_s: float = 10.0
    window: int = 100
    rates: tuple[int, ...] = (500, 2_000)
    minutes: float = 15.0
    profile: bool = False

    @property
    def groups(self) -> dict[str, int]:
        """The groups of parts that one process of a contender does, and how many rounds of each."""
        wanted = {
            "work": self.rounds if set(WORK) & set(self.parts) else 0,
            "idle": self.idle_rounds if "idle" in self.parts else 0,
            "scale": self.scale_rounds if "scale" in self.parts else 0,
        }
        return {group: rounds for group, rounds in wanted.items() if rounds}


QUICK: Final = Plan(
    rounds=1,
    idle_rounds=1,
    scale_rounds=1,
    devices=300,
    idle_devices=1_000,
    scale=(100, 1_000),
    seconds=0.8,
    idle_s=4.0,
    minutes=2.0,
)


def fitting(plan: Plan) -> tuple[Plan, str | None]:
    """The plan with no more devices than the limit of open files allows, and what to tell of it, if anything.

    The gateway needs two files for a device: its socket and its link. The limit is raised where that is allowed.
    """
    needed = 2 * max(plan.devices, plan.idle_devices, *plan.scale) + SPARE_FILES
    limit = _raised(needed)
    most = (limit - SPARE_FILES) // 2
    if limit >= needed:
        return plan, None
    fitting = plan._replace(
        devices=min(plan.devices, most),
        idle_devices=min(plan.idle_devices, most),
        scale=tuple(sorted({min(count, most) for count in plan.scale})),
    )
    return (
        fitting,
        f"open files are limited to {limit} (ulimit -n), so there are at most {most} devices; {needed} needed",
    )


def _raised(needed: int) -> int:
    """Raise the limit of open files for this process and those that it starts; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return soft
    for limits in ((needed, max(hard, needed)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (ValueError, OSError):  # not ours to raise
            continue
        return limits[0]
    return soft
