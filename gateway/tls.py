"""TLS: the certificate that devices see, read again while the node runs, and what is shown to the broker.

Decides which versions are spoken: TLS 1.2 and 1.3, with Python's ciphers, all of them with forward secrecy.
"""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0  # [0] EXPLICIT
_UTC_TIME: Final = 0x17


class Certificate:
    """A server's certificate with its key, and the context that shows it. Raises ValueError, one line, if unusable.

    Attributes:
        context: of the server. A handshake sees the certificate that was current when it began.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = certificate, key
        self.context = _server_context()
        self.load()

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files that it comes from."""
        return self._paths

    def load(self) -> None:
        """Read the files anew; if they are unusable nothing changes. Raises ValueError."""
        self.check()
        _load(self.context, *self._paths)

    def check(self) -> None:
        """Raise ValueError, one line, if the files cannot be used as they are now."""
        _load(_server_context(), *self._paths)

    @property
    def expires_at(self) -> float:
        """When the certificate that is in the file ends, in Unix time."""
        return not_after(self._paths[0])


def client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """How to connect to a server: what it shows is verified, by this authority or by the system's.

    Args:
        ca: certificates of authorities, PEM.
        certificate: what we show, PEM; with its chain, and the key if there is no other file with it.

    Raises:
        ValueError: a file cannot be used; one line.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as problem:
        raise ValueError(f"{ca}: {_why(problem, 'no certificate of an authority in it')}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        _load(context, certificate, key or certificate)
    return context


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


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


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
