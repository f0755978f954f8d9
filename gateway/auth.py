"""Who is it: the device's signature, and the authenticators that check it.

`broker` mode is not here: there the link's CONNECT carries the key and the broker's answer decides.
"""

import base64
import enum
import hashlib
import hmac
import re
from pathlib import Path
from typing import Final, Protocol

import msgspec

from gateway.topics import is_serial

MAX_SIGNATURE_CHARS: Final = 1024
NOT_VALID: Final = "signature not valid."  # 身份验证: the one error text of the document
_HASH = re.compile("[0-9a-f]{64}")  # SHA-256, as `hash_key` writes it


class Malformed(ValueError):
    """The device sent no usable signature."""


class DeviceKey(msgspec.Struct, frozen=True):
    """What a device claims; the key never shows in a repr."""

    serial: str
    key: str

    def __repr__(self) -> str:
        return f"DeviceKey(serial={self.serial!r})"


class Verdict(enum.Enum):
    """What a check says. UNAVAILABLE is nobody's answer: the device waits, it is not told `auth:fail`."""

    ACCEPTED = enum.auto()
    DENIED = enum.auto()
    UNAVAILABLE = enum.auto()


class Authenticator(Protocol):
    """Checks keys."""

    async def check(self, claim: DeviceKey) -> Verdict:
        """Whether the claim is right; never raises."""


class OpenAuthenticator:
    """Lets every well-formed serial in, whatever its key: for trying things out."""

    async def check(self, claim: DeviceKey) -> Verdict:
        """Accept."""
        return Verdict.ACCEPTED


class FileAuthenticator:
    """Knows each device by the hash of its key (`hash_key`), one `serial:hash` a line; `#` begins a comment."""

    def __init__(self, hashes: dict[str, str], pepper: bytes) -> None:
        self._hashes = hashes
        self._pepper = pepper

    @classmethod
    def load(cls, path: Path, pepper: bytes) -> "FileAuthenticator":
        """Read a file of keys.

        Raises:
            ValueError: the file cannot be read, or a line is wrong; one line that says which.
        """
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise ValueError(f"{path}: cannot be read: {problem}") from None
        hashes = {}
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.split("#", 1)[0].strip()
            if not entry:
                continue
            serial, _, digest = entry.partition(":")
            if not (is_serial(serial) and _HASH.fullmatch(digest)):
                raise ValueError(f"{path}:{number}: expected serial:hash, as `gateway devices add` writes it")
            hashes[serial] = digest
        return cls(hashes, pepper)

    async def check(self, claim: DeviceKey) -> Verdict:
        """Compare in constant time; an unknown serial costs what a wrong key costs."""
        actual = hash_key(claim.serial, claim.key, self._pepper)
        expected = self._hashes.get(claim.serial, "0" * len(actual))
        return Verdict.ACCEPTED if hmac.compare_digest(expected, actual) else Verdict.DENIED


def hash_key(serial: str, key: str, pepper: bytes) -> str:
    """Return HMAC-SHA-256 of `serial:key` under the pepper, in hexadecimal, as it stands in the file."""
    return hmac.new(pepper, f"{serial}:{key}".encode(), hashlib.sha256).hexdigest()


def parse_signature(data: object) -> DeviceKey:
    """Read the argument of an `authentication` event: `{"signature": base64("serial_no:device_key")}`.

    White space, which `base64` puts into long output, is skipped.

    Raises:
        Malformed: anything else.
    """
    signature = data.get("signature") if isinstance(data, dict) else None
    if not isinstance(signature, str) or len(signature) > MAX_SIGNATURE_CHARS:
        raise Malformed("no signature")
    try:
        text = base64.b64decode("".join(signature.split()), validate=True).decode()
    except ValueError:
        raise Malformed("not base64 of UTF-8") from None
    serial, separator, key = text.partition(":")
    if not separator or not key or not is_serial(serial):
        raise Malformed("not serial:key")
    return DeviceKey(serial, key)
