"""What simulated devices are like: the profiles that the command offers, and when a device comes back."""

import random

import pytest

from gateway.cli.simulate import PROFILES as OFFERED
from gateway.simulate.profiles import PROFILES, Backoff, Behaviour


def test_the_command_offers_each_profile() -> None:
    """It has their names itself, so that its help need not import them."""
    assert sorted(OFFERED) == sorted(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_what_its_name_says(name: str) -> None:
    devices = PROFILES[name]
    engines = {device.engine for device in devices}
    assert engines == {"steady": {4}, "modern": {4}, "old": {3}}.get(name, {3, 4})
    assert any(device.flapping for device in devices) == (name in ("flapping", "mixed"))
    assert any(device.ack_delay_s[1] for device in devices) == (name in ("slow", "mixed"))
    assert any(device.reports for device in devices) == (name == "mixed")


def test_mixed_has_every_client_of_the_others() -> None:
    def clients(devices: tuple[Behaviour, ...]) -> set[tuple[int, tuple[str, ...]]]:
        return {(device.engine, device.transports) for device in devices}

    assert clients(PROFILES["mixed"]) == set().union(*map(clients, PROFILES.values()))


def test_the_pauses_of_socket_io_client() -> None:
    """1 s, doubled with each failure, give or take half of it, and 5 s at most."""
    backoff = Backoff()
    assert [backoff.delay_s(failures, lambda low, _: low) for failures in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert [backoff.delay_s(failures, lambda _, high: high) for failures in range(4)] == [1.5, 3, 5, 5]
    assert backoff.delay_s(10_000, random.Random(1).uniform) <= 5
