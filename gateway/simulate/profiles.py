"""How simulated devices behave, as data (pure)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

Transport = Literal["polling", "websocket"]


class Flapping(msgspec.Struct, frozen=True):
    """Drops its socket without a goodbye after about `online_s`, again and again.

    It comes back as every device does whose socket is lost, or, where `away_s` is given, after so long.
    """

    online_s: float
    away_s: float | None = None


class Report(msgspec.Struct, frozen=True):
    """An event that the device emits every `every_s` on average while it is online; `asks`: it waits for an ack."""

    event: str
    payload: Any
    every_s: float
    asks: bool = False


class Behaviour(msgspec.Struct, frozen=True):
    """How a device behaves; the default is a socket.io 4 client on a WebSocket that acks at once and stays.

    Attributes:
        engine: 3 for clients of socket.io 1 and 2, 4 for later ones.
        transports: which it uses; with both it begins to poll, and then upgrades.
        ack_delay_s: between which times it acks, in seconds.
    """

    engine: Literal[3, 4] = 4
    transports: tuple[Transport, ...] = ("websocket",)
    ack_delay_s: tuple[float, float] = (0.0, 0.0)
    flapping: Flapping | None = None
    reports: tuple[Report, ...] = ()


class Backoff(msgspec.Struct, frozen=True):
    """When to connect again: socket.io-client's `reconnectionDelay`, `…Max` and `randomizationFactor`."""

    first_s: float = 1.0
    max_s: float = 5.0
    spread: float = 0.5

    def delay_s(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """The pause after so many failures in a row, 0 after a success: doubled each time, give or take the spread."""
        delay_s = self.first_s * 2.0 ** min(failures, 30)
        return min(self.max_s, delay_s * uniform(1 - self.spread, 1 + self.spread))


UPGRADE: Final[tuple[Transport, ...]] = ("polling", "websocket")
POLLING: Final[tuple[Transport, ...]] = ("polling",)

RESULT: Final = Report("cmd_result", {"result": "ok"}, 60.0)
QUESTION: Final = Report("question", {"what": "time"}, 120.0, asks=True)

MODERN: Final = Behaviour()
MODERN_UPGRADE: Final = Behaviour(transports=UPGRADE)
OLD_UPGRADE: Final = Behaviour(engine=3, transports=UPGRADE)
OLD_WEBSOCKET: Final = Behaviour(engine=3)  # WeChat mini-programs
OLD_POLLING: Final = Behaviour(engine=3, transports=POLLING)  # behind a proxy that knows no WebSocket
SLOW: Final = Behaviour(ack_delay_s=(1.0, 8.0))
TOO_SLOW: Final = Behaviour(engine=3, transports=UPGRADE, ack_delay_s=(8.0, 15.0))  # some acks come after the timeout
FLAPPING: Final = Behaviour(flapping=Flapping(20.0))
OLD_FLAPPING: Final = Behaviour(engine=3, transports=UPGRADE, flapping=Flapping(20.0))

PROFILES: Final[Mapping[str, tuple[Behaviour, ...]]] = MappingProxyType(
    {
        "steady": (MODERN,),
        "modern": (MODERN, MODERN, MODERN, MODERN_UPGRADE),
        "old": (OLD_UPGRADE, OLD_UPGRADE, OLD_WEBSOCKET, OLD_POLLING),
        "slow": (SLOW, TOO_SLOW),
        "flapping": (FLAPPING, OLD_FLAPPING),
        "mixed": (
            *(MODERN, MODERN_UPGRADE, OLD_UPGRADE, OLD_WEBSOCKET, OLD_UPGRADE),
            *(MODERN, OLD_UPGRADE, OLD_POLLING, SLOW, MODERN_UPGRADE),
            *(OLD_UPGRADE, MODERN, OLD_UPGRADE, FLAPPING, OLD_WEBSOCKET),
            msgspec.structs.replace(MODERN, reports=(RESULT, QUESTION)),
            msgspec.structs.replace(OLD_UPGRADE, reports=(RESULT, QUESTION)),
            *(TOO_SLOW, OLD_FLAPPING, MODERN),
        ),
    }
)
"""Device number n behaves as entry n of its profile, from the beginning again after the last."""
