"""Verdicts that are remembered: for how long, how many, and what pushes out what."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.base import Verdict
from gateway.auth.cache import Verdicts

KINDS = (Verdict.ACCEPTED, Verdict.DENIED)


def test_each_kind_is_remembered_for_its_time() -> None:
    verdicts = Verdicts(60.0, 5.0, 10)
    verdicts.put(b"right", Verdict.ACCEPTED, 100.0)
    verdicts.put(b"wrong", Verdict.DENIED, 100.0)
    verdicts.put(b"nobody", Verdict.UNAVAILABLE, 100.0)
    assert [verdicts.get(name, 104.9) for name in (b"right", b"wrong", b"nobody")] == [*KINDS, None]
    assert verdicts.get(b"wrong", 105.0) is None
    assert verdicts.get(b"right", 159.9) is Verdict.ACCEPTED
    assert verdicts.get(b"right", 160.0) is None


def test_zero_is_not_at_all() -> None:
    verdicts = Verdicts(0.0, 0.0, 10)
    for kind in KINDS:
        verdicts.put(b"x", kind, 0.0)
        assert verdicts.get(b"x", 0.0) is None
    assert len(verdicts) == 0


def test_the_last_verdict_counts() -> None:
    verdicts = Verdicts(60.0, 60.0, 10)
    for kind in (Verdict.ACCEPTED, Verdict.DENIED, Verdict.ACCEPTED):
        verdicts.put(b"x", kind, 0.0)
        assert verdicts.get(b"x", 1.0) is kind
    verdicts.put(b"x", Verdict.UNAVAILABLE, 2.0)
    assert verdicts.get(b"x", 2.0) is None


def test_a_flood_of_wrong_keys_pushes_out_no_right_one() -> None:
    verdicts = Verdicts(60.0, 60.0, 10)
    verdicts.put(b"right", Verdict.ACCEPTED, 0.0)
    for number in range(1000):
        verdicts.put(b"%d" % number, Verdict.DENIED, 0.0)
    assert verdicts.get(b"right", 1.0) is Verdict.ACCEPTED
    assert len(verdicts) == 11
    assert verdicts.get(b"0", 1.0) is None
    assert verdicts.get(b"999", 1.0) is Verdict.DENIED


@given(st.lists(st.tuples(st.binary(max_size=1), st.sampled_from([*KINDS, Verdict.UNAVAILABLE]), st.integers(0, 9))))
def test_it_says_what_a_plain_dictionary_says_or_nothing(steps: list[tuple[bytes, Verdict, int]]) -> None:
    verdicts = Verdicts(20.0, 10.0, 5)
    known: dict[bytes, tuple[Verdict, float]] = {}
    now = 0.0
    for digest, verdict, pause in steps:
        now += pause
        verdicts.put(digest, verdict, now)
        known[digest] = verdict, now + {Verdict.ACCEPTED: 20.0, Verdict.DENIED: 10.0}.get(verdict, 0.0)
        assert len(verdicts) <= 10
        for one, (kind, until) in known.items():
            assert verdicts.get(one, now) in ({None, kind} if until > now else {None})
        assert (verdicts.get(digest, now) is verdict) == (verdict in KINDS)
