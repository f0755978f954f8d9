"""Commands that wait for their outcome: each ends with a final outcome, NoOutcome or Disconnected, and is forgotten."""

import asyncio

import msgspec

from gateway.bodies import Outcome
from gateway.fleet.connection import Disconnected


class NoOutcome(TimeoutError):
    """No final outcome in time; `Fleet.why_silent` may explain it. The device may still get the command."""


class NotAcked(Exception):
    """The final outcome of a command is another than `acked`: see `outcome.status`, and `outcome.error` for why."""

    def __init__(self, outcome: Outcome) -> None:
        why = f": {outcome.error}" if outcome.error else ""
        super().__init__(f"{outcome.serial} {outcome.event}: {outcome.status}{why}")
        self.outcome = outcome


class CallOutcome(Outcome, frozen=True):
    """The outcome of a command, as the gateway published it."""

    def raise_for_status(self) -> "CallOutcome":
        """Return itself if the device acked. Raises NotAcked."""
        if self.status != "acked":
            raise NotAcked(self)
        return self


class Called(msgspec.Struct, frozen=True):
    """How one call of `Fleet.call_many` ended: with a final outcome, or with an error."""

    serial: str
    outcome: CallOutcome | None = None
    error: NoOutcome | Disconnected | None = None

    @property
    def status(self) -> str:
        """The outcome's status, or `no_outcome` or `disconnected`."""
        if self.outcome is not None:
            return self.outcome.status
        return "disconnected" if isinstance(self.error, Disconnected) else "no_outcome"

    def raise_for_status(self) -> CallOutcome:
        """Return the outcome if the device acked. Raises NotAcked, NoOutcome, Disconnected."""
        if self.outcome is None:
            assert self.error is not None
            raise self.error
        return self.outcome.raise_for_status()


class Sent:
    """A command that was sent. It ends by itself, whether somebody awaits it or not."""

    __slots__ = ("event", "final", "first", "id", "interrupted", "qos", "serial")

    def __init__(self, id: str, serial: str, event: str, qos: int) -> None:
        loop = asyncio.get_running_loop()
        self.id = id
        self.serial = serial
        self.event = event
        self.qos = qos
        self.interrupted = False  # the connection was lost while it waited
        self.first: asyncio.Future[CallOutcome] = loop.create_future()
        self.final: asyncio.Future[CallOutcome] = loop.create_future()

    async def queued(self) -> CallOutcome:
        """Wait for the first outcome: `queued`, or the final one of a command that did not have to wait.

        Raises:
            NoOutcome: there was none in time.
            Disconnected: the fleet was closed, or with QoS 0 the connection lost.
        """
        return await asyncio.shield(self.first)

    async def outcome(self) -> CallOutcome:
        """Wait for the final outcome. Raises as `queued` does."""
        return await asyncio.shield(self.final)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.final.done()


class Calls:
    """The commands that wait, by their id."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Sent, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sent: Sent, timeout_s: float) -> None:
        """Wait for its outcomes, for so long."""
        timer = asyncio.get_running_loop().call_later(timeout_s, self._time_out, sent, timeout_s)
        self._waiting[sent.id] = sent, timer

    def _time_out(self, sent: Sent, timeout_s: float) -> None:
        why = ", the broker was lost meanwhile" if sent.interrupted else ""
        self.fail(sent, NoOutcome(f"{sent.serial} {sent.event}: no final outcome within {timeout_s:g} s{why}"))

    def tell(self, id: str, outcome: CallOutcome) -> None:
        """Hand an outcome to the command that waits for it; leave aside what nobody waits for."""
        if (waiting := self._waiting.get(id)) is None:
            return
        sent, _ = waiting
        if not sent.first.done():
            sent.first.set_result(outcome)
        if outcome.final:
            self._forget(sent)
            sent.final.set_result(outcome)

    def fail(self, sent: Sent, error: Exception) -> None:
        """End a command with an error; nothing if it has ended."""
        if not self._forget(sent):
            return
        for future in (sent.first, sent.final):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody has to await it

    def drop(self, sent: Sent) -> None:
        """Forget a command that nobody waits for any more."""
        if self._forget(sent):
            sent.first.cancel()
            sent.final.cancel()

    def lose(self, reason: str, *, every: bool) -> None:
        """End those of QoS 0, whose outcome cannot be told from a loss any more, or every one."""
        for sent, _ in list(self._waiting.values()):
            sent.interrupted = True
            if every or sent.qos == 0:
                self.fail(sent, Disconnected(reason))

    def _forget(self, sent: Sent) -> bool:
        _, timer = self._waiting.pop(sent.id, (None, None))
        if timer is not None:
            timer.cancel()
        return timer is not None
