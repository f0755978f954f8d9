"""TLS: the certificate that devices see, read again while the node runs, and what is shown to the broker.

Decides which versions are spoken: TLS 1.2 and 1.3, with Python's ciphers, all of them with forward secrecy.
"""

import logging
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.config import Mqtt
from gateway.settings import ConfigError
from gateway.watched import Files, Watched

log = logging.getLogger(__name__)

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0  # [0] EXPLICIT
_UTC_TIME: Final = 0x17


class Certificate:
    """What a context shows of itself: a certificate with its chain, and the key.

    Args:
        certificate: PEM, the chain after it.
        key: PEM; it may be in the same file.

    Attributes:
        context: a handshake shows the certificate that was current when it began.
        expires_at: when the present one ends, in Unix time.

    Raises:
        ValueError: one line; the files cannot be used.
    """

    def __init__(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        self.context = context
        self.paths = (certificate, key)
        self.load()

    def load(self) -> None:
        """Read the files anew; if they are unusable nothing changes. Raises ValueError."""
        self.check()
        expires_at = not_after(self.paths[0])
        _load(self.context, *self.paths)
        self.expires_at = expires_at

    def check(self) -> None:
        """Raise ValueError if the files cannot be used as they are now."""
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self.paths)

    def watch(self, files: Files) -> None:
        """Read it again when one of its files changes."""
        for path in dict.fromkeys(self.paths):
            files.watch(Watched.load(path, self._look, self._changed))

    def _look(self, _: Path) -> object:
        self.check()
        return object()  # unlike the one before, so that it counts as a change

    def _changed(self, *_: object) -> None:
        try:
            self.load()
        except ValueError as problem:  # it changed once more meanwhile, and will be looked at again
            log.warning("certificate not usable, the last good one counts", extra={"problem": str(problem)})
        else:
            log.info("certificate read again", extra={"file": str(self.paths[0])})


def server_context() -> ssl.SSLContext:
    """How to be a server, once there is a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(ca: str = "") -> ssl.SSLContext:
    """How to connect to a server: what it shows is verified, by the authorities in this file or the system's.

    Raises ValueError, one line.
    """
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as problem:
        raise ValueError(f"{ca}: {_why(problem, 'no certificate of an authority in it')}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def of_server(section: str, certificate: str, key: str, files: Files) -> Certificate | None:
    """The certificate of the port that this section sets; None without one. Raises ConfigError."""
    if not certificate:
        return None
    try:
        found = Certificate(server_context(), Path(certificate), Path(key or certificate))
    except ValueError as problem:
        raise ConfigError([f"{section}.tls_cert: {problem}"]) from None
    found.watch(files)
    return found


def to_broker(mqtt: Mqtt, files: Files) -> tuple[ssl.SSLContext | None, Certificate | None]:
    """How links connect to the broker, None if not by TLS; and what they show there. Raises ConfigError."""
    if not mqtt.url.tls:
        return None, None
    try:
        context = client_context(mqtt.ca_file)
    except ValueError as problem:
        raise ConfigError([f"mqtt.ca_file: {problem}"]) from None
    if not mqtt.cert_file:
        return context, None
    try:
        found = Certificate(context, Path(mqtt.cert_file), Path(mqtt.key_file or mqtt.cert_file))
    except ValueError as problem:
        raise ConfigError([f"mqtt.cert_file: {problem}"]) from None
    found.watch(files)
    return context, found


def not_after(path: Path) -> float:
    """When the first certificate of a PEM file ends, in Unix time. Raises ValueError."""
    try:
        pem = path.read_text("ascii")
        start = pem.index(ssl.PEM_HEADER)
        end = pem.index(ssl.PEM_FOOTER, start) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(pem[start:end])
        (_, certificate), *_ = _values(der)
        (_, to_be_signed), *_ = _values(certificate)
        fields = [value for tag, value in _values(to_be_signed) if tag != _VERSION]
        _, (tag, ends) = _values(fields[3])  # after serial, algorithm, issuer [RFC 5280, 4.1]
    except OSError as problem:
        raise ValueError(f"{path}: {problem.strerror}") from None
    except (ValueError, IndexError):
        raise ValueError(f"{path}: no certificate in it") from None
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(ends.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value that is in there. Raises IndexError, ValueError."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            digits = size & 0x7F
            size, at = int.from_bytes(der[at : at + digits]), at + digits
        if at + size > len(der):
            raise ValueError("truncated")
        yield tag, der[at : at + size]
        at += size


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except (OSError, ssl.SSLError, ValueError) as problem:
        unreadable = next((path for path in (certificate, key) if not _readable(path)), None)
        if unreadable is not None:
            raise ValueError(f"{unreadable}: {_why(problem, 'cannot be read')}") from None
        raise ValueError(f"{certificate}, {key}: {_why(problem, 'not a certificate and its key')}") from None


def _readable(path: Path) -> bool:
    try:
        path.open("rb").close()
    except OSError:
        return False
    return True


def _refuse_password() -> str:
    """OpenSSL would ask at the terminal, for ever."""
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _why(problem: Exception, otherwise: str) -> str:
    """One line for a person; OpenSSL's own words are for nobody."""
    if isinstance(problem, ssl.SSLError):
        return "the key does not belong to the certificate" if problem.reason == "KEY_VALUES_MISMATCH" else otherwise
    if isinstance(problem, OSError):
        return problem.strerror or otherwise
    return str(problem)
