"""Signatures as devices send them, and the file of keys."""

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import keyfile
from gateway.auth import (
    MAX_SIGNATURE_CHARS,
    DeviceKey,
    FileAuthenticator,
    Malformed,
    OpenAuthenticator,
    Verdict,
    authenticator,
    hash_key,
    parse_signature,
)
from gateway.config import Auth
from gateway.settings import ConfigError

PEPPER = b"pepper"


def signed(text: str | bytes) -> dict[str, object]:
    return {"signature": base64.b64encode(text.encode() if isinstance(text, str) else text).decode()}


def test_reads_the_signature_of_the_document() -> None:
    output = subprocess.run(
        ["sh", "-c", 'printf %s "sn12345678:abcdef" | base64'], capture_output=True, text=True, check=True
    )
    assert parse_signature({"signature": output.stdout}) == DeviceKey("sn12345678", "abcdef")
    assert parse_signature({"signature": "c24xMjM0NTY3ODphYmNkZWY=", "more": 1}) == DeviceKey("sn12345678", "abcdef")


def test_reads_a_signature_that_base64_wrapped() -> None:
    key = "k" * 100
    wrapped = base64.encodebytes(f"s1:{key}".encode()).decode()
    assert wrapped.count("\n") == 2
    assert parse_signature({"signature": wrapped}) == DeviceKey("s1", key)
    assert parse_signature({"signature": wrapped.replace("\n", "\r\n")}) == DeviceKey("s1", key)


@pytest.mark.parametrize("key", ["a:b", ":", "a:", " ", "密钥", "a\nb", "\x00"])
def test_a_key_is_all_that_follows_the_first_colon(key: str) -> None:
    assert parse_signature(signed(f"s1:{key}")) == DeviceKey("s1", key)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "c24xMjM0NTY3ODphYmNkZWY=",
        [],
        {},
        {"signature": None},
        {"signature": 1},
        {"signature": b"c24xMjM0NTY3ODphYmNkZWY="},
        {"signature": ""},
        {"signature": "abcdefg123456"},  # the document's own example is none
        {"signature": "c24xMjM0NTY3ODphYmNkZWY"},
        {"signature": "c24xMjM0NTY3ODphYmNkZWY=c24x"},
        {"signature": "c24x*MjM0NTY3ODphYmNkZWY="},
        {"signature": "签名"},
        {"signature": "\ud800"},
        {"signature": "\x00"},
        signed("s1:" + "k" * MAX_SIGNATURE_CHARS),
        signed("s1"),
        signed("s1:"),
        signed(":key"),
        signed("s 1:key"),
        signed("a/b:key"),
        signed("+:key"),
        signed("x" * 65 + ":key"),
        signed(b"s1:\xff"),
        signed(b"s1:\xed\xa0\x80"),
    ],
)
def test_anything_else_is_malformed(data: object) -> None:
    with pytest.raises(Malformed):
        parse_signature(data)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["signature", "x"]), inner),
)


@given(JUNK | JUNK.map(lambda junk: {"signature": junk}) | st.binary().map(signed))
def test_nothing_but_malformed_is_raised(data: object) -> None:
    try:
        claim = parse_signature(data)
    except Malformed:
        return
    assert claim.key


@given(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), st.text(min_size=1, max_size=100))
def test_reads_what_a_device_signs(serial: str, key: str) -> None:
    assert parse_signature(signed(f"{serial}:{key}")) == DeviceKey(serial, key)


def test_a_key_shows_nowhere() -> None:
    claim = DeviceKey("s1", "geheim")
    shown = [repr(claim), str(claim), f"{claim}", repr([claim]), repr({"claim": claim})]
    with pytest.raises(Malformed) as caught:
        parse_signature(signed("not a serial:geheim"))
    shown.append(repr(caught.value))
    assert not [text for text in shown if "geheim" in text]


async def test_open_lets_everyone_in() -> None:
    assert await OpenAuthenticator().check(DeviceKey("s1", "whatever")) is Verdict.ACCEPTED


def keys(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    return path


async def test_the_file_knows_who_is_who(tmp_path: Path) -> None:
    one, two = hash_key("s1", "a:b", PEPPER), hash_key("s2", "密钥", PEPPER)
    path = keys(tmp_path, f"# 班牌\n\ns1:{one}\n  s2:{two}  # a comment\n")
    file = FileAuthenticator.load(path, PEPPER)
    for claim, verdict in (
        (DeviceKey("s1", "a:b"), Verdict.ACCEPTED),
        (DeviceKey("s2", "密钥"), Verdict.ACCEPTED),
        (DeviceKey("s1", "密钥"), Verdict.DENIED),
        (DeviceKey("s1", "a"), Verdict.DENIED),
        (DeviceKey("s1", one), Verdict.DENIED),
        (DeviceKey("S1", "a:b"), Verdict.DENIED),
        (DeviceKey("s3", "a:b"), Verdict.DENIED),
    ):
        assert await file.check(claim) is verdict, claim
    assert await FileAuthenticator.load(path, b"salt").check(DeviceKey("s1", "a:b")) is Verdict.DENIED


async def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    """`gateway devices add` says that a device may connect: it must be true of a gateway that runs."""
    path = keys(tmp_path, "")
    file = FileAuthenticator.load(path, PEPPER)
    assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED
    keyfile.put(path, {"s1": hash_key("s1", "k", PEPPER)})
    assert await file.check(DeviceKey("s1", "k")) is Verdict.ACCEPTED
    keyfile.put(path, {"s1": hash_key("s1", "new", PEPPER)})
    assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED
    assert await file.check(DeviceKey("s1", "new")) is Verdict.ACCEPTED
    assert keyfile.remove(path, "s1")
    assert await file.check(DeviceKey("s1", "new")) is Verdict.DENIED


@pytest.mark.parametrize("broken", ["s1:short\n", None])
async def test_a_broken_file_is_warned_of_once_and_the_old_one_counts(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = keys(tmp_path, f"s1:{hash_key('s1', 'k', PEPPER)}\n")
    file = FileAuthenticator.load(path, PEPPER)
    keys(tmp_path, broken) if broken else path.unlink()
    for _ in range(3):
        assert await file.check(DeviceKey("s1", "k")) is Verdict.ACCEPTED
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    keys(tmp_path, "")
    assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED


async def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FileAuthenticator.load(keys(tmp_path, ""), PEPPER)
    monkeypatch.delattr(keyfile, "read")
    for _ in range(3):
        assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED


def test_the_settings_choose_who_checks(tmp_path: Path) -> None:
    path = keys(tmp_path, "")
    assert isinstance(authenticator(Auth(mode="open"), {}), OpenAuthenticator)
    assert authenticator(Auth(mode="broker"), {}) is None
    salted = Auth(mode="file", file=str(path), pepper_env="SALT")
    assert isinstance(authenticator(salted, {"SALT": "pepper"}), FileAuthenticator)


def test_every_problem_of_file_mode_is_said(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError) as caught:
        authenticator(Auth(mode="file", file=str(missing)), {"GATEWAY_PEPPER": ""})
    assert caught.value.problems == [
        "environment GATEWAY_PEPPER: missing, expected the secret of the hashes",
        f"auth.file: {missing}: cannot be read: No such file or directory",
    ]


async def test_an_empty_file_knows_nobody(tmp_path: Path) -> None:
    assert await FileAuthenticator.load(keys(tmp_path, ""), PEPPER).check(DeviceKey("s1", "k")) is Verdict.DENIED


def test_a_hash_is_of_serial_and_key_under_the_pepper() -> None:
    """Pinned by `printf s1:k | openssl dgst -sha256 -hmac pepper`: the files of operators hold such hashes."""
    assert hash_key("s1", "k", PEPPER) == "3b3cd8566fd1a1c300112f5d7a70da6436e49a0d39bb44e42b198de5d700cacf"
    assert len({hash_key(*claim, PEPPER) for claim in (("s1", "k"), ("s1", "K"), ("S1", "k"), ("s2", "k"))}) == 4
