"""Where the token of a socket is found, and how long it counts."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config import Tokens
from gateway.sockets import Socket
from gateway.tokens import TokenReader, mint
from gateway.viewers import Viewers, token_of

SECRET = b"0123456789abcdef0123456789abcdef"
AUTH = {"token": "of auth"}
QUERY = {"QUERY_STRING": "EIO=4&token=of%20query&transport=polling"}
HEADER = {"HTTP_AUTHORIZATION": "Bearer of header"}


@pytest.mark.parametrize(
    ("auth", "environ", "token"),
    [
        (AUTH, QUERY | HEADER, "of auth"),
        (None, QUERY | HEADER, "of query"),
        ({}, HEADER, "of header"),
        (None, {}, ""),
        ({"token": ""}, HEADER, "of header"),
        ({"token": None}, {}, ""),
        ({"token": {"a": 1}}, HEADER, {"a": 1}),
        ("text", QUERY, "of query"),
        ([1], {}, ""),
        (None, {"QUERY_STRING": "token="}, ""),
        (None, {"QUERY_STRING": "token=a&token=b"}, "a"),
        (None, {"QUERY_STRING": "mytoken=a"}, ""),
        (None, {"HTTP_AUTHORIZATION": "bearer   a "}, "a"),
        (None, {"HTTP_AUTHORIZATION": "Basic YTpi"}, ""),
        (None, {"HTTP_AUTHORIZATION": "Bearer"}, ""),
        (None, {"HTTP_AUTHORIZATION": "token"}, ""),
    ],
)
def test_the_nearest_token_counts(auth: object, environ: dict[str, Any], token: object) -> None:
    assert token_of(auth, environ) == token


def socket(number: int = 1) -> Socket:
    return Socket(number, SimpleNamespace(environ={"REMOTE_ADDR": "192.0.2.1"}))  # type: ignore[arg-type]


def reader(leeway_s: float = 0.0) -> TokenReader:
    return TokenReader(Tokens(algorithm="HS256", leeway_s=leeway_s), lambda: ((None, SECRET),))


def auth(exp: int) -> dict[str, str]:
    return {"token": mint({"exp": exp, "rooms": ["AC1"], "sub": "alice"}, SECRET)}


def nobody(_: Socket) -> None:
    raise AssertionError("nobody's token has expired")


async def test_without_a_reader_nobody_has_a_token() -> None:
    one = socket()
    assert Viewers(None, nobody).introduce(one, {"token": "junk"}) is None
    assert one.grant is None


async def test_a_bad_token_is_told_and_is_not_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    one, viewers = socket(), Viewers(reader(), nobody)
    assert viewers.introduce(one, {"token": "geheim"}) == "token not valid"
    assert viewers.introduce(one, auth(int(time.time()) - 1)) == "token expired"
    assert one.grant is None
    assert viewers.introduce(one, None) is None
    assert [record.__dict__["problem"] for record in caplog.records] == ["token not valid", "token expired"]
    assert "geheim" not in repr([vars(record) for record in caplog.records])


async def test_a_token_counts_until_it_expires_and_the_leeway_is_over() -> None:
    expired: asyncio.Future[Socket] = asyncio.get_running_loop().create_future()
    one = socket()
    viewers = Viewers(reader(leeway_s=1.25), expired.set_result)
    until = int(time.time())
    assert viewers.introduce(one, auth(until)) is None
    async with asyncio.timeout(10):
        assert await expired is one
    assert time.time() >= until + 1.25
    assert one.grant is None
    assert viewers._timers == {}


async def test_a_socket_that_is_gone_is_not_told() -> None:
    one, viewers = socket(), Viewers(reader(), nobody)
    viewers.introduce(one, auth(int(time.time()) + 600))
    (timer,) = viewers._timers.values()
    viewers.forget(one)
    viewers.forget(one)
    assert timer.cancelled()


async def test_a_later_token_takes_the_place_of_the_first() -> None:
    one, viewers = socket(), Viewers(reader(), nobody)
    viewers.introduce(one, auth(int(time.time()) + 600))
    (first,) = viewers._timers.values()
    viewers.introduce(one, auth(int(time.time()) + 6000))
    assert first.cancelled()
    assert one.grant is not None
    assert one.grant.expires_at > time.time() + 5000
    assert viewers.introduce(one, {"token": "junk"}) == "token not valid"
    assert one.grant.subject == "alice", "what is not taken changes nothing"
    viewers.forget(one)


async def test_a_clock_that_was_set_back_is_looked_at_again() -> None:
    one, now = socket(), time.time()
    viewers = Viewers(reader(), nobody)
    viewers.introduce(one, auth(int(now) + 600))
    assert one.grant is not None
    viewers._look(one, one.grant)
    assert one.grant is not None
    assert len(viewers._timers) == 1
    viewers.forget(one)


async def test_a_token_for_ever_is_no_trouble() -> None:
    one, viewers = socket(), Viewers(reader(), nobody)
    viewers.introduce(one, auth(10**15))
    assert one.grant is not None
    viewers.forget(one)
