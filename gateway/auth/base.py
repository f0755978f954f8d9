"""Who is it: what a device claims, and the port behind which its key is checked. Pure."""

import base64
import enum
from typing import Final, Protocol

from gateway.topics import is_serial
from gateway.value import Value

MAX_SIGNATURE_CHARS: Final = 1024
NOT_VALID: Final = "signature not valid."  # 身份验证: the one error text of the document


class Malformed(ValueError):
    """The device sent no usable signature."""


class DeviceKey(Value):
    """What a device claims, and the address that it claims it from; the key never shows in a repr."""

    __slots__ = ("address", "key", "serial")

    def __init__(self, serial: str, key: str, address: str = "") -> None:
        self.serial: Final = serial
        self.key: Final = key
        self.address: Final = address

    def __repr__(self) -> str:
        return f"DeviceKey(serial={self.serial!r})"


class Verdict(enum.Enum):
    """What a check says, or an admission. Only DENIED is told to the device, as `auth:fail`."""

    ACCEPTED = enum.auto()
    DENIED = enum.auto()  # an unknown serial and a wrong key are not told apart
    UNAVAILABLE = enum.auto()  # nobody's answer: to be asked again
    MOVED = enum.auto()  # the device went to another node meanwhile: nothing to be asked any more
    FULL = enum.auto()  # of an admission alone: there is no place


class Authenticator(Protocol):
    """Checks keys. Serials are well-formed, keys are any text but the empty one."""

    async def check(self, claim: DeviceKey) -> Verdict:
        """Whether the claim is right, asked once; never raises, may be called many times at once."""

    def knows(self, serial: str) -> bool:
        """Whether there may be such a device; True where that takes its key."""

    async def close(self) -> None:
        """Let go of what it holds; may be called again. No check comes after it."""


class OpenAuthenticator:
    """Lets every well-formed serial in, whatever its key: for trying things out."""

    async def check(self, claim: DeviceKey) -> Verdict:
        """Accept."""
        return Verdict.ACCEPTED

    def knows(self, serial: str) -> bool:
        """Know everybody."""
        return True

    async def close(self) -> None:
        """Hold nothing."""


def parse_signature(data: object, address: str = "") -> DeviceKey:
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
    return DeviceKey(serial, key, address)
