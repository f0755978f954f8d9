"""Signatures as devices send them."""

import base64
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.base import MAX_SIGNATURE_CHARS, DeviceKey, Malformed, parse_signature


def signed(text: str | bytes) -> dict[str, object]:
    return {"signature": base64.b64encode(text.encode() if isinstance(text, str) else text).decode()}


def test_reads_the_signature_of_the_document() -> None:
    output = subprocess.run(
        ["sh", "-c", 'printf %s "sn12345678:abcdef" | base64'], capture_output=True, text=True, check=True
    )
    assert parse_signature({"signature": output.stdout}) == DeviceKey("sn12345678", "abcdef")
    assert parse_signature({"signature": "c24xMjM0NTY3ODphYmNkZWY=", "more": 1}) == DeviceKey("sn12345678", "abcdef")
    here = parse_signature({"signature": "c24xMjM0NTY3ODphYmNkZWY="}, "192.0.2.1")
    assert here == DeviceKey("sn12345678", "abcdef", "192.0.2.1")


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
