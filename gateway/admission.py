"""Who may come in, how fast, and how many: strangers, viewers, and those who guess keys. Pure.

`now` is monotonic seconds, an address is the client's. Every table is bounded; who falls out of one counts as
never seen, so that forgetting keeps nobody out. Nothing here keeps a serial out for good, whoever fails at it.
"""

from collections import OrderedDict
from collections.abc import Hashable
from enum import StrEnum
from math import ceil
from typing import Final, Generic, TypeVar

from gateway.crowd import Crowd
from gateway.proxies import shared
from gateway.value import Value

REMEMBERED: Final = 16_384  # addresses, or serials, in each table: about 3 MB when it is full
REMEMBERED_PAIRS: Final = 65_536  # devices with the address from which they had the right key
BURST_S: Final = 20.0  # how many seconds' worth of handshakes may come at once: a school after a power cut
CROWDED: Final = 5  # Retry-After, in seconds, where nobody knows when a place will be free

FREE_FAILURES: Final = 5  # wrong keys that cost nothing: typing errors
MAX_FAILURES: Final = 12  # what is counted at most, so that it fades in a minute or two
HALF_LIFE_S: Final = 60.0
CLEAN: Final = 0.5  # failures below which an address is like new: one, a half-life ago
FIRST_DELAY_S: Final = 0.5

K = TypeVar("K", bound=Hashable)


class Refusal(StrEnum):
    """What peers were refused, or slowed down in, and why. Stable: they label a metric."""

    HANDSHAKE_RATE = "handshake-rate"
    ADDRESS_HANDSHAKE_RATE = "address-handshake-rate"
    STRANGERS = "strangers"
    STRANGER_BYTES = "stranger-bytes"
    DEVICES = "devices"
    VIEWERS = "viewers"
    ADDRESS_VIEWERS = "address-viewers"
    ORIGIN = "origin"
    FORGED_RELAY = "forged-relay"
    SLOW_REQUEST = "slow-request"
    CROWDED_OUT = "crowded-out"
    LARGE_REQUEST = "large-request"
    MALFORMED_SIGNATURE = "malformed-signature"
    WRONG_KEY = "wrong-key"
    DELAYED_KEY = "delayed-key"
    TOKEN = "token"  # noqa: S105 - it is none
    MESSAGE_RATE = "message-rate"
    ADMIN_TOKEN = "admin-token"  # noqa: S105 - it is none


class Refused(Value):
    """A handshake that is not taken, and when to come again, in whole seconds."""

    __slots__ = ("reason", "retry_after_s")

    def __init__(self, reason: Refusal, retry_after_s: int) -> None:
        self.reason: Final = reason
        self.retry_after_s: Final = retry_after_s


class AdmissionLimits(Value):
    """How much is let in; rates are per second, and BURST_S of them may come at once.

    `max_key_delay_s`: how long one who guesses keys waits at most; shorter than the time to authenticate.
    """

    __slots__ = (
        "handshakes_per_address_per_s",
        "handshakes_per_s",
        "max_key_delay_s",
        "max_strangers",
        "max_strangers_per_address",
        "max_viewers",
        "max_viewers_per_address",
    )

    def __init__(
        self,
        *,
        handshakes_per_s: float = 1000.0,
        handshakes_per_address_per_s: float = 50.0,
        max_strangers: int = 10_000,
        max_strangers_per_address: int = 1000,
        max_viewers: int = 10_000,
        max_viewers_per_address: int = 1000,
        max_key_delay_s: float = 10.0,
    ) -> None:
        self.handshakes_per_s: Final = handshakes_per_s
        self.handshakes_per_address_per_s: Final = handshakes_per_address_per_s
        self.max_strangers: Final = max_strangers
        self.max_strangers_per_address: Final = max_strangers_per_address
        self.max_viewers: Final = max_viewers
        self.max_viewers_per_address: Final = max_viewers_per_address
        self.max_key_delay_s: Final = max_key_delay_s


class Rates(Generic[K]):
    """Token buckets by key. Of each only the time is kept at which it is full again."""

    def __init__(self, per_s: float, burst: float, size: int = REMEMBERED) -> None:
        self._token_s = 1 / per_s
        self._room_s = max(burst - 1, 0) / per_s
        self._size = size
        self._full_at: OrderedDict[K, float] = OrderedDict()  # by latest use

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, key: K, now: float) -> float:
        """How long until there is a token; 0 when there is one."""
        return max(0.0, self._full_at.get(key, now) - now - self._room_s)

    def take(self, key: K, now: float) -> None:
        """Take a token, which must be there."""
        self._full_at[key] = max(self._full_at.pop(key, now), now) + self._token_s
        if len(self._full_at) > self._size:
            self._full_at.popitem(last=False)


class Counts:
    """How many are in, in all and by address."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._total = 0
        self._each: dict[str, int] = {}

    def __len__(self) -> int:
        return self._total

    @property
    def full(self) -> bool:
        """Whether nobody may enter."""
        return self._total >= self._most

    def full_for(self, address: str) -> bool:
        """Whether nobody may enter from there."""
        return self._each.get(address, 0) >= self._most_each

    def enter(self, address: str) -> None:
        """Count one more."""
        self._total += 1
        self._each[address] = self._each.get(address, 0) + 1

    def leave(self, address: str) -> None:
        """Count one less of those who entered."""
        self._total -= 1
        left = self._each[address] - 1
        if left:
            self._each[address] = left
        else:
            del self._each[address]


class Failures(Generic[K]):
    """How often something failed of late: each counts half after HALF_LIFE_S."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._seen: OrderedDict[K, tuple[float, float]] = OrderedDict()  # key → failures, as of when; by latest

    def __len__(self) -> int:
        return len(self._seen)

    def count(self, key: K, now: float) -> float:
        """The failures, faded."""
        failures, at = self._seen.get(key, (0.0, now))
        return failures * 0.5 ** (max(0.0, now - at) / HALF_LIFE_S) if failures else 0.0

    def add(self, key: K, now: float) -> None:
        """It failed once more."""
        failures = min(self.count(key, now) + 1, MAX_FAILURES)
        self._seen.pop(key, None)
        self._seen[key] = failures, now
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)


class Guesses:
    """How long a key waits before it is checked, the right one too, so that the wait tells nothing.

    A device with its key comes in at once where others fail at its serial, however many: an address without a
    failure of late never waits, nor does one from which this serial had the right key before, unless just these
    two fail. Anyone else waits longer with each failure of the address, or of the serial if that is worse.
    """

    def __init__(self, max_delay_s: float) -> None:
        self._max_delay_s = max_delay_s
        self._addresses: Failures[str] = Failures()
        self._serials: Failures[str] = Failures()
        self._pairs: Failures[tuple[str, str]] = Failures()
        self._proven: OrderedDict[tuple[str, str], None] = OrderedDict()  # who had the right key from where

    def __len__(self) -> int:
        return len(self._addresses) + len(self._serials) + len(self._pairs) + len(self._proven)

    def delay_s(self, address: str, serial: str, now: float) -> float:
        """How long this key is to wait."""
        address = shared(address)
        if (address, serial) in self._proven:
            failures = self._pairs.count((address, serial), now)
        else:
            failures = self._addresses.count(address, now)
            if failures >= CLEAN:
                failures = max(failures, self._serials.count(serial, now))
        over = failures - FREE_FAILURES
        return min(FIRST_DELAY_S * 2**over, self._max_delay_s) if over >= 0 else 0.0

    def wrong(self, address: str, serial: str | None, now: float) -> None:
        """A key was wrong, or (without a serial) no key at all."""
        address = shared(address)
        self._addresses.add(address, now)
        if serial is None:
            return
        self._serials.add(serial, now)
        if (address, serial) in self._proven:
            self._pairs.add((address, serial), now)

    def right(self, address: str, serial: str) -> None:
        """A key was right. What failed there before still counts: an attacker may have one key."""
        pair = shared(address), serial
        self._proven.pop(pair, None)
        self._proven[pair] = None
        if len(self._proven) > REMEMBERED_PAIRS:
            self._proven.popitem(last=False)


class Admission:
    """The limits of one node, and what counts against them."""

    def __init__(self, limits: AdmissionLimits = AdmissionLimits()) -> None:  # noqa: B008 - it is frozen
        burst, burst_each = limits.handshakes_per_s * BURST_S, limits.handshakes_per_address_per_s * BURST_S
        self._rate: Rates[None] = Rates(limits.handshakes_per_s, burst)
        self._rates: Rates[str] = Rates(limits.handshakes_per_address_per_s, burst_each)
        self._viewers = Counts(limits.max_viewers, limits.max_viewers_per_address)
        self.strangers: Crowd[str] = Crowd(limits.max_strangers, limits.max_strangers_per_address)
        self.guesses = Guesses(limits.max_key_delay_s)

    def handshake(self, address: str, now: float) -> Refused | None:
        """Somebody shakes hands, for a new socket or for a WebSocket of one that there is: None, or why it may not."""
        key = shared(address)
        if (wait_s := self._rates.wait_s(key, now)) > 0:
            return Refused(Refusal.ADDRESS_HANDSHAKE_RATE, ceil(wait_s))
        if (wait_s := self._rate.wait_s(None, now)) > 0:
            return Refused(Refusal.HANDSHAKE_RATE, ceil(wait_s))
        self._rates.take(key, now)
        self._rate.take(None, now)
        return None

    def view(self, address: str) -> Refusal | None:
        """A stranger would be a viewer: None, and it is one until `unview`, or why not."""
        key = shared(address)
        if self._viewers.full_for(key):
            return Refusal.ADDRESS_VIEWERS
        if self._viewers.full:
            return Refusal.VIEWERS
        self._viewers.enter(key)
        return None

    def unview(self, address: str) -> None:
        """A viewer left, or is a device now."""
        self._viewers.leave(shared(address))
