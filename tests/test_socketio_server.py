"""The seam with python-socketio: fails when an upgrade changes what gateway/socketio_server.py uses of its insides."""

import inspect
import json
from importlib.metadata import version

import pytest
import socketio
import socketio.packet
from hypothesis import given
from hypothesis import strategies as st
from socketio.base_manager import BaseManager
from socketio.base_server import BaseServer

from gateway.socketio_server import Json, Manager, Packet, Server, to_ascii


def test_the_version_is_one_that_the_seam_was_written_for() -> None:
    assert version("python-socketio").startswith("5.18.")


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (Server, socketio.AsyncServer, "_engineio_server_class"),
        (Server, socketio.AsyncServer, "_handle_eio_connect"),
        (Server, socketio.AsyncServer, "_handle_eio_disconnect"),
        (Server, socketio.AsyncServer, "_handle_connect"),
        (Server, socketio.AsyncServer, "_send_packet"),
        (Manager, socketio.AsyncManager, "pre_connect"),
        (Manager, BaseManager, "basic_enter_room"),
        (Manager, BaseManager, "basic_leave_room"),
    ],
)
def test_what_is_overridden_is_there_and_takes_the_same_arguments(ours: type, theirs: type, name: str) -> None:
    mine, original = getattr(ours, name), getattr(theirs, name)
    assert list(inspect.signature(mine).parameters) == list(inspect.signature(original).parameters)
    assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(original)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_handle_connect", ["self", "eio_sid", "namespace", "data"]),
        ("_handle_disconnect", ["self", "eio_sid", "namespace", "reason"]),
        ("_handle_event", ["self", "eio_sid", "namespace", "id", "data"]),
        ("_handle_ack", ["self", "eio_sid", "namespace", "id", "data"]),
    ],
)
def test_what_is_called_takes_the_same_arguments(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(socketio.AsyncServer, name)).parameters) == parameters


def test_the_base_still_makes_its_engine_and_its_tables_as_we_expect() -> None:
    source = inspect.getsource(BaseServer.__init__)
    for statement in (
        "self.eio = self._engineio_server_class()(**engineio_options)",
        "self.eio.on('connect', self._handle_eio_connect)",
        "self.eio.on('disconnect', self._handle_eio_disconnect)",
        "self._binary_packet = {}",
    ):
        assert statement in source
    assert BaseManager().pending_connect == BaseManager().pending_disconnect == BaseManager().callbacks == {}


def test_our_json_is_ours_alone() -> None:
    assert socketio.packet.Packet.json is not Json
    packet = Packet(socketio.packet.EVENT, data=["a", {"b": "二😀"}], id=1)
    assert packet.encode() == '21["a",{"b":"\\u4e8c\\ud83d\\ude00"}]'


@given(st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_ascii_json_says_the_same(value: object) -> None:
    text = to_ascii(json.dumps(value, ensure_ascii=False).encode())
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"\ud800"', "1e999", "nul"])
def test_bad_json_is_a_value_error(text: str) -> None:
    """The one exception that is expected of a packet's JSON."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        Json.loads(text)


def test_leaving_costs_the_rooms_of_the_one_who_leaves() -> None:
    """The original looks into each room: a mass disconnect of n sockets would cost n²."""
    manager = Manager()
    for number in range(100):
        manager.basic_enter_room(f"s{number}", "/", None, eio_sid=f"e{number}")
        manager.basic_enter_room(f"s{number}", "/", f"s{number}", eio_sid=f"e{number}")
    touched: list[str | None] = []
    leave = BaseManager.basic_leave_room

    def counted(self: BaseManager, sid: str, namespace: str, room: str | None) -> None:
        touched.append(room)
        leave(self, sid, namespace, room)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseManager, "basic_leave_room", counted)
        manager.basic_disconnect("s7", "/")
    assert set(touched) == {None, "s7"}
    assert manager.eio_sid_from_sid("s7", "/") is None
