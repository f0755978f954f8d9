"""The authenticator with a file: hashes, time, and a file that changes."""

import hmac
from pathlib import Path
from typing import Any

import pytest

from gateway import keyfile
from gateway.auth.base import DeviceKey, Verdict
from gateway.auth.file import FileAuthenticator, hash_key, revoked
from gateway.watched import Watched

PEPPER = b"pepper"


def keys(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    return path


def load(path: Path, pepper: bytes = PEPPER) -> FileAuthenticator:
    return FileAuthenticator(Watched.load(path, keyfile.read), pepper)


async def test_the_file_knows_who_is_who(tmp_path: Path) -> None:
    one, two = hash_key("s1", "a:b", PEPPER), hash_key("s2", "密钥", PEPPER)
    path = keys(tmp_path, f"# 班牌\n\ns1:{one}\n  s2:{two}  # a comment\n")
    file = load(path)
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
    assert await load(path, b"salt").check(DeviceKey("s1", "a:b")) is Verdict.DENIED


async def test_an_unknown_serial_costs_what_a_wrong_key_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations, in the same order, on inputs of the same size."""
    file = load(keys(tmp_path, f"s1:{hash_key('s1', 'right', PEPPER)}\n"))
    done: list[tuple[object, ...]] = []
    new, compare = hmac.new, hmac.compare_digest

    def counted_new(key: bytes, message: bytes, digest: Any) -> Any:
        done.append(("hmac", len(key), len(message), digest))
        return new(key, message, digest)

    def counted_compare(one: str, other: str) -> bool:
        done.append(("compare", len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "new", counted_new)
    monkeypatch.setattr(hmac, "compare_digest", counted_compare)
    cost = {}
    for serial, key in (("s1", "right"), ("s1", "wrong"), ("s2", "right"), ("s3", "wrong")):
        await file.check(DeviceKey(serial, key))
        cost[serial, key] = tuple(done)
        done.clear()
    assert len(set(cost.values())) == 1
    assert [name for name, *_ in cost["s2", "right"]] == ["hmac", "compare"]


async def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    """`gateway devices add` says that a device may connect: it must be true of a gateway that runs."""
    path = keys(tmp_path, "")
    file = load(path)
    assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED
    keyfile.put(path, {"s1": hash_key("s1", "k", PEPPER)})
    assert await file.check(DeviceKey("s1", "k")) is Verdict.ACCEPTED
    keyfile.put(path, {"s1": hash_key("s1", "new", PEPPER)})
    assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED
    assert await file.check(DeviceKey("s1", "new")) is Verdict.ACCEPTED
    assert keyfile.remove(path, "s1")
    assert await file.check(DeviceKey("s1", "new")) is Verdict.DENIED


@pytest.mark.parametrize("broken", ["s1:short\n", None])
async def test_a_broken_file_leaves_the_old_keys(tmp_path: Path, broken: str | None) -> None:
    path = keys(tmp_path, f"s1:{hash_key('s1', 'k', PEPPER)}\n")
    file = load(path)
    keys(tmp_path, broken) if broken else path.unlink()
    assert await file.check(DeviceKey("s1", "k")) is Verdict.ACCEPTED
    keys(tmp_path, "")
    assert await file.check(DeviceKey("s1", "k")) is Verdict.DENIED


def test_who_is_revoked_was_there_and_is_gone_or_has_another_key() -> None:
    old = {"s1": "a", "s2": "b", "s3": "c"}
    assert revoked(old, {"s1": "a", "s2": "x", "s4": "d"}) == ["s2", "s3"]
    assert revoked({}, old) == revoked(old, old | {"s4": "d"}) == []


def test_a_hash_is_of_serial_and_key_under_the_pepper() -> None:
    """Pinned by `printf s1:k | openssl dgst -sha256 -hmac pepper`: the files of operators hold such hashes."""
    assert hash_key("s1", "k", PEPPER) == "3b3cd8566fd1a1c300112f5d7a70da6436e49a0d39bb44e42b198de5d700cacf"
    assert len({hash_key(*claim, PEPPER) for claim in (("s1", "k"), ("s1", "K"), ("S1", "k"), ("s2", "k"))}) == 4
