"""python-socketio 4.6.1 against the server: old_python_client.py URL TRANSPORT. Prints a line per thing that worked."""

import sys
import threading
from typing import Any

import socketio  # of the environment that this runs in

TEXT = "中文 班牌 😀"


def main(url: str, transport: str) -> None:
    # If the server closes before its threads have noted that it leaves, it would come back, and never end.
    client = socketio.Client(reconnection=False)
    answered = threading.Event()

    def question(text: str) -> tuple[Any, ...]:
        return text, {"ack": True}

    def answer(*got: Any) -> None:
        assert got == (TEXT, {"ack": True}), got
        answered.set()

    client.on("question", question)
    client.on("answered", answer)
    client.connect(url, transports=[transport], socketio_path="socket/socket.io")
    print("connects")
    assert client.call("echo", TEXT) == TEXT
    print("text and its ack")
    client.emit("ask me", TEXT)
    assert answered.wait(10)
    print("an event of the server and its ack")
    assert client.call("echo", {"data": b"\x00\xff"}) == {"data": b"\x00\xff"}
    print("binary both ways")
    assert client.call("echo", "长" * 50_000) == "长" * 50_000
    print("150 KB both ways")
    client.disconnect()


main(*sys.argv[1:])
