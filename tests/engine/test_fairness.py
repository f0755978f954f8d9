"""A peer that sends without a pause takes its turn with the others: theirs are not handled after all of its own."""

import asyncio

import aiohttp
import pytest

from gateway.engine.websocket import FRAMES_PER_TURN

from .harness import Bench, Peer, raw_websocket

FLOOD = 4000
FEW = 40 * FRAMES_PER_TURN  # of the flood: some turns pass until a frame has come through the kernel


def masked(opcode: int, text: str = "") -> bytes:
    """A frame of a client, with a mask that changes nothing."""
    return bytes([0x80 | opcode, 0x80 | len(text), 0, 0, 0, 0]) + text.encode()


@pytest.mark.parametrize(
    "flood",
    [masked(1, "4x"), masked(1, "6"), masked(9), masked(10)],
    ids=["messages", "packets that say nothing", "pings", "pongs"],
)
async def test_a_flood_of_small_frames(calm: Bench, peer: Peer, flood: bytes) -> None:
    """One socket that nobody knew kept a node from all others for as long as it sent."""
    calm.echo = False
    _, writer = await raw_websocket(calm.url, peer.eio)
    bystander, _ = await peer.open_websocket()
    writer.write(flood * FLOOD + masked(1, "4last"))
    await bystander.send_str("4bystander")
    await calm.until("messages", 2 + FLOOD * (b"4x" in flood))
    assert calm.messages[-1] == "last"
    assert calm.messages.index("bystander") < FEW
    writer.close()
    await bystander.close()


async def test_a_flood_of_packets_in_one_body(calm: Bench, peer: Peer, http: aiohttp.ClientSession) -> None:
    calm.echo = False
    other = Peer(calm.url, http, peer.eio)
    bystander, _ = await other.open_websocket()
    await peer.open()
    flood = asyncio.create_task(peer.send(*["4x"] * FLOOD))
    await calm.until("messages")
    await bystander.send_str("4bystander")
    await flood
    await calm.until("messages", FLOOD + 1)
    assert calm.messages.index("bystander") < FEW
    await bystander.close()


async def test_a_ping_is_answered_with_its_own_data(calm: Bench, peer: Peer) -> None:
    reader, writer = await raw_websocket(calm.url, peer.eio)
    await reader.readuntil(b"}")
    writer.write(masked(9, "are you there"))
    assert await reader.readexactly(15) == b"\x8a\x0dare you there"
    writer.close()
