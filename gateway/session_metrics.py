"""What the sessions of devices do, counted from their facts and effects."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from time import monotonic, time
from typing import Any, Final, get_args

from gateway import facts as f
from gateway.bodies import FINAL_STATUSES
from gateway.instruments import Count, Counts, Histogram, Instruments

OTHER: Final = "other"  # an event that is not in the catalogue
PRESENCES: Final = ("online", "away")
# The service levels are at 2 s and 10 s: both are bounds.
WAIT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
COMMAND_S: Final = (*WAIT_S, 300, 3600)
MICRO_S: Final = (1e-05, 2.5e-05, 5e-05, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)

_OnEffect = Callable[[Any, float], None]
_OnFact = Callable[[Any, list[f.Effect]], Histogram | None]


class SessionMetrics:
    """Commands, their outcomes, and events of devices.

    What a command takes is what all of them take, so it is as little as can be: a command that is emitted at once, and
    acked, is a count and two observations. What else that says is put together when it is exposed (`_Event`).

    Args:
        events: the names that are labels, `other` for all that are not among them.
    """

    def __init__(self, make: Instruments, events: Iterable[str]) -> None:
        families = _Families(make, events)
        self._events = {name: _Event(families, name) for name in events}
        self._other = self._events[OTHER]
        self._durations = {
            status: (families.duration["away", status], families.duration["online", status])
            for status in FINAL_STATUSES
        }
        self._emit_overhead = families.overhead["emit"]
        self._publish_overhead = families.overhead["publish"]
        self._event_overhead = families.overhead["event"]
        self._redeliveries = families.redeliveries[()]
        self._handed_over = families.handed_over[()]
        self._unpublished = families.unpublished[()]
        self._questions = families.questions[()]
        self._reply_duration = families.reply_duration[()]
        self.ignored: Counts = families.ignored
        self._held: OrderedDict[int, float] = OrderedDict()  # id() of a command, which lives → since when
        self._in_flight = families.in_flight
        self._bytes = families.bytes
        families.held.read(lambda: len(self._held))
        families.oldest.read(self._oldest_age_s)
        self._on_fact: Mapping[type, _OnFact] = {
            f.Command: self._command,
            f.Acked: self._acked,
            f.Emitted: self._emitted,
        }
        self._on_effect: Mapping[type, _OnEffect] = {
            f.Emit: self._emit,
            f.Hold: self._hold,
            f.Conclude: self._conclude,
            f.HandOver: self._hand_over,
            f.Queue: self._queue,
            f.Abandon: self._abandon,
            f.Reply: self._reply,
            f.Ignore: self._ignore,
        }

    def observe(self, fact: f.Fact, effects: list[f.Effect], now: float) -> Histogram | None:
        """Count one step of a session, before its effects are carried out.

        Returns the stage that it belongs to, for `done`; None for a step whose time says nothing.
        """
        if isinstance(fact, f.Acked):
            if len(effects) == 2 and isinstance(effects[1], f.Publish):
                effect = effects[0]
                if isinstance(effect, f.Conclude) and effect.emitted_at == effect.received_at and effect.online:
                    command, outcome = effect.command, effect.outcome
                    if outcome.status == "acked" and not outcome.late and command.answer.traceparent is None:
                        self._events.get(command.event.name, self._other).prompt.observe(now - effect.received_at)
                        return self._publish_overhead
        elif isinstance(fact, f.Published):
            if not effects:
                return None
        elif isinstance(fact, f.Command) and len(effects) == 1:
            effect = effects[0]
            if isinstance(effect, f.Emit) and effect.command is fact:
                self._events.get(fact.event.name, self._other).at_once.n += 1
                return self._emit_overhead
        for effect in effects:
            on_effect = self._on_effect.get(type(effect))
            if on_effect is not None:
                on_effect(effect, now)
        on_fact = self._on_fact.get(type(fact))
        return None if on_fact is None else on_fact(fact, effects)

    def done(self, stage: Histogram, read_at: float) -> float:
        """Observe how long the gateway took since it has read what a step is about; return the time it is now."""
        now = monotonic()
        stage.observe(now - read_at)
        return now

    def count_open(self, commands: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        """Ask these for the open commands of all devices, and for the bytes of their payloads."""
        self._in_flight.read(lambda: commands() - len(self._held))
        self._bytes.read(size_bytes)

    # facts

    def _command(self, fact: f.Command, effects: list[f.Effect]) -> Histogram | None:
        if fact.duplicate and not any(getattr(effect, "command", None) is fact for effect in effects):
            self._redeliveries.n += 1
            return None
        self._events.get(fact.event.name, self._other).commands.n += 1
        for effect in effects:
            if isinstance(effect, f.Emit) and effect.command is fact:
                return self._emit_overhead
        return None

    def _acked(self, _: f.Acked, effects: list[f.Effect]) -> Histogram | None:
        return self._publish_overhead if effects and isinstance(effects[0], f.Conclude) else None

    def _emitted(self, fact: f.Emitted, effects: list[f.Effect]) -> Histogram | None:
        self._events.get(fact.event, self._other).received.n += 1
        if not (effects and isinstance(effects[0], f.Publish)):
            return None
        if fact.ack_id is not None:
            self._questions.n += 1
        return self._event_overhead

    # effects

    def _emit(self, effect: f.Emit, _: float) -> None:
        event = self._events.get(effect.command.event.name, self._other)
        (event.first if effect.attempt == 1 else event.repeat).n += 1
        self._held.pop(id(effect.command), None)

    def _hold(self, effect: f.Hold, now: float) -> None:
        self._held[id(effect.command)] = now

    def _conclude(self, effect: f.Conclude, now: float) -> None:
        command, outcome = effect.command, effect.outcome
        event = self._events.get(command.event.name, self._other)
        if effect.emitted_at is not None:
            event.ack.observe(now - effect.emitted_at)
        if outcome.late:
            event.late.n += 1
            return
        event.outcomes[outcome.status].n += 1
        duration, took_s = self._durations[outcome.status][effect.online], now - effect.received_at
        duration.observe(took_s)
        answer = command.answer
        if answer.traceparent is not None and answer.is_sampled:
            duration.exemplify(took_s, answer.trace_id, time())
        self._held.pop(id(command), None)

    def _hand_over(self, effect: f.HandOver, _: float) -> None:
        self._handed_over.n += 1
        self._held.pop(id(effect.command), None)

    def _oldest_age_s(self) -> float:
        return monotonic() - next(iter(self._held.values())) if self._held else 0.0

    def _queue(self, effect: f.Queue, _: float) -> None:
        self._events.get(effect.command.event.name, self._other).queued.n += 1

    def _abandon(self, _: f.Abandon, __: float) -> None:
        self._unpublished.n += 1

    def _reply(self, effect: f.Reply, now: float) -> None:
        if effect.asked_at is not None:
            self._reply_duration.observe(now - effect.asked_at)

    def _ignore(self, effect: f.Ignore, _: float) -> None:
        self.ignored[effect.what].n += 1


class _Families:
    """The families of this module; what they mean is in deploy/METRICS.md."""

    def __init__(self, make: Instruments, events: Iterable[str]) -> None:
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        self.commands = counter("gateway_commands_total", "Commands received.", event=events)
        self.redeliveries = counter("gateway_redeliveries_total", "Redeliveries of known commands.")
        self.outcomes = counter("gateway_outcomes_total", "Commands that ended.", event=events, status=FINAL_STATUSES)
        self.queued = counter("gateway_queued_total", "Commands that had to wait.", event=events)
        self.handed_over = counter("gateway_handed_over_total", "Commands that the next owner answers.")
        self.unpublished = counter("gateway_outcomes_unpublished_total", "Outcomes that the broker refused for good.")
        self.duration = histogram(
            "gateway_command_duration_seconds", "From a command's arrival to its final outcome.", COMMAND_S,
            presence=PRESENCES, status=FINAL_STATUSES,
        )  # fmt: skip
        self.ack = histogram("gateway_ack_duration_seconds", "From an emission to its ack.", WAIT_S, event=events)
        self.overhead = histogram(
            "gateway_overhead_seconds", "The gateway's own part.", MICRO_S, stage=("emit", "publish", "event")
        )
        self.emissions = counter(
            "gateway_emissions_total", "Commands emitted.", event=events, attempt=("first", "repeat")
        )
        self.late = counter("gateway_late_acks_total", "Acks that came after timeout.", event=events)
        self.in_flight = gauge("gateway_commands_in_flight", "Commands that wait for their ack.")
        self.held = gauge("gateway_commands_held", "Commands that wait to be emitted.")
        self.bytes = gauge("gateway_open_command_bytes", "Payloads of commands in flight or held.")
        self.oldest = gauge("gateway_held_oldest_age_seconds", "How long the one that waits longest has waited.")
        self.received = counter("gateway_device_events_total", "Events that devices emitted.", event=events)
        self.questions = counter("gateway_questions_total", "Events that wait for a reply.")
        self.reply_duration = histogram("gateway_reply_duration_seconds", "From a question to its reply.", WAIT_S)
        ignored = (*get_args(f.Ignored), "unusable_reply", "unusable_room_event")
        self.ignored = counter("gateway_ignored_total", "What peers did without meaning.", what=ignored)


class _Event:
    """The instruments of one event.

    Attributes:
        at_once: commands that were emitted as they came: they were received, and emitted a first time.
        prompt: those that were acked then, by how long they took: each has an outcome, a duration and an ack of that.
    """

    __slots__ = ("ack", "at_once", "commands", "first", "late", "outcomes", "prompt", "queued", "received", "repeat")

    def __init__(self, families: _Families, event: str) -> None:
        self.commands = families.commands[event]
        self.queued = families.queued[event]
        self.first = families.emissions[event, "first"]
        self.repeat = families.emissions[event, "repeat"]
        self.late = families.late[event]
        self.ack = families.ack[event]
        self.outcomes = {status: families.outcomes[event, status] for status in FINAL_STATUSES}
        self.received = families.received[event]
        self.at_once = Count()
        families.commands.read(lambda: self.at_once.n, event)
        families.emissions.read(lambda: self.at_once.n, event, "first")
        self.prompt = Histogram(COMMAND_S)
        families.outcomes.read(lambda: self.prompt.count, event, "acked")
        families.ack.include(self.prompt, event)
        families.duration.include(self.prompt, "online", "acked")
