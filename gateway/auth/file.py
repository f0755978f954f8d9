"""Devices whose hashed keys stand in a file."""

import hashlib
import hmac
from collections.abc import Mapping

from gateway.auth.base import DeviceKey, Verdict
from gateway.watched import Watched


class FileAuthenticator:
    """Knows each device by the hash of its key, from a file as `gateway.keyfile` reads it.

    A change of the file counts from the next check on.
    """

    def __init__(self, hashes: Watched[dict[str, str]], pepper: bytes) -> None:
        self._hashes = hashes
        self._pepper = pepper

    async def check(self, claim: DeviceKey) -> Verdict:
        """Compare in constant time; an unknown serial costs what a wrong key costs."""
        await self._hashes.refresh()
        actual = hash_key(claim.serial, claim.key, self._pepper)
        expected = self._hashes.content.get(claim.serial, "0" * len(actual))
        return Verdict.ACCEPTED if hmac.compare_digest(expected, actual) else Verdict.DENIED

    def knows(self, serial: str) -> bool:
        """Whether the serial stands in the file."""
        return serial in self._hashes.content

    async def close(self) -> None:
        """Hold nothing."""


def hash_key(serial: str, key: str, pepper: bytes) -> str:
    """Return HMAC-SHA-256 of `serial:key` under the pepper, in hexadecimal, as it stands in the file."""
    return hmac.new(pepper, f"{serial}:{key}".encode(), hashlib.sha256).hexdigest()


def revoked(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The serials whose key is no good any more, because it was removed or is another."""
    return [serial for serial, hashed in old.items() if new.get(serial) != hashed]
