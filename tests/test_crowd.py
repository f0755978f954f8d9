"""A crowd keeps to its numbers, and lets those who are few in."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.crowd import Crowd


def test_of_one_address_the_oldest_goes() -> None:
    crowd: Crowd[int] = Crowd(most=100, most_each=2)
    assert [crowd.enter(n, "a") for n in range(4)] == [None, None, 0, 1]
    assert len(crowd) == 2


def test_when_all_places_are_taken_the_address_with_most_makes_room() -> None:
    crowd: Crowd[str] = Crowd(most=4, most_each=100)
    for n in range(3):
        assert crowd.enter(f"a{n}", "a") is None
    assert crowd.enter("b0", "b") is None
    assert crowd.enter("c0", "c") == "a0"
    assert crowd.enter("d0", "d") == "a1"
    assert crowd.enter("e0", "e") == "e0", "everybody is equal, so whoever was first stays"
    assert "e0" not in crowd
    crowd.leave("b0")
    assert crowd.enter("e0", "e") is None


def test_one_who_never_came_or_left_already_may_leave() -> None:
    crowd: Crowd[str] = Crowd(1, 1)
    crowd.leave("a")
    crowd.enter("a", "x")
    crowd.leave("a")
    crowd.leave("a")
    assert len(crowd) == 0


def test_addresses_of_one_network_are_one() -> None:
    crowd: Crowd[int] = Crowd(100, 1)
    assert crowd.enter(1, "2001:db8::1") is None
    assert crowd.enter(2, "2001:db8::2") == 1


@given(st.integers(1, 50), st.integers(1, 50))
def test_many_from_one_address_keep_nobody_else_out(most: int, others: int) -> None:
    crowd: Crowd[tuple[str, int]] = Crowd(most, most)
    for n in range(2 * most):
        crowd.enter(("flood", n), "flood")
    inside = 0
    for n in range(min(others, most - 1)):
        victim = crowd.enter(("guest", n), f"guest{n}")
        inside += victim != ("guest", n)
        for again in range(most):
            crowd.enter(("flood", 1000 * n + 2 * most + again), "flood")
    assert inside == min(others, most - 1)
    assert all(("guest", n) in crowd for n in range(inside)), "and the flood does not push them out again"


class Places(RuleBasedStateMachine):
    """Against lists: who is in, how many of each, and who has to go."""

    def __init__(self) -> None:
        super().__init__()
        self.crowd: Crowd[int] = Crowd(8, 3)
        self.inside: list[tuple[int, str]] = []
        self.next = 0

    @rule(address=st.sampled_from("abcdef"))
    def enter(self, address: str) -> None:
        item, self.next = self.next, self.next + 1
        each = Counter(where for _, where in self.inside)
        peak = max(each.values(), default=0)
        victim = self.crowd.enter(item, address)
        if each[address] >= 3:
            assert victim == next(who for who, where in self.inside if where == address)
        elif len(self.inside) < 8:
            assert victim is None
        elif peak <= each[address] + 1:
            assert victim == item
        else:
            (place,) = {where for who, where in self.inside if who == victim}
            assert each[place] == peak
            assert victim == next(who for who, where in self.inside if where == place)
        self.inside.append((item, address))
        self.inside = [(who, where) for who, where in self.inside if who != victim]

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.inside))
        self.inside.remove(gone)
        self.crowd.leave(gone[0])

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.inside) - 1))
        by, self.next = self.next, self.next + 1
        self.crowd.replace(self.inside[at][0], by)
        self.inside[at] = by, self.inside[at][1]

    @rule()
    def replace_one_who_left(self) -> None:
        self.crowd.replace(-1, -2)

    @invariant()
    def agrees(self) -> None:
        assert len(self.crowd) == len(self.inside)
        assert all(who in self.crowd for who, _ in self.inside)
        each = Counter(where for _, where in self.inside)
        assert {where: len(items) for where, items in self.crowd._each.items()} == each
        assert self.crowd._peak == max(each.values(), default=0)
        assert sum(map(len, self.crowd._with.values())) == len(each), "nothing is left of those who went"
        assert len(self.crowd._came_as) <= len(self.inside)


TestPlaces = Places.TestCase
