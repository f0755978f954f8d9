"""What may be held, of one device and of all devices of a node together. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one device may hold; times in seconds."""

    max_attempts: int = 3
    max_commands: int = 256
    max_command_bytes: int = 8 << 20
    max_emitted_bytes: int = 1 << 19  # without ack; one command may be larger
    max_questions: int = 64
    reply_timeout_s: float = 30.0


class Budget:
    """What many hold together: each adds what it takes and subtracts what it gives back; nobody is refused here."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def is_over(self) -> bool:
        """Whether more is held than may be."""
        return self.used > self.limit


class Shared:
    """What the devices of a node hold together: open commands, and the bytes of their payloads."""

    __slots__ = ("bytes", "commands")

    def __init__(self, max_commands: int, max_bytes: int) -> None:
        self.commands = Budget(max_commands)
        self.bytes = Budget(max_bytes)

    @property
    def refusal(self) -> str | None:
        """Why a command is refused that makes them more than they may be; None if it does not."""
        if self.commands.is_over:
            return f"node full: {self.commands.limit} commands of all devices are open"
        if self.bytes.is_over:
            return f"node full: open commands of all devices hold over {self.bytes.limit} bytes"
        return None


class Pace:
    """Turns, at most so many a second; `now` in monotonic seconds."""

    __slots__ = ("_every_s", "_next_at")

    def __init__(self, per_s: float) -> None:
        self._every_s = 1 / per_s
        self._next_at = 0.0

    def turn(self, now: float) -> float:
        """Take the next turn; return when it is: now, if nobody is before."""
        at = max(now, self._next_at)
        self._next_at = at + self._every_s
        return at
