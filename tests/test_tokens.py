"""Tokens: which are taken, which are not, and why."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Tokens
from gateway.rooms import Grant
from gateway.settings import ConfigError
from gateway.tokens import (
    MAX_TOKEN_CHARS,
    BadToken,
    PrivateKey,
    TokenReader,
    mint,
    read_keys,
    read_private_key,
    rooms_of,
    token_reader,
)
from gateway.watched import Files

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER = b"fedcba9876543210fedcba9876543210"
RSA = rsa.generate_private_key(65537, 2048)
RSA_2 = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)
EC = ec.generate_private_key(ec.SECP256R1())
EC_384 = ec.generate_private_key(ec.SECP384R1())
NOW = int(time.time())  # when the tests were collected, which may be minutes ago
DAY_S = 86_400
GOOD: dict[str, Any] = {"exp": NOW + DAY_S, "rooms": ["AC1", "wxa_student_*"], "sub": "alice"}


def claims(**changed: Any) -> dict[str, Any]:
    """Good claims with changes; None takes one out."""
    return {name: value for name, value in (GOOD | changed).items() if value is not None}


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def jwk(key: PrivateKey, **fields: str) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    return algorithm.to_jwk(key.public_key(), as_dict=True) | fields


def with_secret(**settings: Any) -> TokenReader:
    return TokenReader(Tokens(algorithm="HS256", **settings), lambda: ((None, SECRET),))


def with_file(path: Path, algorithm: str, content: bytes | dict[str, Any]) -> TokenReader:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    settings = Tokens(algorithm=algorithm, key_file=str(path))  # type: ignore[arg-type]
    reader = token_reader(settings, {}, Files())
    assert reader is not None
    return reader


def refused(reader: TokenReader, token: object) -> str:
    with pytest.raises(BadToken) as caught:
        reader.read(token)
    return str(caught.value)


def by_hand(header: Mapping[str, Any], payload: Mapping[str, Any], secret: bytes | None = None) -> str:
    """A token as no library would make it; with a secret it has an HMAC."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    signature = hmac.digest(secret, b".".join(parts), hashlib.sha256) if secret is not None else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_a_good_token_of_each_algorithm(tmp_path: Path) -> None:
    grant = Grant(("AC1", "wxa_student_*"), NOW + DAY_S + 10.0, "alice")
    assert with_secret().read(mint(GOOD, SECRET)) == grant
    assert with_file(tmp_path / "rsa", "RS256", public_pem(RSA)).read(mint(GOOD, RSA)) == grant
    assert with_file(tmp_path / "ec", "ES256", public_pem(EC)).read(mint(GOOD, EC)) == grant
    assert with_secret().read(mint(claims(sub=None), SECRET)).subject == ""


def test_by_hand_is_as_by_the_library() -> None:
    """Otherwise the forgeries below might be refused for their form alone."""
    header = {"alg": "HS256", "typ": "JWT"}
    assert with_secret().read(by_hand(header, GOOD, SECRET)) == with_secret().read(mint(GOOD, SECRET))


def test_a_forged_token() -> None:
    header, payload, signature = mint(GOOD, SECRET).split(".")
    more = base64.urlsafe_b64encode(json.dumps(claims(rooms=["*"])).encode()).rstrip(b"=").decode()
    for token in (
        mint(GOOD, OTHER),
        f"{header}.{more}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload}.{signature}.{signature}",
        f"{signature}.{payload}.{header}",
    ):
        assert refused(with_secret(), token) == "token not valid"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 1, ["HS256"], "HS512", "RS256", "hs256"])
def test_the_algorithm_is_not_the_tokens_to_choose(alg: object) -> None:
    for secret in (None, b"", SECRET):
        assert refused(with_secret(), by_hand({"alg": alg, "typ": "JWT"}, GOOD, secret)) == "token not valid"
    assert refused(with_secret(), by_hand({"typ": "JWT"}, GOOD, SECRET)) == "token not valid"


@pytest.mark.parametrize("jwks", [False, True])
def test_a_public_key_is_no_secret(tmp_path: Path, jwks: bool) -> None:
    """The oldest trick: an HMAC under the public key, which everybody may have."""
    pem = public_pem(RSA)
    reader = with_file(tmp_path / "keys", "RS256", {"keys": [jwk(RSA, kid="1")]} if jwks else pem)
    for secret in (pem, pem.strip(), (tmp_path / "keys").read_bytes()):
        for alg in ("HS256", "RS256"):
            assert refused(reader, by_hand({"alg": alg, "kid": "1"}, claims(rooms=["*"]), secret)) == "token not valid"
    assert reader.read(mint(GOOD, RSA, "1")).rooms == ("AC1", "wxa_student_*")


def test_a_public_key_is_refused_as_a_secret() -> None:
    with pytest.raises(ConfigError, match="expected a secret, got a PEM key"):
        token_reader(Tokens(algorithm="HS256"), {"GATEWAY_TOKEN_SECRET": public_pem(RSA).decode()}, Files())


def test_one_algorithm_does_not_take_the_keys_of_another(tmp_path: Path) -> None:
    reader = with_file(tmp_path / "rsa", "RS256", public_pem(RSA))
    for token in (mint(GOOD, EC), jwt.encode(GOOD, RSA, "RS512"), jwt.encode(GOOD, RSA, "PS256"), mint(GOOD, RSA_2)):
        assert refused(reader, token) == "token not valid"


def test_keys_in_the_header_of_a_token_are_not_looked_at(tmp_path: Path) -> None:
    reader = with_file(tmp_path / "rsa", "RS256", {"keys": [jwk(RSA, kid="1")]})
    headers = {"kid": "1", "jwk": jwk(RSA_2), "jku": "http://127.0.0.1/keys", "x5u": "http://127.0.0.1/"}
    assert refused(reader, jwt.encode(GOOD, RSA_2, "RS256", headers=headers)) == "token not valid"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"exp": NOW - 11}, "token expired"),
        ({"exp": None}, "token without exp"),
        ({"exp": "soon"}, "token not valid"),
        ({"exp": [1]}, "token not valid"),
        ({"exp": 10**400}, "token not valid"),
        ({"nbf": NOW + DAY_S}, "token not valid yet"),
        ({"iat": NOW + DAY_S}, "token not valid yet"),
        ({"nbf": "x"}, "token not valid"),
        ({"sub": 1}, "token not valid"),
        ({"aud": "other"}, "token not for here"),
        ({"rooms": None}, "token without rooms"),
        ({"rooms": []}, "token not valid"),
        ({"rooms": "AC1"}, "token not valid"),
        ({"rooms": ["AC1", 1]}, "token not valid"),
        ({"rooms": [""]}, "token not valid"),
        ({"rooms": ["*" * 3]}, "token not valid"),
        ({"rooms": ["a"] * 65}, "token not valid"),
        ({"rooms": ["a" * 257]}, "token not valid"),
    ],
)
def test_what_a_claim_must_be(changed: dict[str, Any], problem: str) -> None:
    assert refused(with_secret(), mint(claims(**changed), SECRET)) == problem


def test_the_clocks_may_differ_by_the_leeway() -> None:
    now = int(time.time())
    assert with_secret().read(mint(claims(exp=now - 5, nbf=now + 5, iat=now + 5), SECRET)).expires_at == now + 5
    assert refused(with_secret(leeway_s=0), mint(claims(exp=NOW - 1), SECRET)) == "token expired"
    assert refused(with_secret(leeway_s=0), mint(claims(nbf=NOW + DAY_S), SECRET)) == "token not valid yet"


def test_audience_and_issuer_hold_where_they_are_configured() -> None:
    reader = with_secret(audience="gateway", issuer="https://a.example")
    good = {"aud": ["x", "gateway"], "iss": "https://a.example"}
    assert reader.read(mint(claims(**good), SECRET)).subject == "alice"
    for wrong in ({"aud": "x"}, {"iss": "https://b.example"}):
        assert refused(reader, mint(claims(**good | wrong), SECRET)) == "token not for here"
    for missing in ("aud", "iss"):
        assert refused(reader, mint(claims(**good | {missing: None}), SECRET)) == f"token without {missing}"


TEXTS = ["", ".", "..", "a.b.c", "x" * 10, "x" * (MAX_TOKEN_CHARS + 1), "密.密.密", "\udcff.a.b", "\x00", "e30.e30.e30"]


@pytest.mark.parametrize("token", [None, 1, True, [], {}, b"bytes", ["a"], *TEXTS])
def test_what_is_no_token(token: object) -> None:
    assert refused(with_secret(), token) == "token not valid"


@given(st.text(st.characters()) | st.binary() | st.dictionaries(st.text(), st.none() | st.text() | st.integers()))
def test_nothing_but_bad_token_is_raised(junk: object) -> None:
    deep = by_hand({"alg": "HS256"}, {"rooms": [], "exp": NOW + DAY_S, "x": json.dumps(junk, default=repr)}, SECRET)
    for token in (junk, f"{junk}.{junk}.{junk}", deep):
        refused(with_secret(), token)


def test_a_signed_claim_that_is_nested_deep_is_refused() -> None:
    parts = [b'{"alg":"HS256"}', b'{"exp":9999999999,"rooms":' + b"[" * 2500 + b"]" * 2500 + b"}"]
    body = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET, body, hashlib.sha256)).rstrip(b"=")
    assert refused(with_secret(), (body + b"." + signature).decode()) == "token not valid"


# files of keys


async def test_keys_rotate_through_a_jwks(tmp_path: Path) -> None:
    path, files = tmp_path / "jwks.json", Files()
    path.write_text(json.dumps({"keys": [jwk(RSA, kid="old")]}))
    reader = token_reader(Tokens(algorithm="RS256", key_file=str(path)), {}, files)
    assert reader is not None
    (watched,) = files._files
    old, new = mint(GOOD, RSA, "old"), mint(GOOD, RSA_2, "new")
    assert (reader.read(old).subject, refused(reader, new)) == ("alice", "token not valid")
    path.write_text(json.dumps({"keys": [jwk(RSA, kid="old"), jwk(RSA_2, kid="new")]}))
    await watched.look()
    assert (reader.read(old), reader.read(new)) == (reader.read(new), reader.read(old))
    path.write_text('{"keys": [')
    await watched.look()
    assert reader.read(new).subject == "alice", "a broken file leaves the old keys"
    path.write_text(json.dumps({"keys": [jwk(RSA_2, kid="new")]}))
    await watched.look()
    assert (reader.read(new).subject, refused(reader, old)) == ("alice", "token not valid")


def test_a_key_id_names_the_key_and_none_tries_all(tmp_path: Path) -> None:
    reader = with_file(tmp_path / "jwks", "RS256", {"keys": [jwk(RSA, kid="1"), jwk(RSA_2, kid="2")]})
    assert reader.read(mint(GOOD, RSA_2)).subject == "alice"
    assert reader.read(mint(GOOD, RSA_2, "2")).subject == "alice"
    assert refused(reader, mint(GOOD, RSA_2, "1")) == "token not valid"
    assert refused(reader, mint(GOOD, RSA_2, "3")) == "token not valid"
    with_pem = with_file(tmp_path / "pem", "RS256", public_pem(RSA))
    assert with_pem.read(mint(GOOD, RSA, "whatever")).subject == "alice", "a PEM key has no id"


def test_other_keys_of_a_jwks_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "jwks"
    others: list[dict[str, Any]] = [
        jwk(EC, kid="ec"),
        jwk(WEAK_RSA, kid="weak"),
        jwk(RSA_2, kid="enc", use="enc"),
        jwk(RSA_2, kid="alg", alg="RS512"),
        {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET).decode(), "kid": "secret"},
        {"kty": "RSA", "n": 1, "e": None},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "RSA"},
        {"kid": "nothing"},
    ]
    path.write_text(json.dumps({"keys": [*others, jwk(RSA, kid="1", use="sig", alg="RS256")], "more": 1}))
    assert [name for name, _ in read_keys(path, "RS256")] == ["1"]
    path.write_text(json.dumps({"keys": others}))
    assert [name for name, _ in read_keys(path, "ES256")] == ["ec"]
    with pytest.raises(ValueError, match="expected a public RSA key of at least 2048 bits, in PEM or in a JWKS"):
        read_keys(path, "RS256")


@pytest.mark.parametrize(
    ("algorithm", "content"),
    [
        ("RS256", public_pem(EC)),
        ("RS256", public_pem(WEAK_RSA)),
        ("RS256", private_pem(RSA)),
        ("ES256", public_pem(RSA)),
        ("ES256", public_pem(EC_384)),
        ("ES256", b""),
        ("ES256", b"\xff\xfe"),
        ("ES256", SECRET),
        ("RS256", b"{"),
        ("RS256", b'{"keys": {}}'),
        ("RS256", b'{"keys": [1]}'),
        ("RS256", b'{"keys": []}'),
        ("RS256", b'{"keys": ' + b"[" * 100_000),
    ],
)
def test_a_file_without_a_good_key(tmp_path: Path, algorithm: str, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        token_reader(Tokens(algorithm=algorithm, key_file=str(path)), {}, Files())  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.startswith(f"tokens.key_file: {path}: expected a public ")
    assert SECRET.decode() not in problem


def test_a_private_key_in_a_jwks_is_not_taken(tmp_path: Path) -> None:
    """A gateway has no use for it, and should not be able to mint what it checks."""
    algorithm: Any = jwt.get_algorithm_by_name("RS256")
    with pytest.raises(ConfigError):
        with_file(tmp_path / "jwks", "RS256", {"keys": [algorithm.to_jwk(RSA, as_dict=True)]})


def test_the_settings_choose_and_say_what_they_lack(tmp_path: Path) -> None:
    assert token_reader(Tokens(), {"GATEWAY_TOKEN_SECRET": SECRET.decode()}, Files()) is None
    reader = token_reader(Tokens(algorithm="HS256", secret_env="S"), {"S": SECRET.decode()}, Files())
    assert reader is not None
    assert reader.read(mint(GOOD, SECRET)).subject == "alice"
    for secret, problem in (
        ("", "missing, expected the secret of the tokens"),
        ("x" * 31, "expected at least 32 bytes, got 31"),
    ):
        with pytest.raises(ConfigError) as caught:
            token_reader(Tokens(algorithm="HS256"), {"GATEWAY_TOKEN_SECRET": secret}, Files())
        assert caught.value.problems == [f"environment GATEWAY_TOKEN_SECRET: {problem}"]
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        token_reader(Tokens(algorithm="ES256", key_file=str(missing)), {}, Files())


# minting


@pytest.mark.parametrize("key", [RSA, EC])
def test_a_private_key_is_read_to_mint_with(tmp_path: Path, key: PrivateKey) -> None:
    (tmp_path / "key").write_bytes(private_pem(key))
    read = read_private_key(tmp_path / "key")
    algorithm = "RS256" if key is RSA else "ES256"
    token = mint(GOOD, read, "7")
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": "7", "typ": "JWT"}
    assert with_file(tmp_path / "public", algorithm, public_pem(key)).read(token).subject == "alice"


@pytest.mark.parametrize(
    "content", [public_pem(RSA), private_pem(RSA, b"password"), private_pem(WEAK_RSA), private_pem(EC_384), b"", SECRET]
)
def test_other_keys_are_not_minted_with(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"key: expected a private RSA or P-256 key in PEM, without a password$"):
        read_private_key(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_private_key(tmp_path / "missing")


@pytest.mark.parametrize("claim", [[], ["a*b*c*"], "AC1", None, [""], ["x"] * 65])
def test_rooms_that_no_token_may_have(claim: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        rooms_of(claim)
    assert rooms_of(["a*b*"]) == ("a*b*",)
