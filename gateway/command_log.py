"""The life of each command as lines of the log, at level debug: received, emitted, held, ended; with its trace id."""

import logging
from typing import Any

from gateway import facts as f

log = logging.getLogger(__name__)


class CommandLog:
    """Logs what sessions make of commands."""

    def observe(self, serial: str, fact: f.Fact, effects: list[f.Effect], _: float) -> None:
        """Log one step of a session."""
        if isinstance(fact, f.Command):
            extra: dict[str, Any] = {"qos": fact.qos} | ({"duplicate": True} if fact.duplicate else {})
            log.debug("command received", extra=_fields(serial, fact) | extra)
        for effect in effects:
            match effect:
                case f.Emit():
                    log.debug("command emitted", extra=_fields(serial, effect.command) | {"attempt": effect.attempt})
                case f.Hold():
                    log.debug("command held", extra=_fields(serial, effect.command))
                case f.HandOver():
                    log.debug("command handed over", extra=_fields(serial, effect.command))
                case f.Conclude(outcome=outcome):
                    extra = {"status": outcome.status, "attempts": outcome.attempts, "latency_ms": outcome.latency_ms}
                    message = "command acked late" if outcome.late else "command ended"
                    log.debug(message, extra=_fields(serial, effect.command) | extra)


def _fields(serial: str, command: f.Command) -> dict[str, Any]:
    named = {"serial": serial, "event": command.event.name, "id": command.id}
    trace_id = command.answer.trace_id
    return named | {"trace_id": trace_id} if trace_id else named
