"""Nodes as processes of their own, without the second of CPU that Python takes to import what a node needs.

A nursery is a Python that has imported it all; it forks when it is asked to, and what it forks runs the command line
with its own arguments, environment, directory and stderr. All but the name in its /proc/PID/cmdline is as from a shell.
"""

import asyncio
import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUEST_MAX_BYTES = 2**17  # of arguments and environment
Told = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Forked:
    """What `asyncio.subprocess.Process` is, of a process that a nursery has forked."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader, status: Told) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._end(*status))

    async def _end(self, status: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        self.returncode = int(await status.readline())
        writer.close()
        await writer.wait_closed()
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def fork_gateway(arguments: Sequence[str], env: Mapping[str, str], *, debug: bool) -> Forked:
    """Run `gateway` with these arguments, by `python -X dev` or plain Python, and return it with its stderr."""
    ours, status = socket.socketpair()
    reading, writing = os.pipe()
    try:
        request = json.dumps([[*arguments], {**env}, str(Path.cwd())]).encode()
        assert len(request) <= REQUEST_MAX_BYTES
        socket.send_fds(_nursery(debug), [request], [status.fileno(), writing])
    finally:
        status.close()
        os.close(writing)
    told = await asyncio.open_unix_connection(sock=ours)
    stderr = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stderr), os.fdopen(reading, "rb", 0)
    )
    return Forked(int(await told[0].readline()), stderr, told)


@cache
def _nursery(debug: bool) -> socket.socket:
    """Start a nursery, which ends with this process; where to ask it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = (sys.executable, *(("-X", "dev") if debug else ()), "-m", "tests.e2e.forked", str(its.fileno()))
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=(its.fileno(),))
    its.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _asked(requests: socket.socket) -> list[str] | None:
    """Fork for each request: return its arguments in what becomes a node, and None in the nursery at its end."""
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, (*descriptors,), _, _ = socket.recv_fds(requests, REQUEST_MAX_BYTES, 2)
        if not request:
            return None
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status, stderr = descriptors
            requests.close()
            if not (pid := os.fork()):
                os.close(status)
                os.dup2(stderr, 2)
                os.close(stderr)
                return _become(request)
            os.close(stderr)
            os.write(status, f"{pid}\n".encode())
            _, how = os.waitpid(pid, 0)
            os.write(status, f"{os.waitstatus_to_exitcode(how)}\n".encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(*_: object) -> None:
    """Wait for those who have waited for their nodes, so that their time counts as that of the tests."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(request: bytes) -> list[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments, environ, directory = json.loads(request)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(directory)
    return [str(argument) for argument in arguments]


def _main() -> None:
    from gateway.__main__ import main

    import_module("gateway.app")  # which `serve` imports when it is run
    gc.freeze()  # what is shared stays shared
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        arguments = _asked(requests)
    if arguments is not None:
        main(arguments, prog_name="gateway")


if __name__ == "__main__":
    _main()
