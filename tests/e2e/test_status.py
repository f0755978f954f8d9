"""`gateway status`, by the broker and by the admin port."""

import json

from gateway.brokers import LocalBroker
from tests.e2e.test_cli import command
from tests.e2e.world import Service, device, gateway


async def test_nodes_as_the_broker_knows_them(broker: LocalBroker, api: Service) -> None:
    assert await command(broker, "status") == (1, [], ["no node with prefix gw/v1"])
    async with gateway(broker.url, "--node", "gw-2"):
        async with gateway(broker.url, "--node", "gw-1") as node, device(node, "AC1"):
            status, lines, errors = await command(broker, "status")
            assert (status, errors) == (0, [])
            assert lines[0].split() == ["node", "state", "version", "started", "devices", "sockets"]
            assert [line.split()[:2] for line in lines[1:]] == [["gw-1", "online"], ["gw-2", "online"]]
            assert len(lines[1].split()) == 6
        status, lines, _ = await command(broker, "status", "--json")
        assert status == 1, "one of them is gone"
        assert [(node["node"], node["online"]) for node in map(json.loads, lines)] == [("gw-1", False), ("gw-2", True)]


async def test_one_node_as_its_admin_port_says(broker: LocalBroker) -> None:
    secret = "0123456789abcdef-secret"
    environ = {"GATEWAY_ADMIN_TOKEN_ENV": "OPS", "OPS": secret}
    async with gateway(broker.url, environ=environ) as node, device(node, "AC1", transports=["websocket"]):
        status, lines, errors = await command(broker, "status", "--admin", node.admin)
        assert (status, lines) == (2, [])
        assert "401" in errors[0]
        status, lines, errors = await command(broker, "status", "--admin", node.admin, **environ)
        assert (status, errors) == (0, [])
        assert lines[0] == "ready"
        assert {"devices_online", "1"} in [set(line.split()) for line in lines]
        await broker.stop()
        await node.logged("broker lost")
        status, lines, _ = await command(broker, "status", "--admin", node.admin, "--json", **environ)
        said = json.loads(lines[0])
        assert (status, said["ready"], said["sockets"]) == (1, False, 1)
        assert "broker" in said["reasons"][0]
    status, _, errors = await command(broker, "status", "--admin", node.admin)
    assert status == 2
    assert "does not answer" in errors[0]
    status, _, errors = await command(broker, "status")
    assert status == 2
    assert "is a broker there?" in errors[0]
