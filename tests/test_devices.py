"""Which devices are slowed: those that flap between nodes."""

from gateway.devices import FLAP_MOVES, FLAP_WAIT_MAX_S, FLAP_WINDOW_S, FLAPS_REMEMBERED, Flaps


def test_a_device_that_roams_is_not_slowed() -> None:
    flaps = Flaps()
    for hour in range(10):
        assert flaps.delay_s("AC1", hour * 3600.0) == 0
        assert flaps.moved("AC1", hour * 3600.0) == 1


def test_a_device_that_flaps_waits_longer_each_time_and_is_forgiven() -> None:
    flaps = Flaps()
    delays = []
    for second in range(FLAP_MOVES + 7):
        flaps.moved("AC1", float(second))
        delays.append(flaps.delay_s("AC1", float(second)))
    assert delays == [0] * (FLAP_MOVES - 1) + [1, 2, 4, 8, 16, FLAP_WAIT_MAX_S, FLAP_WAIT_MAX_S, FLAP_WAIT_MAX_S]
    assert flaps.delay_s("AC1", second + FLAP_WINDOW_S) == 0
    assert flaps.delay_s("AC2", float(second)) == 0


def test_memory_of_moves_is_bounded() -> None:
    flaps = Flaps()
    for number in range(FLAPS_REMEMBERED + 10):
        flaps.moved(f"AC{number}", 0.0)
    assert len(flaps._moves) == FLAPS_REMEMBERED
