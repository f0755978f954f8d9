"""`status`: how the nodes are, by the broker, or one of them by its admin port."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli.options import AS_JSON, BROKER, PREFIX, Refused, asking_the_broker, broker_tls, check_broker
from gateway.cli.terminal import printable

if TYPE_CHECKING:
    from gateway.bodies import NodeStatus

TIMEOUT_S: Final = 10.0
COLUMNS: Final = ("node", "state", "version", "started", "devices", "sockets")
NUMBERS: Final = {  # what is shown of a node's metrics: name → series
    "devices_online": ("gateway_devices", {"presence": "online"}),
    "devices_away": ("gateway_devices", {"presence": "away"}),
    "sockets": ("gateway_sockets", {}),
    "links_down": ("gateway_links", {"state": "down"}),
    "commands_in_flight": ("gateway_commands_in_flight", {}),
    "commands_held": ("gateway_commands_held", {}),
    "held_oldest_age_s": ("gateway_held_oldest_age_seconds", {}),
    "waiting_publish_bytes": ("gateway_waiting_publish_bytes", {}),
    "memory_bytes": ("process_resident_memory_bytes", {}),
}


@click.command()
@click.option("--admin", metavar="URL", help="Ask one node at its admin port, such as http://127.0.0.1:9464.")
@BROKER
@PREFIX
@AS_JSON
def status(admin: str | None, url: str, prefix: str, as_json: bool) -> None:
    """Print how the nodes are.

    The broker retains what each node last said of itself, with numbers that are up to 5 s old, and that it is gone
    if it went without a goodbye. With --admin one node is asked whether it is ready, and if not why, and for its
    numbers; if its pages want a token, that is read from the variable that GATEWAY_ADMIN_TOKEN_ENV names.

    Exit status 0 if there is a node and all are well, 1 if not, 2 if nobody can be asked.

    \b
    gateway status
    gateway status --admin http://127.0.0.1:9464 --json
    """
    if admin is not None:
        if not admin.startswith(("http://", "https://")):
            raise Refused(f"--admin: expected a URL such as http://127.0.0.1:9464, got {admin!r}")
        sys.exit(_one(admin, as_json))
    check_broker(url)
    tls = broker_tls(url)

    async def ask() -> "dict[str, NodeStatus]":
        from gateway.fleet.nodes import node_statuses

        return await node_statuses(url, prefix=prefix, tls=tls)

    with asking_the_broker():
        nodes = asyncio.run(ask())
    sys.exit(_all(list(nodes.values()), prefix, as_json))


def _all(nodes: "list[NodeStatus]", prefix: str, as_json: bool) -> int:
    nodes.sort(key=lambda node: node.node)
    if as_json:
        import msgspec

        for node in nodes:
            click.echo(printable(msgspec.json.encode(node).decode()))
    else:
        rows = [COLUMNS, *(_row(node) for node in nodes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows if nodes else ():
            click.echo(
                printable("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
            )
    if not nodes:
        click.echo(f"no node with prefix {prefix}", err=True)
    return 0 if nodes and all(node.online for node in nodes) else 1


def _row(node: "NodeStatus") -> tuple[str, ...]:
    if not node.online:
        return (node.node, "offline", "", "", "", "")
    return (node.node, "online", node.version, node.started, str(node.devices), str(node.sockets))


def _one(admin: str, as_json: bool) -> int:
    import aiohttp

    try:
        said = asyncio.run(_ask(admin.rstrip("/")))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Refused(f"--admin: {admin} does not answer: {error}") from None
    if as_json:
        import msgspec

        click.echo(printable(msgspec.json.encode(said).decode()))
        return 0 if said["ready"] else 1
    ready, reasons = said.pop("ready"), said.pop("reasons")
    click.echo(printable("ready" if ready else f"not ready: {'; '.join(reasons)}"))
    for name, number in said.items():
        click.echo(printable(f"{name:<22}{number:.15g}"))
    return 0 if ready else 1


async def _ask(admin: str) -> dict[str, Any]:
    """What a node says at its admin port: readiness with reasons, and NUMBERS.

    Raises:
        aiohttp.ClientError, ValueError: it does not answer, or with something else.
    """
    import aiohttp
    from prometheus_client.parser import text_string_to_metric_families

    token = os.environ.get(os.environ.get("GATEWAY_ADMIN_TOKEN_ENV", ""), "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        async with http.get(f"{admin}/metrics") as response:
            response.raise_for_status()
            text = await response.text()
        async with http.get(f"{admin}/readyz") as response:
            ready = await response.json()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    numbers = {
        name: sum(s.value for s in samples if s.name == series and labels.items() <= s.labels.items())
        for name, (series, labels) in NUMBERS.items()
    }
    return {"ready": ready["ready"], "reasons": ready["reasons"], **{name: round(n, 3) for name, n in numbers.items()}}
