"""Whose address counts: nobody but a trusted proxy may say."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import Network
from gateway.proxies import Proxies, shared

ADDRESSES = st.ip_addresses().map(str)
OURS = Proxies([Network("10.0.0.0/8"), Network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # a stranger's header
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),  # what stands before it, it made up
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.2.3.4"], "198.51.100.1"),  # two proxies in a row
        ("10.0.0.1", ["10.9.9.9, 10.2.3.4"], "10.9.9.9"),  # a client of our own network
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8::0:1"], "2001:db8::1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::1%eth0", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, evil\r\n, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy_of_ours(peer: str, forwarded: list[str], client: str) -> None:
    assert OURS.client(peer, forwarded) == client


@given(ADDRESSES, st.lists(ADDRESSES | st.text()))
def test_without_trusted_proxies_the_peer_is_the_client(peer: str, forwarded: list[str]) -> None:
    assert Proxies().client(peer, forwarded) == Proxies().client(peer, [])


@given(ADDRESSES, st.lists(ADDRESSES | st.text()))
def test_whatever_is_claimed_the_client_is_an_address(peer: str, forwarded: list[str]) -> None:
    ipaddress.ip_address(OURS.client(peer, forwarded))


def test_a_hop_too_many_is_not_believed() -> None:
    chain = ["198.51.100.1", *(f"10.0.1.{n}" for n in range(32))]
    assert OURS.client("10.0.0.1", [", ".join(chain)]) == "10.0.1.0"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
    ],
)
def test_a_network_of_ipv6_is_one_address(address: str, key: str) -> None:
    assert shared(address) == key
