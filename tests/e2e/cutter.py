"""What stands between a node and its broker, and fails."""

import asyncio

import mqtt5


class Cutter:
    """A TCP proxy to the broker.

    Attributes:
        cut_after_bytes: every connection is cut when so many bytes have come from the broker on any.
        refuse_with: the reason code of the CONNACK that every new connection is refused with.
        spared: how many of the oldest connections `cut` leaves alone; the first is the node's own.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order of age
        self.url = ""
        self.cut_after_bytes: int | None = None
        self.cuts = 0
        self.refuse_with: mqtt5.ConnAckReasonCode | None = None
        self.refusals = 0
        self.spared = 0

    async def __aenter__(self) -> "Cutter":
        await self.up(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self, port: int | None = None) -> None:
        """Listen, again on the same port."""
        port = int(self.url.rpartition(":")[2]) if port is None else port
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"mqtt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def down(self) -> None:
        """Cut every connection, and take no new ones."""
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Cut every connection that is not spared."""
        tasks = tuple(self._tasks)[self.spared :]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        if self.refuse_with is not None:
            self.refusals += 1
            await reader.read(65_536)
            writer.write(mqtt5.ConnAckPacket(reason_code=self.refuse_with).write())
            await writer.drain()
            writer.close()
            self._tasks.pop(task, None)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionError:
            self._tasks.pop(task, None)
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, up_writer, counted=False))
                group.create_task(self._pipe(up_reader, writer, counted=True))
        except* (ConnectionError, EOFError):
            pass
        finally:
            self._tasks.pop(task, None)
            for one in (writer, up_writer):
                one.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        while data := await reader.read(4096):
            if counted and self.cut_after_bytes is not None:
                allowed, self.cut_after_bytes = self.cut_after_bytes, self.cut_after_bytes - len(data)
                if self.cut_after_bytes <= 0:
                    self.cut_after_bytes = None
                    self.cuts += 1
                    writer.write(data[:allowed])
                    await writer.drain()
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise EOFError
