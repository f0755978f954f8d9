"""The limits hold, tables stay small, and nobody with the right key is kept out."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import (
    BURST_S,
    FREE_FAILURES,
    HALF_LIFE_S,
    REMEMBERED,
    Admission,
    AdmissionLimits,
    Counts,
    Failures,
    Guesses,
    Rates,
    Refusal,
    Refused,
)

MAX_DELAY_S = 10.0
TIMES = st.lists(st.floats(0, 5), max_size=200)


@given(st.floats(0.1, 1000), st.integers(1, 50), TIMES)
def test_no_more_is_let_in_than_rate_and_burst(per_s: float, burst: int, pauses: list[float]) -> None:
    rates: Rates[str] = Rates(per_s, burst)
    now, taken = 0.0, []
    for pause in pauses:
        now += pause
        if not rates.wait_s("a", now):
            rates.take("a", now)
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - taken[first]) * per_s + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 50), st.integers(0, 100))
def test_who_waits_as_long_as_told_is_let_in(per_s: float, burst: int, tries: int) -> None:
    rates: Rates[str] = Rates(per_s, burst)
    for _ in range(tries):
        if not rates.wait_s("a", 0.0):
            rates.take("a", 0.0)
    assert rates.wait_s("b", 0.0) == 0, "and another has lost nothing"
    wait_s = rates.wait_s("a", 0.0)
    assert wait_s <= 1 / per_s + 1e-6
    assert rates.wait_s("a", wait_s + 1e-6) == 0


def test_a_burst_is_let_in_at_once() -> None:
    rates: Rates[str] = Rates(1.0, 5)
    for _ in range(5):
        assert rates.wait_s("a", 7.0) == 0
        rates.take("a", 7.0)
    assert rates.wait_s("a", 7.0) == 1


def test_tables_forget_who_was_not_seen_for_longest() -> None:
    rates: Rates[int] = Rates(1.0, 1, size=3)
    for key in (1, 2, 3, 1, 4):
        rates.take(key, 0.0)
    assert (len(rates), [key for key in (1, 2, 3, 4) if rates.wait_s(key, 0.0) > 0]) == (3, [1, 3, 4])
    failures: Failures[int] = Failures(size=3)
    for key in (1, 2, 3, 1, 4):
        failures.add(key, 0.0)
    assert (len(failures), [key for key in (1, 2, 3, 4) if failures.count(key, 0.0)]) == (3, [1, 3, 4])


def test_counts() -> None:
    counts = Counts(3, 2)
    for address in "aab":
        assert not counts.full
        counts.enter(address)
    assert (counts.full, counts.full_for("a"), counts.full_for("b"), len(counts)) == (True, True, False, 3)
    counts.leave("a")
    assert (counts.full, counts.full_for("a")) == (False, False)
    counts.leave("a")
    counts.leave("b")
    assert counts._each == {}


# keys


def attempts(guesses: Guesses, address: str, serial: str, number: int, now: float = 0.0) -> list[float]:
    """Wrong keys, one after the other at once, and how long each had to wait."""
    delays = []
    for _ in range(number):
        delays.append(guesses.delay_s(address, serial, now))
        guesses.wrong(address, serial, now)
    return delays


def test_wrong_keys_wait_longer_and_longer() -> None:
    delays = attempts(Guesses(MAX_DELAY_S), "192.0.2.1", "AC1", 20)
    assert delays[:FREE_FAILURES] == [0.0] * FREE_FAILURES
    assert delays[FREE_FAILURES:11] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert set(delays[11:]) == {MAX_DELAY_S}


def test_other_serials_from_the_same_address_wait_as_long() -> None:
    guesses = Guesses(MAX_DELAY_S)
    for n in range(20):
        guesses.wrong("192.0.2.1", f"AC{n}", 0.0)
    assert guesses.delay_s("192.0.2.1", "OTHER", 0.0) == MAX_DELAY_S


def test_a_network_of_ipv6_guesses_as_one() -> None:
    guesses = Guesses(MAX_DELAY_S)
    for n in range(20):
        guesses.wrong(f"2001:db8::{n:x}", "AC1", 0.0)
    assert guesses.delay_s("2001:db8::ffff", "AC1", 0.0) == MAX_DELAY_S


def test_what_is_no_key_counts_for_its_address() -> None:
    guesses = Guesses(MAX_DELAY_S)
    for _ in range(20):
        guesses.wrong("192.0.2.1", None, 0.0)
    assert guesses.delay_s("192.0.2.1", "AC1", 0.0) == MAX_DELAY_S


def test_it_fades() -> None:
    guesses = Guesses(MAX_DELAY_S)
    attempts(guesses, "192.0.2.1", "AC1", 1000)
    assert guesses.delay_s("192.0.2.1", "AC1", 2 * HALF_LIFE_S) == 0
    assert attempts(guesses, "192.0.2.1", "AC1", 3, 10 * HALF_LIFE_S) == [0.0] * 3


def test_an_address_that_failed_has_one_try_at_a_serial_that_many_guess() -> None:
    guesses = Guesses(MAX_DELAY_S)
    for n in range(20):
        guesses.wrong(f"192.0.2.{n}", "AC1", 0.0)
    assert guesses.delay_s("192.0.2.1", "AC1", 0.0) == MAX_DELAY_S
    assert guesses.delay_s("192.0.2.1", "AC2", 0.0) == 0


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["AC1", "AC2"]), st.floats(0, 60))))
def test_a_clean_address_never_waits_whatever_others_did(events: list[tuple[str, str, float]]) -> None:
    """The real device comes in at once while others guess its key from everywhere else."""
    guesses, now = Guesses(MAX_DELAY_S), 0.0
    for address, serial, pause in events:
        now += pause
        guesses.wrong(address, serial, now)
    assert guesses.delay_s("device", "AC1", now) == 0


@given(st.lists(st.sampled_from(["AC2", "AC3", None]), max_size=50))
def test_a_device_known_at_its_address_never_waits_for_what_others_do_there(serials: list[str | None]) -> None:
    """A school has one address: who guesses the keys of other devices in it does not hold up this one."""
    guesses = Guesses(MAX_DELAY_S)
    guesses.right("school", "AC1")
    for serial in serials:
        guesses.wrong("school", serial, 0.0)
        guesses.wrong("elsewhere", "AC1", 0.0)
    assert guesses.delay_s("school", "AC1", 0.0) == 0


def test_whoever_guesses_from_where_the_device_is_makes_it_wait_but_not_longer_than_the_limit() -> None:
    guesses = Guesses(MAX_DELAY_S)
    guesses.right("school", "AC1")
    attempts(guesses, "school", "AC1", 1000)
    assert guesses.delay_s("school", "AC1", 0.0) == MAX_DELAY_S
    assert guesses.delay_s("school", "AC1", 2 * HALF_LIFE_S) == 0


def test_one_right_key_does_not_wipe_out_failures() -> None:
    guesses = Guesses(MAX_DELAY_S)
    attempts(guesses, "192.0.2.1", "AC1", 20)
    guesses.right("192.0.2.1", "MINE")
    assert guesses.delay_s("192.0.2.1", "AC1", 0.0) == MAX_DELAY_S


def test_guesses_of_many_serials_from_many_addresses_take_no_more_memory() -> None:
    guesses = Guesses(MAX_DELAY_S)
    for n in range(3 * REMEMBERED):
        guesses.wrong(f"a{n}", f"AC{n}", 0.0)
    assert len(guesses) == 2 * REMEMBERED


# handshakes and viewers


def admission(**limits: float) -> Admission:
    return Admission(AdmissionLimits(**limits))  # type: ignore[arg-type]


def test_handshakes_of_one_address_are_bounded_and_others_come_in() -> None:
    door = admission(handshakes_per_s=100.0, handshakes_per_address_per_s=1.0)
    flood = [door.handshake("192.0.2.1", 0.0) for _ in range(100)]
    assert flood.count(None) == BURST_S
    assert flood[-1] == Refused(Refusal.ADDRESS_HANDSHAKE_RATE, 1)
    assert door.handshake("192.0.2.2", 0.0) is None
    assert door.handshake("192.0.2.1", 1.0) is None


def test_handshakes_of_all_together_are_bounded_and_what_is_refused_costs_nobody_a_token() -> None:
    door = admission(handshakes_per_s=1.0, handshakes_per_address_per_s=1.0)
    answers = [door.handshake(f"192.0.2.{n}", 0.0) for n in range(100)]
    assert answers.count(None) == BURST_S
    assert answers[-1] == Refused(Refusal.HANDSHAKE_RATE, 1)
    assert len(door._rates) == BURST_S


def test_when_to_come_again_is_a_whole_number_of_seconds_and_enough() -> None:
    door = admission(handshakes_per_address_per_s=0.3)
    now, refused = 0.0, None
    while refused is None:
        refused = door.handshake("192.0.2.1", now)
    assert refused.retry_after_s == 4
    assert door.handshake("192.0.2.1", now + refused.retry_after_s) is None


@pytest.mark.parametrize(
    ("address", "expected"), [(lambda n: "192.0.2.1", Refusal.ADDRESS_VIEWERS), (lambda n: f"a{n}", Refusal.VIEWERS)]
)
def test_viewers(address: Callable[[int], str], expected: Refusal) -> None:
    door = admission(max_viewers=4, max_viewers_per_address=3)
    answers = [door.view(address(n)) for n in range(6)]
    places = 3 if expected is Refusal.ADDRESS_VIEWERS else 4
    assert answers == [None] * places + [expected] * (6 - places)
    door.unview(address(0))
    assert door.view(address(0)) is None
