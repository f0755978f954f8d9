"""The seam with python-socketio: fails when an upgrade changes what gateway/sockets.py uses of its insides."""

import inspect

import engineio
import pytest
import socketio
import socketio.packet

from gateway.sockets import _Json, _Packet, _Server


def test_the_version_is_one_that_the_seam_was_written_for() -> None:
    from importlib.metadata import version

    assert version("python-socketio").startswith("5.18.")


@pytest.mark.parametrize("name", ["_handle_eio_message", "_handle_event", "_handle_ack"])
def test_what_is_overridden_is_there_and_takes_the_same_arguments(name: str) -> None:
    ours, theirs = getattr(_Server, name), getattr(socketio.AsyncServer, name)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


def test_the_server_still_calls_what_is_overridden() -> None:
    source = inspect.getsource(socketio.AsyncServer)
    for call in ("self._handle_event(eio_sid,", "self._handle_ack(eio_sid,", "self._handle_eio_message)"):
        assert call in source or call in inspect.getsource(socketio.base_server.BaseServer)


def test_the_engine_has_what_a_synchronous_write_needs() -> None:
    server = engineio.AsyncServer(async_mode="aiohttp")
    assert isinstance(server.sockets, dict)
    socket = engineio.async_socket.AsyncSocket(server, "sid")
    assert (socket.closed, socket.closing) == (False, False)
    socket.queue.put_nowait(engineio.packet.Packet(engineio.packet.MESSAGE, data="2[]"))


def test_our_json_is_ours_alone() -> None:
    assert _Packet.json is _Json
    assert socketio.packet.Packet.json is not _Json
    assert _Packet(socketio.packet.EVENT, data=["a", {"b": "二"}], id=1).encode() == '21["a",{"b":"二"}]'


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"\ud800"', "1e999", "nul"])
def test_bad_json_is_a_value_error(text: str) -> None:
    """The one exception that is expected of a packet's JSON."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        _Json.loads(text)
