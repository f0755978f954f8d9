"""The settings choose who checks keys, and say what they lack."""

from pathlib import Path

import pytest

from gateway import keyfile
from gateway.auth.base import DeviceKey, OpenAuthenticator, Verdict
from gateway.auth.choice import authenticator
from gateway.auth.file import FileAuthenticator, hash_key
from gateway.auth.http import HttpAuthenticator
from gateway.config import Auth
from gateway.settings import ConfigError
from gateway.watched import Files


def choose(auth: Auth, environ: dict[str, str]) -> object:
    return authenticator(auth, environ, Files(), lambda _: None)


def problems(auth: Auth, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        choose(auth, environ)
    return caught.value.problems


def test_each_mode_has_its_authenticator(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    assert isinstance(choose(Auth(mode="open"), {}), OpenAuthenticator)
    assert choose(Auth(mode="broker"), {}) is None
    salted = Auth(mode="file", file=str(tmp_path / "keys"), pepper_env="SALT")
    assert isinstance(choose(salted, {"SALT": "pepper"}), FileAuthenticator)
    assert isinstance(choose(Auth(mode="http", url="http://a.example/"), {}), HttpAuthenticator)


def test_every_problem_of_file_mode_is_said(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert problems(Auth(mode="file", file=str(missing)), {"GATEWAY_PEPPER": ""}) == [
        "environment GATEWAY_PEPPER: missing, expected the secret of the hashes",
        f"auth.file: {missing}: cannot be read: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("", "missing, expected the bearer token for auth.url"),
        ("two words", "expected a bearer token, without blanks"),
        ("a\nX-Header: b", "expected a bearer token, without blanks"),
        ("密", "expected a bearer token, without blanks"),
    ],
)
def test_a_token_that_is_named_must_be_one(token: str, problem: str) -> None:
    auth = Auth(mode="http", url="http://a.example/", token_env="ASKING")
    assert problems(auth, {"ASKING": token}) == [f"environment ASKING: {problem}"]
    assert isinstance(choose(auth, {"ASKING": "good"}), HttpAuthenticator)


async def test_a_file_of_keys_is_watched_and_tells_who_is_revoked(tmp_path: Path) -> None:
    path, told, files = tmp_path / "keys", list[list[str]](), Files()
    keyfile.put(path, {serial: hash_key(serial, "k", b"p") for serial in ("s1", "s2", "s3")})
    checker = authenticator(
        Auth(mode="file", file=str(path)), {"GATEWAY_PEPPER": "p"}, files, lambda serials: told.append(list(serials))
    )
    assert checker is not None
    keyfile.put(path, {"s2": hash_key("s2", "new", b"p")})
    keyfile.remove(path, "s3")
    assert await checker.check(DeviceKey("s3", "k")) is Verdict.DENIED
    assert told == [], "not before the file has been still for a while"
    (watched,) = files._files
    await watched.look()
    assert [sorted(serials) for serials in told] == [["s2", "s3"]]
    await watched.look()
    assert len(told) == 1
