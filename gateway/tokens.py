"""Signed tokens (JWT, RFC 7519) that let viewers join rooms: reading and minting them.

Which algorithm counts is the configuration's to say, never the token's (RFC 8725, 3.1), and a key is only used for the
algorithm that it is for. Claims: `exp` and `rooms`, a list of patterns in which `*` is any text; `sub` goes to the log;
`nbf`, `aud` and `iss` hold where they are there, the latter two must be there where they are configured.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from gateway.config import RoomPattern, Tokens
from gateway.rooms import Grant
from gateway.settings import ConfigError
from gateway.watched import Files, Watched

MAX_TOKEN_CHARS: Final = 8192  # a URL may not be much longer
MAX_ROOMS: Final = 64  # patterns in one token
MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: as long as the hash
MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
EXPECTED_KEY: Final = {
    "RS256": f"a public RSA key of at least {MIN_RSA_BITS} bits",
    "ES256": "a public key on the curve P-256",
}
KEY_TYPE: Final = {"RS256": "RSA", "ES256": "EC"}  # RFC 7518, 6.1

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey
Keys: TypeAlias = tuple[tuple[str | None, PublicKey | bytes], ...]  # with the key ids of a JWKS
PrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey

_Rooms = Annotated[tuple[RoomPattern, ...], msgspec.Meta(min_length=1, max_length=MAX_ROOMS)]


class BadToken(Exception):
    """A token that is not taken; the text is for the one who shows it."""


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class TokenReader:
    """Reads tokens of one algorithm.

    Args:
        keys: gives the keys that count now.
    """

    def __init__(self, settings: Tokens, keys: Callable[[], Keys]) -> None:
        self._settings = settings
        self._keys = keys

    def read(self, token: object) -> Grant:
        """Return what a token allows, now. Raises BadToken."""
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise BadToken("token not valid")
        try:
            claims = self._verified(token)
            rooms = rooms_of(claims.get("rooms"))
            return Grant(rooms, int(claims["exp"]) + self._settings.leeway_s, str(claims.get("sub", "")))
        except jwt.ExpiredSignatureError:
            raise BadToken("token expired") from None
        except jwt.ImmatureSignatureError:
            raise BadToken("token not valid yet") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise BadToken("token not for here") from None
        except jwt.MissingRequiredClaimError as problem:
            raise BadToken(f"token without {problem.claim}") from None
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError):
            raise BadToken("token not valid") from None

    def _verified(self, token: str) -> dict[str, Any]:
        """The claims, if one of the keys signed them. Raises what PyJWT raises."""
        settings, kid = self._settings, jwt.get_unverified_header(token).get("kid")
        for name, key in self._keys():
            if kid is not None and name is not None and name != kid:
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[settings.algorithm],
                    audience=settings.audience or None,
                    issuer=settings.issuer or None,
                    leeway=settings.leeway_s,
                    options={"require": ["exp", "rooms"], "enforce_minimum_key_length": True},
                )
            except jwt.InvalidSignatureError:
                continue
            return claims
        raise jwt.InvalidSignatureError


def rooms_of(claim: object) -> tuple[str, ...]:
    """The patterns of a `rooms` claim. Raises ValueError."""
    rooms: tuple[str, ...] = msgspec.convert(claim, _Rooms)
    return rooms


def mint(claims: Mapping[str, object], key: bytes | PrivateKey, kid: str = "") -> str:
    """Sign a token: HS256 with a secret, RS256 or ES256 with a private key."""
    algorithm = "HS256" if isinstance(key, bytes) else "RS256" if isinstance(key, RSAPrivateKey) else "ES256"
    return jwt.encode(dict(claims), key, algorithm, headers={"kid": kid} if kid else None)


def read_private_key(path: Path) -> PrivateKey:
    """A PEM key to sign with. Raises ValueError, one line, for every other than mint() takes."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as problem:
        raise ValueError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        key = None
    if isinstance(key, PrivateKey) and any(_fits(key.public_key(), algorithm) for algorithm in KEY_TYPE):
        return key
    raise ValueError(f"{path}: expected a private RSA or P-256 key in PEM, without a password")


def token_reader(settings: Tokens, environ: Mapping[str, str], files: Files) -> TokenReader | None:
    """The reader of tokens that the settings want, None where there are no tokens. Raises ConfigError.

    Args:
        files: where a file of keys is to be watched.
    """
    if settings.algorithm == "off":
        return None
    if settings.algorithm == "HS256":
        keys: Keys = ((None, secret_of(settings.secret_env, environ)),)
        return TokenReader(settings, lambda: keys)
    algorithm = settings.algorithm
    try:
        watched = Watched.load(Path(settings.key_file), lambda path: read_keys(path, algorithm))
    except ValueError as problem:
        raise ConfigError([f"tokens.key_file: {problem}"]) from None
    files.watch(watched)
    return TokenReader(settings, lambda: watched.content)


def secret_of(name: str, environ: Mapping[str, str]) -> bytes:
    """The secret of HS256 in this environment variable. Raises ConfigError, which does not show it."""
    secret = environ.get(name, "").encode()
    if not secret:
        raise ConfigError([f"environment {name}: missing, expected the secret of the tokens"])
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError([f"environment {name}: expected at least {MIN_SECRET_BYTES} bytes, got {len(secret)}"])
    if b"-----BEGIN" in secret:  # whoever has the public key could sign with it
        raise ConfigError([f"environment {name}: expected a secret, got a PEM key: that is for RS256 or ES256"])
    return secret


def read_keys(path: Path, algorithm: str) -> Keys:
    """The public keys of a file for one algorithm: a PEM key, or a JWKS (RFC 7517), whose other keys are skipped.

    Raises:
        ValueError: it cannot be read, or has none; one line.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ValueError(f"{path}: cannot be read: {problem.strerror}") from None
    keys = _from_jwks(data, algorithm) if data.lstrip().startswith(b"{") else _from_pem(data)
    fitting = tuple((name, key) for name, key in keys if _fits(key, algorithm))
    if not fitting:
        raise ValueError(f"{path}: expected {EXPECTED_KEY[algorithm]}, in PEM or in a JWKS")
    return fitting


def _from_pem(data: bytes) -> list[tuple[str | None, Any]]:
    try:
        return [(None, load_pem_public_key(data))]
    except (ValueError, UnsupportedAlgorithm):
        return []


def _from_jwks(data: bytes, algorithm: str) -> list[tuple[str | None, Any]]:
    try:
        found = msgspec.json.decode(data, type=_KeySet).keys
    except (msgspec.DecodeError, RecursionError):
        return []
    keys: list[tuple[str | None, Any]] = []
    for entry in found:
        if entry.get("kty") != KEY_TYPE[algorithm] or entry.get("use", "sig") != "sig":
            continue
        if entry.get("alg", algorithm) != algorithm:
            continue
        try:
            keys.append((entry.get("kid"), jwt.PyJWK(entry, algorithm).key))
        except (jwt.PyJWTError, ValueError, TypeError, LookupError, AttributeError, UnsupportedAlgorithm):
            continue  # as RFC 7517, 5 has it: keys that are not understood are ignored
    return keys


def _fits(key: object, algorithm: str) -> bool:
    if algorithm == "RS256":
        return isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
