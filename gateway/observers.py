"""Who is told of every step of every session, as the settings say: nobody, as a rule."""

import logging
from typing import TYPE_CHECKING

from gateway.command_log import CommandLog
from gateway.config import Tracing
from gateway.settings import ConfigError
from gateway.surroundings import Observer

if TYPE_CHECKING:
    from gateway.tracing import Tracer


def tracer_of(settings: Tracing, node: str) -> "Tracer | None":
    """What makes spans; None, and its packages are not imported, where nobody wants any. Raises ConfigError."""
    if not settings.endpoint:
        return None
    try:
        from gateway.tracing import Tracer
    except ModuleNotFoundError as missing:
        hint = "pip install 'socketio-mqtt-gateway[otel]'"
        raise ConfigError([f"tracing.endpoint: needs {missing.name}, which is not installed: {hint}"]) from None
    return Tracer.to(settings.endpoint, node)


def observers_of(tracer: "Tracer | None") -> tuple[Observer, ...]:
    """The tracer, and the log where it is at level debug."""
    logged = (CommandLog(),) if logging.getLogger(CommandLog.__module__).isEnabledFor(logging.DEBUG) else ()
    return (*logged, tracer) if tracer is not None else logged
