"""Outcomes: publishes them, each final one until the broker has it, and remembers the last ones. Pure."""

from typing import Final

import msgspec

from gateway import facts as f
from gateway.bodies import Outcome
from gateway.mqtt.values import FAILURE, Message
from gateway.topics import JSON_TYPE
from gateway.value import Value

REMEMBERED: Final = 64  # outcomes and late emissions per device: what a broker may redeliver, a device ack late


class _Final(Value):
    """A final outcome; it settles the delivery, whose PUBACK follows it."""

    __slots__ = ("answer", "delivery", "forgotten_at", "last_try", "outcome")

    def __init__(
        self,
        outcome: Outcome,
        answer: f.Answer,
        delivery: int | None,
        forgotten_at: float | None,
        last_try: bool = False,
    ) -> None:
        self.outcome: Final = outcome
        self.answer: Final = answer
        self.delivery: Final = delivery
        self.forgotten_at: Final = forgotten_at  # when the broker lets the command expire; None: never
        self.last_try: Final = last_try


class Outcomes:
    """The outcomes of one device; what is to be published is appended to the effects given."""

    __slots__ = ("_answered", "_effects", "_next_token", "_publishing")

    def __init__(self, effects: list[f.Effect]) -> None:
        self._effects = effects
        self._next_token = 0
        self._publishing: dict[int, _Final] = {}  # token → what the broker has not answered for
        # id of a QoS 1 command → its outcome as JSON: one object, which the garbage collector need not look into
        self._answered: dict[str, bytes] = {}

    def say(self, outcome: Outcome, answer: f.Answer, token: int | None = None, settles: int | None = None) -> bytes:
        """Publish an outcome, and after it the PUBACK of the delivery that it settles; return it as JSON."""
        properties: tuple[tuple[str, str], ...] = (("id", outcome.id), ("status", outcome.status))
        if answer.traceparent is not None:
            properties = (*properties, ("traceparent", answer.traceparent))
        message = Message(
            topic=answer.topic,
            payload=_encode(outcome),
            qos=1,
            content_type=JSON_TYPE,
            correlation=answer.correlation,
            user_properties=properties,
        )
        self._effects.append(f.Publish(message, token, False, outcome, settles))
        return message.payload

    def conclude(self, outcome: Outcome, command: f.Command, delivery: int | None, expires_at: float) -> None:
        """Publish a final outcome, to hear of it again in `published`."""
        final = _Final(outcome, command.answer, delivery, expires_at if command.expires_in_broker else None)
        payload = self._publish(final)
        if command.qos and command.is_named:
            self._answered[command.id] = payload
            if len(self._answered) > REMEMBERED:
                del self._answered[next(iter(self._answered))]

    def repeat(self, command: f.Command, expires_at: float) -> bool:
        """Publish the outcome of a command that is delivered again. Whether it is remembered."""
        payload = self._answered.get(command.id)
        outcome = None if payload is None else _decode(payload)
        if outcome is None or outcome.event != command.event.name:
            return False
        self.conclude(outcome, command, command.delivery, expires_at)
        return True

    def published(self, fact: f.Published) -> int | None:
        """The broker answered for an outcome; return the delivery that it has settled.

        What is refused is said once more without the data that may be too large, where nobody chose the topic; it has
        settled its delivery all the same, unless it was not even sent.
        """
        final = self._publishing.pop(fact.token, None)
        if final is None:
            return None
        if fact.code < FAILURE:
            return final.delivery
        if final.last_try:
            self._effects.append(f.Abandon())
            if final.delivery is not None and not fact.sent:
                self._effects.append(f.Puback(final.delivery))
            return final.delivery
        error = f"the broker refused the outcome with 0x{fact.code:02X}"
        outcome = msgspec.structs.replace(final.outcome, data=None, error=error)
        answer = f.Answer(final.answer.acks, None, final.answer.correlation, final.answer.traceparent)
        settles = None if fact.sent else final.delivery
        self._publish(_Final(outcome, answer, settles, final.forgotten_at, last_try=True))
        return final.delivery if fact.sent else None

    def forget_deliveries(self) -> None:
        """The broker has forgotten what it delivered: nothing is settled any more."""
        for token, final in self._publishing.items():
            self._publishing[token] = _Final(final.outcome, final.answer, None, final.forgotten_at, final.last_try)

    def hand_over(self, at: float) -> None:
        """The link is gone since `at`: say again, on another way, what may not have left with it.

        Not what settles a delivery: the broker has it, or delivers again to the new owner, who answers for it, unless
        it had expired in the broker by then.
        """
        for final in self._publishing.values():
            forgotten = final.forgotten_at is not None and final.forgotten_at <= at
            if final.delivery is None or forgotten:
                self.say(final.outcome, final.answer)
        self._publishing.clear()

    def _publish(self, final: _Final) -> bytes:
        self._next_token += 1
        self._publishing[self._next_token] = final
        return self.say(final.outcome, final.answer, self._next_token, final.delivery)


def _decode(payload: bytes) -> Outcome | None:
    try:
        return msgspec.json.decode(payload, type=Outcome)
    except RecursionError:  # it may go less deep than what encoded
        return None


def _encode(outcome: Outcome) -> bytes:
    try:
        return msgspec.json.encode(outcome)
    except (UnicodeEncodeError, RecursionError):  # half a surrogate pair or absurd nesting in a device's ack
        return msgspec.json.encode(msgspec.structs.replace(outcome, data=None, error="the ack is no valid JSON"))
