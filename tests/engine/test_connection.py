"""The short roads of a connection: a message goes in and out as any packet does."""

import asyncio
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.codec import EIO3, EIO4, Generation, Malformed, decode_frame
from gateway.engine.connection import Connection
from gateway.engine.effects import Transport
from gateway.engine.options import EngineOptions
from gateway.engine.session import Session
from gateway.engine.websocket import WebSocket

OPTIONS = EngineOptions()
MESSAGES = st.text() | st.text().map(lambda text: text.encode().decode("latin-1"))  # as 1.x clients encode it
FRAMES = MESSAGES | MESSAGES.map(lambda text: "4" + text) | st.sampled_from("0123456") | st.binary()


class Wire(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It takes what comes."""

    def get_write_buffer_size(self) -> int:
        return 0


class World:
    """A connection on a WebSocket, and what its application hears."""

    def __init__(self, generation: Generation) -> None:
        self.heard: list[str | bytes] = []
        self.closed: list[str] = []
        app = SimpleNamespace(
            options=OPTIONS,
            on_connected=lambda _: None,
            on_message=lambda _, data: self.heard.append(data),
            on_closed=lambda _, reason: self.closed.append(reason),
            watch=lambda *_: None,
            forget=lambda _: None,
        )
        self.wire = Wire()
        self.socket = WebSocket(self.wire, OPTIONS, 0, b"")
        self.connection = Connection(app, Session("sid", generation, Transport.WEBSOCKET, OPTIONS, 0.0), {})
        self.connection.open(self.socket)
        self.connection.session.admit()
        self.deadline = self.connection.session.deadline

    def takes(self, frame: str | bytes) -> bool:
        """Whether a frame is any."""
        try:
            self.connection.hear(self.socket, frame)
        except Malformed:
            return False
        return True

    def takes_as_a_packet(self, frame: str | bytes) -> bool:
        """The same, on the road of any packet."""
        try:
            packet = decode_frame(self.connection.generation, frame)
        except Malformed:
            return False
        self.connection.receive(packet, monotonic())
        return True

    @property
    def state(self) -> tuple[Any, ...]:
        """All that can be seen of it, and whether its deadline has moved."""
        session = self.connection.session
        return self.heard, self.closed, self.wire.written, session.closed, session.deadline == self.deadline


@pytest.mark.parametrize("generation", [EIO3, EIO4])
async def test_a_message_comes_in_as_any_packet_does(generation: Generation) -> None:
    @given(st.lists(FRAMES, max_size=4))
    def same(frames: list[str | bytes]) -> None:
        short, general = World(generation), World(generation)
        for frame in frames:
            assert short.takes(frame) == general.takes_as_a_packet(frame)
            assert short.state == general.state

    same()


@pytest.mark.parametrize("generation", [EIO3, EIO4])
async def test_a_message_goes_out_as_any_packet_does(generation: Generation) -> None:
    @given(st.lists(st.text() | st.binary(), max_size=4))
    def same(messages: list[str | bytes]) -> None:
        short, general = World(generation), World(generation)
        for message in messages:
            short.connection.send(message)
            general.connection.apply(general.connection.session.send(message))
        assert short.state == general.state

    same()


async def test_nothing_comes_in_or_goes_out_once_it_is_closed() -> None:
    world = World(EIO4)
    world.connection.close()
    written = list(world.wire.written)
    world.connection.send("a")
    world.connection.hear(world.socket, "4a")
    assert (world.heard, world.wire.written) == ([], written)


async def test_who_does_not_take_a_message_is_slow() -> None:
    world = World(EIO4)
    world.socket.pause_writing()
    world.connection.send("a")
    assert world.connection.session.closed == "slow"
