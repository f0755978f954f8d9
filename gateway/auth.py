"""Who is it: the device's signature, and the authenticators that check it.

`broker` mode is not here: there the link's CONNECT carries the key and the broker's answer decides.
"""

import base64
import enum
import hashlib
import hmac
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec

from gateway import keyfile
from gateway.config import Auth
from gateway.settings import ConfigError
from gateway.topics import is_serial

log = logging.getLogger(__name__)

Stamp = tuple[int, ...] | None  # of a file: differs when the file does; None if it is not there

MAX_SIGNATURE_CHARS: Final = 1024
NOT_VALID: Final = "signature not valid."  # 身份验证: the one error text of the document


class Malformed(ValueError):
    """The device sent no usable signature."""


class DeviceKey(msgspec.Struct, frozen=True):
    """What a device claims; the key never shows in a repr."""

    serial: str
    key: str

    def __repr__(self) -> str:
        return f"DeviceKey(serial={self.serial!r})"


class Verdict(enum.Enum):
    """What a check says. UNAVAILABLE is nobody's answer: the device waits, it is not told `auth:fail`.

    Two are of an admission, not of a check: MOVED, the device went to another node meanwhile; FULL, there is no place.
    """

    ACCEPTED = enum.auto()
    DENIED = enum.auto()
    UNAVAILABLE = enum.auto()
    MOVED = enum.auto()
    FULL = enum.auto()


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
    """Knows each device by the hash of its key, from a file that it reads again when the file has changed.

    A changed file that cannot be used is warned of once, and the last good one counts.
    """

    def __init__(self, path: Path, pepper: bytes, stamp: Stamp, hashes: dict[str, str]) -> None:
        self._path = path
        self._pepper = pepper
        self._stamp = stamp
        self._hashes = hashes

    @classmethod
    def load(cls, path: Path, pepper: bytes) -> "FileAuthenticator":
        """Read a file of keys. Raises ValueError, one line, when it cannot be used."""
        stamp = _stamp(path)  # before it is read, so that no change is missed
        return cls(path, pepper, stamp, keyfile.read(path))

    async def check(self, claim: DeviceKey) -> Verdict:
        """Compare in constant time; an unknown serial costs what a wrong key costs."""
        self._refresh()
        actual = hash_key(claim.serial, claim.key, self._pepper)
        expected = self._hashes.get(claim.serial, "0" * len(actual))
        return Verdict.ACCEPTED if hmac.compare_digest(expected, actual) else Verdict.DENIED

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._hashes = keyfile.read(self._path)
        except ValueError as problem:
            log.warning("keys not usable, the last good ones count", extra={"problem": str(problem)})
        else:
            log.info("keys read again", extra={"devices": len(self._hashes)})


def authenticator(auth: Auth, environ: Mapping[str, str]) -> Authenticator | None:
    """Who checks keys, None where the broker does. Raises ConfigError with every problem there is."""
    if auth.mode == "broker":
        return None
    if auth.mode == "open":
        return OpenAuthenticator()
    pepper = environ.get(auth.pepper_env, "")
    problems = [] if pepper else [f"environment {auth.pepper_env}: missing, expected the secret of the hashes"]
    try:
        checker = FileAuthenticator.load(Path(auth.file), pepper.encode())
    except ValueError as problem:
        problems.append(f"auth.file: {problem}")
    if problems:
        raise ConfigError(problems)
    return checker


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


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
