"""A reconnect storm at one node, and its death, are not felt by the devices of another.

`GATEWAY_TEST_STORM_DEVICES` makes it as large as the machine bears.
"""

import os
from typing import Final

from gateway.brokers import BrokerUnavailable
from tests.bench.neighbours import measure
from tests.clients.install import missing

DEVICES: Final = int(os.environ.get("GATEWAY_TEST_STORM_DEVICES", "300"))
NEIGHBOURS: Final = 40


async def test_a_storm_at_one_node_is_not_felt_at_another() -> None:
    try:
        seen = await measure(DEVICES, NEIGHBOURS)
    except BrokerUnavailable as problem:
        missing(str(problem))
    assert seen.taken_over == DEVICES
    assert seen.neighbours_disconnected == 0
    assert set(seen.neighbours_commands) == {"acked"}
    assert seen.neighbours_commands["acked"] >= 2 * NEIGHBOURS
    assert set(seen.readiness) == {200}
