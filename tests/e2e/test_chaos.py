"""Everything at once: nodes and the broker die, sockets break and devices roam while commands go on.

The same seed makes the same decisions, though not at the same microsecond. `GATEWAY_TEST_CHAOS_S` and
`GATEWAY_TEST_SEED` make it longer, or another.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from tests.clients.install import missing
from tests.e2e.chaos import HARMFUL, Box, Command, Dispatcher, Outcome, Plate, connection

CHAOS_S: Final = float(os.environ.get("GATEWAY_TEST_CHAOS_S", "20"))
SEED: Final = os.environ.get("GATEWAY_TEST_SEED", "1")
DEVICES: Final = 200
COMMANDS_PER_S: Final = 100
MAX_STORIES: Final = 20
REST_S: Final = 60.0  # for what must come to rest; it takes seconds
# mosquitto saves everything at the end of a round of its loop in which anything changed, so that what a kill -9
# takes with it are the messages of the last round; with the saves of the shipped configuration, it is 10 s of them.
SAVES: Final = {"autosave_on_changes": "true", "autosave_interval": "1"}
UNSAVED_S: Final = 0.5  # a PUBACK this long before the kill may be for what was not saved: a round, on a slow disk
AWAY_S: Final = 5.0  # links are up again this long after a kill -9 of the broker
ANSWERED_S: Final = 7.0  # every attempt, each with its timeout, takes no longer
ENVIRON: Final = {
    "GATEWAY_COMMANDS_ACK_TIMEOUT_S": "2",
    "GATEWAY_DEVICES_DRAIN_S": "3",
    "GATEWAY_MQTT_RECONNECT_MAX_S": "2",
}


class World:
    """Everybody, and what was done to them."""

    def __init__(self, broker: LocalBroker, http: aiohttp.ClientSession) -> None:
        self.broker = broker
        self.boxes = [Box(name, broker.url, ENVIRON) for name in ("gw-1", "gw-2")]
        self.service = Dispatcher(broker.url, self.boxes)
        self.plates = [Plate(f"AC{number:03}", http, self.boxes, self.service, SEED) for number in range(DEVICES)]
        self.random = random.Random(SEED)
        self.broker_kills: list[float] = []
        self.node_kills: list[float] = []
        self.ends: list[tuple[float, str, int]] = []  # of nodes' lives: when they were killed or told to stop
        self.rss_bytes: list[int] = []
        self.restless: list[Plate] = self.plates
        self.unknown: list[Plate] = self.plates

    async def command(self) -> None:
        """Send commands at a steady rate."""
        rest_of = self.random.random
        while True:
            serial = self.random.choice(self.plates).serial
            if rest_of() < 0.3:
                self.service.send(serial, "media_stop", {"stop": True}, 0)
            elif rest_of() < 0.15:
                self.service.send(serial, HARMFUL, {"restart": True}, 1)
            else:
                self.service.send(serial, "bind_class", {}, 1, 1 if rest_of() < 0.1 else None)
            await asyncio.sleep(1 / COMMANDS_PER_S)

    async def disturb_devices(self) -> None:
        """Break connections, and let devices roam."""
        while True:
            await asyncio.sleep(self.random.uniform(0.02, 0.12))
            plate = self.random.choice(self.plates)
            plate.reset() if self.random.random() < 0.5 else plate.hop()

    async def disturb_machines(self, until: float) -> None:
        """One fault after the other, each kind in each round; everything is up again when it returns."""
        while True:
            for fault in self.random.sample(FAULTS, len(FAULTS)):
                await asyncio.sleep(self.random.uniform(1, 3))
                if time.monotonic() >= until:
                    return
                await asyncio.gather(*(work(self) for work in fault))

    async def kill_broker(self) -> None:
        self.broker_kills.append(time.monotonic())
        await self.broker.kill()
        await asyncio.sleep(self.random.uniform(0.2, 2))
        await self.broker.start()

    async def kill_node(self) -> None:
        box = self.random.choice(self.boxes)
        self.node_kills.append(time.monotonic())
        await self._end(box, kill=True)
        await asyncio.sleep(self.random.uniform(0, 2))
        await box.start()

    async def stop_node(self) -> None:
        box = self.random.choice(self.boxes)
        await self._end(box, kill=False)
        await asyncio.sleep(self.random.uniform(0, 2))
        await box.start()

    async def _end(self, box: Box, *, kill: bool) -> None:
        self.ends.append((time.monotonic(), box.name, box.life))
        await box.end(kill=kill)

    async def weigh(self) -> None:
        """Note how large the larger node is."""
        while True:
            self.rss_bytes.append(max(box.rss_bytes for box in self.boxes))
            await asyncio.sleep(1)

    async def all_at_home(self) -> None:
        """Return when every device is connected."""
        while not all(plate.home for plate in self.plates):
            await self._stir()

    async def rest(self) -> None:
        """Return when every device has acked a last command, which waits for all before it.

        Its event must not repeat: it is emitted when the broker has an outcome of every earlier command.
        """
        first = len(self.service.commands)
        for plate in self.plates:
            plate.orderly = True
        while True:
            self.restless = [plate for plate in self.plates if not self._rests(plate.serial, first)]
            if not self.restless:
                return
            await self._stir()

    def _rests(self, serial: str, first: int) -> bool:
        command = self.service.last.get(serial)
        if command is None or command.id < first or (command.finals and command.finals[0].status != "acked"):
            self.service.send(serial, HARMFUL, {"restart": True}, 1)
            return False
        return bool(command.finals)

    async def _stir(self) -> None:
        self.service.stir.clear()
        await self.service.stir.wait()

    async def presences(self) -> None:
        """Return when the retained presence of every device says where it is."""
        seen: dict[str, dict[str, Any]] = {}
        async with connection(self.broker.url, "auditor") as client:
            await client.subscribe("gw/v1/devices/+/presence", qos=1)
            async for message in client.messages:
                seen[str(message.topic).split("/")[3]] = json.loads(bytes(message.payload))
                self.unknown = [plate for plate in self.plates if not _is_where(seen.get(plate.serial), plate)]
                if not self.unknown:
                    return


def _is_where(presence: dict[str, Any] | None, plate: Plate) -> bool:
    if plate.home is None or presence is None:
        return False
    return bool(presence["online"]) and presence["node"] == plate.home.name


FAULTS: Final = (
    (World.kill_broker,),
    (World.kill_node,),
    (World.stop_node,),
    (World.kill_broker, World.kill_node),
    (World.kill_broker, World.stop_node),
)


class Tally:
    """What came of it: counts, and what must not be."""

    def __init__(self, world: World, began_at: float) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._world = world
        self._began_at = began_at
        self._plates = {plate.serial: plate for plate in world.plates}
        for command in world.service.commands.values():
            self._count(command)
            self._reached(command)
            self._answered(command)
            self._once(command)
            self._one_outcome(command)
        for plate in world.plates:
            self._in_order(plate)
        self.wrong += [f"{plate.serial} is not at rest: {self._where(plate)}" for plate in world.restless]
        self.wrong += [f"{plate.serial} is not where presence says: {self._where(plate)}" for plate in world.unknown]
        self._flat()

    def _count(self, command: Command) -> None:
        counts = self.counts
        counts[f"commands QoS {command.qos}"] += 1
        counts["receptions"] += len(command.receptions)
        counts["received more than once"] += len(command.receptions) > 1
        counts["final outcomes"] += len(command.finals)
        counts["late outcomes"] += sum(outcome.late for outcome in command.outcomes)
        for status in {outcome.status for outcome in command.outcomes}:
            counts[f"status {status}"] += 1
        counts[f"QoS {command.qos} without a final outcome"] += not command.finals

    def _reached(self, command: Command) -> None:
        """A QoS 1 command whose publish was confirmed reaches the device, or is answered for.

        Not that of which the broker lost all trace: confirmed just before the kill, and not yet saved. Nor one that
        expired in the broker, which says nothing then. What must not repeat may be lost by a kill -9 of its node.
        """
        if not command.qos:
            return
        if command.confirmed_at is None:
            self.counts["QoS 1 unconfirmed"] += 1
            return
        answered = {outcome.status for outcome in command.finals}
        allowed = {"expired", "timeout", "rejected"} | ({"lost"} if command.at_most_once else set())
        if command.receptions or answered & allowed:
            self.counts["QoS 1 reached or answered"] += 1
        elif any(0 <= kill - command.confirmed_at <= UNSAVED_S for kill in self._world.broker_kills):
            self.counts["QoS 1 lost unsaved with the broker"] += 1
        elif command.at_most_once and any(kill >= command.published_at for kill in self._world.node_kills):
            self.counts["QoS 1 at most once, lost with its node"] += 1
        elif self._expired_in_the_broker(command):
            self.counts["QoS 1 expired in the broker"] += 1
        else:
            self.wrong.append(f"never reached its device: {self._story(command)}")

    def _answered(self, command: Command) -> None:
        """What a device received, and every QoS 1 command that may be emitted again, has a final outcome.

        Not if a kill -9 took it: with the node that had it, when it must not repeat, or with what the broker had not
        saved. Not if its node stopped while the broker was away. And not if it expired in the broker.
        """
        handed = bool(command.receptions) or (command.confirmed_at is not None and not command.at_most_once)
        if command.finals or not handed:
            return
        last = max([command.published_at, *(reception.at for reception in command.receptions)])
        kills = [
            *(kill - UNSAVED_S for kill in self._world.broker_kills),
            *(at for at in self._world.node_kills if command.at_most_once),
            *(at for at, *_ in self._world.ends if self._without_broker(at)),
        ]
        if any(0 <= kill - last <= ANSWERED_S for kill in kills) or self._expired_in_the_broker(command):
            self.counts["no final outcome after a kill -9, or expired in the broker"] += 1
        else:
            self.wrong.append(f"no final outcome: {self._story(command)}")

    def _without_broker(self, at: float) -> bool:
        return any(abs(at - kill) < AWAY_S for kill in self._world.broker_kills)

    def _expired_in_the_broker(self, command: Command) -> bool:
        """Whether the broker may have had it when it expired: its device had no node, or went from one to another."""
        if command.expiry_s is None:
            return False
        world, until = self._world, command.published_at + ANSWERED_S
        stays = [stay for stay in self._plates[command.serial].stays if stay[0] <= until]
        earlier = [stay for stay in stays if stay[0] <= command.published_at]
        owners = {(name, life) for _, name, life in (max(earlier), *stays[len(earlier) :])}
        died = any(at < until and (name, life) in owners for at, name, life in world.ends)
        return (
            died
            or len(owners) > 1
            or any(command.published_at - ANSWERED_S < kill < until for kill in world.broker_kills)
        )

    def _once(self, command: Command) -> None:
        """What must not repeat is received once.

        A broker that comes back with an older save may deliver again what was acknowledged to it just before the kill.
        """
        if not command.at_most_once or len(command.receptions) < 2:
            return
        first = command.receptions[0].at
        if command.qos and any(0 <= kill - first <= UNSAVED_S for kill in self._world.broker_kills):
            self.counts["QoS 1 at most once, repeated from an older save"] += 1
        else:
            self.wrong.append(f"received more than once: {self._story(command)}")

    def _one_outcome(self, command: Command) -> None:
        """No owner gives two final outcomes; one that had another owner after it may be asked again."""
        by_life: dict[tuple[str, int], list[Outcome]] = {}
        for outcome in command.finals:
            by_life.setdefault((outcome.node, outcome.life), []).append(outcome)
        stays = self._plates[command.serial].stays
        for life, outcomes in by_life.items():
            for one, two in pairwise(outcomes):
                if one.status == two.status:
                    self.counts["final outcomes repeated"] += 1
                elif any(one.at - 2 <= at <= two.at and (node, count) != life for at, node, count in stays):
                    self.counts["final outcomes that differ, another owner between"] += 1
                else:
                    self.wrong.append(f"two final outcomes: {self._story(command)}")

    def _in_order(self, plate: Plate) -> None:
        """QoS 1 commands are first received in the order of publication."""
        ids = [id for id in dict.fromkeys(plate.received) if self._world.service.commands[id].qos]
        for one, two in pairwise(ids):
            if one > two:
                stories = [self._story(self._world.service.commands[id]) for id in (one, two)]
                self.wrong.append(f"out of order: {' before '.join(stories)}")

    def _flat(self) -> None:
        """The nodes are as large in the second half as in the first, give or take what allocators do."""
        sizes = self._world.rss_bytes
        early, late = max(sizes[: len(sizes) // 2]), max(sizes[len(sizes) // 2 :])
        self.counts["MB of a node, first half"] = early >> 20
        self.counts["MB of a node, second half"] = late >> 20
        if late > early * 1.25 + (16 << 20):
            self.wrong.append(f"nodes grow: {early >> 20} MB, then {late >> 20} MB")

    def _where(self, plate: Plate) -> str:
        last = self._world.service.last.get(plate.serial)
        at = plate.home.name if plate.home else "away"
        return f"{at}, {len(plate.stays)} stays; {self._story(last) if last else 'no command'}"

    def _story(self, command: Command) -> str:
        """Everything about a command, in seconds since the beginning."""
        began = self._began_at
        parts = [(command.published_at, "published")]
        if command.confirmed_at is not None:
            parts.append((command.confirmed_at, "confirmed"))
        parts += [(r.at, f"received {r.node}.{r.life}") for r in command.receptions]
        parts += [(o.at, f"{o.status}{' late' * o.late} {o.node}.{o.life}") for o in command.outcomes]
        since, until = command.published_at - 5, max(at for at, _ in parts) + ANSWERED_S
        stays = self._plates[command.serial].stays
        parts += [(at, f"auth at {node}.{life}") for at, node, life in stays if since < at < until]
        parts += [(at, "BROKER KILLED") for at in self._world.broker_kills if since < at < until]
        parts += [(at, f"END OF {name}.{life}") for at, name, life in self._world.ends if since < at < until]
        told = ", ".join(f"{at - began:.3f} {what}" for at, what in sorted(parts))
        return f"{command.serial} {command.event} {command.id} QoS {command.qos}, expiry {command.expiry_s} [{told}]"

    def __str__(self) -> str:
        world = self._world
        faults = {
            "devices": DEVICES,
            "kill -9 of a node": len(world.node_kills),
            "SIGTERM of a node": len(world.ends) - len(world.node_kills),
            "kill -9 of the broker": len(world.broker_kills),
            "sockets reset": sum(plate.resets for plate in world.plates),
            "hops": sum(plate.hops for plate in world.plates),
        }
        lines = [f"chaos of {CHAOS_S:g} s, seed {SEED}"]
        lines += [f"{count:9,}  {what}" for what, count in (faults | dict(sorted(self.counts.items()))).items()]
        kinds = Counter(line.partition(":")[0] for line in self.wrong)
        lines += [f"{count:9,}  WRONG: {kind}" for kind, count in kinds.items()]
        return "\n".join([*lines, *self.wrong[:MAX_STORIES]])


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """A broker, two nodes, a service and all devices, connected."""
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(local_broker("mosquitto", directory, SAVES))
        except BrokerUnavailable as problem:
            missing(str(problem))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        it = World(broker, http)
        for box in it.boxes:
            await stack.enter_async_context(box)
            await box.start()
        yield it


async def test_chaos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every promise about delivery and presence, at once."""
    async with world(tmp_path) as it, asyncio.TaskGroup() as group:
        living = [group.create_task(it.service.run()), *(group.create_task(plate.run()) for plate in it.plates)]
        async with asyncio.timeout(REST_S):
            await it.service.connected.wait()
            await it.all_at_home()
        began_at = time.monotonic()
        disturbing = [group.create_task(work) for work in (it.command(), it.disturb_devices(), it.weigh())]
        await it.disturb_machines(began_at + CHAOS_S)
        for task in disturbing:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                await it.service.connected.wait()
                await it.all_at_home()
                await it.rest()
                await it.presences()
        for task in living:
            task.cancel()
    tally = Tally(it, began_at)
    with capsys.disabled():
        print(f"\n{tally}")
    assert not tally.wrong, str(tally)
