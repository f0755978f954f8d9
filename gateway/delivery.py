"""Deliveries: what becomes of a device's commands. Pure; time is an argument.

It decides the order of emission, repetition, timeouts and outcomes (README, "Outcomes"), and when a command may be
PUBACKed: right after its outcome (docs/adr/0007), or, for an event that must not repeat, before it is emitted, which
then waits until the broker has read the PUBACK.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final

from gateway import facts as f
from gateway.bodies import Outcome
from gateway.catalog import Args
from gateway.limits import Limits, Shared
from gateway.outcomes import REMEMBERED, Outcomes

MAX_ERROR_CHARS: Final = 500  # a validation error may quote the peer


# States of a job; numbers, because a member of an enumeration is looked up each time.
_WAITING: Final = 0
_EMITTED: Final = 1
_DONE: Final = 2


class _Job:
    """A command on its way to its final outcome."""

    __slots__ = (
        "at_most_once", "attempts", "command", "confirming", "delivery", "emit_ids", "expires_at", "online", "order",
        "since", "state", "told", "wake_at",
    )  # fmt: skip

    def __init__(self, command: f.Command, order: int, now: float, *, online: bool) -> None:
        self.command = command
        self.at_most_once = command.qos == 0 or command.event.at_most_once
        self.online = online  # the device was there when it came
        self.order = order
        self.delivery = command.delivery  # None once it was PUBACKed or the broker forgot it
        self.confirming: int | None = None  # the delivery whose PUBACK the broker must have read before the emission
        self.since = now
        self.expires_at = now + command.lifetime_s
        self.wake_at: float | None = None
        self.state: int = _WAITING
        self.attempts = 0
        self.emit_ids: dict[int, float] = {}  # on the current socket, and when; the device may ack any of them
        self.told = False  # `queued` was published


class Deliveries:
    """The open commands of one device; effects are appended to the list given, to be carried out in order."""

    __slots__ = (
        "_effects", "_emitted", "_emitted_bytes", "_held", "_late", "_limits", "_link_lost_at", "_link_open",
        "_next_emit", "_next_order", "_node", "_open", "_open_bytes", "_outcomes", "_queue", "_serial", "_shared",
        "_socket", "_timers", "_unsettled", "soonest",
    )  # fmt: skip

    def __init__(self, serial: str, node: str, limits: Limits, shared: Shared, effects: list[f.Effect]) -> None:
        self._serial = serial
        self._node = node
        self._limits = limits
        self._shared = shared
        self._effects = effects
        self._outcomes = Outcomes(effects)
        self._socket: int | None = None
        self._held = False  # the socket has to wait for its turn
        self._link_open = False
        self._link_lost_at = 0.0
        self._emitted_bytes = self._open = self._open_bytes = 0  # of commands without a final outcome
        self._queue: dict[int, _Job] = {}  # order → waiting command, in the order of emission
        self._emitted: dict[int, _Job] = {}  # emit id → command; one that was emitted twice is there twice
        self._unsettled: dict[int, _Job | None] = {}  # deliveries without PUBACK, in the order of receipt
        self._timers: list[tuple[float, int, _Job]] = []  # heap; stale where the time is not the job's wake_at
        self._late: OrderedDict[int, _Job] = OrderedDict()  # emit id → command that timed out
        self._next_emit = self._next_order = 0
        self.soonest = inf  # no command waits for a time before this

    def __len__(self) -> int:
        """How many commands have no final outcome yet."""
        return self._open

    @property
    def in_flight(self) -> int:
        """How many commands were emitted and wait for their ack; one that was emitted again counts again."""
        return len(self._emitted)

    @property
    def deadline(self) -> float | None:
        """When `tick` is due; None when no command waits for time."""
        timers = self._timers
        while timers and timers[0][0] != timers[0][2].wake_at:
            heappop(timers)
        return timers[0][0] if timers else None

    def command(self, command: f.Command, now: float) -> None:
        """Take a command: emit it, hold it, or answer it at once."""
        if command.duplicate and command.delivery is not None and self._known(command, command.delivery, now):
            self._pump(now)
            return
        self._next_order += 1
        job = _Job(command, self._next_order, now, online=self._socket is not None)
        self._hold(1, command.size_bytes)
        if job.delivery is not None:
            self._unsettled[job.delivery] = job
        refusal = command.refusal or self._over_a_limit()
        if refusal is not None:
            self._finish(job, now, "rejected", error=refusal)
        elif command.lifetime_s <= 0:
            self._finish(job, now, "expired", error="it had ended before it came")
        elif self._socket is None and command.qos == 0:
            self._finish(job, now, "offline")
        elif self._socket is not None and not (self._queue or self._held or job.at_most_once) and self._fits(job):
            self._emit(job, self._socket, now)
        else:
            self._queue[job.order] = job
            self._pump(now)
            if job.state == _WAITING:
                self._effects.append(f.Hold(command))
                self._tell_queued(job, now)

    def _over_a_limit(self) -> str | None:
        limits = self._limits
        if self._open > limits.max_commands:
            return f"queue full: {limits.max_commands} commands are open"
        if self._open_bytes > limits.max_command_bytes:
            return f"queue full: open commands hold over {limits.max_command_bytes} bytes"
        return self._shared.refusal

    def _hold(self, commands: int, size_bytes: int) -> None:
        self._open += commands
        self._open_bytes += size_bytes
        self._shared.commands.used += commands
        self._shared.bytes.used += size_bytes

    def _known(self, command: f.Command, delivery: int, now: float) -> bool:
        """Take a redelivery of a command that is open or answered: it is settled with it, and not emitted for it."""
        if self._outcomes.repeat(command, now + command.lifetime_s):
            self._unsettled[delivery] = None
            return True
        for job in (*self._emitted.values(), *self._queue.values()):
            if job.command.id == command.id and job.command.event.name == command.event.name:
                self._redeliver(job, delivery)
                return True
        return False

    def _redeliver(self, job: _Job, delivery: int) -> None:
        if job.at_most_once and job.attempts:  # it is not to be emitted by anybody, whatever becomes of us
            self._effects.append(f.Puback(delivery))
            return
        self._unsettled.pop(job.delivery or 0, None)
        self._unsettled[delivery] = job
        job.delivery = delivery
        job.confirming = None

    def acked(self, emit_id: int, args: Args, now: float) -> None:
        """The current socket acked an emission."""
        job = self._emitted.get(emit_id)
        if job is not None:
            data, problem = job.command.event.read_ack(args)
            self._finish(job, now, "nacked" if problem else "acked", data, problem, job.emit_ids[emit_id])
            if self._queue:
                self._pump(now)
        elif (late := self._late.pop(emit_id, None)) is not None:
            for other in late.emit_ids:
                self._late.pop(other, None)
            data, problem = late.command.event.read_ack(args)
            outcome = self._outcome(late, now, "nacked" if problem else "acked", data, problem, late=True)
            self._effects.append(f.Conclude(late.command, outcome, late.since, late.online, late.emit_ids[emit_id]))
            self._outcomes.say(outcome, late.command.answer)
        else:
            self._effects.append(f.Ignore("unknown_ack"))

    def settled(self, delivery: int, now: float) -> None:
        """The broker has read a PUBACK that an emission waits for."""
        for job in self._queue.values():
            if job.confirming == delivery:
                job.confirming = None
        self._pump(now)

    def published(self, fact: f.Published, now: float) -> None:
        """The broker answered for an outcome: the PUBACK of its command has left, or leaves in its turn."""
        delivery = self._outcomes.published(fact)
        if delivery is not None:
            self._forget(delivery)
            if self._queue:
                self._pump(now)

    def tick(self, now: float) -> None:
        """Time out and expire what is due."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            wake_at, _, job = heappop(timers)
            if wake_at == job.wake_at:
                self._time_out(job, now) if job.state == _EMITTED else self._expire(job, now)
        self._pump(now)
        self.soonest = self._timers[0][0] if self._timers else inf

    def attach(self, socket: int, now: float, *, held: bool) -> None:
        """Emit to this socket from now on, beginning with what waited; `held`: not before `release`."""
        self._socket = socket
        self._held = held
        self._pump(now)

    def release(self, now: float) -> None:
        """Emit to the socket that was attached."""
        self._held = False
        self._pump(now)

    def detach(self, now: float) -> None:
        """The socket is gone: take back what it had, to be emitted again or never."""
        self._socket = None
        self._late.clear()
        taken = sorted({job.order: job for job in self._emitted.values()}.items())
        self._emitted.clear()
        again = {}
        for order, job in taken:
            job.emit_ids.clear()
            if job.at_most_once:
                self._finish(job, now, "lost", error="the connection closed before the ack")
            elif job.attempts >= self._limits.max_attempts:
                self._finish(job, now, "timeout", error="the connection closed before the ack, attempts used up")
            else:
                job.state = _WAITING
                self._emitted_bytes -= job.command.size_bytes
                self._effects.append(f.Hold(job.command))
                again[order] = job
        self._queue = {**again, **self._queue}  # what was emitted came before what still waits
        for job in tuple(self._queue.values()):
            if job.command.qos == 0:
                self._finish(job, now, "offline")
            else:
                self._tell_queued(job, now)

    def link_opened(self, resumed: bool, now: float) -> None:
        """The link is up; unless resumed, the broker has forgotten every delivery."""
        self._link_open = True
        if not resumed:
            for job in self._unsettled.values():
                if job is not None:
                    job.delivery = None
            for job in self._queue.values():
                job.confirming = None
            self._unsettled.clear()
            self._outcomes.forget_deliveries()
        self._pump(now)

    def link_lost(self, now: float) -> None:
        """The link is down for now: no PUBACK can leave."""
        self._link_open = False
        self._link_lost_at = now

    def give_up(self, now: float) -> None:
        """The device moved: its new owner answers what the broker delivers again, we answer for the rest."""
        self._outcomes.hand_over(now if self._link_open else self._link_lost_at)
        self._socket = None
        self._link_open = False
        jobs = {job.order: job for job in (*self._emitted.values(), *self._queue.values())}
        for _, job in sorted(jobs.items()):
            if job.delivery is None:
                status = "lost" if job.attempts or job.command.qos else "offline"
                self._finish(job, now, status, error="the device moved to another node")
            else:
                self._effects.append(f.HandOver(job.command))
        self._emitted_bytes = 0
        self._hold(-self._open, -self._open_bytes)
        for container in (self._emitted, self._queue, self._unsettled, self._late, self._timers):
            container.clear()

    def _pump(self, now: float) -> None:
        """Emit what may be emitted, in order; the first that must wait holds up the rest."""
        while self._queue and self._socket is not None and not self._held:
            job = next(iter(self._queue.values()))
            if job.expires_at <= now:
                self._expire(job, now)
            elif self._fits(job) and self._may_emit(job):
                del self._queue[job.order]
                self._emit(job, self._socket, now)
            else:
                break

    def _fits(self, job: _Job) -> bool:
        """Whether it may be emitted beside what was: the device would be closed as slow for what we pile up."""
        return not self._emitted or self._emitted_bytes + job.command.size_bytes <= self._limits.max_emitted_bytes

    def _may_emit(self, job: _Job) -> bool:
        """Whether a command may be emitted now; settles one first that must never be delivered again."""
        delivery = job.delivery
        if delivery is None or not job.at_most_once:
            return job.confirming is None
        # [MQTT-4.6.0-2] PUBACKs go in the order of receipt, so every earlier one must have gone.
        if self._link_open and next(iter(self._unsettled)) == delivery:
            self._forget(delivery)
            self._effects.append(f.Puback(delivery, confirm=True))
            job.confirming = delivery
        return False

    def _emit(self, job: _Job, socket: int, now: float) -> None:
        self._next_emit += 1
        if job.state != _EMITTED:
            self._emitted_bytes += job.command.size_bytes
        job.state = _EMITTED
        job.attempts += 1
        job.emit_ids[self._next_emit] = now
        self._emitted[self._next_emit] = job
        self._wake(job, now + job.command.ack_timeout_s)
        self._effects.append(f.Emit(socket, job.command, self._next_emit, job.attempts))

    def _time_out(self, job: _Job, now: float) -> None:
        repeatable = not job.at_most_once and job.attempts < self._limits.max_attempts and job.expires_at > now
        if repeatable and self._socket is not None:
            self._emit(job, self._socket, now)
            return
        for emit_id in job.emit_ids:
            self._late[emit_id] = job
        while len(self._late) > REMEMBERED:
            self._late.popitem(last=False)
        self._finish(job, now, "timeout", error=f"no ack within {job.command.ack_timeout_s:g} s")

    def _expire(self, job: _Job, now: float) -> None:
        if job.attempts:
            self._finish(job, now, "timeout", error="emitted, but its lifetime ended before an ack")
        else:
            self._finish(job, now, "expired")

    def _tell_queued(self, job: _Job, now: float) -> None:
        """See that a command that has to wait expires in time, and tell its sender once."""
        if job.wake_at != job.expires_at:
            self._wake(job, job.expires_at)
        about_to_be_emitted = job.confirming is not None and self._socket is not None
        if not job.told and not about_to_be_emitted:
            job.told = True
            self._effects.append(f.Queue(job.command))
            self._outcomes.say(self._outcome(job, now, "queued", final=False), job.command.answer)

    def _wake(self, job: _Job, at: float) -> None:
        job.wake_at = at
        self.soonest = min(self.soonest, at)
        heappush(self._timers, (at, job.order, job))
        if len(self._timers) > 2 * self._open + REMEMBERED:  # mostly stale: drop the finished, keep it bounded
            self._timers = [timer for timer in self._timers if timer[0] == timer[2].wake_at]
            heapify(self._timers)

    def _finish(
        self,
        job: _Job,
        now: float,
        status: str,
        data: Any = None,
        error: str | None = None,
        emitted_at: float | None = None,
    ) -> None:
        if job.state == _EMITTED:
            self._emitted_bytes -= job.command.size_bytes
        job.state = _DONE
        job.wake_at = None
        if self._queue:
            self._queue.pop(job.order, None)
        for emit_id in job.emit_ids:
            self._emitted.pop(emit_id, None)
        self._hold(-1, -job.command.size_bytes)
        if not self._open:
            self._timers.clear()
        outcome = self._outcome(job, now, status, data, error)
        self._effects.append(f.Conclude(job.command, outcome, job.since, job.online, emitted_at))
        self._outcomes.conclude(outcome, job.command, job.delivery, job.expires_at)

    def _outcome(
        self,
        job: _Job,
        now: float,
        status: str,
        data: Any = None,
        error: str | None = None,
        *,
        final: bool = True,
        late: bool = False,
    ) -> Outcome:
        return Outcome(
            id=job.command.id,
            serial=self._serial,
            event=job.command.event.name,
            status=status,
            final=final,
            data=data,
            error=error and error[:MAX_ERROR_CHARS],
            attempts=job.attempts,
            maybe_delivered=job.attempts > 0,
            latency_ms=int((now - job.since) * 1e6 + 0.5) / 1000,  # as round() to 3 places, which takes 4 times as long
            node=self._node,
            late=late,
        )

    def _forget(self, delivery: int) -> None:
        """Take a delivery as settled."""
        job = self._unsettled.pop(delivery, None)
        if job is not None:
            job.delivery = None
