"""What came of a chaos test: counts, and what must not be."""

from collections import Counter
from itertools import pairwise
from typing import Final

from tests.e2e.chaos import Command, Outcome, Stay
from tests.e2e.chaos_world import AnyPlate, World

MAX_STORIES: Final = 20
# What is seen this long before a kill of the broker it may not have saved, a round on a slow disk; or after the kill,
# where it was written before it and is read late.
UNSAVED_S: Final = 0.5
AWAY_S: Final = 5.0  # links are up again this long after a kill -9 of the broker
HANDED_OVER_S: Final = 5.0  # who lost a device to another says so within this time
ANSWERED_S: Final = 7.0  # every attempt, each with its timeout, takes no longer


class Tally:
    """What the promises about delivery and presence say of what happened; `title` is that of its text."""

    def __init__(self, title: str, world: World, began_at: float) -> None:
        self._title = title
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
        elif self._unsaved(command.confirmed_at):
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
        killed_at = {(name, life): at for at, name, life in self._world.ends if at in self._world.node_kills}
        # A device may read a moment after the kill what the node had written before it.
        emitted = (min(got.at, killed_at.get((got.node, got.life), got.at)) for got in command.receptions)
        last = max([command.published_at, *emitted])
        kills = [
            *(at for at in self._world.node_kills if command.at_most_once),
            *(at for at, *_ in self._world.ends if self._without_broker(at)),
        ]
        unsaved = any(-UNSAVED_S <= kill - last <= ANSWERED_S + UNSAVED_S for kill in self._world.broker_kills)
        killed = any(0 <= kill - last <= ANSWERED_S for kill in kills)
        if unsaved or killed or self._expired_in_the_broker(command):
            self.counts["no final outcome after a kill -9, or expired in the broker"] += 1
        else:
            self.wrong.append(f"no final outcome: {self._story(command)}")

    def _unsaved(self, at: float) -> bool:
        """Whether a kill may have taken from the broker what was seen at this time."""
        return any(abs(kill - at) <= UNSAVED_S for kill in self._world.broker_kills)

    def _without_broker(self, at: float) -> bool:
        return any(abs(at - kill) < AWAY_S for kill in self._world.broker_kills)

    def _expired_in_the_broker(self, command: Command) -> bool:
        """Whether the broker may have had it when it expired: its device had no node, or went from one to another.

        A node that starts again may take the link from under a device that has just come to another, which sees nothing
        of it; that both had it shows in who spoke.
        """
        if command.expiry_s is None:
            return False
        world, until = self._world, command.published_at + ANSWERED_S
        owners = {(stay.node, stay.life) for stay in self._from_last_welcome(command) if stay.at <= until}
        owners |= {(said.node, said.life) for said in command.outcomes if said.at <= until}
        died = any(at < until and (name, life) in owners for at, name, life in world.ends)
        return (
            died
            or len(owners) > 1
            or any(command.published_at - ANSWERED_S < kill < until for kill in world.broker_kills)
        )

    def _from_last_welcome(self, command: Command) -> list[Stay]:
        """Where its device was when a command was published, and everywhere it went from there."""
        stays = self._plates[command.serial].stays
        welcomed = [number for number, stay in enumerate(stays) if stay.welcomed_at <= command.published_at]
        return stays[max(welcomed) :]

    def _once(self, command: Command) -> None:
        """What must not repeat is received once.

        A broker that comes back with an older save may deliver again what was acknowledged to it just before the kill.
        """
        if not command.at_most_once or len(command.receptions) < 2:
            return
        if command.qos and self._unsaved(command.receptions[0].at):
            self.counts["QoS 1 at most once, repeated from an older save"] += 1
        else:
            self.wrong.append(f"received more than once: {self._story(command)}")

    def _one_outcome(self, command: Command) -> None:
        """No owner gives two final outcomes; one that had another owner after it may be asked again."""
        by_life: dict[tuple[str, int], list[Outcome]] = {}
        for outcome in command.finals:
            by_life.setdefault((outcome.node, outcome.life), []).append(outcome)
        said: list[Stay | Outcome] = [*self._plates[command.serial].stays, *command.outcomes]
        for life, outcomes in by_life.items():
            others = [other.at for other in said if (other.node, other.life) != life]
            for one, two in pairwise(outcomes):
                if one.status == two.status:
                    self.counts["final outcomes repeated"] += 1
                elif any(one.at - HANDED_OVER_S <= at <= two.at for at in others):
                    self.counts["final outcomes that differ, another owner between"] += 1
                else:
                    self.wrong.append(f"two final outcomes: {self._story(command)}")

    def _in_order(self, plate: AnyPlate) -> None:
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

    def _where(self, plate: AnyPlate) -> str:
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
        parts += [(stay.at, f"connected to {stay.node}.{stay.life}") for stay in stays if since < stay.at < until]
        parts += [(stay.welcomed_at, f"welcome at {stay.node}") for stay in stays if since < stay.welcomed_at < until]
        parts += [(at, "BROKER KILLED") for at in self._world.broker_kills if since < at < until]
        parts += [(at, f"END OF {name}.{life}") for at, name, life in self._world.ends if since < at < until]
        told = ", ".join(f"{at - began:.3f} {what}" for at, what in sorted(parts))
        return f"{command.serial} {command.event} {command.id} QoS {command.qos}, expiry {command.expiry_s} [{told}]"

    def __str__(self) -> str:
        world = self._world
        faults = {
            "devices": len(world.plates),
            "kill -9 of a node": len(world.node_kills),
            "SIGTERM of a node": len(world.ends) - len(world.node_kills),
            "kill -9 of the broker": len(world.broker_kills),
            "sockets reset": sum(plate.resets for plate in world.plates),
            "hops": sum(plate.hops for plate in world.plates),
        }
        lines = [f"{self._title}, seed {world.seed}"]
        lines += [f"{count:9,}  {what}" for what, count in (faults | dict(sorted(self.counts.items()))).items()]
        kinds = Counter(line.partition(":")[0] for line in self.wrong)
        lines += [f"{count:9,}  WRONG: {kind}" for kind, count in kinds.items()]
        return "\n".join([*lines, *self.wrong[:MAX_STORIES]])
